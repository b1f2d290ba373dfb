"""On-policy distillation: a teacher says how likely it finds each token that the student sampled.

The student plays, and the credit of each token is log p_teacher - log p_student, against the batch's mean: the
gradient of the reverse KL, with the student's mistakes corrected where the student makes them. The update is RL's.
Rewards of the environment are told and count for nothing.

The teacher must read the student's token ids: both have one vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from transformers.modeling_utils import PreTrainedModel

from crafter_pipeline.clients.chat import shown_url
from crafter_pipeline.clients.http import REPEATABLE, RetryTransport
from crafter_pipeline.errors import ConfigError, ModelError
from crafter_pipeline.settings import load_settings
from train_app.workers.inference.sampling import Sample
from train_app.workers.rl.scoring import like_sized, limit_of, padded_ids, score
from train_app.workers.text import decode

REQUESTS = 8
"""Calls of a served teacher at once."""
ROWS_PER_REQUEST = 16
TIMEOUT_SECONDS = 300.0


def vocabulary_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of the pairs (token, id): equal for tokenizers whose ids mean the same."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def refuse_other_vocabulary(name: str, teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """ConfigError where the teacher would read other tokens than the student wrote."""
    if vocabulary_sha256(teacher) == vocabulary_sha256(student):
        return
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    other = [token for token, i in ours.items() if theirs.get(token) != i]
    example = f", {other[0]!r} among them" if other else ""
    raise ConfigError(
        f"teacher: {name} has another vocabulary than the student ({len(theirs)} tokens against {len(ours)}; "
        f"{len(other)} of the student's have another id there{example}). Distillation compares token by token: take a "
        "teacher of the student's family, or DAgger, which needs no common vocabulary."
    )


class LocalTeacher:
    """A teacher in this process.

    Args:
        model: Takes the student's ids; the teacher owns it from now on.
        pad_id: Any valid id.
        temperature: Of the student's sampling: both are compared at the same.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int, temperature: float) -> None:
        self._model, self._pad_id, self._temperature = model.eval(), pad_id, temperature
        self._limit = limit_of(model)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Log-probability of each sampled token, [T] per sample."""
        found: list[np.ndarray] = [np.zeros(0)] * len(samples)
        for indexes in like_sized(samples, range(len(samples)), self._limit):
            padded = padded_ids([samples[i] for i in indexes], self._pad_id)
            tensors = {name: tensor.to(self._model.device) for name, tensor in padded.items()}
            ids_NL = torch.cat([tensors["prompt_ids"], tensors["completion_ids"]], 1)
            mask_NL = torch.cat([tensors["prompt_mask"], tensors["completion_mask"]], 1)
            length = tensors["completion_ids"].size(1)
            logp_NC = score(self._model, ids_NL, mask_NL, length, self._temperature)[0].cpu().numpy()
            for row, i in enumerate(indexes):
                found[i] = logp_NC[row, : len(samples[i].ids)]
        return found

    def close(self) -> None:
        """Nothing is open."""


class ServedTeacher:
    """A teacher behind an OpenAI-compatible `/v1/completions` that tells log-probabilities of prompts, as vLLM does.

    Args:
        url: Base URL.
        model: Its name there.
        tokenizer: The student's: the teacher's answers carry each token's text, which must be the student's.
        transport: For tests.
    """

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._model, self._tokenizer, self._shown = model, tokenizer, shown_url(url)
        root = url.rstrip("/")
        self._url = f"{root}/completions" if root.endswith("/v1") else f"{root}/v1/completions"
        key = load_settings().inference_key(url)
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=TIMEOUT_SECONDS,
            transport=RetryTransport(transport or httpx.HTTPTransport()),
        )
        self._threads = ThreadPoolExecutor(REQUESTS, "teacher")

    def __call__(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Log-probability of each sampled token, [T] per sample.

        Raises:
            ModelError: no answer, or one without log-probabilities of the prompt.
            ConfigError: its tokens are not the student's.
        """
        parts = [samples[i : i + ROWS_PER_REQUEST] for i in range(0, len(samples), ROWS_PER_REQUEST)]
        return [logprobs_T for part in self._threads.map(self._ask, parts) for logprobs_T in part]

    def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._http.close()

    def _ask(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        body = {
            "model": self._model,
            "prompt": [[*sample.prompt_ids, *sample.ids] for sample in samples],
            "prompt_logprobs": 0,  # of the prompt's own tokens, without alternatives
            "max_tokens": 1,
            "temperature": 0,
        }
        try:
            answer = self._http.post(self._url, json=body, extensions=REPEATABLE)
        except httpx.HTTPError as e:
            raise ModelError(f"The teacher at {self._shown} cannot be reached: {e!r}.", "unreachable") from e
        if answer.status_code != 200:
            refusal = ModelError(
                f"The teacher at {self._shown} refused ({answer.status_code}): {answer.text[:300]}", "refused"
            )
            refusal.status = answer.status_code
            raise refusal
        try:
            choices = sorted(answer.json()["choices"], key=lambda choice: choice["index"])
            found = [self._read(sample, c["prompt_logprobs"]) for sample, c in zip(samples, choices, strict=True)]
        except (ValueError, KeyError, TypeError) as e:
            raise ModelError(
                f"The teacher at {self._shown} told no log-probabilities of the prompt ({e!r}). Serve it with vLLM, "
                "or leave teacher_url out, and the worker loads it.",
                "bad_answer",
            ) from e
        return found

    def _read(self, sample: Sample, told: Sequence[Mapping[str, Any] | None]) -> np.ndarray:
        """[T] of the sampled tokens, the last of the prompt that the teacher was sent."""
        if len(told) != len(sample.prompt_ids) + len(sample.ids):
            raise ValueError(f"{len(told)} tokens for {len(sample.prompt_ids) + len(sample.ids)}")
        logprobs = []
        for i, candidates in zip(sample.ids, told[-len(sample.ids) :], strict=True):
            token = (candidates or {})[str(i)]
            self._compare(i, token.get("decoded_token"))
            logprobs.append(float(token["logprob"]))
        return np.array(logprobs)

    def _compare(self, token_id: int, theirs: str | None) -> None:
        """Where both texts are plain, they must be the same; pieces of characters are shown in several ways."""
        ours = decode(self._tokenizer, [token_id], skip_special_tokens=False)
        if theirs and theirs.isascii() and ours.isascii() and theirs.strip() != ours.strip():
            raise ConfigError(
                f"teacher: at {self._shown}, token {token_id} is {theirs!r}; the student's is {ours!r}. Distillation "
                "needs a teacher with the student's vocabulary."
            )
