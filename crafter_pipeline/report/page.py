"""How our HTML pages are made: one look, everything inline, everything from outside escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from crafter_pipeline.report import plots, text

FOLDER = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """A page from a template of this folder. Jinja escapes everything but our own SVGs (`figure`)."""
    css = Markup((FOLDER / "report.css").read_text(encoding="utf-8"))
    return _environment().get_template(template).render(css=css, **values)


def figure(name: str, svg: str, alt: str) -> Markup:
    """A plot for the inside of a page; `name` is its own on the page. matplotlib has escaped the text in it."""
    return Markup(plots.inline(svg, name, str(escape(alt))))


def fact(value: Any) -> str:
    """A manifest's or card's value as text: thousands separated, nested values as JSON."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value) if isinstance(value, (str, Path)) else json.dumps(plain(value), ensure_ascii=False)


def plain(value: Any) -> Any:
    """Anything as JSON data: mappings, lists, finite numbers, strings, booleans, null."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Iterable):
        return [plain(v) for v in value]
    return plain(value.item()) if hasattr(value, "item") else str(value)


def _environment() -> Environment:
    env = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(
        number=text.number,
        signed=text.signed,
        interval=text.interval,
        duration=text.duration,
        percent=text.percent,
        p_value=text.p_value,
        words=text.words,
        seeds=text.seeds,
        fact=fact,
        name=lambda path: Path(path).name,
        colour=plots.colour,
    )
    return env
