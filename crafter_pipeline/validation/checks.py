"""The checks: from what was played to a finding. None of them talks to the task app."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from crafter_pipeline.validation.arena import Played, Twins
from crafter_pipeline.validation.report import Check, PlayerScore

FLOOR_SHARE = 0.25
"""A player that does one thing only may reach this share of the expert's return."""
TRICK_SHARE = 0.5
"""An answer that is right by trickery may reach this share of the expert's return."""
FARMED_SHARE = 0.75
"""Of the expert's return. Below 1, for a farmer that looks one step ahead is a poor one: RL finds better."""
FEW_ACHIEVEMENTS_SHARE = 0.5
"""A farmer has few achievements below this share of the expert's."""
SILENT_SHARE = 0.5
"""So many groups may be without signal."""
STEPS_PER_S = 20.0
"""Slower than this, one after another, and the environment holds up any model."""
SAME_RETURN = 1e-9
REFUSALS = (401, 403)
MISSING = (404, 405)
SHORT_ANSWER = 3
"""Shorter answers (`7`) occur by chance."""
TELLING_KEYS = re.compile(r"solution|ground_truth|(raw|expected|correct|true|gold|reference)_(solution|answer)", re.I)
"""Keys under which an environment would give its solution away."""

Scores = Mapping[str, PlayerScore]
"""By the player's name."""


def determinism(twins: Sequence[Twins]) -> Check:
    """Equal seeds and actions are equal episodes, from a snapshot on too; other seeds are other worlds."""
    numbers = {
        "seeds": len(twins),
        "steps_compared": sum(t.steps for t in twins),
        "different_worlds": len({json.dumps(t.first[0][0], sort_keys=True, default=str) for t in twins}),
    }
    name = "determinism"
    if differences := [t.difference for t in twins if t.difference]:
        remedy = "Draw every random number from a generator that the seed alone decides, and keep it in the snapshot."
        says = f"{len(differences)} of {len(twins)} seeds are not repeatable; {differences[0]}."
        return Check(name, "failed", says, remedy, numbers)
    if len(twins) > 1 and numbers["different_worlds"] == 1:
        return Check(name, "failed", "All seeds start alike.", "Make the seed decide the world.", numbers)
    says = f"{numbers['steps_compared']} steps on {len(twins)} seeds are equal, after a snapshot too."
    return Check(name, "passed", says, numbers=numbers)


