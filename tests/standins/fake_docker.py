"""A `docker` command that keeps a diary and runs the image as a process of this machine."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

SCRIPT = """\
#!{python}
import json, os, sys
words = sys.argv[1:]
secret = os.environ.get("ENVIRONMENT_API_KEY", "")
with open({diary!r}, "a") as diary:
    diary.write(json.dumps({{"words": words, "key_in_environment": bool(secret)}}) + "\\n")
if words[0] == "version":
    if {daemon}:
        print("28.0")
    else:
        sys.exit("Cannot connect to the Docker daemon.")
elif words[0] == "build":
    print("a step of the build")
    sys.exit({build_code})
elif words[0] == "run":
    mounts = [words[i + 1] for i, word in enumerate(words) if word == "--volume"]
    image = next(i for i, word in enumerate(words) if word.startswith("crafter-pipeline-task-app"))
    inside = [mounts[0].split(":")[0] if word == "/traces" else word for word in words[image + 1 :]]
    os.environ.pop("CRAFTER_PIPELINE_PARENT_PID", None)  # a container knows nothing of our processes
    os.execv({python!r}, [{python!r}, "-m", "task_app", *inside])
"""


def install_docker(folder: Path, *, daemon: bool = True, build_code: int = 0) -> Path:
    """Write the command into `folder`, which belongs in front of PATH; returns its diary, a line of JSON per call."""
    diary = folder / "diary.jsonl"
    command = folder / "docker"
    text = SCRIPT.format(python=sys.executable, diary=str(diary), daemon=daemon, build_code=build_code)
    command.write_text(text)
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return diary
