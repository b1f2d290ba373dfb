"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "broken"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    state: State
    """note: worth knowing; broken: something will not work."""
    says: str
