"""Checkpoints that are whole, and model folders that appear at once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import PreTrainedModel

MARKER = "COMPLETE"


class MarkComplete(TrainerCallback):
    """Writes `COMPLETE` last into each checkpoint: the Trainer writes in place, a kill may leave half of one."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if folder.is_dir():
            (folder / MARKER).touch()


def newest_complete(folder: Path) -> str | None:
    """The newest whole checkpoint below `folder`, or None."""
    whole = [p for p in folder.glob("checkpoint-*") if (p / MARKER).exists()]
    return str(max(whole, key=lambda p: int(p.name.rpartition("-")[2]))) if whole else None


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights and tokenizer beside `folder`, then rename: nobody ever sees half a model."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
