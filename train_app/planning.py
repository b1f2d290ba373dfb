"""What a job will take before it starts: memory and time, from the shape of its model. No torch here.

    weights      4 bytes each where they are trained (bf16 products work on a copy of 2), else 4, 2 or half a byte
    gradients    4 bytes per trained weight
    optimiser    8 bytes per trained weight: AdamW's two moments
    activations  what the backward pass needs of each token of a forward, with checkpointing a row per layer
    logits       trained positions x vocabulary, four times over
    runtime      Python and torch; on CUDA the driver's context on the device

Predictions hold within a factor of two (checked against real jobs), times within the range that is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from crafter_pipeline.config import RlConfig, SftConfig
from crafter_pipeline.errors import ConfigError, PipelineError
from crafter_pipeline.tokens import load_chat_tokenizer
from train_app.forward_size import ForwardLimit, activation_bytes, checkpoints_activations
from train_app.jobs import JobFilter, JobStore
from train_app.machine import Machine, find_machine
from train_app.model_shapes import Shape, shape_of
from train_app.slots import machine_cores
from train_app.specs import RlSpec, SftSpec
from train_app.worker_group import cpu_processes

RUNTIME_BYTES = {"cpu": 750 << 20, "mps": 750 << 20, "cuda": 700 << 20}
"""Python with torch, transformers and TRL loaded (measured on CPU); on CUDA the context and its workspaces."""
NF4_BYTES = 0.56
"""Per weight, its scale included."""
SAMPLED_ROWS = 200
RL_WORD_PROMPT, RL_PROMPT = 100, 1000
"""A turn's prompt in tokens, of a tokenizer whose tokens are our environments' words, and of any other."""
WORDS = 8000
"""A vocabulary smaller than this consists of such words."""
RL_MAX_TOKENS, RL_ANSWER_TOKENS = 512, 32
"""Of an answer, where its policy does not say: at most, and mostly."""
RL_EPISODE_TURNS = 300
"""Of a longer episode, mostly: a small student of Crafter dies in its first night."""
GUESSED, REMEMBERED = 4.0, 1.5
"""A time is told from a range of this factor below to the same above."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What is known of a dataset."""

    count: int
    mean_tokens: float
    longest_tokens: int
    trained_tokens: float
    """Per row, about."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the device at the peak."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    runtime: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())

    @property
    def certain(self) -> int:
        """What a job takes however good its luck: half of what depends on rows."""
        return self.total - (self.activations + self.logits) // 2


@dataclass(frozen=True, slots=True)
class Plan:
    """A prediction."""

    kind: str
    """sft or rl."""
    device: str
    machine: str
    parameters: int
    trained_parameters: int
    memory: Memory
    memory_bytes: int
    """Of the device."""
    free_bytes: int
    steps: int
    tokens: float
    """That are trained on, prompts included."""
    seconds: float
    uncertainty: float
    """The time lies between seconds / uncertainty and seconds x uncertainty."""
    basis: str
    """What the time was computed from."""
    remedies: tuple[str, ...] = ()
    """Settings with which it would fit, each with its memory; empty when it fits."""

    @property
    def fits(self) -> bool:
        """Whether the whole device has room for it."""
        return self.memory.total <= self.memory_bytes

    @property
    def can_never_fit(self) -> bool:
        """Whether even the certain part is more than the whole device."""
        return self.memory.certain > self.memory_bytes

    def to_json(self) -> dict[str, Any]:
        """For the wire and `--json`; bytes, seconds."""
        document = asdict(self)
        document["memory"] = {**asdict(self.memory), "total": self.memory.total}
        document["seconds_range"] = [self.seconds / self.uncertainty, self.seconds * self.uncertainty]
        return {**document, "fits": self.fits, "fits_now": self.memory.total <= self.free_bytes}


def plan_sft(
    config: SftConfig, source: str, machine: Machine, rows: Rows | None = None, tokens_per_second: float | None = None
) -> Plan | None:
    """The plan of a fine-tuning job; None when nothing is known of its model's shape.

    Args:
        source: Where the weights lie, aliases resolved.
        rows: Of the dataset; None: each is taken to be `sequence_length` long.
        tokens_per_second: What the last job of this model reached here.
    """
    shape = shape_of(source)
    if shape is None:
        return None
    is_known = rows is not None
    rows = rows or Rows(1000, config.sequence_length, config.sequence_length, config.sequence_length / 4)
    trained_rows = min(rows.count, config.examples or rows.count)
    steps = config.max_steps or math.ceil(config.n_epochs * math.ceil(trained_rows / config.batch_size))
    tokens = steps * config.batch_size * rows.mean_tokens
    plan = Plan(
        kind="sft",
        device=machine.device,
        machine=machine.name,
        parameters=shape.parameters,
        trained_parameters=_trained(config, shape),
        memory=_sft_memory(config, shape, machine, rows),
        memory_bytes=machine.memory_bytes,
        free_bytes=machine.free_bytes,
        steps=steps,
        tokens=tokens,
        **_time(config, shape, machine, tokens, rows.trained_tokens / rows.mean_tokens, steps, tokens_per_second),
    )
    if not is_known:
        plan = replace(
            plan, basis=f"{plan.basis}; {rows.count} rows of {config.sequence_length} tokens, no dataset named"
        )
    if plan.fits:
        return plan
    return replace(plan, remedies=tuple(_sft_remedies(config, shape, machine, rows)))


@dataclass(frozen=True, slots=True)
class Play:
    """What an RL job plays, as far as memory and time depend on it."""

    turns: int
    """Per iteration, where long episodes end early."""
    trained: int
    """Turns per iteration that can have to be trained on: none ends early."""
    in_flight: int
    """Rollouts at once."""
    prompt_tokens: int
    """Of a turn, guessed."""
    answer_tokens: int
    """Of a turn, at most."""
    teacher: Shape | None
    """That the worker loads, for distillation."""

    @property
    def turn_tokens(self) -> int:
        """Of a turn, at most."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def usual_tokens(self) -> int:
        """Of a turn, mostly."""
        return self.prompt_tokens + min(self.answer_tokens, RL_ANSWER_TOKENS)


