"""The house: packages are ours, names do not collide, the example environment file is complete."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import tomli

from crafter_pipeline.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["crafter_pipeline", "flows", "tasks", "task_app", "train_app"]
REQUIRED = {"prefect", "fastapi", "uvicorn", "crafter", "httpx", "duckdb", "polars", "pydantic", "tomli", "modal"}


def pyproject() -> dict:
    return tomli.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("name", PACKAGES)
def test_package_is_imported_from_this_checkout(name):
    assert ROOT in Path(next(iter(importlib.import_module(name).__path__))).parents


@pytest.mark.parametrize("name", PACKAGES)
def test_no_dependency_ships_a_package_of_this_name(name):
    others = set(packages_distributions().get(name, [])) - {"crafter-pipeline"}
    assert not others, f"{others} also install a top-level {name!r}; drop that dependency"


def test_every_package_folder_is_listed():
    folders = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for name in PACKAGES
        for init in (ROOT / name).rglob("__init__.py")
    }
    assert folders == set(pyproject()["tool"]["setuptools"]["packages"])


def test_no_init_files_below_tests():
    assert not list((ROOT / "tests").rglob("__init__.py")), "tests/flows/__init__.py would shadow flows"


def test_required_packages_are_core_dependencies():
    names = {d.split("[")[0].split(">")[0].split("=")[0].split("<")[0] for d in pyproject()["project"]["dependencies"]}
    assert names >= REQUIRED


def test_env_example_names_every_setting_and_nothing_else():
    lines = (ROOT / ".env.example").read_text().splitlines()
    named = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    assert named == {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("module", ["task_app.app", "train_app.app", "crafter_pipeline.cli"])
def test_core_services_and_cli_start_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
