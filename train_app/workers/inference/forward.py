"""The model's side of an engine: prompts read in, one token more for every row of the batch.

`Cached` keeps what attention has seen (keys and values) in slots: row i of the batch is slot i of every layer, filled
from its prompt's left padding on. Rows join behind the last one and leave by the last one taking their place, so that
the batch never has holes and no row is ever moved along the time axis.

`Recomputed` keeps nothing and runs every row from its start, for architectures whose state is not keys and values
(state-space models, chunked attention): slow, and right for every causal model. `forward_for` chooses, by trying.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_utils import PreTrainedModel

from train_app.workers.last_layer import ask_for_last, has_last_layer

log = logging.getLogger(__name__)
STEP = 64
"""Slots grow by this many columns."""


class Prefill(Protocol):
    """Prompts on their way into the batch."""

    scores: torch.Tensor
    """Logits [C, V] behind the columns that the last step read, of one prompt, if they were asked for."""

    def step(self) -> torch.Tensor | None:
        """Read some more; the logits [N, V] behind each prompt once all is read."""
        ...


class Forward(Protocol):
    """Rows in flight; every tensor is on the model's device."""

    def prefill(self, prompts: Sequence[Sequence[int]], chunk: int, *, score: bool = False) -> Prefill:
        """Begin to read prompts, at most `chunk` columns a step; with `score`, of one prompt, keep its logits too."""
        ...

    def join(self, prefill: Any) -> None:
        """Append rows whose prompts have been read to the batch."""
        ...

    def decode(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """Append a token to each row; the logits [B, V] behind it."""
        ...

    def leave(self, rows: Sequence[int]) -> list[int]:
        """Drop rows; tells which of the old rows each remaining one was."""
        ...


def forward_for(model: PreTrainedModel, pad_id: int) -> Forward:
    """The cached forward if this architecture gives the same numbers with it, else the one that recomputes."""
    implementation = getattr(model.config, "_attn_implementation", None)
    if implementation not in ("sdpa", "eager"):  # kernels without masks per row
        model.set_attn_implementation("sdpa")
    try:
        agrees = _agrees(model, pad_id)
    except Exception as e:
        log.info("cached decoding failed: %r", e)
        agrees = False
    if agrees:
        return Cached(model, pad_id)
    log.warning(
        "%s does not decode from a plain cache of keys and values: every token runs over its whole text again, "
        "which is slow. Models with full or sliding-window attention are fast.",
        type(model).__name__,
    )
    return Recomputed(model, pad_id)


@torch.inference_mode()
def _agrees(model: PreTrainedModel, pad_id: int) -> bool:
    """Whether two rows of unlike length decode to the logits of a forward over their whole text."""
    vocabulary = vocabulary_of(model)
    texts = [[(7 * i + 3) % vocabulary for i in range(n)] for n in (9, 4)]
    cached, recomputed = Cached(model, pad_id), Recomputed(model, pad_id)
    forwards: tuple[Forward, Forward] = (cached, recomputed)
    for forward in forwards:
        prefill = forward.prefill([t[:-2] for t in texts], 1024)
        prefill.step()
        forward.join(prefill)
    for column in (-2, -1):
        tokens_B = torch.tensor([t[column] for t in texts], device=model.device)
        got, expected = cached.decode(tokens_B).float(), recomputed.decode(tokens_B).float()
    tolerance = (1e-3 if model.dtype == torch.float32 else 5e-2) * (1 + float(expected.abs().max()))
    return bool((got - expected).abs().max() < tolerance)


def vocabulary_of(model: PreTrainedModel) -> int:
    """How many ids the model knows."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.num_embeddings)


# --------------------------------------------------------------------------- with a cache


@dataclass(slots=True)
class _Columns:
    """Where the rows of the batch stand."""

    rows: int = 0
    length: int = 0
    """Columns that any row uses."""
    next_B: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Column that each row writes next."""
    slots_B: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """0, 1, …, rows - 1."""


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer: [slots, heads, columns, D], of which the batch uses a corner."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, columns: _Columns) -> None:
        super().__init__()
        self._columns = columns

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """No slots yet."""
        (_, heads, _, key_size), value_size = key_states.shape, value_states.shape[-1]
        self.keys = key_states.new_zeros(0, heads, 0, key_size)
        self.values = value_states.new_zeros(0, heads, 0, value_size)
        self.heads_H = torch.arange(heads, device=key_states.device)
        self.is_initialized = True

    def reserve(self, rows: int, length: int) -> None:
        """Room for so many rows and columns."""
        have, columns = self.keys.size(0), self.keys.size(2)
        if rows <= have and length <= columns:
            return
        # Rows double, columns grow by a quarter: both are copied seldom, and memory stays near what is used.
        rows = have if rows <= have else max(rows, 2 * have)
        columns = columns if length <= columns else -(-max(length, columns + columns // 4) // STEP) * STEP
        self.keys, self.values = (
            torch.nn.functional.pad(t, (0, 0, 0, columns - t.size(2), 0, 0, 0, rows - t.size(0)))
            for t in (self.keys, self.values)
        )

    def append(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Put the keys and values of new rows, [N, heads, P, D], behind the last slot."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first, columns = self._columns.rows, key_states.size(2)
        last = first + key_states.size(0)
        self.reserve(last, max(columns, self._columns.length))
        self.keys[first:last, :, :columns] = key_states
        self.values[first:last, :, :columns] = value_states

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one column per row; what the batch attends to."""
        at = self._columns
        self.reserve(at.rows, at.length)
        heads, columns = self.keys.size(1), self.keys.size(2)
        # Pieces of D numbers, copied whole: an index_put over three dimensions takes twenty times as long on a CPU.
        index_BH = (at.slots_B[:, None] * heads + self.heads_H) * columns + at.next_B[:, None]
        for held, new_BH1D in ((self.keys, key_states), (self.values, value_states)):
            held.view(-1, held.size(3)).index_copy_(0, index_BH.flatten(), new_BH1D.flatten(0, 2))
        return self.keys[: at.rows, :, : at.length], self.values[: at.rows, :, : at.length]

    def move(self, source: torch.Tensor, to: torch.Tensor) -> None:
        """Copy slots."""
        length = self._columns.length
        self.keys[to, :, :length] = self.keys[source, :, :length]
        self.values[to, :, :length] = self.values[source, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Masks are ours."""
        return self._columns.length, 0

    def get_seq_length(self) -> int:
        return self._columns.length - 1

    def get_max_length(self) -> int:
        return -1


class _CachedPrefill:
    """Prompts [N, P], left-padded, read in chunks of columns into a cache of their own."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int, chunk: int, score: bool
    ) -> None:
        self._model, self._chunk, self._score = model, chunk, score
        self._narrow = has_last_layer(model)
        self.lengths = [len(p) for p in prompts]
        self.columns = max(self.lengths)
        ids_NP = torch.tensor([[pad_id] * (self.columns - len(p)) + list(p) for p in prompts], dtype=torch.long)
        self._ids_NP = ids_NP.to(model.device)
        self._mask_NP: torch.Tensor | None = None
        self.first_N = torch.tensor([self.columns - n for n in self.lengths], device=model.device)
        if min(self.lengths) < self.columns:
            self._mask_NP = (torch.arange(self.columns, device=model.device) >= self.first_N[:, None]).long()
        self.cache = DynamicCache()  # without a config: sliding layers keep every column, the mask hides the old ones
        self._read = 0
        self.scores = torch.zeros(0)

    def step(self) -> torch.Tensor | None:
        first, last = self._read, min(self._read + self._chunk, self.columns)
        rows, device = len(self.lengths), self._model.device
        wanted = {"logits_to_keep": 0} if self._score else ask_for_last(self._narrow, rows, last - first, 1, device)
        positions = torch.arange(first, last, device=self._ids_NP.device) - self.first_N[:, None]
        logits = self._model(
            input_ids=self._ids_NP[:, first:last],
            attention_mask=None if self._mask_NP is None else self._mask_NP[:, :last],
            position_ids=positions.clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            **wanted,
        ).logits
        self._read = last
        if self._score:
            self.scores = logits[0]
        return logits[:, -1] if last == self.columns else None


class Cached:
    """Continuous batching over slots of keys and values."""

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        self._model, self._pad_id = model, pad_id
        none = torch.zeros(0, dtype=torch.long, device=model.device)
        self._at = _Columns(next_B=none, slots_B=none)
        self._first_B = none
        """Column at which each row's prompt begins."""
        self._next: list[int] = []
        """`next_B` as the host knows it: no wait for the device."""
        self._cache = Cache(layer_class_to_replicate=functools.partial(_SlotLayer, self._at))  # type: ignore[arg-type]
        config = model.config.get_text_config()
        self._window = int(getattr(config, "sliding_window", None) or 0)
        kinds = set(getattr(config, "layer_types", None) or [])
        self._per_kind = "sliding_attention" in kinds
        if kinds - {"full_attention", "sliding_attention"}:
            raise ValueError(f"layers of these kinds have no plain cache: {', '.join(sorted(kinds))}")
        self._slides = self._window > 0 and kinds != {"full_attention"}

    def prefill(self, prompts: Sequence[Sequence[int]], chunk: int, *, score: bool = False) -> _CachedPrefill:
        return _CachedPrefill(self._model, prompts, self._pad_id, chunk, score)

    def join(self, prefill: _CachedPrefill) -> None:
        at = self._at
        for index, theirs in enumerate(prefill.cache.layers):
            if index == len(self._cache.layers):
                self._cache.layers.append(_SlotLayer(at))
            self._cache.layers[index].append(theirs.keys, theirs.values)  # type: ignore[union-attr]
        count, columns = len(prefill.lengths), prefill.columns
        self._next += [columns] * count
        self._first_B = torch.cat([self._first_B, prefill.first_N])
        at.next_B = torch.cat([at.next_B, at.next_B.new_full((count,), columns)])
        self._count()

    def decode(self, tokens_B: torch.Tensor) -> torch.Tensor:
        at = self._at
        at.length = max(self._next) + 1
        logits_B1V = self._model(
            input_ids=tokens_B[:, None],
            attention_mask=self._mask(),
            position_ids=(at.next_B - self._first_B)[:, None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        at.next_B = at.next_B + 1
        self._next = [n + 1 for n in self._next]
        return logits_B1V[:, -1]

    def leave(self, rows: Sequence[int]) -> list[int]:
        gone, left = set(rows), len(self._next) - len(rows)
        order = list(range(left))
        holes = [i for i in order if i in gone]
        last = [i for i in range(left, len(self._next)) if i not in gone]
        for hole, row in zip(holes, last, strict=True):
            order[hole] = row
        if holes:
            source, to = self._tensor(last), self._tensor(holes)
            for layer in self._cache.layers:
                layer.move(source, to)  # type: ignore[union-attr]
        kept = self._tensor(order)
        self._first_B, self._at.next_B = self._first_B[kept], self._at.next_B[kept]
        self._next = [self._next[i] for i in order]
        self._count()
        return order

    def _count(self) -> None:
        at = self._at
        at.rows, at.length = len(self._next), max(self._next, default=0)
        at.slots_B = torch.arange(at.rows, device=at.next_B.device)

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._at.next_B.device)

    def _mask(self) -> torch.Tensor | dict[str, torch.Tensor]:
        """What each row sees of the columns, [B, 1, 1, T], added to its scores; per kind of layer where they differ."""
        at = self._at
        columns_T = torch.arange(at.length, device=at.next_B.device)
        seen_BT = (columns_T >= self._first_B[:, None]) & (columns_T <= at.next_B[:, None])
        if not self._slides:
            return self._added(seen_BT)
        near_BT = seen_BT & (columns_T > at.next_B[:, None] - self._window)
        if not self._per_kind:
            return self._added(near_BT)
        return {"full_attention": self._added(seen_BT), "sliding_attention": self._added(near_BT)}

    def _added(self, seen_BT: torch.Tensor) -> torch.Tensor:
        dtype = self._model.dtype
        hidden_BT = torch.zeros(seen_BT.shape, dtype=dtype, device=seen_BT.device)
        return hidden_BT.masked_fill_(~seen_BT, torch.finfo(dtype).min)[:, None, None]


# --------------------------------------------------------------------------- without


class _RecomputedPrefill:
    """Prompts, right-padded: what stands behind a token cannot change it."""

    def __init__(self, forward: Recomputed, prompts: Sequence[Sequence[int]]) -> None:
        self._forward, self.texts = forward, [list(p) for p in prompts]
        self.scores = torch.zeros(0)

    def step(self) -> torch.Tensor | None:
        logits_NPV = self._forward.logits(self.texts)
        self.scores = logits_NPV[0]
        return last_of(logits_NPV, self.texts)


class Recomputed:
    """Every step runs over the whole text of each row."""

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        self._model, self._pad_id = model, pad_id
        self._texts: list[list[int]] = []

    def prefill(self, prompts: Sequence[Sequence[int]], chunk: int, *, score: bool = False) -> _RecomputedPrefill:
        return _RecomputedPrefill(self, prompts)

    def join(self, prefill: _RecomputedPrefill) -> None:
        self._texts += prefill.texts

    def decode(self, tokens_B: torch.Tensor) -> torch.Tensor:
        for text, token in zip(self._texts, tokens_B.tolist(), strict=True):
            text.append(token)
        return last_of(self.logits(self._texts), self._texts)

    def leave(self, rows: Sequence[int]) -> list[int]:
        order = [i for i in range(len(self._texts)) if i not in set(rows)]
        self._texts = [self._texts[i] for i in order]
        return order

    def logits(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """[N, longest, V]."""
        longest = max(map(len, texts))
        ids_NP = torch.tensor([[*t, *[self._pad_id] * (longest - len(t))] for t in texts], device=self._model.device)
        logits: torch.Tensor = self._model(input_ids=ids_NP, use_cache=False).logits
        return logits


def last_of(logits_NPV: torch.Tensor, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """The logits [N, V] behind the last token of each right-padded text."""
    last_N = torch.tensor([len(t) - 1 for t in texts], device=logits_NPV.device)
    return logits_NPV[torch.arange(len(texts), device=logits_NPV.device), last_N]
