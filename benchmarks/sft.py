"""What our SFT step costs against a bare PyTorch loop, on one thread.

Both train a random Qwen3 of about 1 M parameters on batches of 8 rows with 600 tokens, 15 of which in a hundred are
trained. The loop is what one would write without a library: full logits, cross entropy with ignored labels, clipping,
AdamW. Ours is the SFT worker's trainer, metrics and all, which scores the trained positions alone. CPU seconds; rounds
of both alternate, and the ratio is that of the medians.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import workplace
from benchmarks.metrics import Metric

METRICS = (
    Metric(
        "sft.overhead_ratio", "CPU time of an SFT step against a bare PyTorch loop, 1 M parameters", "×", at_most=1.25
    ),
    Metric("sft.tokens_per_s", "tokens trained per CPU second, prompts included", "/s"),
)
ROWS, TOKENS, TRAINED = 8, 600, 90
SHAPE: dict[str, Any] = dict(
    vocab_size=2052,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    tie_word_embeddings=True,
)


def measure(quick: bool) -> dict[str, float | None]:
    """All metrics; in a process of its own, whose threads nobody has set yet."""
    with workplace() as folder:
        command = [sys.executable, "-m", "benchmarks.sft", str(folder), "3" if quick else "20", "2" if quick else "5"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    numbers: dict[str, float | None] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def in_turn(folder: Path, steps: int, rounds: int) -> dict[str, float]:
    """CPU seconds of both, round by round."""
    import torch

    torch.set_num_threads(1)
    ours, bare = Ours(folder), Bare()
    ours.run(2)
    bare.run(2)  # both are warm
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(rounds):
        for name, subject in (("bare", bare), ("ours", ours)):
            started = time.process_time()
            subject.run(steps)
            times[name].append((time.process_time() - started) / steps)
    ours_s, bare_s = statistics.median(times["ours"]), statistics.median(times["bare"])
    return {"sft.overhead_ratio": ours_s / bare_s, "sft.tokens_per_s": ROWS * TOKENS / ours_s}


def _model() -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE))


def _rows(count: int) -> dict[str, list[Any]]:
    import numpy as np

    draw = np.random.default_rng(0)
    ids = [draw.integers(0, SHAPE["vocab_size"], TOKENS).astype(np.int32) for _ in range(count)]
    return {"input_ids": ids, "labels": [np.where(np.arange(TOKENS) < TOKENS - TRAINED, -100, row) for row in ids]}


class Ours:
    """The SFT worker's trainer; each run is a training of its own, from its set-up to its last step."""

    def __init__(self, folder: Path) -> None:
        from train_app.workers.students import tiny_tokenizer

        self._folder, self._model, self._tokenizer = folder, _model(), tiny_tokenizer()

    def run(self, steps: int) -> None:
        """So many steps."""
        from crafter_pipeline.config import SftConfig
        from train_app.workers.sft.trainer import sft_trainer

        config = SftConfig(batch_size=ROWS, max_steps=steps, save_steps=10_000, device="cpu", dtype="fp32")
        trainer = sft_trainer(self._model, self._tokenizer, _rows(steps * ROWS), config, self._folder)
        trainer.train()


class Bare:
    """The loop."""

    def __init__(self) -> None:
        import torch

        self._model = _model()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=3e-3, weight_decay=0.01)

    def run(self, steps: int) -> None:
        """So many steps."""
        import numpy as np
        import torch

        rows = _rows(steps * ROWS)
        for step in range(steps):
            batch = slice(step * ROWS, (step + 1) * ROWS)
            ids_BT = torch.from_numpy(np.stack(rows["input_ids"][batch])).long()
            labels_BT = torch.from_numpy(np.stack(rows["labels"][batch])).long()
            logits_BTV = self._model(input_ids=ids_BT, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()


if __name__ == "__main__":
    print(json.dumps(in_turn(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
