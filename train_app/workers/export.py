"""The export child: `python -m train_app.workers.export --data-dir DIR --model ID --out FOLDER`.

Writes a trained model as a plain folder that transformers loads: an adapter is merged into its base, in fp32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from crafter_pipeline.errors import DataError, PipelineError
from crafter_pipeline.processes import exit_with_parent
from train_app.cards import write_card
from train_app.jobs import JobStore
from train_app.model_folders import whole_folder
from train_app.workers.students import load_student


def main(argv: Sequence[str]) -> int:
    """Entry point; 0, or the exit code of what is wrong, said in a line."""
    parser = argparse.ArgumentParser(prog="train_app.workers.export")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--model", required=True, help="any form of a trained model's id")
    parser.add_argument("--out", type=Path, required=True, help="folder that appears whole")
    options = parser.parse_args(argv)
    exit_with_parent()
    try:
        export(JobStore.in_folder(options.data_dir), options.model, options.out)
    except PipelineError as e:
        print(f"export: {e}", file=sys.stderr)
        return e.exit_code
    return 0


def export(store: JobStore, name: str, out: Path) -> None:
    """Write the model that `name` means into `out`."""
    record = store.resolve_model(name)
    if record is None:
        raise DataError(f"There is no trained model {name!r}.")
    model, tokenizer = load_student(record.path)
    with whole_folder(out) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        write_card(store, record, part)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
