"""LoRA adapters on the disk: which folder holds one, and where its base lies. Read without torch."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG_FILE = "adapter_config.json"


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return Path(folder, CONFIG_FILE).is_file()


def base_of(folder: str | Path) -> str:
    """What to load below the adapter in `folder`: a folder, a GGUF file or a hub name. A relative path is one from the
    adapter's folder, so that both can be moved together."""
    name = str(json.loads(Path(folder, CONFIG_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"])
    beside = Path(folder, name)
    return str(beside.resolve()) if not Path(name).is_absolute() and beside.exists() else name
