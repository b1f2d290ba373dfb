"""What holds in every process that imports torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch")


def test_a_worker_asks_the_hub_for_nothing_and_does_not_complain_about_a_kernel():
    pytest.importorskip("bitsandbytes")
    code = (
        "import logging, train_app.workers; logging.basicConfig();"
        "log = logging.getLogger('bitsandbytes.backends.cpu.ops');"
        "log.warning('Failed to load CPU gemm_4bit_forward from kernels-community: %s.', 'x'); log.warning('another');"
        "import train_app.workers.students, bitsandbytes, huggingface_hub.constants as hub;"
        "print(hub.HF_HUB_OFFLINE)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "another" in done.stderr and "gemm_4bit_forward" not in done.stderr
    assert done.stdout.strip() == "True"
