"""Validating a served environment: in full (`validate`), or within seconds before a run trains on it (`gate`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from crafter_pipeline.clients.task_app import TaskAppClient
from crafter_pipeline.config import DEV_SEEDS_START
from crafter_pipeline.environments import EnvironmentInfo, find_environment
from crafter_pipeline.errors import ConfigError, FieldError
from crafter_pipeline.rewards import read_step_rewards
from crafter_pipeline.validation import checks
from crafter_pipeline.validation.arena import Arena, Played, farm, play, play_twins
from crafter_pipeline.validation.checks import Disclosure
from crafter_pipeline.validation.players import (
    Player,
    RandomPlayer,
    SloppyPlayer,
    expert_of,
    idle_player,
    repeat_players,
    trick_players,
)
from crafter_pipeline.validation.report import Check, PlayerScore, ValidationReport

WORKERS = 8
SEEDS, MAX_ENV_STEPS, GROUP_SIZE = 8, 100, 4
GATE_SEEDS, GATE_STEPS = 4, 40
FARMED_SEEDS = 2
"""Each step of the farmer costs a request per action, twice; two worlds show whether it pays."""
LEAK_SEEDS = 40
"""A task costs three requests."""
SPEED_STEPS = 100
GUARDED = ("GET /info", "GET /task_info", "POST /rollout") + tuple(
    f"POST /{name}" for name in ("create", "step", "reset", "snapshot", "restore", "branch", "terminate", "done")
)
WRONG_KEY = "not-the-key"
WRONG_ANSWER = "0.123454321"

T = TypeVar("T")
Maker = Callable[[int], Player]
"""Makes a player for one episode on a seed."""


def validate(
    client: TaskAppClient,
    environment: str,
    *,
    seeds: int = SEEDS,
    max_env_steps: int = MAX_ENV_STEPS,
    step_rewards: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> ValidationReport:
    """Play an environment with every player and check what comes of it. About a minute with the defaults.

    Args:
        environment: Config name or app name.
        seeds: Worlds, from the first dev seed on.
        step_rewards: Shaping of the reward, as training will use it.
        say: Hears what is being done.

    Raises ConfigError for an unknown environment or a wrong shaping, ServiceError when the task app cannot be played
    (NoLiveRoutes: not step by step). What it does wrong while it can be played is a failed check.
    """
    started = time.monotonic()
    arena = _arena(client, environment, max_env_steps, step_rewards)
    info, worlds = arena.info, _worlds(seeds)
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="validate") as pool:
        say("determinism, tasks, keys, leaks")
        found = [
            checks.determinism(_all(pool, play_twins, [(arena, seed) for seed in worlds])),
            _tasks(client, worlds),
            checks.auth(_statuses(client)),
            checks.leaks(_all(pool, _disclose, [(arena, seed) for seed in _worlds(max(seeds, LEAK_SEEDS))])),
        ]
        say("expert and random")
        experts, random = _experts(pool, arena, worlds), _play(pool, arena, worlds, [_random(info)])
        groups = _groups(pool, arena, worlds, mixed=False)
        say("players that do one thing only")
        simple = _play(pool, arena, worlds, _simple(info))
        say("farming the reward")
        if info.actions:
            farmed = _all(pool, farm, [(arena, seed) for seed in worlds[:FARMED_SEEDS]])
        else:
            farmed = _play(pool, arena, worlds, [_always(player) for player in trick_players()])
    scores = _scores([*experts, *random, *simple, *farmed])
    same_worlds = _scores([*farmed, *(e for e in experts if e.seed in {f.seed for f in farmed})])
    degenerate, farmers = ({p.player for p in played} for played in (simple, farmed))
    everything = [*experts, *random, *simple, *farmed, *(p for group in groups for p in group)]
    found += [
        checks.reward_range(everything),
        checks.expert_on_top(scores, {"random"} | degenerate),
        checks.floor(scores, degenerate),
        checks.farming(same_worlds, farmers, free_text=not info.actions),
        checks.group_signal(groups),
        _speed(arena),
    ]
    return _report(arena, worlds, scores, found, started)


def gate(client: TaskAppClient, environment: str, step_rewards: Mapping[str, Any] | None = None) -> ValidationReport:
    """The short form, before compute is spent: determinism, the expert above random, and, if the reward is shaped,
    whether the shaped one tells rollouts apart. One or two seconds. Raises as `validate`.
    """
    started = time.monotonic()
    arena = _arena(client, environment, GATE_STEPS, step_rewards)
    worlds = _worlds(GATE_SEEDS)
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="gate") as pool:
        found = [checks.determinism(_all(pool, play_twins, [(arena, seed) for seed in worlds]))]
        experts, random = _experts(pool, arena, worlds), _play(pool, arena, worlds, [_random(arena.info)])
        scores = _scores([*experts, *random])
        found.append(checks.expert_on_top(scores, ["random"]))
        if step_rewards is not None:
            found.append(checks.group_signal(_groups(pool, arena, worlds, mixed=True)))
    return _report(arena, worlds, scores, found, started)


# --------------------------------------------------------------------------- playing


def _arena(client: TaskAppClient, environment: str, max_env_steps: int, shaping: Mapping[str, Any] | None) -> Arena:
    """ConfigError if there is no such environment, or the shaping is none of it."""
    info = find_environment(environment)
    try:
        read_step_rewards(shaping, info.achievements)
    except FieldError as e:
        raise ConfigError(f"step_rewards.{e}") from None
    return Arena(client, info, max_env_steps, shaping)


def _all(pool: ThreadPoolExecutor, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
    """`function` of each tuple, in their order. The first error drops what waits."""
    futures = [pool.submit(function, *one) for one in arguments]
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _play(pool: ThreadPoolExecutor, arena: Arena, worlds: Sequence[int], makers: Sequence[Maker]) -> list[Played]:
    return _all(pool, play, [(arena, seed, maker(seed)) for maker in makers for seed in worlds])


def _experts(pool: ThreadPoolExecutor, arena: Arena, worlds: Sequence[int]) -> list[Played]:
    """The expert's episodes; none if there is no expert or it cannot read what it is shown."""
    maker = expert_of(arena.info)
    if maker is None:
        return []
    try:
        return _play(pool, arena, worlds, [lambda seed: maker()])
    except ValueError:
        return []


