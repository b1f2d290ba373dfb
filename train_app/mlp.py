"""`crafter-mlp`, the baseline that a language model has to beat: a small network from one observation to one action.

It is stateless: no history, no thoughts, no map. Training is scikit-learn's (`train_app.workers.mlp`); what plays is
numpy alone, so the API process answers for it.

    codes     int16 [rows, CODES]: an observation as whole numbers, as it is kept
    features  float32 [rows, FEATURES]: the same for the network, cells and counts one-hot
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crafter_pipeline.environments import CRAFTER
from crafter_pipeline.errors import ConfigError, DataError
from crafter_pipeline.expert import ACHIEVEMENTS, ACTIONS, ITEMS, KINDS, Decision, View
from crafter_pipeline.scripted import view_of
from train_app.builtin import drawn, messages_of

FILE = "mlp.npz"
TEMPERATURE = 0.5
"""Of a request that names none: the most likely action alone runs in circles, all of its doubt loses its way."""

_ROWS, _COLUMNS = 7, 9
_CELLS = _ROWS * _COLUMNS
_FACING = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_FRONT = [(_ROWS // 2 + dy) * _COLUMNS + _COLUMNS // 2 + dx for dx, dy in _FACING.values()]
"""The cell that each direction faces."""
_KIND_CODES = {kind: code for code, kind in enumerate(KINDS)}
_MOST = 9
"""Of an item."""
_HORIZONS = (50, 200, 1000)
"""Env steps within which the step, and the steps that are left, are told apart."""
_WIDTHS = (_CELLS, len(ITEMS), len(ACHIEVEMENTS), 1, 1, 1, 1, 1)
"""Of the parts of a row of codes: cells, items, achievements, facing, sleeping, dark, step, steps left."""
CODES = sum(_WIDTHS)
FEATURES = (
    *(_CELLS * len(KINDS), len(KINDS), len(ITEMS) * (_MOST + 1), len(ACHIEVEMENTS)),
    *(len(_FACING), 2, 2 * len(_HORIZONS)),
)
"""Columns of each part of the features: cells, the cell in front, counts, achievements, facing, sleeping and dark,
time."""

Codes = NDArray[np.int16]
Floats = NDArray[np.float32]


def codes_of(views: Iterable[View]) -> Codes:
    """Observations as whole numbers, a row each."""
    return np.array([_codes(view) for view in views], dtype=np.int16).reshape(-1, CODES)


def _codes(view: View) -> list[int]:
    done = set(view.achievements)
    return [
        *(_KIND_CODES[kind] for row in view.view for kind in row),
        *(min(view.inventory[item], _MOST) for item in ITEMS),
        *(name in done for name in ACHIEVEMENTS),
        list(_FACING).index(view.facing),
        view.sleeping,
        view.dark,
        min(view.step, _HORIZONS[-1]),
        min(max(view.max_steps - view.step, 0), _HORIZONS[-1]),
    ]


def features_of(codes: Codes) -> Floats:
    """What the network sees of these rows: float32 [rows, sum(FEATURES)]."""
    cells, items, achievements, facing, sleeping, dark, step, left = np.split(codes, np.cumsum(_WIDTHS)[:-1], axis=1)
    front = np.take_along_axis(cells, np.array(_FRONT)[facing], axis=1)
    parts = [
        *(_one_hot(cells, len(KINDS)), _one_hot(front, len(KINDS)), _one_hot(items, _MOST + 1), achievements),
        *(_one_hot(facing, len(_FACING)), sleeping, dark),
        *(np.minimum(steps / horizon, 1) for steps in (step, left) for horizon in _HORIZONS),
    ]
    return np.concatenate(parts, axis=1, dtype=np.float32, casting="unsafe")


def _one_hot(codes: Codes, size: int) -> NDArray[np.bool_]:
    return (codes[:, :, None] == np.arange(size)).reshape(len(codes), -1)


# --------------------------------------------------------------------------- the network


@dataclass(frozen=True, slots=True)
class Network:
    """Layers of (weights [in, out], biases [out]) with ReLU between them; the last one's outputs are ACTIONS."""

    layers: tuple[tuple[Floats, Floats], ...]

    @classmethod
    def of(cls, weights: Sequence[Any], biases: Sequence[Any]) -> Network:
        """A copy of scikit-learn's `coefs_` and `intercepts_`."""
        pairs = zip(weights, biases, strict=True)
        return cls(tuple((np.array(w, np.float32), np.array(b, np.float32)) for w, b in pairs))

    def log_probabilities(self, features: Floats) -> Floats:
        """Of each action: float32 [rows, ACTIONS]."""
        x = features
        for weights, biases in self.layers[:-1]:
            x = np.maximum(x @ weights + biases, 0)
        weights, biases = self.layers[-1]
        x = x @ weights + biases
        x = x - x.max(axis=1, keepdims=True)
        logs: Floats = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
        return logs

    def save(self, folder: Path) -> None:
        """Write `mlp.npz`."""
        weights, biases = ([np.asarray(part, np.float32) for part in parts] for parts in zip(*self.layers, strict=True))
        named = {f"weights{i}": part for i, part in enumerate(weights)} | {
            f"biases{i}": part for i, part in enumerate(biases)
        }
        with (folder / FILE).open("wb") as file:
            np.savez(file, allow_pickle=False, words=np.array(_WORDS), **named)

    @classmethod
    def load(cls, folder: Path | str) -> Network:
        """The network in a folder. DataError when there is none, or none of this environment's words."""
        path = Path(folder, FILE)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                words = arrays["words"].tolist()
                count = sum(name.startswith("weights") for name in arrays)
                layers = tuple((arrays[f"weights{i}"], arrays[f"biases{i}"]) for i in range(count))
        except (OSError, ValueError, KeyError) as e:
            raise DataError(f"{path}: no network can be read there ({e}). Train it again.") from e
        if words != _WORDS:
            raise DataError(f"{path}: it was trained on other words than today's observations have. Train it again.")
        return cls(layers)


