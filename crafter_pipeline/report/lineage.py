"""What a run's models came from: worlds → traces → dataset → models → evaluations; as mermaid and as a tree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from crafter_pipeline.dataset.manifest import DatasetManifest
from crafter_pipeline.evaluation import Evaluation, in_label_order
from crafter_pipeline.report import text

if TYPE_CHECKING:
    from crafter_pipeline.report.report import ModelRecord, RunReport

Kind = Literal["seeds", "player", "traces", "dataset", "base", "model", "evaluation"]

_METHODS = {"fft": "fine-tuned", "ft": "fine-tuned (LoRA)", "qft": "fine-tuned (QLoRA)", "rl": "RL"}
"""Prefix of a model's id -> how it was made."""
_SHAPES = {"seeds": ("([", "])"), "traces": ("[(", ")]"), "dataset": ("[(", ")]"), "player": ("([", "])")}
"""Kind -> how mermaid brackets it; others are boxes."""
_SHOWN_OF_A_JOB = 8
_SYNTAX = re.compile(r"[^\w .,:+/()\u2013-]|(?<!\S)[+-](?!\S)|(?<=\d)[.)](?!\S)")
"""What is not plainly text; of a list in markdown, which mermaid reads in any label, the mark too."""


@dataclass(frozen=True, slots=True)
class Node:
    """One thing of the line of descent."""

    key: str
    kind: Kind
    title: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Edge:
    """`target` came from `source`."""

    source: str
    target: str
    says: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """Nodes, each after those it came from, and edges; of a node's edges the first is the main one."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


@dataclass(slots=True)
class Branch:
    """A node of the tree that is drawn where no mermaid is."""

    node: Node
    says: str = ""
    """How it came from the node above; empty: it is a root."""
    beside: list[tuple[str, str]] = field(default_factory=list)
    """(title, how) of what it came from beside the node above."""
    children: list[Branch] = field(default_factory=list)


def lineage(report: RunReport) -> Lineage:
    """As far as the run got; without dataset, model and evaluation there is none."""
    if report.dataset is None and not report.models and not report.evaluations:
        return Lineage((), ())
    draft = _Draft()
    played = _played(draft, report)
    if report.dataset is not None:
        _dataset(draft, report.dataset, played)
    last = None if report.dataset is None else _data_key(report.dataset.sha256)
    for model in report.models:
        last = _model(draft, model, last)
    for evaluation in in_label_order(report.evaluations):
        _evaluation(draft, evaluation)
    return draft.lineage()


def mermaid(of: Lineage) -> str:
    """A mermaid flowchart, top down; the text in it cannot be read as syntax."""
    numbered = {node.key: f"n{i}" for i, node in enumerate(of.nodes)}
    lines = ["flowchart TD"]
    for node in of.nodes:
        opening, closing = _SHAPES.get(node.kind, ("[", "]"))
        words = [quoted(node.title), *([quoted(node.note)] if node.note else [])]
        lines.append(f'    {numbered[node.key]}{opening}"{"<br/>".join(words)}"{closing}')
    lines += [f'    {numbered[e.source]} -->|"{quoted(e.says)}"| {numbered[e.target]}' for e in of.edges]
    return "\n".join(lines)


def quoted(words: str) -> str:
    """Text for the inside of a mermaid label: one line, every character that could be syntax as its code."""
    return _SYNTAX.sub(lambda found: f"#{ord(found[0])};", " ".join(words.split()))


def trees(of: Lineage) -> list[Branch]:
    """The same as trees: a node stands below the first it came from, and names the others."""
    branches = {node.key: Branch(node) for node in of.nodes}
    roots = dict(branches)
    named = set()
    for edge in of.edges:
        branch, above = branches[edge.target], branches[edge.source]
        if edge.target in roots:
            del roots[edge.target]
            branch.says = edge.says
            above.children.append(branch)
        else:
            branch.beside.append((above.node.title, edge.says))
            named.add(edge.source)
    return [branch for key, branch in roots.items() if branch.children or key not in named]


def short_id(model: str) -> str:
    """`rl:crafter-tiny:job_c504d6467634c342` as `rl:crafter-tiny:c504d646`; other names as they are."""
    prefix, _, job = model.rpartition(":")
    return f"{prefix}:{job.removeprefix('job_')[:_SHOWN_OF_A_JOB]}" if prefix and job.startswith("job_") else model


# --------------------------------------------------------------------------- from the report


class _Draft:
    """Nodes and edges while they are found."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.edges: list[Edge] = []

    def add(self, key: str, kind: Kind, title: str, note: str = "") -> str:
        """The node of that key, which is made if it is new; its key."""
        self.nodes.setdefault(key, Node(key, kind, title, note))
        return key

    def join(self, source: str | None, target: str, says: str) -> None:
        """From `source`, where there is one."""
        if source is not None:
            self.edges.append(Edge(source, target, says))

    def lineage(self) -> Lineage:
        return Lineage(tuple(self.nodes.values()), tuple(self.edges))