def reward_range(episodes: Iterable[Played]) -> Check:
    """Rewards are finite, and there are some."""
    rewards = [reward for played in episodes for reward in played.rewards]
    finite = [r for r in rewards if math.isfinite(r)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    share = sum(r != 0 for r in finite) / max(len(rewards), 1)
    numbers = {"min": low, "max": high, "share_of_rewarded_turns": share, "turns": len(rewards)}
    if len(finite) < len(rewards):
        says = f"{len(rewards) - len(finite)} of {len(rewards)} rewards are not finite."
        return Check("reward range", "failed", says, "Answer a number for every reward.", numbers)
    if low == high:
        says = f"Every reward of {len(rewards)} turns is {low:g}."
        return Check("reward range", "failed", says, "Reward something that the players can reach.", numbers)
    says = f"{low:g} to {high:g} a turn; {share:.0%} of {len(rewards)} turns are rewarded."
    return Check("reward range", "passed", says, numbers=numbers)


def expert_on_top(scores: Scores, rivals: Iterable[str]) -> Check:
    """The expert's mean return is above that of every rival."""
    name, expert = "expert on top", scores.get("expert")
    if expert is None:
        return _no_expert(name)
    best = max((scores[r] for r in rivals), key=lambda s: s.mean_return)
    numbers = {"expert": expert.mean_return, "best_rival": best.player, "rival": best.mean_return}
    says = (
        f"The expert returns {expert.mean_return:.2f}, the best of the others ({best.player}) {best.mean_return:.2f}."
    )
    if expert.mean_return > best.mean_return:
        return Check(name, "passed", says, numbers=numbers)
    return Check(name, "failed", says, "Reward what the task is about more than what that player does.", numbers)


def floor(scores: Scores, degenerate: Iterable[str]) -> Check:
    """Doing nothing, or one thing only, is worth little of what the expert gets."""
    name, expert = "degenerate policies", scores.get("expert")
    if expert is None:
        return _no_expert(name)
    worst = max((scores[d] for d in degenerate), key=lambda s: s.mean_return)
    limit = FLOOR_SHARE * expert.mean_return
    numbers = {"worst": worst.player, "return": worst.mean_return, "limit": limit}
    says = f"The best of them ({worst.player}) returns {worst.mean_return:.2f}, allowed is {limit:.2f}."
    if worst.mean_return <= max(limit, 0.0):
        return Check(name, "passed", says, numbers=numbers)
    remedy = "Limit how often the same thing is rewarded (k_limits), or lower its weight."
    return Check(name, "failed", says, remedy, numbers)


def farming(scores: Scores, farmers: Iterable[str], *, free_text: bool) -> Check:
    """Nobody gets near the expert's return without doing the expert's work."""
    name, expert = "reward farming", scores.get("expert")
    if expert is None:
        return _no_expert(name)
    farmer = max((scores[f] for f in farmers), key=lambda s: s.mean_return)
    numbers = {"farmer": farmer.mean_return, "expert": expert.mean_return, "player": farmer.player}
    if free_text:
        says = (
            f"The best trick ({farmer.player}) returns {farmer.mean_return:.2f}, the expert {expert.mean_return:.2f}."
        )
        if farmer.mean_return < TRICK_SHARE * expert.mean_return:
            return Check(name, "passed", says, numbers=numbers)
        return Check(name, "failed", says, "Compare answers strictly: one answer, of one value.", numbers)
    numbers |= {"farmer_achievements": farmer.mean_achievements, "expert_achievements": expert.mean_achievements}
    says = (
        f"The farmer returns {farmer.mean_return:.2f} with {farmer.mean_achievements:.1f} achievements, "
        f"the expert {expert.mean_return:.2f} with {expert.mean_achievements:.1f}."
    )
    few = farmer.mean_achievements < FEW_ACHIEVEMENTS_SHARE * expert.mean_achievements
    if farmer.mean_return < FARMED_SHARE * expert.mean_return or not few:
        return Check(name, "passed", says, numbers=numbers)
    remedy = "Raise the weights of achievements against what can be repeated, or use the strategy consistent."
    return Check(name, "failed", says, remedy, numbers)


def group_signal(groups: Sequence[Sequence[Played]]) -> Check:
    """Rollouts of one seed differ in return: without a difference there is nothing for RL to learn from."""
    name = "group signal"
    if not groups:
        return Check(name, "skipped", "No player plays this environment now well, now badly.")
    spreads = [pstdev(p.total for p in group) for group in groups]
    silent = sum(spread <= SAME_RETURN for spread in spreads)
    players = " and ".join(dict.fromkeys(p.player for p in groups[0]))
    numbers = {
        "players": players,
        "groups": len(groups),
        "group_size": len(groups[0]),
        "mean_within_group_std": fmean(spreads),
        "mean_within_group_variance": fmean(s * s for s in spreads),
        "share_without_signal": silent / len(groups),
    }
    says = (
        f"{silent} of {len(groups)} groups of {len(groups[0])} ({players}) are without signal; "
        f"standard deviation within a group {fmean(spreads):.2f}."
    )
    if silent <= SILENT_SHARE * len(groups):
        return Check(name, "passed", says, numbers=numbers)
    remedy = "Play longer episodes or easier tasks, or shape the reward (step_rewards)."
    return Check(name, "failed", says, remedy, numbers)


@dataclass(frozen=True, slots=True)
class Disclosure:
    """What the task app says of one task before and after a wrong answer, and the right answer."""

    seed: int
    text: str
    """What a policy sees: the problem."""
    answer: str | None
    """The expert's; None: there is none, or no expert."""
    bodies: Mapping[str, Any]
    """By route."""


def leaks(disclosures: Sequence[Disclosure]) -> Check:
    """The solution is in no answer of the task app: neither under a telling key nor as text."""
    name, remedy = "solution leaks", "Keep the solution on the server: in no observation, info or task."
    keys = {f"{route} {key}" for d in disclosures for route, body in d.bodies.items() for key in _telling(body)}
    solved = [d for d in disclosures if d.answer is not None]
    distinctive = [d for d in solved if len(d.answer or "") >= SHORT_ANSWER]
    hidden = [d for d in distinctive if not _says(d.text, d.answer or "")]
    found = [
        f"{route} (seed {d.seed})" for d in hidden for route, body in d.bodies.items() if _says(body, d.answer or "")
    ]
    numbers = {"tasks": len(disclosures), "distinctive_answers": len(hidden), "found": len(keys) + len(found)}
    if keys or found:
        return Check(
            name, "failed", f"The solution stands in {', '.join([*sorted(keys), *found][:3])}.", remedy, numbers
        )
    if len(distinctive) > 2 * len(hidden) and len(distinctive) > 2:
        says = f"In {len(distinctive) - len(hidden)} of {len(distinctive)} tasks the problem's text holds the answer."
        return Check(name, "failed", says, remedy, numbers)
    if not solved:
        says = "No key names a solution; this environment hides no answer that a player could be given."
    elif not hidden:
        return Check(
            name, "skipped", "No task has an answer that can be told from chance; try more seeds.", "", numbers
        )
    else:
        says = f"{len(hidden)} distinctive answers were looked for and not found."
    return Check(name, "passed", says, numbers=numbers)


def auth(statuses: Mapping[str, tuple[int, int]] | None) -> Check:
    """Every route refuses who has no key or a wrong one. `statuses`: by route, (without, with a wrong key)."""
    if statuses is None:
        return Check("auth", "skipped", "No key is set, so none can be asked for.")
    there = {route: both for route, both in statuses.items() if not set(both) <= set(MISSING)}
    open_ = [route for route, both in there.items() if not set(both) <= set(REFUSALS)]
    numbers = {"routes": len(there), "open": open_}
    if open_:
        says = f"{len(open_)} of {len(there)} routes answer without the key: {', '.join(open_[:4])}."
        return Check("auth", "failed", says, "Ask for ENVIRONMENT_API_KEY on every route but /, /livez.", numbers)
    return Check("auth", "passed", f"{len(there)} routes refuse who has no key, or a wrong one.", numbers=numbers)


def tasks(infos: Sequence[Any], again: Sequence[Any], seeds: Sequence[int], info: Mapping[str, Any]) -> Check:
    """`/info` and `/task_info` describe every seed, the same each time."""
    name, numbers = "task info", {"seeds": len(seeds)}
    described = [t for t in infos if isinstance(t, dict) and t.get("environment") and t.get("task")]
    if len(described) < len(seeds) or not isinstance(info.get("service"), dict):
        says = f"/task_info describes {len(described)} of {len(seeds)} seeds."
        return Check(name, "failed", says, "Answer task and environment for every seed.", numbers)
    if list(infos) != list(again):
        return Check(name, "failed", "Asked twice, /task_info differs.", "Let the seed alone decide.", numbers)
    return Check(name, "passed", f"{len(seeds)} seeds are described, the same each time.", numbers=numbers)


def speed(steps: int, seconds: float) -> Check:
    """Steps a second of one client that waits for each answer."""
    rate = steps / max(seconds, 1e-9)
    numbers = {"steps_per_s": rate, "ms_per_step": 1000.0 / max(rate, 1e-9), "steps": steps}
    says = f"{rate:.0f} steps/s, one after another over HTTP."
    if rate >= STEPS_PER_S:
        return Check("speed", "passed", says, numbers=numbers)
    return Check("speed", "failed", says, f"Less than {STEPS_PER_S:.0f} would hold up any model.", numbers)


def _no_expert(name: str) -> Check:
    return Check(name, "skipped", "There is no expert for this environment to compare with.")


def _says(body: Any, answer: str) -> bool:
    """Whether the answer stands anywhere in a body, as a word of its own."""
    word = re.compile(rf"(?<![\w.]){re.escape(answer)}(?![\w.]*\w)")
    return any(word.search(text) for text in _texts(body))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _telling(value: Any) -> Iterator[str]:
    """Keys that name a solution and hold something."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if TELLING_KEYS.fullmatch(str(key)) and part not in (None, "", [], {}):
                yield str(key)
            else:
                yield from _telling(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _telling(part)
