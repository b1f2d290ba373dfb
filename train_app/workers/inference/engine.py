"""Batched sampling on CPU, MPS or one GPU, in process: token ids in, token ids and logprobs out.

Requests join and leave a running batch between decode steps (continuous batching), so that 64 rollouts cost 64 rows of
one forward, not 64 forwards. A forward of a small model costs about the same for one row as for ten, and rollouts come
back one by one: prompts wait a moment for those that were just answered. A long prompt is read in chunks between the
steps of those that are decoding. Weights are swapped when no answer is under way, so that every answer has one version.

`logprobs` are those of the sampling distribution (temperature applied, full vocabulary): what a policy gradient
needs as its denominator.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from transformers.modeling_utils import PreTrainedModel

from train_app.workers.inference.forward import Prefill, forward_for, vocabulary_of
from train_app.workers.inference.sampling import Alternatives, Broken, Busy, Sample, Sampling, Token, Watch

log = logging.getLogger(__name__)
PREFILL_TOKENS = 2048
"""Columns times rows read at once, padding included: what those that are decoding wait for."""
SCORED_TOKENS = 256
"""Columns read at once of a prompt whose tokens are scored: all their logits are held."""
COMPANY = 16
"""Prompts that are read at once without waiting for more: a forward's fixed cost is small beside theirs."""
COMPANY_SECONDS = 0.03
"""A prompt waits for company at most."""
BACK_SECONDS = 0.25
"""Whoever was answered is expected with a next request for so long."""


