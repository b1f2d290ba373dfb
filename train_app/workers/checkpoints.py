"""Checkpoints that are whole, and model folders that appear at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import PreTrainedModel

from train_app.checkpoints import MARKER, whole_checkpoints
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


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: Path, folder: Path) -> None:
    """Weights and tokenizer into `part`, which becomes `folder`."""
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    settle_base(part, folder)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `folder` at the end; what was there before is replaced."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        to_disk(part)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def to_disk(folder: Path) -> None:
    """Wait until every file below `folder` is on the disk: no name is to survive a power cut without its bytes."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