_WORDS = [*KINDS, *ITEMS, *ACHIEVEMENTS, *_FACING, *ACTIONS, *map(str, (*_HORIZONS, _MOST))]
"""What the columns mean, in their order: a saved network knows no other meaning."""


# --------------------------------------------------------------------------- as a chat model


class MlpModel:
    """A trained `crafter-mlp` behind chat completions: reads the last observation, samples one action.

    The sampling is decided by the conversation's name, the step and the request's `seed`: what is sent again gets the
    same answer.
    """

    info = CRAFTER

    def __init__(self, network: Network) -> None:
        self._network = network

    def decide(self, body: Mapping[str, Any]) -> Decision:
        """One action, without a thought.

        Raises:
            NoObservation: the messages hold none.
            ConfigError: `temperature` or `top_p` is out of its range.
        """
        temperature = _number(body, "temperature", TEMPERATURE, 0, 2)
        top_p = _number(body, "top_p", 1.0, 0, 1)
        view = view_of(messages_of(body))
        logs = self._network.log_probabilities(features_of(codes_of([view])))[0].astype(np.float64)
        best_first = np.argsort(-logs, kind="stable")
        if temperature == 0 or top_p == 0:
            return Decision(ACTIONS[best_first[0]], "")
        weights = np.exp((logs[best_first] - logs[best_first[0]]) / temperature)
        shares = np.cumsum(weights / weights.sum())
        kept = int(np.searchsorted(shares, top_p)) + 1
        point = drawn(body, (view.step, body.get("seed"))) / 2**64 * shares[:kept][-1]
        return Decision(ACTIONS[best_first[min(int(np.searchsorted(shares, point, "right")), kept - 1)]], "")


def _number(body: Mapping[str, Any], key: str, default: float, least: float, most: float) -> float:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigError(f"{key}: {value!r} is not a number from {least} to {most}.")
    return float(value)
