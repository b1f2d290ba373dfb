"""One episode through the task app: how it is asked for, and what its name is in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from crafter_pipeline import connections
from crafter_pipeline.clients.task_app import TaskAppClient
from crafter_pipeline.config import SPREAD, CollectConfig, EvaluateConfig, PolicyConfig, digest_of
from crafter_pipeline.config.play import DealtSteps, dealt_steps
from crafter_pipeline.contracts import EnvSpec, EpisodeResult, PolicySpec, RecordSpec, RolloutRequest, RolloutResponse
from crafter_pipeline.deployment import is_local
from crafter_pipeline.environments import find_environment
from crafter_pipeline.errors import ServiceError
from crafter_pipeline.progress import progress
from crafter_pipeline.replicas import ask
from crafter_pipeline.services import ServiceGone
from crafter_pipeline.traces.imports import import_answer, importing
from crafter_pipeline.traces.store import TraceStore

SEEDS_AS_TASKS = 500
"""Up to here a seed is a Prefect task; above, seeds share tasks: the server drops events beyond some thousands."""


class EpisodeSpec(BaseModel):
    """Who plays what; with a seed it is one episode."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    task_app_urls: tuple[str, ...]
    """Who plays; several share the seeds."""
    inference_url: str
    environment: str
    model: str
    max_env_steps: DealtSteps
    env_config: dict[str, Any] = {}
    max_turns: int | None
    """None: as many as env steps."""
    policy: PolicyConfig
    identity: str
    """Digest of everything that decides the episode but the seed. Addresses are not part of it: they change with
    every start of a service, the episode does not."""
    purpose: str
    """collect or evaluate; kept in the trace."""
    traced: bool = False
    """Whether answers bring their traces, because the task app does not write where we read."""
    imports: Path | None = None
    """Folder where those are stored; None: nowhere."""

    @classmethod
    def to_collect(
        cls, config: CollectConfig, task_app_url: str, inference_url: str, imports: Path | None = None
    ) -> EpisodeSpec:
        """Episodes of the teacher."""
        decides = config.model_dump(mode="json", exclude={"seeds", *SPREAD})
        return cls(
            task_app_urls=connections.task_app_addresses(task_app_url),
            inference_url=config.inference_url or inference_url,
            environment=config.environment,
            model=config.model,
            max_env_steps=config.max_env_steps,
            env_config=config.env_config,
            max_turns=config.max_turns,
            policy=config.policy,
            identity=digest_of(["collect", decides]),
            purpose="collect",
            traced=imports is not None,
            imports=imports,
        )

    @classmethod
    def to_evaluate(
        cls,
        config: EvaluateConfig,
        model: str,
        task_app_url: str,
        inference_url: str,
        imports: Path | None = None,
        repetition: str = "",
    ) -> EpisodeSpec:
        """Episodes of the model that is judged; another `repetition` plays them anew."""
        kept = {"seeds", "baseline_seeds", "bootstrap", *SPREAD}
        decides = ["evaluate", model, config.model_dump(mode="json", exclude=kept)]
        return cls(
            task_app_urls=connections.task_app_addresses(task_app_url),
            inference_url=inference_url,
            environment=config.environment,
            model=model,
            max_env_steps=config.max_env_steps,
            env_config=config.env_config,
            max_turns=None,
            policy=config.policy,
            identity=digest_of([*decides, repetition] if repetition else decides),
            purpose="evaluate",
            traced=imports is not None,
            imports=imports,
        )

    def run_id(self, seed: int) -> str:
        """The episode's name: the task app answers a name it has stored without playing again."""
        return f"{self.purpose}-{self.identity}-{seed}"

    def request(self, seed: int) -> RolloutRequest:
        """Body of `POST /rollout`."""
        steps = dealt_steps(self.max_env_steps, seed)
        turns = min(self.max_turns or steps, steps)  # a turn takes a step at least
        return RolloutRequest(
            run_id=self.run_id(seed),
            mode="eval",
            env=EnvSpec(
                env_name=find_environment(self.environment).name,
                seed=seed,
                config={**self.env_config, "max_env_steps": steps},
            ),
            policy=PolicySpec(
                policy_name=self.environment,
                config={
                    "model": self.model,
                    "inference_url": self.inference_url,
                    "max_llm_calls": turns,
                    **self.policy.model_dump(mode="json"),
                },
            ),
            ops=["agent", "env"] * turns,
            record=RecordSpec(trajectories=False, return_trace=self.traced, trace_format="structured"),
            on_done="terminate",
            training_session_id=self.purpose,
        )


