"""OpenSimplex noise on a fixed grid, many worlds fast.

Where a cell lies in the simplex lattice does not depend on the world's seed, only the gradients do. So the geometry is
recorded once per process and grid (about half a second), by running opensimplex's own function with a recorder in place
of its last step; a field of another seed is then a few array look-ups (0.2 ms for 64x64 cells).
"""

from __future__ import annotations

import types
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
    points are ordered by their number of vertices, so that each slot is a prefix.
    """

    __slots__ = ("_size", "_order", "_slots")

    def __init__(self, x: Floats, y: Floats, z: float) -> None:
        """Record the geometry at the points (x[i], y[i], z)."""
        vertices = _record_vertices(x, y, z)
        counts = np.array([len(v) for v in vertices])
        self._size = len(vertices)
        self._order = np.argsort(-counts, kind="stable")
        self._slots: list[tuple[Any, ...]] = []
        for k in range(int(counts.max())):
            reach = int((counts > k).sum())
            rows = [vertices[i][k] for i in self._order[:reach]]
            lattice = [np.array([row[j] for row in rows], np.uint8) for j in range(3)]
            dx, dy, dz = (np.array([row[j] for row in rows], np.float64) for j in range(3, 6))
            attenuation = 2 - dx * dx - dy * dy - dz * dz
            attenuation *= attenuation
            self._slots.append((reach, *lattice, attenuation * attenuation, dx, dy, dz))

    def __call__(self, table: Gradients) -> Floats:
        """The noise at all points, in the order they were given. The order of the sums is opensimplex's own."""
        permutation = table.permutation
        value = np.zeros(self._size)
        for reach, lattice_x, lattice_y, lattice_z, weight, dx, dy, dz in self._slots:
            at = permutation.take(lattice_x)
            at += lattice_y  # uint8 wraps around, as `& 0xFF` does
            at = permutation.take(at)
            at += lattice_z
            term = table.x.take(at)
            term *= dx
            part = table.y.take(at)
            part *= dy
            term += part
            part = table.z.take(at)
            part *= dz
            term += part
            term *= weight
            value[:reach] += term
        value /= 103
        result = np.empty(self._size)
        result[self._order] = value
        return result


def _record_vertices(x: Floats, y: Floats, z: float) -> list[list[tuple[Any, ...]]]:
    """Per point: (lattice x, y, z modulo 256, offset x, y, z) of each vertex that adds to its noise."""
    from opensimplex import internals

    compiled = internals._noise3
    plain = getattr(compiled, "py_func", compiled)  # with numba installed, the function is a dispatcher
    seen: list[tuple[Any, ...]] = []

    def recorder(
        _perm: object, _gradients: object, xsb: int, ysb: int, zsb: int, dx: float, dy: float, dz: float
    ) -> float:
        seen.append((xsb & 255, ysb & 255, zsb & 255, dx, dy, dz))
        return 0.0

    noise3: Callable[..., float] = types.FunctionType(plain.__code__, {**plain.__globals__, "_extrapolate3": recorder})
    vertices = []
    for point_x, point_y in zip(x.tolist(), y.tolist(), strict=True):
        seen.clear()
        noise3(point_x, point_y, z, None, None)
        vertices.append(list(seen))
    return vertices
