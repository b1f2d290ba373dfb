"""Who plays in an evaluation, where each model is served, and the request of one episode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from crafter_pipeline.clients.chat import PROVIDER_URLS
from crafter_pipeline.config import EvaluateConfig, own_form
from crafter_pipeline.config.base import digest_of
from crafter_pipeline.contracts import MAX_OPS, EnvSpec, PolicySpec, RecordSpec, RolloutRequest
from crafter_pipeline.environments import MAX_ACTIONS_PER_TURN
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.evaluation.suites import Suite
from crafter_pipeline.model_names import BUILTIN, is_builtin, is_mlp, is_student, is_trained
from crafter_pipeline.recipes.evaluation import DEFAULT_TURNS, MOST_TURNS, EvaluationRecipe

MOST_ENV_STEPS = 10_000
"""A task app's own limit of an episode."""
_BUILTIN_LABELS = {"expert": "teacher", "random": "random"}
_PREFIX_LABELS = {"rl": "rl", "fft": "sft", "ft": "sft", "qft": "sft"}


@dataclass(frozen=True, slots=True)
class Named:
    """A player as somebody wrote it: `label=model@URL`."""

    model: str
    label: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every player's episodes."""

    env_name: str
    """The environment as the task app names it."""
    env_config: Mapping[str, Any]
    """Its options."""
    policy_name: str
    """What the player is called in the traces."""
    turns: int
    """Model calls per episode."""
    max_env_steps: int
    """Game actions per episode that the limits allow together."""
    traced: bool
    """Whether answers bring their traces."""
    repetition: str = ""
    """Another one plays everything anew."""


@dataclass(frozen=True)
class Player:
    """A model that plays, and how it is asked."""

    label: str
    model: str
    inference_url: str | None
    """Its OpenAI-compatible base URL; None: the task app knows it by the provider."""
    policy: Mapping[str, Any]
    """How it is asked, provider included; no model and no address."""
    rules: Rules

    @property
    def provider(self) -> str | None:
        """groq or openai, where one of them serves it."""
        if self.inference_url is not None:
            return provider_of(self.inference_url)
        return str(self.policy.get("provider"))

    @cached_property
    def identity(self) -> str:
        """Twelve hex digits of everything that decides an episode but the seed. Addresses are not part of it: the
        task app's ledger knows a played episode under the same name when services have moved."""
        rules = self.rules
        policy = {key: value for key, value in self.policy.items() if key != "api_key"}
        return digest_of(
            [
                *("eval", self.model, policy, rules.env_name, dict(rules.env_config), rules.policy_name),
                *(rules.turns, rules.traced, rules.repetition),
            ]
        )

    def run_id(self, seed: int) -> str:
        """The episode's name."""
        return f"eval-{self.identity}-{seed}"

    def request(self, seed: int) -> RolloutRequest:
        """Body of `POST /rollout`."""
        rules = self.rules
        address = {} if self.inference_url is None else {"inference_url": self.inference_url}
        return RolloutRequest(
            run_id=self.run_id(seed),
            mode="eval",
            env=EnvSpec(env_name=rules.env_name, seed=seed, config=dict(rules.env_config)),
            policy=PolicySpec(
                policy_name=rules.policy_name,
                config={"model": self.model, **address, "max_llm_calls": rules.turns, **self.policy},
            ),
            ops=["agent", "env"] * rules.turns,
            record=RecordSpec(trajectories=False, return_trace=rules.traced, trace_format="structured"),
            on_done="terminate",
        )


def read_player(text: str) -> Named:
    """`label=model@URL`, label and URL may be missing. ConfigError when the model is."""
    label, sign, rest = text.partition("=")
    if not sign or "/" in label or "@" in label:
        label, rest = "", text
    model, at, url = rest.partition("@http")
    if not model.strip():
        raise ConfigError(f"{text!r} names no model; write MODEL, LABEL=MODEL or LABEL=MODEL@URL.")
    return Named(model.strip(), label.strip() or None, f"http{url}".strip() if at else None)


def labels(named: Sequence[Named]) -> list[str]:
    """What each player is called: its own label, else what the model's id says, else the id.

    ConfigError when two would be called the same.
    """
    told = [player.label or _label_of(player.model) for player in named]
    found = [
        one.label or (label if told.count(label) == 1 else one.model) for one, label in zip(named, told, strict=True)
    ]
    twice = [label for label, n in Counter(found).items() if n > 1]
    if twice:
        raise ConfigError(f"Two players are called {twice[0]!r}. Give each a name: first={twice[0]},second=…")
    return found


