"""From selected turns to a row of the dataset.

Three forms, each valid OpenAI chat (`chat_form.problems`), and each with `metadata` as its last key:

* chat: `messages` of one turn, its answer last, and `tools` where there were any;
* completion: the same as `prompt` and `completion`, so that trainers teach the completion alone, also where the prompt
  repeats earlier answers;
* conversation: `messages` of a whole rollout. System prompt and earlier turns stand there once, however often the
  prompts repeated them; a tool call is followed by its result. What the prompts tell of the past in other words (the
  line of earlier actions) stays.

With `label`, a column holds the labeller's answers in the form of the player's: a message, the list with it, or the
list of one per turn. With `target = "label"` the two change places, and the player's stand in the column `answer`.
Pictures in files: a column `images` lists them in the order of their placeholders.

All rows of a form have the same keys in `metadata`, with texts and lists never null: loaders that infer a schema from
the first megabytes refuse what is first null and later a text. Where even so all the first lists are empty, or the
first answers without calls, `datasets` reads on with `chunksize=1 << 30`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import orjson

from crafter_pipeline.config import ExportConfig
from crafter_pipeline.contracts import Reply
from crafter_pipeline.conversation import tool_results
from crafter_pipeline.dataset.chat_form import calls_in_form, messages_in_form, tools_in_form
from crafter_pipeline.dataset.pictures import Pictures, inline_part
from crafter_pipeline.dataset.selection import SelectedTurn
from crafter_pipeline.dataset.splits import keeps_thoughts
from crafter_pipeline.errors import DataError
from crafter_pipeline.thinking import split_thinking
from crafter_pipeline.traces import records as r

Json = dict[str, Any]

RESULT = "done"
"""The result of a tool call where the prompts tell none: what came of it stands in the next observation."""


def turn_row(
    turn: SelectedTurn, export: ExportConfig, label: Reply | None = None, pictures: Pictures | None = None
) -> Json:
    """The row of one turn, in the form chat or completion.

    Raises:
        DataError: the stored call is damaged, cannot be brought into valid form, or its answer is empty.
    """
    prompt = messages_in_form(turn.call.prompt, _place(pictures))
    taught, other = _taught_and_other(turn, export, label)
    listed = export.form == "completion"
    row: Json = {"prompt": prompt, "completion": [taught]} if listed else {"messages": [*prompt, taught]}
    _add_columns(row, turn, export, None if other is None else [other] if listed else other, prompt, pictures)
    row["metadata"] = {
        "session_id": turn.rollout.session_id,
        "turn": turn.index,
        **_facts(turn, export),
        "turn_reward": turn.reward,
        "unlocked": list(turn.unlocked),
        "goal": turn.goal or "",
        "parse_failure": turn.parse_failure or "",
    }
    return row


def conversation_row(
    turns: Sequence[SelectedTurn],
    export: ExportConfig,
    labels: Sequence[Reply] = (),
    pictures: Pictures | None = None,
) -> Json:
    """The row of a whole rollout.

    Args:
        turns: All of its turns, in order.
        labels: One per turn, or none.

    Raises:
        DataError: as `turn_row`, with the turn; or system prompt or tools change on the way.
    """
    messages: list[Json] = []
    others: list[Json] = []
    for position, turn in enumerate(turns):
        try:
            prompt = messages_in_form(turn.call.prompt, _place(pictures))
            taught, other = _taught_and_other(turn, export, labels[position] if labels else None)
            if other is not None:
                others.append(other)
            if position and turn.call.tools != turns[0].call.tools:
                raise DataError("it was offered other tools than the turns before; export the form chat")
            messages += _news(prompt, messages)
        except DataError as e:
            raise DataError(f"turn {turn.index}: {e}") from e
        messages.append(taught)
    first = turns[0]
    row: Json = {"messages": messages}
    _add_columns(row, first, export, others or None, messages, pictures)
    row["metadata"] = {
        "session_id": first.rollout.session_id,
        "turn": first.index,
        "turns": len(turns),
        **_facts(first, export),
        "turn_rewards": [turn.reward for turn in turns],
        "unlocked": [list(turn.unlocked) for turn in turns],
        "parse_failures": sum(turn.parse_failure is not None for turn in turns),
    }
    return row


def _taught_and_other(turn: SelectedTurn, export: ExportConfig, label: Reply | None) -> tuple[Json, Json | None]:
    """The answer that a row teaches, and the one that stands in its column. DataError when that of the row, or the
    label, is damaged or empty; the player's own beside a label may be: such states need the label most."""
    thinks = keeps_thoughts(turn.rollout.environment, turn.rollout.seed, export)
    if label is None:
        return answer_message(turn.call.reply, export.thinking, thinks=thinks), None
    told = answer_message(label, export.thinking, thinks=thinks)
    if export.target == "answer":
        return answer_message(turn.call.reply, export.thinking, thinks=thinks), told
    try:
        return told, answer_message(turn.call.reply, export.thinking, thinks=thinks)
    except DataError:
        nothing = {"role": "assistant", "content": ""}
        return told, nothing | ({"reasoning_content": ""} if export.thinking == "separate" else {})