def _played(draft: _Draft, report: RunReport) -> str | None:
    """Worlds, teacher and what it played in them; the key of that."""
    collect: Mapping[str, Any] = report.config.get("collect") or {}
    seeds = collect.get("seeds")
    if report.dataset is None or not isinstance(seeds, Mapping) or not {"start", "count"} <= seeds.keys():
        return None
    first, count = int(seeds["start"]), int(seeds["count"])
    worlds = draft.add("seeds", "seeds", text.seeds(range(first, first + count)), "training worlds")
    teacher = draft.add(_model_key(str(collect.get("model"))), "player", short_id(str(collect.get("model"))), "teacher")
    traces = draft.add("traces", "traces", f"{report.dataset.rollouts_read:,} episodes")
    draft.join(worlds, traces, "worlds")
    draft.join(teacher, traces, "player")
    return traces


def _dataset(draft: _Draft, manifest: DatasetManifest, traces: str | None) -> None:
    key = draft.add(_data_key(manifest.sha256), "dataset", f"{manifest.rows:,} rows", f"sha256 {manifest.sha256[:12]}")
    draft.join(traces, key, f"filtered: {manifest.rollouts:,} episodes kept")


def _model(draft: _Draft, model: ModelRecord, last_data: str | None) -> str | None:
    """A model with the data and the model it came from; the key of the newest dataset."""
    parent = draft.add(_model_key(model.parent), "base", short_id(model.parent), "base model")
    data = last_data
    if model.dataset_sha256 is not None:
        data = _data_key(model.dataset_sha256)
        if data not in draft.nodes:
            _joined(draft, model, data, last_data, parent)
    key = draft.add(_model_key(model.id), "model", short_id(model.id), str(model.facts.get("method") or ""))
    how = _METHODS.get(model.id.partition(":")[0], "trained")
    if model.facts.get("method") == "on-policy distillation":
        how = f"distilled from {short_id(str(model.facts.get('teacher')))}"
    if model.dataset_sha256 is not None:
        draft.join(data, key, how)
        draft.join(parent, key, "start")
    else:
        draft.join(parent, key, how)
    return data


def _joined(draft: _Draft, model: ModelRecord, key: str, before: str | None, student: str) -> None:
    """The dataset of a round of DAgger: the rows before, and what the student met, labelled."""
    rows, episodes = model.facts.get("rows"), model.facts.get("student_episodes")
    title = f"{rows:,} rows" if isinstance(rows, int) else "dataset"
    draft.add(key, "dataset", title, f"sha256 {key.removeprefix('dataset ')[:12]}")
    draft.join(before, key, "rows so far")
    if episodes is not None:
        labeller = ", ".join(model.facts.get("labels") or {})
        draft.join(student, key, f"plays {episodes} episodes{f', labelled by {labeller}' if labeller else ''}")


def _evaluation(draft: _Draft, e: Evaluation) -> None:
    player = draft.add(_model_key(e.model), "player", short_id(e.model))
    title = f"{e.label}: {text.number(e.mean_achievements)} achievements"
    key = draft.add(f"evaluation {e.label}", "evaluation", title, f"95 % interval {text.interval(e.ci95)}")
    draft.join(player, key, f"judged on {len(e.seeds):,} seeds")


def _data_key(sha256: str) -> str:
    return f"dataset {sha256}"


def _model_key(model: str) -> str:
    return f"model {model}"
