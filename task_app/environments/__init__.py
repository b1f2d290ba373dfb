"""The environments that the task app can serve. A new one is a file here and a line in `REGISTRY`."""

from __future__ import annotations

from crafter_pipeline.environments import find_environment
from task_app.environments.crafter import CrafterEnvironment
from task_app.environments.math import MathEnvironment
from task_app.environments.protocol import Environment, Episode, Setup, Step

__all__ = ["REGISTRY", "Environment", "Episode", "Setup", "Step", "environment_of"]

REGISTRY: dict[str, Environment] = {e.info.name: e for e in (CrafterEnvironment(), MathEnvironment())}
"""By the name in `crafter_pipeline.environments`."""


def environment_of(name: str) -> Environment:
    """The environment of an app name or alias. ConfigError names the known ones."""
    return REGISTRY[find_environment(name).name]