@dataclass(slots=True, eq=False)
class _Row:
    """A request and its answer so far."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    watch: Watch | None
    random: random.Random
    future: Future[Sample]
    asked_at: float
    """Monotonic seconds."""
    version: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[Alternatives] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    prompt_top: list[Alternatives] = field(default_factory=list)
    finished: bool = False
    over: bool = False

    def answer(self) -> None:
        """Resolve the future, unless nobody waits any more."""
        self.over = True
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(
                Sample(
                    self.prompt_ids,
                    tuple(self.ids),
                    tuple(self.logprobs),
                    self.version,
                    self.finished,
                    tuple(self.top),
                    tuple(self.prompt_logprobs),
                    tuple(self.prompt_top),
                )
            )

    def fail(self, e: BaseException) -> None:
        """Tell the caller why there is no answer, if that is still open."""
        if self.over:
            return
        self.over = True
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(e)


@dataclass(slots=True, eq=False)
class _Publication:
    weights: Mapping[str, torch.Tensor]
    version: int
    done: Future[None] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Draw:
    """How the rows of a batch are drawn, as tensors; made anew when rows join or leave."""

    temperature_B1: torch.Tensor | None
    """None: 1 for all."""
    greedy_B: torch.Tensor | None
    """None: nobody."""
    top_p_B1: torch.Tensor | None
    """None: 1 for all."""
    top_logprobs: int

    @classmethod
    def of(cls, rows: Sequence[_Row], device: torch.device) -> _Draw:
        asked = [row.sampling for row in rows]
        tempered = any(s.temperature not in (0, 1) for s in asked)
        return cls(
            torch.tensor([[s.temperature or 1.0] for s in asked], device=device) if tempered else None,
            torch.tensor([s.temperature == 0 for s in asked], device=device)
            if any(s.temperature == 0 for s in asked)
            else None,
            torch.tensor([[s.top_p] for s in asked], device=device) if any(s.top_p < 1 for s in asked) else None,
            max((s.top_logprobs for s in asked), default=0),
        )


class Engine:
    """Serves one model from one thread.

    Args:
        model: Causal LM; the engine owns it from now on.
        end_ids: Tokens that end an answer.
        pad_id: Any valid id; padded positions are masked.
        max_batch: Rows per forward.
        max_waiting: Requests that may wait for a row; one more is refused (Busy).
        seed: Of the requests that bring none; equal requests in equal order then give equal answers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        end_ids: Sequence[int],
        pad_id: int,
        *,
        max_batch: int = 64,
        max_waiting: int = 1024,
        seed: int = 0,
    ) -> None:
        self.model = model.eval()
        self.version = 0
        self._end_ids, self._max_batch, self._max_waiting = frozenset(end_ids), max_batch, max_waiting
        self._vocabulary = vocabulary_of(model)
        self._device = next(model.parameters()).device
        self._forward = forward_for(model, pad_id)
        self._seeds = random.Random(seed)
        self._wake = threading.Condition()
        # Under the condition's lock:
        self._waiting: deque[_Row] = deque()
        self._answered: deque[float] = deque()
        """When those were answered (monotonic seconds) who may soon be back."""
        self._publications: deque[_Publication] = deque()
        self._closed = False
        self._fault: Exception | None = None
        # The thread's own:
        self._rows: list[_Row] = []
        self._reading: tuple[Prefill, list[_Row]] | None = None
        self._draw: _Draw | None = None
        self._tokens_B = torch.zeros(0, dtype=torch.long, device=self._device)
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def broken(self) -> bool:
        """Its thread died of an error that was no single request's: it answers no more."""
        return self._fault is not None

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling, watch: Watch | None = None) -> Future[Sample]:
        """Queue a request; cancelling the future frees its row at the next step.

        The future fails with what its watcher raised, or what the model's forward did. Busy: the queue is full.
        Broken: see `broken`. ValueError: an empty prompt, or ids that the model does not know.
        """
        ids = tuple(prompt_ids)
        if not ids or min(ids) < 0 or max(ids) >= self._vocabulary:
            raise ValueError(f"A prompt needs at least one token, and ids from 0 to {self._vocabulary - 1}.")
        with self._wake:
            self._refuse_when_ended()
            if len(self._waiting) >= self._max_waiting:
                raise Busy(f"{len(self._waiting)} requests wait already; ask again in a moment.")
            seed = self._seeds.getrandbits(64) if sampling.seed is None else sampling.seed
            row = _Row(ids, sampling, watch, random.Random(seed), Future(), time.monotonic())
            self._waiting.append(row)
            if self._answered:
                self._answered.popleft()
            self._wake.notify()
        return row.future

    def publish(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Swap in new weights when the answers under way are complete; later ones carry `version`.

        Requests that come meanwhile wait. KeyError: weights that this model does not have.
        """
        publication = _Publication(weights, version)
        with self._wake:
            self._refuse_when_ended()
            self._publications.append(publication)
            self._wake.notify()
        publication.done.result()

    def close(self) -> None:
        """Stop after the current forward; open futures are cancelled."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=60)

    def _refuse_when_ended(self) -> None:
        if self._fault is not None:
            raise _broken_by(self._fault)
        if self._closed:
            raise Busy("The engine is closed.")

    # ------------------------------------------------------------------ the thread

    def _serve(self) -> None:
        try:
            while not self._closed:
                publication, rows = self._wait_for_work()
                if publication is not None:
                    self._load(publication)
                with torch.inference_mode():
                    if rows:
                        self._begin(rows)
                    if self._reading is not None:
                        self._read(*self._reading)
                    if self._rows:
                        self._decode()
        except Exception as e:  # a border: nobody else would learn of it
            log.exception("the engine broke")
            self._end(e)
        else:
            self._end(None)

    def _wait_for_work(self) -> tuple[_Publication | None, list[_Row]]:
        """Weights to load, or the requests whose prompts are read next; neither: go on with what is under way."""
        with self._wake:
            while not self._closed:
                busy = bool(self._rows) or self._reading is not None
                patience = self._patience()
                if self._publications:
                    if not busy:
                        return self._publications.popleft(), []
                elif self._reading is None and not patience and (rows := self._next_rows()):
                    return None, rows
                if busy:
                    break
                self._wake.wait(patience or None)
            return None, []

    def _patience(self) -> float:
        """Seconds that the waiting prompts still wait for company; 0: none are waiting, or they are read now.

        Company is expected from those who were answered lately and have not asked again. Once as many wait as are
        expected, two halves take turns: one is answered while the other is on its way.
        """
        now = time.monotonic()
        while self._answered and now - self._answered[0] > BACK_SECONDS:
            self._answered.popleft()
        if len(self._waiting) >= min(len(self._answered), COMPANY):
            return 0.0
        return max(0.0, self._waiting[0].asked_at + COMPANY_SECONDS - now) if self._waiting else 0.0

    def _next_rows(self) -> list[_Row]:
        """Requests in the order of their arrival whose prompts fit into one forward, or one that needs several."""
        rows: list[_Row] = []
        longest = 0
        while self._waiting and len(self._rows) + len(rows) < self._max_batch:
            row = self._waiting[0]
            if row.future.cancelled():
                self._waiting.popleft()
                continue
            longest, alone = max(longest, len(row.prompt_ids)), row.sampling.prompt_logprobs
            if rows and (alone or longest * (len(rows) + 1) > PREFILL_TOKENS):
                break
            rows.append(self._waiting.popleft())
            if alone:
                break
        return rows

    def _begin(self, rows: list[_Row]) -> None:
        for row in rows:
            row.version = self.version
        scored = rows[0].sampling.prompt_logprobs
        chunk = SCORED_TOKENS if scored else PREFILL_TOKENS
        try:
            self._reading = (self._forward.prefill([r.prompt_ids for r in rows], chunk, score=scored), rows)
        except Exception as e:
            for row in rows:
                row.fail(e)

    def _read(self, prefill: Prefill, rows: list[_Row]) -> None:
        """One chunk of the prompts; their rows join the batch when they are through."""
        self._reading = None
        try:
            logits_NV = prefill.step()
            if rows[0].sampling.prompt_logprobs:
                self._score(rows[0], prefill.scores)
            if logits_NV is None:
                if not all(row.future.cancelled() for row in rows):
                    self._reading = (prefill, rows)
                return
            if rows[0].sampling.max_tokens < 1:
                rows[0].answer()
                return
            drawn = self._sample(logits_NV, rows, _Draw.of(rows, self._device))
            self._forward.join(prefill)
        except Exception as e:
            if len(rows) == 1:
                rows[0].fail(e)
            else:  # one of them is at fault, or they are too many together: each for itself
                self._read_singly(rows)
            return
        self._rows += rows
        self._tokens_B = torch.cat([self._tokens_B, drawn[0]])
        self._draw = None
        self._tell(rows, *drawn)
        self._release()

    def _read_singly(self, rows: list[_Row]) -> None:
        try:
            for row in rows:
                self._begin([row])
                while self._reading is not None:
                    self._read(*self._reading)
        except Exception as e:  # the engine breaks, and those that are not read yet stand nowhere else
            for row in rows:
                row.fail(_broken_by(e))
            raise

    def _decode(self) -> None:
        """One token for every row."""
        rows = self._rows
        if self._draw is None:
            self._draw = _Draw.of(rows, self._device)
        try:
            drawn = self._sample(self._forward.decode(self._tokens_B), rows, self._draw)
        except Exception as e:
            for row in rows:
                row.fail(e)
        else:
            self._tokens_B = drawn[0]
            self._tell(rows, *drawn)
        self._release()

    def _sample(
        self, logits_BV: torch.Tensor, rows: Sequence[_Row], draw: _Draw
    ) -> tuple[torch.Tensor, list[float], list[Alternatives]]:
        """A token for every row: (ids [B], logprobs, alternatives).

        Each row has a random number of its own, looked up in its distribution's sum: what shares the batch has no part
        in it, and one number per row is cheaper than one per word of the vocabulary.
        """
        logits_BV = logits_BV.float()
        logp_BV = torch.log_softmax(
            logits_BV / draw.temperature_B1 if draw.temperature_B1 is not None else logits_BV, -1
        )
        wide = torch.float32 if self._device.type == "mps" else torch.float64  # the tail must not drown in the sum
        sum_BV = self._nucleus(logp_BV, draw.top_p_B1).exp().cumsum(-1, dtype=wide)
        at_B1 = torch.tensor([[row.random.random()] for row in rows], dtype=wide).to(self._device) * sum_BV[:, -1:]
        ids_B = torch.searchsorted(sum_BV, at_B1, right=True)[:, 0].clamp_(max=logp_BV.size(1) - 1)
        if draw.greedy_B is not None:
            ids_B = torch.where(draw.greedy_B, logp_BV.argmax(-1), ids_B)
        logprobs: list[float] = logp_BV.gather(1, ids_B[:, None])[:, 0].tolist()
        return ids_B, logprobs, _alternatives(logp_BV, draw.top_logprobs)

    @staticmethod
    def _nucleus(logp_BV: torch.Tensor, top_p_B1: torch.Tensor | None) -> torch.Tensor:
        if top_p_B1 is None:
            return logp_BV
        sorted_BV, order_BV = logp_BV.sort(-1, descending=True)
        before_BV = sorted_BV.exp().cumsum(-1) - sorted_BV.exp()
        return logp_BV.masked_fill((before_BV >= top_p_B1).gather(1, order_BV.argsort(-1)), -torch.inf)

    def _tell(self, rows: Sequence[_Row], ids_B: torch.Tensor, logprobs: list[float], top: list[Alternatives]) -> None:
        """Append a token to every row, and tell those who watch."""
        for i, (row, token, logprob) in enumerate(zip(rows, ids_B.tolist(), logprobs, strict=True)):
            row.ids.append(token)
            row.logprobs.append(logprob)
            alternatives = top[i][: row.sampling.top_logprobs] if top else ()
            if row.sampling.top_logprobs:
                row.top.append(alternatives)
            row.finished = token in self._end_ids
            if row.watch is not None and not row.future.cancelled():
                try:
                    row.finished |= row.watch(Token(token, logprob, alternatives))
                except Exception as e:
                    row.fail(e)

    def _score(self, row: _Row, logits_CV: torch.Tensor) -> None:
        """Logprobs of the prompt's tokens behind the next C columns."""
        first = len(row.prompt_logprobs)
        targets = row.prompt_ids[first + 1 : first + 1 + logits_CV.size(0)]
        logp_CV = torch.log_softmax(logits_CV[: len(targets)].float(), -1)
        targets_C1 = torch.tensor(targets, dtype=torch.long, device=self._device)[:, None]
        row.prompt_logprobs += logp_CV.gather(1, targets_C1)[:, 0].tolist()
        row.prompt_top += _alternatives(logp_CV, row.sampling.top_logprobs)

    def _release(self) -> None:
        """Answer the rows that are done and give their slots back."""
        done = [r for r in self._rows if not r.over and (r.finished or len(r.ids) >= r.sampling.max_tokens)]
        with self._wake:  # before they know, and ask again
            self._answered.extend([time.monotonic()] * len(done))
        for row in done:
            row.answer()
        gone = [i for i, row in enumerate(self._rows) if row.over or row.future.cancelled()]
        if not gone:
            return
        order = self._forward.leave(gone)
        self._rows = [self._rows[i] for i in order]
        self._tokens_B = self._tokens_B[torch.tensor(order, dtype=torch.long, device=self._device)]
        self._draw = None

    def _load(self, publication: _Publication) -> None:
        try:
            load_weights(self.model, publication.weights)
            self.version = publication.version
        except Exception as e:
            publication.done.set_exception(e)
        else:
            publication.done.set_result(None)

    def _end(self, fault: Exception | None) -> None:
        """Nothing is answered any more: what is open is cancelled or, by a fault, fails."""
        with self._wake:
            self._closed, self._fault = True, fault
            rows = [*self._rows, *(self._reading[1] if self._reading else ()), *self._waiting]
            publications = list(self._publications)
            self._waiting.clear()
            self._publications.clear()
        for publication in publications:
            if fault is None:
                publication.done.cancel()
            else:
                publication.done.set_exception(_broken_by(fault))
        for row in rows:
            if fault is None:
                row.future.cancel()
            else:
                row.fail(_broken_by(fault))


def _broken_by(fault: Exception) -> Broken:
    broken = Broken(f"The engine broke: {type(fault).__name__}: {fault}")
    broken.__cause__ = fault
    return broken


@torch.no_grad()
def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy weights into a model: its state dict, a part of it, or an adapter's as peft names it.

    Raises:
        KeyError: the model has no such weights. Nothing is copied then, as when a shape is another.
    """
    own = model.state_dict()
    if not own.keys() >= weights.keys() and hasattr(model, "peft_config"):
        adapter = model.active_adapter
        weights = {name.replace(".weight", f".{adapter}.weight"): value for name, value in weights.items()}
    unknown = [name for name in weights if name not in own]
    if unknown:
        raise KeyError(
            f"This model has no weights {', '.join(unknown[:3])} ({len(unknown)} of {len(weights)} are unknown)."
        )
    for name, value in weights.items():
        if own[name].shape != value.shape:
            raise ValueError(f"{name} is {tuple(value.shape)} and should be {tuple(own[name].shape)}.")
    for name, value in weights.items():
        own[name].copy_(value)


def _alternatives(logp_NV: torch.Tensor, count: int) -> list[Alternatives]:
    """The `count` likeliest tokens of each row; an empty list when none are asked for."""
    if not count:
        return []
    values, ids = logp_NV.topk(min(count, logp_NV.size(1)), -1)
    return [tuple(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
