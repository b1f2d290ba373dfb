"""`traces show`: one rollout, turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from crafter_pipeline.cli.common import AsJson, note, print_json, say
from crafter_pipeline.cli.traces.common import NO_REPEATED_INPUTS, RepeatedInputs
from crafter_pipeline.errors import DataError

if TYPE_CHECKING:
    from crafter_pipeline.contracts import Rollout, Turn
    from crafter_pipeline.traces.reader import StoredRollout


def show(
    run_id: Annotated[str, Parameter(name="RUN_ID")],
    /,
    *,
    inputs: RepeatedInputs = NO_REPEATED_INPUTS,
    turn: int | None = None,
    snapshot: Path | None = None,
    as_json: AsJson = False,
) -> int:
    """Show a rollout: what the model saw, thought and did, and what came of it.

    Parameters
    ----------
    run_id:
        The rollout; the beginning of its run id is enough where only one has it.
    turn:
        Only this turn, with its whole prompt.
    snapshot:
        Also write <run_id>_trace.json into this folder; `traces import` reads it back.
    as_json:
        Print the rollout as JSON, with --turn that turn alone.
    """
    from crafter_pipeline.traces.reader import find_rollout

    stored = find_rollout(inputs.databases(), run_id)
    rollout = stored.rollout
    if rollout is None:
        raise DataError(f"{stored.path}: rollout {stored.session_id} cannot be read: {'; '.join(stored.problems)}.")
    turns = [t for t in rollout.turns if turn is None or t.index == turn]
    if turn is not None and not turns:
        raise DataError(f"Rollout {rollout.run_id} has no turn {turn}: it has {len(rollout.turns)}, counted from 0.")
    if as_json:
        print_json(_rollout_json(stored, rollout, turns))
    else:
        _show_head(stored, rollout)
        for each in turns:
            _show_turn(each, prompt=turn is not None)
    for problem in stored.problems:
        note(f"Damaged: {problem}")
    if snapshot is not None:
        from crafter_pipeline.traces.snapshots import write_snapshot

        if stored.problems:
            raise DataError(f"No snapshot: rollout {rollout.run_id} is damaged, it would not be what was played.")
        note(f"Snapshot: {write_snapshot(rollout, snapshot)}")
    return 0


def _rollout_json(stored: StoredRollout, rollout: Rollout, turns: Sequence[Turn]) -> dict[str, Any]:
    facts = asdict(replace(rollout, turns=tuple(turns)))
    return {"database": str(stored.path), **facts, "problems": list(stored.problems)}


def _show_head(stored: StoredRollout, rollout: Rollout) -> None:
    from datetime import UTC, datetime

    created = datetime.fromtimestamp(rollout.created_at, UTC)
    tokens = (
        sum(turn.reply.prompt_tokens for turn in rollout.turns),
        sum(turn.reply.completion_tokens for turn in rollout.turns),
    )
    say(f"Rollout {rollout.run_id} in {stored.path}")
    say(f"  {rollout.environment or 'unknown environment'}, seed {rollout.seed}, {created:%Y-%m-%d %H:%M:%S} UTC")
    say(
        f"  model {rollout.model or 'unknown'} ({rollout.provider or 'unknown provider'}), "
        f"policy {rollout.policy or '–'}"
    )
    say(
        f"  {len(rollout.turns)} turns, {rollout.env_steps} env steps, return {rollout.total_reward:g}, ended by "
        f"{rollout.stop_reason}, {tokens[0]:,} tokens in, {tokens[1]:,} out"
    )
    say(f"  achievements: {', '.join(rollout.achievements) or 'none'}")
    if setup := rollout.metadata.get("setup"):
        say(f"  setup: {setup}")


def _show_turn(turn: Turn, *, prompt: bool) -> None:
    from crafter_pipeline.traces.records import plain_text

    reply = turn.reply
    say("")
    say(f"── turn {turn.index} " + "─" * 60)
    if prompt:
        for message in turn.messages:
            say(f"[{message.get('role')}]\n{plain_text(message.get('content'))}")
            if calls := message.get("tool_calls"):
                say(f"  tool calls: {calls}")
    else:
        say(turn.observation or "(no observation stored)")
    if reply.thinking:
        say(f"thinking: {reply.thinking}")
    if reply.content:
        say(f"answer: {reply.content}")
    for call in reply.tool_calls:
        function = call.get("function") or {}
        say(f"call: {function.get('name')}({function.get('arguments')})")
    facts = [f"actions: {', '.join(turn.actions) or 'none'}", f"reward {turn.reward:g}"]
    if turn.unlocked:
        facts.append(f"unlocked {', '.join(turn.unlocked)}")
    seconds = max(0.0, turn.ended_at - turn.started_at)
    facts.append(
        f"{reply.latency_ms:.0f} ms of {seconds:.2f} s for the model, "
        f"{reply.prompt_tokens}+{reply.completion_tokens} tokens"
    )
    say("; ".join(facts))
    if turn.parse_failure is not None:
        say(f"parse failure: {turn.parse_failure}")
    if events := turn.info.get("events"):
        say(f"events: {', '.join(filter(None, events))}")
