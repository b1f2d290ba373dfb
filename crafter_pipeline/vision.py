"""Pictures for chat models: which models take them, and the form in which they are sent."""

from __future__ import annotations

import base64
import re
from typing import Any

_SEES = (
    r"vision|vlm",
    r"-vl\d?\b|\dvl\b",  # qwen-vl, qwen2.5-vl, deepseek-vl2
    r"^gpt-4o|^gpt-4-turbo|^gpt-4\.[15]|^gpt-5",
    r"^claude-(?:3|4|opus|sonnet|haiku)",
    r"^gemini|^gemma-3-(?:4|12|27)b|^llama-4|^qwen[\d.]*-omni",
    r"pixtral|llava|internvl|cogvlm|molmo|idefics|minicpm-[vo]",
)
_BLIND = (
    r"^crafter-|^math-|^smollm",
    r"^qwen|^qwq",
    r"^gpt-oss|^gpt-3\.5|^gpt-4$|^gpt-4-\d|^o1-mini|^o3-mini",
    r"^(?:meta-)?llama-?[23]|^tinyllama",
    r"^mistral-7b|^mixtral|^codestral|^deepseek|^phi-[1-4](?:\.5)?-(?:mini|small|medium)",
    r"^gemma-2|^gemma-3-(?:1b|270m)|^kimi-k2|^olmo|^command-r",
)
_SEES_PATTERN, _BLIND_PATTERN = re.compile("|".join(_SEES)), re.compile("|".join(_BLIND))
_TRAINED = re.compile(r"^(?:fft|ft|qft|rl):(.+):[^:]*$")


def sees_images(model: str) -> bool | None:
    """Whether a model of this name takes pictures; None: the name does not say.

    A trained model (`fft:<base>:<job>`) is judged by its base, a hub name by what follows the owner. Where a family has
    both kinds (`qwen2.5`, `qwen2.5-vl`), what says that it sees wins.
    """
    name = model.strip().lower()
    if trained := _TRAINED.match(name):
        name = trained[1]
    name = name.rsplit("/", 1)[-1]
    if _SEES_PATTERN.search(name):
        return True
    return False if _BLIND_PATTERN.search(name) else None


def image_part(png: bytes) -> dict[str, Any]:
    """A picture as a part of a user message."""
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(png).decode()}}