class EpisodesFailed(ServiceError):
    """Some seeds of a task could not be played; carries what was."""

    def __init__(self, done: list[EpisodeResult], failed: dict[int, str]) -> None:
        seed, reason = next(iter(failed.items()))
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        super().__init__(f"Seed {seed}{more} could not be played: {reason}")
        self.done, self.failed = done, failed

    def __reduce__(self) -> tuple[Any, ...]:
        return EpisodesFailed, (self.done, self.failed)  # comes home from worker processes


def shards(seeds: Sequence[int], size: int | None, tasks: int = SEEDS_AS_TASKS) -> list[Sequence[int]]:
    """Seeds by task: one each up to `tasks` seeds, then as many as so many tasks need; `size` forces it."""
    size = size or max(1, ceil(len(seeds) / tasks))
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


def import_folder(task_app_url: str, wanted: Path | None) -> Path | None:
    """Where the traces of a task app are imported: `wanted`, or `traces/v3` if it is not of this machine."""
    return wanted if wanted is not None or is_local(task_app_url) else Path("traces/v3")


@contextmanager
def imported(spec: EpisodeSpec) -> Iterator[TraceStore | None]:
    """The store for the traces of `spec`; None: the task app writes them where we read."""
    if spec.imports is None:
        yield None
    else:
        with importing(spec.imports) as store:
            yield store


def play(
    spec: EpisodeSpec, seeds: Sequence[int], task_app: Callable[[str], TaskAppClient] | None = None
) -> list[EpisodeResult]:
    """Play `seeds` one after another. A seed that fails does not stop the next one.

    Raises EpisodesFailed at the end if any failed, ServiceGone at once if nobody is there to play with, and DataError
    if a trace is to be imported and cannot be.

    Args:
        task_app: The client for an address; default: `connections.task_app`.
    """
    client_of = task_app or connections.task_app
    done: list[EpisodeResult] = []
    failed: dict[int, str] = {}
    with imported(spec) as store:
        for seed in seeds:
            send = partial(_rollout, client_of, spec.request(seed))
            try:
                answer = ask(spec.task_app_urls, seed, spec.inference_url, send)
            except ServiceGone:
                raise
            except ServiceError as e:
                failed[seed] = str(e)
                continue
            if store is not None and (answer.trace is not None or spec.purpose == "collect"):
                import_answer(store, answer)  # an evaluation has its numbers without a trace
            done.append(EpisodeResult.of(seed, answer))
            progress().advance()
    if failed:
        progress().advance(-len(done))  # whoever tries again counts them again
        raise EpisodesFailed(done, failed)
    return done


def _rollout(task_app: Callable[[str], TaskAppClient], request: RolloutRequest, url: str) -> RolloutResponse:
    return task_app(url).rollout(request)


class Collected(BaseModel):
    """What a round of collecting left behind: the task app has the traces, this says how it went."""

    model_config = ConfigDict(frozen=True)

    model: str
    episodes: int
    mean_achievements: float
    mean_reward: float
    env_steps: int
    failed: dict[int, str] = {}
    """Seed -> why it was not played."""

    @classmethod
    def of(cls, model: str, results: Sequence[EpisodeResult], failed: dict[int, str]) -> Collected:
        n = max(len(results), 1)
        return cls(
            model=model,
            episodes=len(results),
            mean_achievements=sum(len(set(r.achievements)) for r in results) / n,
            mean_reward=sum(r.total_reward for r in results) / n,
            env_steps=sum(r.env_steps for r in results),
            failed=failed,
        )
