"""Numpy's legacy random stream in Python's clothes.

Stock crafter draws from one `numpy.random.RandomState`. Python's `random.Random` runs the same Mersenne Twister, and
`random()` equals `uniform()` bit for bit, so a `Random` put on the same state gives the same draws at a tenth of the
price per scalar.

Derived from crafter 1.8.3, MIT License, Copyright (c) 2021 Danijar Hafner.
"""

from __future__ import annotations

import threading
from random import Random

import numpy as np

State = tuple[int, ...]
"""624 words of the twister and the position in them."""


_seeded = np.random.RandomState()  # a new one for each seed would take most of the time
_lock = threading.Lock()


def seeded_stream(seed: int) -> Random:
    """A stream on the state of `RandomState(seed)`, for 0 <= seed < 2**32."""
    with _lock:
        _seeded.seed(seed)
        state = _seeded.get_state(legacy=False)["state"]
    return stream_at((*state["key"].tolist(), int(state["pos"])))


def stream_at(state: State) -> Random:
    """A stream on a state that `state_of` returned."""
    stream = Random()
    stream.setstate((3, state, None))
    return stream


def state_of(stream: Random) -> State:
    """The stream's state, to be kept."""
    return stream.getstate()[1]


def randint(stream: Random, n: int) -> int:
    """`RandomState.randint(0, n)`: masked words until one is small enough."""
    highest = n - 1
    if highest == 0:
        return 0
    mask = (1 << highest.bit_length()) - 1
    while True:
        value = stream.getrandbits(32) & mask
        if value <= highest:
            return value