def _groups(pool: ThreadPoolExecutor, arena: Arena, worlds: Sequence[int], *, mixed: bool) -> list[list[Played]]:
    """GROUP_SIZE rollouts per world: of random players; if `mixed`, every other one is half an expert; for free text,
    where a random guess is never right, all are. Empty if the expert that this takes cannot play."""
    info, expert = arena.info, expert_of(arena.info)
    if not info.actions and expert is None:
        return []

    def maker(number: int) -> Maker:
        if expert is None or (info.actions and not (mixed and number % 2)):
            return lambda seed: RandomPlayer(info, f"{seed} {number}")
        return lambda seed: SloppyPlayer(expert(), info, f"{seed} {number}")

    try:
        played = _play(pool, arena, worlds, [maker(number) for number in range(GROUP_SIZE)])
    except ValueError:  # e.g. problems from a file, which the solver does not know
        return []
    return [[p for p in played if p.seed == seed] for seed in worlds]


def _random(info: EnvironmentInfo) -> Maker:
    return lambda seed: RandomPlayer(info, seed)


def _always(player: Player) -> Maker:
    return lambda seed: player


def _simple(info: EnvironmentInfo) -> list[Maker]:
    """Noop, and each action alone."""
    idle = idle_player(info)
    repeats = [p for p in repeat_players(info) if idle is None or p.act("") != idle.act("")]
    return [_always(player) for player in ([idle] if idle is not None else []) + repeats]


def _worlds(seeds: int) -> tuple[int, ...]:
    return tuple(range(DEV_SEEDS_START, DEV_SEEDS_START + seeds))


# --------------------------------------------------------------------------- asking


def _disclose(arena: Arena, seed: int) -> Disclosure:
    """Everything the task app says of one task, with a wrong answer given."""
    client, bodies = arena.client, {}
    maker = expert_of(arena.info)
    with arena.environment(seed) as live:
        text, bodies["/create"] = live.text, _without_problem(live.answer)
        answer = None
        if maker is not None and not arena.info.actions:
            try:
                answer = maker().act(text)
            except ValueError:  # not a problem of the generator
                pass
        step = arena.step(live.env_id, arena.info.actions[0] if arena.info.actions else WRONG_ANSWER)
        bodies["/step"] = _without_problem({"observation": step.observation, "info": step.info})
        bodies["/reset"] = _without_problem(client.reset(live.env_id, seed))
    bodies["/task_info"] = client.task_info([seed])
    return Disclosure(seed, text, answer, bodies)


def _without_problem(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body without the text that a policy sees, which is looked at by itself."""
    observation = body.get("observation")
    rest = {k: v for k, v in observation.items() if k != "text"} if isinstance(observation, dict) else observation
    return {**body, "observation": rest}


def _tasks(client: TaskAppClient, worlds: Sequence[int]) -> Check:
    asked = [client.task_info(worlds) for _ in range(2)]
    first, again = (one if isinstance(one, list) else [one] for one in asked)
    return checks.tasks(first, again, worlds, client.info())


def _statuses(client: TaskAppClient) -> dict[str, tuple[int, int]] | None:
    """By route: what somebody without a key gets, and with a wrong one. None: we have no key either."""
    if not client.has_key:
        return None
    split = {route: route.split(" ", 1) for route in GUARDED}
    return {
        route: (client.status_without_key(method, path), client.status_without_key(method, path, WRONG_KEY))
        for route, (method, path) in split.items()
    }


def _speed(arena: Arena) -> Check:
    """Steps of a player that thinks nothing, when nobody else plays."""
    steps, player, started = 0, RandomPlayer(arena.info, "speed"), time.monotonic()
    while steps < SPEED_STEPS:
        steps += len(play(arena, DEV_SEEDS_START, player).rewards)
    return checks.speed(steps, time.monotonic() - started)


# --------------------------------------------------------------------------- reporting


def _scores(episodes: Sequence[Played]) -> dict[str, PlayerScore]:
    names = dict.fromkeys(p.player for p in episodes)
    return {name: PlayerScore.of(p for p in episodes if p.player == name) for name in names}


def _report(
    arena: Arena, worlds: tuple[int, ...], scores: Mapping[str, PlayerScore], found: Sequence[Check], started: float
) -> ValidationReport:
    return ValidationReport(
        environment=arena.info.name,
        url=arena.client.url,
        seeds=worlds,
        max_env_steps=arena.max_env_steps,
        step_rewards=arena.step_rewards,
        players=tuple(scores.values()),
        checks=tuple(found),
        seconds=time.monotonic() - started,
    )
