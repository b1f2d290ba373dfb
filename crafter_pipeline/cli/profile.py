"""The one change `up` makes to the user's Prefect profile, and how it is taken back.

With it, and with plugins enabled, `prefect deployment run crafter-pipeline` works in any shell and folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crafter_pipeline.detached import state_dir
from crafter_pipeline.files import write_whole


@contextmanager
def named_in_profile(api_url: str) -> Iterator[list[str]]:
    """Name the server in the active profile until the block ends, unless the user has named one. Yields what to say."""
    from prefect.settings import load_profiles, save_profiles

    profiles = load_profiles(include_defaults=True)
    profile = profiles.active_profile
    said = []
    if profile is not None:
        wanted = {"PREFECT_API_URL": api_url, "PREFECT_PLUGINS_ENABLED": "true"}
        known = {setting.name for setting in profile.settings}
        missing = {name: value for name, value in wanted.items() if name not in known}
        if missing:
            write_whole(_file(), json.dumps({"profile": profile.name, "settings": missing}))
            profiles.update_profile(profile.name, missing)  # type: ignore[arg-type]
            save_profiles(profiles)
        said = [f"Set {name}={value} in the Prefect profile {profile.name!r}" for name, value in missing.items()]
    try:
        yield said
    finally:
        undo_change()


def change() -> dict[str, Any] | None:
    """What was changed and not taken back: profile and settings."""
    try:
        found: dict[str, Any] = json.loads(_file().read_text())
    except (OSError, ValueError):
        return None
    return found


def undo_change() -> None:
    """Take the change back, where the settings still have our values."""
    made = change()
    if made is None:
        return
    from prefect.settings import load_profiles, save_profiles

    profiles, name = load_profiles(include_defaults=True), made["profile"]
    if name in profiles.names:
        now = {setting.name: str(value) for setting, value in profiles[name].settings.items()}
        ours = {k: None for k, v in made["settings"].items() if now.get(k, "").lower() == v.lower()}
        profiles.update_profile(name, ours)  # type: ignore[arg-type]
        save_profiles(profiles)
    _file().unlink(missing_ok=True)


def _file() -> Path:
    return state_dir() / "profile-change.json"
