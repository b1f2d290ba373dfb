"""Side files: one JSONL file per rollout, a line per turn, in the shape that the original's task apps write."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crafter_pipeline.contracts import Rollout, Turn
from crafter_pipeline.files import replace_file, safe_name
from crafter_pipeline.traces import records as r

log = logging.getLogger(__name__)


def try_side_file(rollout: Rollout, folder: Path) -> Path | None:
    """Write `<folder>/<run_id>_<YYYY-MM-DD_HH-MM-SS>.jsonl`, whole or not at all.

    Never raises: what went wrong (a full disk) is logged, and None returned.
    """
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{safe_name(rollout.run_id)}_{time.strftime('%Y-%m-%d_%H-%M-%S')}.jsonl"
        return replace_file(path, "".join(r.dumps(_line(rollout, turn)) + "\n" for turn in rollout.turns))
    except OSError as e:
        why = e.strerror or str(e)
        log.warning("No side file for rollout %s in %s: %s. The rollout itself is stored.", rollout.run_id, folder, why)
    except Exception:
        log.exception("No side file for rollout %s. The rollout itself is stored.", rollout.run_id)
    return None


def _line(rollout: Rollout, turn: Turn) -> dict[str, Any]:
    reply = turn.reply
    has_image = any(_shows_picture(message.get("content")) for message in turn.messages)
    assistant: dict[str, Any] = {
        "content": reply.content,
        "content_text": reply.content,
        "tool_calls": list(reply.tool_calls),
        "has_image": False,
    }
    if reply.thinking:
        assistant["reasoning_content"] = reply.thinking
    return {
        "run_id": rollout.run_id,
        "turn": turn.index,
        "model": rollout.model,
        "provider": rollout.provider,
        "dialogue": list(turn.messages),
        "dialogue_text": [{"role": m.get("role"), "content": r.plain_text(m.get("content"))} for m in turn.messages],
        "assistant": assistant,
        "metadata": {"user_has_image": has_image, "assistant_has_image": False, "has_image": has_image},
        "timestamp": r.iso(r.answered_at(turn)),
    }


def _shows_picture(content: Any) -> bool:
    parts = content if isinstance(content, list | tuple) else ()
    return any(isinstance(part, Mapping) and part.get("type") == "image_url" for part in parts)
