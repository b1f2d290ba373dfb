"""Saving a LoRA adapter so that its base is found again after the data folder has moved.

peft records a base by the path it was loaded from. Here `adapter_config.json` names it relative to the adapter's own
folder (`../job_…`) when both lie in one models folder, and an untrained `crafter-tiny` is saved inside (`base`).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from crafter_pipeline.files import replace_file
from crafter_pipeline.tokens import TINY
from train_app.adapters import CONFIG_FILE, is_adapter

OWN_BASE = "base"
"""Folder inside an adapter's, for a base that lies nowhere else."""
_MADE = re.compile(rf"({re.escape(TINY)}[^:]*):(\d+)")


def made_here(name: str, seed: int) -> str:
    """The name under which peft records an untrained `crafter-tiny`, of whatever size."""
    return f"{name}:{seed}"


def settle_base(part: Path, folder: Path) -> None:
    """Make the base of the adapter that was just written into `part`, to become `folder`, findable from there.

    Does nothing for a whole model.
    """
    if not is_adapter(part):
        return
    config = json.loads((part / CONFIG_FILE).read_text(encoding="utf-8"))
    name = str(config["base_model_name_or_path"])
    made = _MADE.fullmatch(name)
    if made:
        from train_app.workers.students import make_tiny

        model, tokenizer = make_tiny(int(made[2]), made[1])
        model.save_pretrained(part / OWN_BASE)
        tokenizer.save_pretrained(part / OWN_BASE)
        config["base_model_name_or_path"] = OWN_BASE
    elif Path(name).is_absolute() and Path(name).exists():
        relative = os.path.relpath(Path(name).resolve(), folder.resolve())
        if relative.startswith("../") and not relative.startswith("../../"):  # both lie in one models folder
            config["base_model_name_or_path"] = relative
    replace_file(part / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")
