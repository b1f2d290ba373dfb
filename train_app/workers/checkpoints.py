"""Checkpoints that are whole, and models of transformers as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import PreTrainedModel

from train_app.checkpoints import MARKER, whole_checkpoints
from train_app.model_folders import to_disk, whole_folder
from train_app.workers.adapters import settle_base


class MarkComplete(TrainerCallback):
    """Writes `COMPLETE` last into each checkpoint: the Trainer writes in place, a kill may leave half of one.

    Give it to the trainer after the callbacks that add files to a checkpoint.
    """

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            to_disk(folder)
            (folder / MARKER).touch()


def newest_complete(folder: Path) -> str | None:
    """The newest whole checkpoint below `folder`, or None."""
    whole = whole_checkpoints(folder)
    return str(whole[-1].path) if whole else None


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights and tokenizer as `folder`: nobody ever sees half a model."""
    with whole_folder(folder) as part:
        write_model(model, tokenizer, part, folder)


def write_model(model: Any, tokenizer: PreTrainedTokenizerBase, part: Path, folder: Path) -> None:
    """Weights (peft's: the adapter) and tokenizer into `part`, which becomes `folder`."""
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    settle_base(part, folder)
