"""OpenSimplex noise on a fixed grid, many worlds fast.

Where a cell lies in the simplex lattice does not depend on the world's seed, only the gradients do. So the geometry is
recorded once per process and grid (about half a second), by running opensimplex's own function with a recorder in place
of its last step; the noise of another seed is then a few array look-ups (0.1 ms for 64x64 points).
"""

from __future__ import annotations

import types
from array import array
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MULTIPLIER, _INCREMENT, _WORD = 6364136223846793005, 1442695040888963407, (1 << 64) - 1


class Gradients(NamedTuple):
    """A seed's permutation of 256 lattice points, and the gradient at each."""

    permutation: NDArray[np.uint8]
    x: Floats
    y: Floats
    z: Floats


def gradients(seed: int) -> Gradients:
    """The tables `opensimplex` makes of a seed >= 0 (its shuffle is a 64-bit linear congruential generator)."""
    word = seed
    for _ in range(3):
        word = (word * _MULTIPLIER + _INCREMENT) & _WORD
    source = list(range(256))
    permutation = [0] * 256
    for i in range(255, -1, -1):
        word = (word * _MULTIPLIER + _INCREMENT) & _WORD
        signed = word - (1 << 64) if word >> 63 else word
        pick = (signed + 31) % (i + 1)
        permutation[i] = source[pick]
        source[pick] = source[i]
    vectors = _gradient_vectors()[[p % 24 for p in permutation]]
    x, y, z = (np.ascontiguousarray(vectors[:, axis]) for axis in range(3))
    return Gradients(np.array(permutation, np.uint8), x, y, z)


@lru_cache(maxsize=1)
def _gradient_vectors() -> Floats:
    from opensimplex.constants import GRADIENTS3

    return np.asarray(GRADIENTS3, np.float64).reshape(-1, 3)


class NoiseField:
    """`opensimplex.noise3` at fixed points, for any seed.

    A point's noise is a sum over lattice vertices. Slot k holds the k-th vertex of every point that has so many;
    points are ordered by their number of vertices, so that each slot is a prefix. Many points share a vertex: gradients
    are looked up once per vertex.
    """

    __slots__ = ("_place", "_lattice", "_slots")

    def __init__(self, x: Floats, y: Floats, z: Floats) -> None:
        """Record the geometry at the points (x[i], y[i], z[i])."""
        counts, vertices = _record_vertices(x, y, z)
        order = np.argsort(-counts, kind="stable")
        self._place = np.empty(order.size, np.intp)
        self._place[order] = np.arange(order.size)
        first = np.cumsum(counts) - counts
        lattice, which = np.unique(vertices[:, :3] @ (65536, 256, 1), return_inverse=True)
        self._lattice = tuple((lattice // unit % 256).astype(np.uint8) for unit in (65536, 256, 1))
        self._slots: list[tuple[Any, ...]] = []
        for k in range(int(counts.max())):
            rows = first[order[: int((counts > k).sum())]] + k
            dx, dy, dz = (np.ascontiguousarray(axis) for axis in vertices[rows, 3:].T)
            attenuation = 2 - dx * dx - dy * dy - dz * dz
            attenuation *= attenuation
            self._slots.append((rows.size, which[rows], attenuation * attenuation, dx, dy, dz))

    def __call__(self, table: Gradients) -> Floats:
        """The noise at all points, in the order they were given. The order of the sums is opensimplex's own."""
        lattice_x, lattice_y, lattice_z = self._lattice
        at = table.permutation.take(lattice_x)
        at += lattice_y  # uint8 wraps around, as `& 0xFF` does
        at = table.permutation.take(at)
        at += lattice_z
        gradient_x, gradient_y, gradient_z = table.x.take(at), table.y.take(at), table.z.take(at)
        value = np.zeros(self._place.size)
        terms, parts = np.empty(value.size), np.empty(value.size)
        for reach, vertex, weight, dx, dy, dz in self._slots:
            term, part = terms[:reach], parts[:reach]
            gradient_x.take(vertex, out=term, mode="clip")  # nothing is clipped: the other modes copy `out`
            term *= dx
            gradient_y.take(vertex, out=part, mode="clip")
            part *= dy
            term += part
            gradient_z.take(vertex, out=part, mode="clip")
            part *= dz
            term += part
            term *= weight
            value[:reach] += term
        value /= 103
        return value.take(self._place)


def _record_vertices(x: Floats, y: Floats, z: Floats) -> tuple[NDArray[np.intp], Floats]:
    """How many vertices add to each point's noise, and a row for each, point after point: lattice x, y, z modulo 256,
    offset x, y, z."""
    from opensimplex import internals

    compiled = internals._noise3
    plain = getattr(compiled, "py_func", compiled)  # with numba installed, the function is a dispatcher
    seen = array("d")

    def recorder(
        _perm: object, _gradients: object, xsb: int, ysb: int, zsb: int, dx: float, dy: float, dz: float
    ) -> float:
        seen.extend((xsb & 255, ysb & 255, zsb & 255, dx, dy, dz))
        return 0.0

    noise3: Callable[..., float] = types.FunctionType(plain.__code__, {**plain.__globals__, "_extrapolate3": recorder})
    ends = []
    for point in zip(x.tolist(), y.tolist(), z.tolist(), strict=True):
        noise3(*point, None, None)
        ends.append(len(seen) // 6)
    return np.diff(ends, prepend=0), np.array(seen).reshape(-1, 6)