def play_of(
    config: RlConfig, shape: Shape, policy: Mapping[str, Any], max_turns: int | None, teacher: str | None
) -> Play:
    """What a job plays with a model of this shape; arguments as in `plan_rl`."""
    episodes = config.groups_per_iteration * config.group_size
    limit = min(max_turns or config.max_env_steps, config.max_env_steps)
    dev = 0 if config.dev is None else len(config.dev.seeds)
    context = shape.context or 1 << 20
    answer = min(int(policy.get("max_tokens") or RL_MAX_TOKENS), context // 2)
    prompt = RL_WORD_PROMPT if shape.vocabulary < WORDS else RL_PROMPT
    return Play(
        turns=episodes * min(limit, RL_EPISODE_TURNS),
        trained=min(episodes * limit, config.max_samples or episodes * limit),
        in_flight=min(config.concurrency, max(episodes, dev)),
        prompt_tokens=min(prompt, context - answer),
        answer_tokens=answer,
        teacher=None if teacher is None or config.teacher_url is not None else shape_of(teacher),
    )


def plan_rl(
    config: RlConfig,
    source: str,
    machine: Machine,
    seconds_per_iteration: float | None = None,
    *,
    policy: Mapping[str, Any] | None = None,
    max_turns: int | None = None,
    teacher: str | None = None,
) -> Plan | None:
    """The plan of a reinforcement-learning job; None when nothing is known of its model's shape.

    Args:
        source: Where the weights lie, aliases resolved.
        seconds_per_iteration: What the last job of this model took here.
        policy: `policy.config` of its rollouts, for its max_tokens.
        max_turns: Model calls per episode; None: config.max_env_steps.
        teacher: Where its weights lie, aliases resolved; None: there is none to load.
    """
    shape = shape_of(source)
    if shape is None:
        return None
    play = play_of(config, shape, policy or {}, max_turns, teacher)
    sampled = config.iterations * play.turns * play.usual_tokens
    trained = config.iterations * min(play.trained, play.turns) * play.usual_tokens
    steps = config.iterations * config.minibatches
    time = _time(config, shape, machine, trained, 0.1, steps, None)
    playing = 2 * shape.active_parameters * sampled / machine.flops
    time["seconds"] += playing
    time["uncertainty"] = 2 * GUESSED  # episodes end early, and games take time of their own
    if seconds_per_iteration is not None:
        time = {
            "seconds": config.iterations * seconds_per_iteration,
            "uncertainty": REMEMBERED,
            "basis": f"the last job of this model: {seconds_per_iteration:.3g} s per iteration",
        }
    plan = Plan(
        kind="rl",
        device=machine.device,
        machine=machine.name,
        parameters=shape.parameters,
        trained_parameters=_trained(config, shape),
        memory=_rl_memory(config, shape, machine, play),
        memory_bytes=machine.memory_bytes,
        free_bytes=machine.free_bytes,
        steps=steps,
        tokens=trained,
        **time,
    )
    return plan if plan.fits else replace(plan, remedies=tuple(_rl_remedies(config, shape, machine, play)))


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans for this machine, with what a job table remembers.

    Args:
        aliases: Stand-ins for bases that are not at hand.
    """

    store: JobStore
    aliases: Mapping[str, str]

    def sft(self, config: SftConfig, file: str | None) -> Plan | None:
        """A fine-tuning job on a dataset, or on one that nobody knows."""
        weights, base = self.store.weights_of(config.base_model, self.aliases), self.store.base_of(config.base_model)
        rows = rows_of(file, weights) if file is not None else None
        return plan_sft(config, weights, find_machine(config.device), rows, remembered_speed(self.store, base, config))

    def rl(
        self, config: RlConfig, source: str, policy: Mapping[str, Any] | None = None, max_turns: int | None = None
    ) -> Plan | None:
        """A reinforcement-learning job; arguments as in `plan_rl`."""
        weights, base = self.store.weights_of(source, self.aliases), self.store.base_of(source)
        return plan_rl(
            config,
            weights,
            find_machine(config.device),
            remembered_iteration(self.store, base, config),
            policy=policy,
            max_turns=max_turns,
            teacher=None if config.teacher is None else self.store.weights_of(config.teacher, self.aliases),
        )


def refuse_what_cannot_fit(store: JobStore, spec: SftSpec | RlSpec) -> None:
    """ConfigError, with the numbers and what would help, for a job that this machine could never hold."""
    planner = Planner(store, spec.aliases)
    if isinstance(spec, RlSpec):
        plan = planner.rl(spec.config, spec.source, spec.policy, spec.max_turns)
    else:
        plan = planner.sft(spec.config, None)  # as if each row had sequence_length tokens: the worst, and quick
        if plan is not None and plan.can_never_fit:
            plan = planner.sft(spec.config, spec.training_file)
    if plan is None or not plan.can_never_fit:
        return
    memory = plan.memory
    parts = ", ".join(f"{name} {_size(size)}" for name, size in asdict(memory).items() if size > memory.total // 50)
    help_ = "It would fit with " + "; or ".join(plan.remedies) if plan.remedies else "Take a smaller model"
    raise ConfigError(
        f"The job would take about {_size(memory.total)} ({parts}), and {plan.machine} has "
        f"{_size(plan.memory_bytes)}. {help_}."
    )


def lines_of(plan: Mapping[str, Any]) -> list[str]:
    """A plan, as `to_json` writes it, for a person; a line each."""
    memory = dict(plan["memory"])
    total = memory.pop("total")
    parts = ", ".join(f"{name} {_size(size)}" for name, size in memory.items())
    has = f"{plan['machine']} has {_size(plan['memory_bytes'])}, {_size(plan['free_bytes'])} free"
    verdict = "fits" if plan["fits_now"] else "fits, but is not free now" if plan["fits"] else "does not fit"
    low, high = plan["seconds_range"]
    lines = [
        f"model    {plan['parameters'] / 1e6:,.4g} M parameters, {plan['trained_parameters'] / 1e6:,.4g} M trained",
        f"memory   {_size(total)}; {has}: {verdict}",
        f"         {parts}",
        f"time     {_span(low)} to {_span(high)}: {plan['steps']} steps, {plan['tokens']:,.0f} tokens",
        f"         from {plan['basis']}",
    ]
    return [*lines, *(f"fits     with {remedy}" for remedy in plan["remedies"])]


# --------------------------------------------------------------------------- facts


def rows_of(path: Path | str, source: str) -> Rows | None:
    """Rows and tokens of a dataset: all lines are counted, the first ones tokenised; None when nothing can be read.

    A tokenizer that is not at hand is taken for one of four bytes per token.
    """
    count = longest = size = sampled_bytes = sampled_tokens = sampled_answers = 0
    try:
        encode = load_chat_tokenizer(source).tokenizer.encode
    except PipelineError:
        encode = None
    try:
        with Path(path).open("rb") as lines:
            for line in lines:
                if not line.strip():
                    continue
                count, size, longest = count + 1, size + len(line), max(longest, len(line))
                if count <= SAMPLED_ROWS:
                    prompt, answer = (len(encode(t).ids) if encode else len(t.encode()) // 4 for t in _texts(line))
                    sampled_bytes += len(line)
                    sampled_tokens += prompt + answer
                    sampled_answers += answer
    except (OSError, ValueError, AttributeError):
        return None
    if not count:
        return None
    per_byte = max(sampled_tokens, 1) / sampled_bytes
    mean = max(1.0, per_byte * size / count)
    return Rows(count, mean, max(1, round(per_byte * longest)), mean * sampled_answers / max(sampled_tokens, 1))


def remembered_speed(store: JobStore, base: str, config: SftConfig) -> float | None:
    """Tokens/s of the last fine-tuning job of a base that trained the same way; None: there is none."""
    for job in store.list(JobFilter(kind="sft", status="succeeded"), limit=50):
        spec = job.spec.get("config") or {}
        same = (spec.get("train_kind"), spec.get("device")) == (config.train_kind, config.device)
        if job.base_model == base and same:
            points = [metric.value for metric in store.metrics(job.id, name="train.tokens_per_second")]
            late = sorted(points[len(points) // 2 :])
            if late:
                return late[len(late) // 2]
    return None


def remembered_iteration(store: JobStore, base: str, config: RlConfig) -> float | None:
    """Seconds per iteration of the last RL job of a base with batches of this size; None: there is none."""
    for job in store.list(JobFilter(kind="rl", status="succeeded"), limit=50):
        spec = job.spec.get("config") or {}
        sizes = ("groups_per_iteration", "group_size", "max_env_steps", "train_kind")
        if job.base_model == base and all(spec.get(name) == getattr(config, name) for name in sizes):
            if job.started_at and job.finished_at and spec.get("iterations"):
                return float((job.finished_at - job.started_at) / spec["iterations"])
    return None


def _texts(line: bytes) -> tuple[str, str]:
    """A row's prompt and its last message, near enough: what they say, without the JSON around it."""
    row = orjson.loads(line)
    messages = [*(row.get("messages") or ()), *(row.get("prompt") or ()), *(row.get("completion") or ())]
    texts = [] if not row.get("tools") else [orjson.dumps(row["tools"]).decode()]
    for message in messages:
        said = [message.get(name) for name in ("reasoning_content", "content", "tool_calls")]
        texts.append(" ".join(text if isinstance(text, str) else orjson.dumps(text).decode() for text in said if text))
    markup = " ." * 4  # tokens around a message
    return markup.join(texts[:-1]) + markup, (texts[-1] if texts else "") + markup


# --------------------------------------------------------------------------- memory


def _trained(config: SftConfig | RlConfig, shape: Shape) -> int:
    if config.train_kind == "fft":
        return shape.parameters
    return shape.adapter_parameters(config.lora_rank, config.lora_target_modules)


def _bf16(config: SftConfig | RlConfig, machine: Machine) -> bool:
    return config.dtype == "bf16" or (config.dtype == "auto" and machine.bf16)


def _weights(config: SftConfig | RlConfig, shape: Shape, machine: Machine) -> int:
    bf16 = _bf16(config, machine)
    trained = _trained(config, shape)
    if config.train_kind == "fft":
        return trained * (6 if bf16 else 4)
    rest = shape.parameters - shape.linear_parameters
    frozen: float = shape.parameters * (2 if bf16 else 4)
    if config.train_kind == "qlora":
        frozen = shape.linear_parameters * NF4_BYTES + rest * (2 if bf16 else 4)
        frozen += max((a * b for a, b in shape.linears), default=0) * (2 if bf16 else 4)  # one layer multiplied out
    return int(frozen) + 4 * trained


def _per_token(config: SftConfig | RlConfig, shape: Shape, machine: Machine) -> int:
    """Bytes of activations."""
    checkpointing = checkpoints_activations(config, machine.device)
    return activation_bytes(config, shape, bf16=_bf16(config, machine), checkpointing=checkpointing)


def _sft_memory(config: SftConfig, shape: Shape, machine: Machine, rows: Rows) -> Memory:
    micro = config.micro_batch_size or max(1, config.batch_size // config.gpus)
    longest = min(rows.longest_tokens, config.sequence_length)
    # The largest forward holds the longest rows where they are grouped; else rows as they come, padded to the longest.
    packed = config.batching == "packing"
    tokens = round(micro * (rows.mean_tokens if packed else longest))
    scored = round(micro * min(rows.trained_tokens * longest / max(rows.mean_tokens, 1), longest))
    memory = _memory(config, shape, machine, tokens, scored)
    # Several processes split the rows, so that activations and logits are those of one.
    processes = _processes(config, machine)
    each = {name: getattr(memory, name) * processes for name in ("weights", "gradients", "optimizer", "runtime")}
    return replace(memory, **each)


def _processes(config: SftConfig, machine: Machine) -> int:
    """Of a job that has this machine's cores to itself."""
    if machine.device != "cpu":
        return 1
    return cpu_processes(config.base_model, config.model_dump(mode="json"), machine_cores())


def _rl_memory(config: RlConfig, shape: Shape, machine: Machine, play: Play) -> Memory:
    per_token, number = _per_token(config, shape, machine), 2 if _bf16(config, machine) else 4
    limit = ForwardLimit.of(shape.vocabulary, per_token)
    rows = min(limit.rows, math.ceil(play.trained / config.minibatches))
    # A forward holds rows up to its limit, and one row at least.
    tokens = max(play.turn_tokens, min(limit.tokens, rows * play.turn_tokens))
    scored = max(play.answer_tokens, min(limit.answers, rows * play.answer_tokens))
    memory = _memory(config, shape, machine, tokens, scored)
    cache = play.in_flight * play.turn_tokens * shape.layers * 2 * shape.kv_heads * shape.head_dim * number
    # What plays is a copy of the model, and an adapter reaches it as whole weights while nothing is trained.
    on_their_way = 0 if config.train_kind == "fft" else shape.linear_parameters * number
    more = shape.parameters * number
    if config.kl:
        more += 4 * _trained(config, shape)
    if play.teacher is not None:
        more += play.teacher.parameters * number
    activations = max(memory.activations, on_their_way - memory.logits)
    return replace(memory, weights=memory.weights + more, activations=activations + cache)


def _memory(config: SftConfig | RlConfig, shape: Shape, machine: Machine, tokens: int, scored: int) -> Memory:
    trained = _trained(config, shape)
    return Memory(
        weights=_weights(config, shape, machine),
        gradients=4 * trained,
        optimizer=8 * trained,
        activations=tokens * _per_token(config, shape, machine),
        logits=4 * 4 * scored * shape.vocabulary,
        runtime=RUNTIME_BYTES[machine.device],
    )


def _sft_remedies(config: SftConfig, shape: Shape, machine: Machine, rows: Rows) -> list[str]:
    micro = config.micro_batch_size or config.batch_size // config.gpus
    changes: list[dict[str, Any]] = [{"micro_batch_size": 1}] if micro > 1 else []
    if not config.gradient_checkpointing and machine.device != "cuda":
        changes += [
            {"gradient_checkpointing": True},
            {**(changes[0] if changes else {}), "gradient_checkpointing": True},
        ]
    kinds = {"fft": ("lora", "qlora"), "lora": ("qlora",), "qlora": ()}[config.train_kind]
    if machine.device == "mps":
        kinds = tuple(kind for kind in kinds if kind != "qlora")
    smallest = {"micro_batch_size": 1, "gradient_checkpointing": True}
    changes += [{"train_kind": kind, **more} for kind in kinds for more in ({}, smallest)]
    tried = ((change, _sft_memory(config.model_copy(update=change), shape, machine, rows).total) for change in changes)
    return _fitting(tried, machine)


def _rl_remedies(config: RlConfig, shape: Shape, machine: Machine, play: Play) -> list[str]:
    fewer = max(1, play.in_flight // 4)
    kinds = {"fft": ("lora", "qlora"), "lora": ("qlora",), "qlora": ()}[config.train_kind]
    if machine.device == "mps":
        kinds = tuple(kind for kind in kinds if kind != "qlora")
    changes: list[dict[str, Any]] = [{"gradient_checkpointing": True}, {"concurrency": fewer}]
    changes += [{"gradient_checkpointing": True, "concurrency": fewer}]
    changes += [{"train_kind": kind, **more} for kind in kinds for more in ({}, {"gradient_checkpointing": True})]

    def total(change: Mapping[str, Any]) -> int:
        smaller = replace(play, in_flight=min(play.in_flight, change.get("concurrency", play.in_flight)))
        return _rl_memory(config.model_copy(update=change), shape, machine, smaller).total

    return _fitting(((change, total(change)) for change in changes), machine)


def _fitting(tried: Any, machine: Machine) -> list[str]:
    """The first three changes that are enough."""
    found = [
        ", ".join(f"{name} = {orjson.dumps(value).decode()}" for name, value in change.items()) + f" ({_size(total)})"
        for change, total in tried
        if total <= machine.memory_bytes
    ]
    return found[:3]


# --------------------------------------------------------------------------- time


def _time(
    config: SftConfig | RlConfig,
    shape: Shape,
    machine: Machine,
    tokens: float,
    scored: float,
    steps: int,
    tokens_per_second: float | None,
) -> dict[str, Any]:
    """seconds, uncertainty and basis; `scored` is the share of the tokens that reach the head."""
    if tokens_per_second:
        basis = f"the last job of this model: {tokens_per_second:,.0f} tokens/s"
        return {"seconds": tokens / tokens_per_second, "uncertainty": REMEMBERED, "basis": basis}
    passes = 6 if config.train_kind == "fft" else 4  # forward 2, gradients of activations 2, of weights 2
    if checkpoints_activations(config, machine.device):
        passes += 2
    per_token = passes * (shape.active_parameters + scored * shape.vocabulary * shape.hidden)
    gpus = config.gpus if isinstance(config, SftConfig) else 1
    seconds = tokens * per_token / (machine.flops * gpus) + steps * machine.step_seconds
    basis = f"{per_token:.2g} FLOP per token and {machine.flops:.2g} FLOP/s of {machine.name}, nothing measured"
    return {"seconds": seconds, "uncertainty": GUESSED, "basis": basis}


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _span(seconds: float) -> str:
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
