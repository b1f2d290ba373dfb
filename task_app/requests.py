"""Refusals of the task app beside a wrong field (`errors.FieldError`, answered as 422)."""

from __future__ import annotations


class RunIdConflict(Exception):
    """A run_id is known already, for another request: answered as 409."""