def _news(prompt: list[Json], before: list[Json]) -> list[Json]:
    """What a prompt adds to the conversation before it, which ends with an answer."""
    if not before:
        return prompt
    if _system(prompt) != _system(before):
        raise DataError("its system prompt differs from that of the turns before; export the form chat")
    last = max((i for i, message in enumerate(prompt) if message["role"] == "assistant"), default=-1)
    news = [message for message in prompt[last + 1 :] if message["role"] not in ("system", "developer")]
    told = [message for message in news if message["role"] == "tool"]
    asked = [call["id"] for call in before[-1].get("tool_calls", ())]
    if sorted(message["tool_call_id"] for message in told) != sorted(asked):
        told = tool_results(before[-1], RESULT)
    return [*told, *(message for message in news if message["role"] != "tool")]


def _system(messages: Iterable[Json]) -> list[Json]:
    return [message for message in messages if message["role"] in ("system", "developer")]


def answer_message(reply: Reply, thinking: str, *, thinks: bool = True) -> Json:
    """An answer as the assistant's message of a row. DataError when it is damaged or empty; thoughts alone are none.

    Args:
        thinking: As ExportConfig's.
        thinks: False: this row has none, whatever `thinking` says of where they stand.
    """
    if not isinstance(reply.content, str) or not isinstance(reply.thinking, str):
        raise DataError("its answer is no text")
    content, thoughts = split_thinking(reply.content, reply.thinking)
    thoughts = thoughts if thinks else ""
    if not reply.tool_calls and not content.strip():
        raise DataError("the answer is empty")
    if thoughts and thinking == "keep":
        content = f"<think>\n{thoughts}\n</think>\n\n{content}"
    message: Json = {"role": "assistant", "content": content}
    if thinking == "separate":
        message["reasoning_content"] = thoughts
    if reply.tool_calls:
        message["tool_calls"] = calls_in_form(reply.tool_calls)
    return message


def _place(pictures: Pictures | None) -> Callable[[str], Json]:
    return inline_part if pictures is None else pictures.part


def _add_columns(
    row: Json, turn: SelectedTurn, export: ExportConfig, other: Any, shown: list[Json], pictures: Pictures | None
) -> None:
    """Everything that stands between the messages and the metadata."""
    if tools := turn.call.tools:
        row["tools"] = tools_in_form(tools)
    if other is not None:
        row["answer" if export.target == "label" else "label"] = other
    if pictures is not None:
        parts = (part for message in shown if isinstance(message["content"], list) for part in message["content"])
        row["images"] = [part["path"] for part in parts if part["type"] == "image"]


def _facts(turn: SelectedTurn, export: ExportConfig) -> Json:
    """Metadata that turns and conversations have in common."""
    rollout = turn.rollout
    facts: Json = {
        "model": turn.model or "",
        "provider": turn.provider or "",
        "environment": rollout.environment or "",
        "seed": rollout.seed,
        "reward": rollout.reward,
        "achievements": list(rollout.achievements),
    }
    if export.label is not None:
        facts["label_model"] = export.label
    return facts


# --------------------------------------------------------------------------- reading rows


def texts_of(row: Json) -> Iterator[str]:
    """Every text of a row's messages that a model reads or writes; tools, labels and metadata are none."""
    for key in ("messages", "prompt", "completion"):
        for message in row.get(key, ()):
            yield r.plain_text(message["content"])
            if thoughts := message.get("reasoning_content"):
                yield thoughts
            for call in message.get("tool_calls", ()):
                yield f"{call['function']['name']} {call['function']['arguments']}"


def duplicate_key(row: Json) -> bytes:
    """Equal for rows that are equal but for their metadata and the ids of their tool calls, which servers draw."""
    parts = {key: _without_ids(value) for key, value in row.items() if key != "metadata"}
    return hashlib.blake2b(orjson.dumps(parts), digest_size=16).digest()


def _without_ids(value: Any) -> Any:
    """Messages, or one, without the ids of tool calls; anything else as it is."""
    if isinstance(value, list):
        return [_without_ids(item) for item in value]
    if isinstance(value, dict) and ("tool_calls" in value or "tool_call_id" in value):
        calls = [call["function"] for call in value.get("tool_calls", ())]
        return {**value, "tool_calls": calls, "tool_call_id": None}
    return value
