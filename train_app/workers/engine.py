"""Batched sampling on CPU, MPS or one small GPU: token ids in, token ids and logprobs out.

Requests join and leave a running batch between decode steps (continuous batching over a plain KV cache), so
64 rollouts cost 64 rows of one forward, not 64 forwards. Weights are swapped between two batches; every answer
carries the version that sampled it.

`logprobs` are those of the sampling distribution (temperature applied, full vocabulary): what a policy gradient
needs as its denominator.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache
from transformers.modeling_utils import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Sample:
    """What the engine sampled for one request."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    """Sampled tokens, the end of turn included when it was sampled."""
    logprobs: tuple[float, ...]
    """Natural log, one per sampled token."""
    version: int
    """Weights that sampled it."""
    finished: bool
    """True: ended by an end token; False: cut at max_tokens."""


@dataclass(slots=True)
class _Row:
    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    top_p: float
    future: Future[Sample]
    version: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Batch:
    """Rows in flight with their left-padded cache."""

    rows: list[_Row]
    keys: list[torch.Tensor]  # per layer [B, heads, T, D]
    values: list[torch.Tensor]
    mask_BT: torch.Tensor
    positions_B1: torch.Tensor
    current_B1: torch.Tensor


class Engine:
    """Serves one model from one thread.

    Args:
        model: Causal LM; the engine owns it from now on.
        end_ids: Tokens that end an answer.
        pad_id: Any valid id; padded positions are masked.
        max_batch: Rows per forward.
        seed: Of the sampling; equal requests in equal batches give equal answers.
    """

    def __init__(
        self, model: PreTrainedModel, end_ids: Sequence[int], pad_id: int, *, max_batch: int = 64, seed: int = 0
    ) -> None:
        self.model = model.eval()
        self.version = 0
        self._end_ids, self._pad_id, self._max_batch = frozenset(end_ids), pad_id, max_batch
        self._device = next(model.parameters()).device
        self._generator = torch.Generator(device=self._device).manual_seed(seed)
        self._queue: queue.SimpleQueue[_Row | None] = queue.SimpleQueue()
        self._weights = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self, prompt_ids: Sequence[int], *, max_tokens: int, temperature: float = 1.0, top_p: float = 1.0
    ) -> Future[Sample]:
        """Queue one request; the future fails only when the forward itself fails."""
        future: Future[Sample] = Future()
        self._queue.put(_Row(tuple(prompt_ids), max_tokens, temperature, top_p, future))
        return future

    def publish(self, state: Mapping[str, torch.Tensor], version: int) -> None:
        """Swap in new weights between two forwards; later answers carry `version`.

        Call it when no request is in flight: a row under way would mix two policies.
        """
        with self._weights, torch.no_grad():
            self.model.load_state_dict(state)
            self.version = version

    def close(self) -> None:
        """Stop after the current forward; open futures are cancelled."""
        self._closed = True
        self._queue.put(None)
        self._thread.join(timeout=10)

    # ------------------------------------------------------------------ the thread

    def _serve(self) -> None:
        batch: _Batch | None = None
        while not self._closed:
            joining = self._take(wait=batch is None, room=self._max_batch - (len(batch.rows) if batch else 0))
            if not joining and batch is None:
                continue
            try:
                with self._weights, torch.inference_mode():
                    if joining:
                        batch = self._join(batch, self._prefill(joining))
                    else:
                        assert batch is not None
                        self._decode(batch)
                    batch = self._release(batch)
            except Exception as e:  # a failed forward fails its requests, not the server
                for row in {id(r): r for r in [*joining, *(batch.rows if batch else [])]}.values():
                    if not row.future.done():
                        row.future.set_exception(e)
                batch = None

    def _take(self, *, wait: bool, room: int) -> list[_Row]:
        rows: list[_Row] = []
        while len(rows) < room:
            try:
                row = self._queue.get(timeout=1.0) if wait and not rows else self._queue.get_nowait()
            except queue.Empty:
                break
            if row is not None:
                rows.append(row)
        return rows

    def _prefill(self, rows: list[_Row]) -> _Batch:
        longest = max(len(r.prompt_ids) for r in rows)
        ids_BT = torch.full((len(rows), longest), self._pad_id, dtype=torch.long)
        mask_BT = torch.zeros((len(rows), longest), dtype=torch.long)
        for i, row in enumerate(rows):
            ids_BT[i, longest - len(row.prompt_ids) :] = torch.tensor(row.prompt_ids)
            mask_BT[i, longest - len(row.prompt_ids) :] = 1
            row.version = self.version
        ids_BT, mask_BT = ids_BT.to(self._device), mask_BT.to(self._device)
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache()
        out = self.model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        current = self._sample(out.logits[:, -1], rows)
        layers = out.past_key_values.layers
        return _Batch(
            rows, [la.keys for la in layers], [la.values for la in layers], mask_BT, positions_BT[:, -1:] + 1, current
        )

    def _decode(self, batch: _Batch) -> None:
        batch.mask_BT = torch.cat([batch.mask_BT, batch.mask_BT.new_ones((len(batch.rows), 1))], 1)
        cache = DynamicCache(ddp_cache_data=list(zip(batch.keys, batch.values, strict=True)))
        out = self.model(
            input_ids=batch.current_B1,
            attention_mask=batch.mask_BT,
            position_ids=batch.positions_B1,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        layers = out.past_key_values.layers
        batch.keys, batch.values = [la.keys for la in layers], [la.values for la in layers]
        batch.current_B1 = self._sample(out.logits[:, -1], batch.rows)
        batch.positions_B1 = batch.positions_B1 + 1

    def _sample(self, logits_BV: torch.Tensor, rows: list[_Row]) -> torch.Tensor:
        """Append one token to every row; returns them as [B, 1]. Temperature 0 takes the most likely token."""
        temperature_B = torch.tensor([r.temperature or 1.0 for r in rows], device=self._device)
        logp_BV = torch.log_softmax(logits_BV.float() / temperature_B[:, None], -1)
        noise_BV = torch.empty_like(logp_BV).exponential_(generator=self._generator)
        drawn_B = (self._nucleus(logp_BV, rows).exp() / noise_BV).argmax(
            -1
        )  # exponential race: one pass, no multinomial
        greedy_B = torch.tensor([r.temperature == 0 for r in rows], device=self._device)
        next_B = torch.where(greedy_B, logp_BV.argmax(-1), drawn_B)
        chosen_B = logp_BV.gather(1, next_B[:, None])[:, 0]
        for row, token, logprob in zip(rows, next_B.tolist(), chosen_B.tolist(), strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)
        return next_B[:, None]

    @staticmethod
    def _nucleus(logp_BV: torch.Tensor, rows: list[_Row]) -> torch.Tensor:
        if all(r.top_p >= 1.0 for r in rows):
            return logp_BV
        top_p_B1 = torch.tensor([[r.top_p] for r in rows], device=logp_BV.device)
        sorted_BV, order_BV = logp_BV.sort(-1, descending=True)
        before_BV = sorted_BV.exp().cumsum(-1) - sorted_BV.exp()
        return logp_BV.masked_fill((before_BV >= top_p_B1).gather(1, order_BV.argsort(-1)), -torch.inf)

    def _join(self, batch: _Batch | None, new: _Batch) -> _Batch:
        if batch is None:
            return new
        length = max(batch.mask_BT.size(1), new.mask_BT.size(1))

        def pad(t: torch.Tensor, dim: int) -> torch.Tensor:
            missing = length - t.size(dim)
            return torch.nn.functional.pad(t, (0, 0, missing, 0) if t.dim() == 4 else (missing, 0)) if missing else t

        return _Batch(
            batch.rows + new.rows,
            [torch.cat([pad(a, 2), pad(b, 2)]) for a, b in zip(batch.keys, new.keys, strict=True)],
            [torch.cat([pad(a, 2), pad(b, 2)]) for a, b in zip(batch.values, new.values, strict=True)],
            torch.cat([pad(batch.mask_BT, 1), pad(new.mask_BT, 1)]),
            torch.cat([batch.positions_B1, new.positions_B1]),
            torch.cat([batch.current_B1, new.current_B1]),
        )

    def _release(self, batch: _Batch) -> _Batch | None:
        """Answer the rows that are done and drop their share of the cache."""
        keep = []
        for i, row in enumerate(batch.rows):
            finished = row.ids[-1] in self._end_ids
            if not finished and len(row.ids) < row.max_tokens:
                keep.append(i)
            elif row.future.set_running_or_notify_cancel():
                row.future.set_result(
                    Sample(row.prompt_ids, tuple(row.ids), tuple(row.logprobs), row.version, finished)
                )
        if len(keep) == len(batch.rows):
            return batch
        if not keep:
            return None
        index = torch.tensor(keep, device=self._device)
        mask_BT = batch.mask_BT[index]
        lead = int(mask_BT.any(0).int().argmax())  # columns that no remaining row uses
        return _Batch(
            [batch.rows[i] for i in keep],
            [k[index][:, :, lead:] for k in batch.keys],
            [v[index][:, :, lead:] for v in batch.values],
            mask_BT[:, lead:],
            batch.positions_B1[index],
            batch.current_B1[index],
        )
