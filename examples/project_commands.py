# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Run a command of this project from another one."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run_command(*words: Any) -> None:
    """Run Python on a script, or `-m` and a module, from the project's root; all it says is shown.

    Of several GPUs it sees one, unless `CUDA_VISIBLE_DEVICES` says otherwise: all of them would
    take a batch each, and a step that many items.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, *map(str, words)]
    environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ}
    if code := subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
        raise RuntimeError(
            f"this command ended with code {code}, its reason stands above: {shlex.join(command)}"
        )