def rules_of(recipe: EvaluationRecipe, *, environment: str, traced: bool, whole: bool) -> Rules:
    """The rules of a recipe.

    Args:
        environment: What the environment is called, where the recipe names none.
        traced: Whether answers are to bring their traces.
        whole: There is no file that limits the episode: they last as long as those of `run`.
    """
    config, asked = dict(recipe.environment), recipe.asked
    if whole and recipe.turns is None:
        config.setdefault("max_env_steps", EvaluateConfig().max_env_steps)
    steps = config.get("max_env_steps", MOST_ENV_STEPS)
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MOST_ENV_STEPS:
        raise ConfigError(f"env_config.max_env_steps: {steps!r} is not a whole number from 1 to {MOST_ENV_STEPS}.")
    turns = recipe.turns or (min(steps, MOST_TURNS) if "max_env_steps" in config else DEFAULT_TURNS)
    actions = asked.get("max_actions_per_turn", MAX_ACTIONS_PER_TURN)
    each = actions if isinstance(actions, int) and actions > 0 else MAX_ACTIONS_PER_TURN
    name = recipe.env_name or recipe.rollout.env_name or environment
    assert 2 * turns <= MAX_OPS
    return Rules(name, config, recipe.played_as or f"{name}-react", turns, min(steps, turns * each), traced)


def players_of(
    recipe: EvaluationRecipe, rules: Rules, suite: Suite | None, *, backend_inference: str, everywhere: str | None
) -> list[Player]:
    """The players of a recipe, their models as they were written.

    Args:
        suite: The suite that is played; None: none.
        backend_inference: Base URL of the training backend's models.
        everywhere: Base URL that was said for all of them, whatever the recipe says.
    """
    named = [read_player(text) for text in recipe.players]
    if not named:
        raise ConfigError("No model is named. Give --model or --models, EVAL_MODEL, or `model` in the file.")
    found = []
    for one, label in zip(named, labels(named), strict=True):
        url, provider = _host(one, recipe, backend_inference, everywhere)
        found.append(Player(label, one.model, url, {} if provider is None else {"provider": provider}, rules))
    return _asked(found, recipe, suite)


def resolved(
    players: Sequence[Player],
    recipe: EvaluationRecipe,
    suite: Suite | None,
    backend_inference: str,
    full_id: Callable[[str], str],
) -> list[Player]:
    """The players, each model of the training backend by its full id, which tells how it is asked.

    Args:
        full_id: Of a model's name, as `BackendClient.full_id`.
    """
    found = [
        replace(p, model=full_id(p.model)) if p.inference_url == backend_inference and is_trained(p.model) else p
        for p in players
    ]
    return _asked(found, recipe, suite)


def _asked(players: Sequence[Player], recipe: EvaluationRecipe, suite: Suite | None) -> list[Player]:
    """Each player with how it is asked: by the suite; without one, the tiny student as `run` asks it, and so scripted
    players where none but these play and the recipe says nothing. What the recipe says comes on top."""
    ours = not recipe.asked and all(is_student(p.model) or is_builtin(p.model) for p in players)

    def form(model: str) -> Mapping[str, Any]:
        if suite is not None:
            return suite.asks(model)
        return own_form(model) if ours or is_student(model) else {}

    def host(player: Player) -> Mapping[str, Any]:
        return {key: player.policy[key] for key in ("provider",) if key in player.policy}

    return [replace(p, policy={**host(p), **form(p.model), **recipe.asked}) for p in players]


def _host(
    one: Named, recipe: EvaluationRecipe, backend_inference: str, everywhere: str | None
) -> tuple[str | None, str | None]:
    """(base URL or None, provider or None) of a player."""
    hosted = recipe.host if recipe.host in PROVIDER_URLS else None
    url = one.url or everywhere
    if url is None and (is_builtin(one.model) or is_trained(one.model)):
        # No hosted provider serves these, whatever the recipe says of its own model.
        there = recipe.base_url if recipe.base_url and provider_of(recipe.base_url) is None else None
        return there or backend_inference, None
    url = url or recipe.base_url
    if url is not None:
        return url, hosted if hosted and provider_of(url) == hosted else None
    return (None, hosted) if hosted else (backend_inference, None)


def provider_of(url: str) -> str | None:
    """Whose address it is: groq, openai, or nobody's that is known."""
    host = urlsplit(url).hostname or ""
    return next((name for name, base in PROVIDER_URLS.items() if urlsplit(base).hostname == host), None)


def _label_of(model: str) -> str:
    if found := BUILTIN.fullmatch(model):
        return _BUILTIN_LABELS[found[1]]
    if model.startswith("latest:"):
        return model.removeprefix("latest:")
    if is_mlp(model):
        return "mlp"
    prefix, colon, _ = model.partition(":")
    return _PREFIX_LABELS.get(prefix, model) if colon else model
