"""Datasets of one form, one behind the other as one dataset: rows, manifest and card, with the parts it is made of."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson

from crafter_pipeline.dataset import manifest as m
from crafter_pipeline.dataset.card import card_html, card_markdown
from crafter_pipeline.dataset.jsonl import read_rows
from crafter_pipeline.dataset.tally import BINS
from crafter_pipeline.errors import DataError
from crafter_pipeline.files import write_whole

T = TypeVar("T")


def join_datasets(parts: Sequence[Path], out: Path) -> m.DatasetManifest:
    """Write the training rows of `parts`, in order, to `out`, with manifest and card beside it.

    All rows get the same columns, those that every part has, since loaders infer a schema from the first rows: of a
    labelled part the column with the other answer is left out. Equal parts give equal bytes.

    Raises:
        DataError: a part cannot be read, is of another form or keeps its pictures in files; `out` cannot be written.
    """
    manifests = [m.read_manifest(part) for part in parts]
    _refuse_unequal(parts, manifests)
    temporary = out.with_name(f".{out.name}.part")
    digest, size = hashlib.sha256(), 0
    columns = _common_columns(parts)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for part in parts:
                for _, row in read_rows(part):
                    metadata = {"label_model": "", **row["metadata"]}
                    kept = {**{name: row[name] for name in row if name in columns}, "metadata": metadata}
                    line = orjson.dumps(kept, option=orjson.OPT_APPEND_NEWLINE)
                    digest.update(line)
                    size += file.write(line)
            file.flush()
            os.fsync(file.fileno())
        m.manifest_path(out).unlink(missing_ok=True)  # rows without a manifest are no dataset, should this be cut off
        os.replace(temporary, out)
    except OSError as e:
        raise DataError(f"{out}: cannot be written ({e.strerror or e}). Check the disk, or choose another path.") from e
    finally:
        temporary.unlink(missing_ok=True)
    manifest = _joined(parts, manifests, out, digest.hexdigest(), size)
    write_whole(m.card_path(out), card_markdown(manifest))
    write_whole(m.card_path(out, ".html"), card_html(manifest))
    write_whole(m.manifest_path(out), manifest.to_json())
    return manifest


def _refuse_unequal(parts: Sequence[Path], manifests: Sequence[m.DatasetManifest]) -> None:
    for part, manifest in zip(parts, manifests, strict=True):
        if manifest.form != manifests[0].form:
            raise DataError(
                f"{part} is of the form {manifest.form}, {parts[0]} of the form {manifests[0].form}: export both in "
                "the same form."
            )
        if m.images_path(part).is_dir():
            raise DataError(f'{part} keeps its pictures in files; export it with images = "data_url".')


def _common_columns(parts: Iterable[Path]) -> set[str]:
    """Columns that the first row of every part has; all rows of a part are alike but for `tools`."""
    common: set[str] | None = None
    for part in parts:
        _, row = next(read_rows(part), (0, {}))
        if not isinstance(row.get("metadata"), dict):
            raise DataError(f"{part}: its first row has no metadata; export it again.")
        common = set(row) if common is None else common & set(row)
    return common or set()


def _joined(
    parts: Sequence[Path], manifests: Sequence[m.DatasetManifest], out: Path, sha256: str, size: int
) -> m.DatasetManifest:
    """The manifest of all parts together. Only their training rows count."""

    def total(of: Callable[[m.DatasetManifest], int]) -> int:
        return sum(map(of, manifests))

    def counts(of: Callable[[m.DatasetManifest], dict[str, int]]) -> dict[str, int]:
        return dict(sorted(sum((Counter(of(manifest)) for manifest in manifests), Counter[str]()).items()))

    tokenizers = {manifest.tokenizer for manifest in manifests}
    tokens = None
    if len(tokenizers) == 1 and None not in tokenizers:
        tokens = total(lambda manifest: manifest.tokens or 0)
    rows, rollouts = total(lambda manifest: manifest.rows), total(lambda manifest: manifest.rollouts)
    seeds = _seeds([manifest.seeds for manifest in manifests])
    train = m.SplitFile(str(out), sha256, size, rows, rollouts, tokens, seeds["count"])
    return m.DatasetManifest(
        path=str(out),
        form=manifests[0].form,
        sha256=sha256,
        bytes=size,
        rows=rows,
        rollouts=rollouts,
        turns=total(lambda manifest: manifest.turns),
        tokens=tokens,
        tokenizer=None if tokens is None else manifests[0].tokenizer,
        splits={"train": train},
        mean_reward=math.fsum(manifest.mean_reward * manifest.rollouts for manifest in manifests) / max(rollouts, 1),
        achievements=counts(lambda manifest: manifest.achievements),
        unlocks=counts(lambda manifest: manifest.unlocks),
        goals=counts(lambda manifest: manifest.goals),
        models=counts(lambda manifest: manifest.models),
        providers=counts(lambda manifest: manifest.providers),
        environments=counts(lambda manifest: manifest.environments),
        labels=counts(lambda manifest: manifest.labels),
        seeds=seeds,
        rewards=_histogram([manifest.rewards for manifest in manifests]),
        lengths=_histogram([manifest.lengths for manifest in manifests]),
        rollouts_read=total(lambda manifest: manifest.rollouts_read),
        rules=(),
        duplicates=total(lambda manifest: manifest.duplicates),
        parse_failures=total(lambda manifest: manifest.parse_failures),
        skipped=_all(manifest.skipped for manifest in manifests)[: m.LISTED],
        skipped_count=total(lambda manifest: manifest.skipped_count),
        beyond_context=_all(manifest.beyond_context for manifest in manifests)[: m.LISTED],
        filter={},
        sources=tuple(dict.fromkeys(_all(manifest.sources for manifest in manifests))),
        warnings=tuple(dict.fromkeys(_all(manifest.warnings for manifest in manifests))),
        label_usage=counts(lambda manifest: manifest.label_usage),
        parts=tuple(
            m.Part(str(part), manifest.sha256, manifest.rows) for part, manifest in zip(parts, manifests, strict=True)
        ),
    )


def _all(groups: Iterable[Sequence[T]]) -> tuple[T, ...]:
    return tuple(item for group in groups for item in group)


def _seeds(tables: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """World seeds of all parts: {count, min, max, ranges}; neighbours are one range."""
    ranges: list[list[int]] = []
    for low, high in sorted(tuple(pair) for table in tables for pair in table["ranges"]):
        if ranges and low <= ranges[-1][1] + 1:
            ranges[-1][1] = max(ranges[-1][1], high)
        else:
            ranges.append([low, high])
    return {
        "count": sum(high - low + 1 for low, high in ranges),
        "min": ranges[0][0] if ranges else None,
        "max": ranges[-1][1] if ranges else None,
        "ranges": ranges,
    }


def _histogram(parts: Sequence[m.Histogram]) -> m.Histogram:
    """All parts in the bins of their common range; a bin of a part goes where its middle lies."""
    full = [part for part in parts if part.counts]
    units = {part.unit for part in full}
    if len(units) != 1:
        return m.Histogram(" or ".join(sorted(units)), (), ())
    low, high = min(part.edges[0] for part in full), max(part.edges[-1] for part in full)
    whole = all(float(edge).is_integer() for part in full for edge in part.edges) and high - low <= BINS
    edges = np.arange(low, high + 1) if whole else np.linspace(low, high, BINS + 1)
    middles = np.concatenate([(np.asarray(part.edges[:-1]) + np.asarray(part.edges[1:])) / 2 for part in full])
    counts, _ = np.histogram(middles, edges, weights=np.concatenate([part.counts for part in full]))
    return m.Histogram(full[0].unit, tuple(edges.tolist()), tuple(int(n) for n in counts))
