# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How results are written: JSON that is whole or not there, and tables of Markdown."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from modeling_mdm.precision import describe_processor


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, the old file staying whole until the new one is complete."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, target)


def circumstances(device: str, bf16: Any) -> dict[str, Any]:
    """Say with which libraries, on what and in which type something was measured."""
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": {
            "processor": describe_processor(device),
            "dtype": "bfloat16" if bf16 else "float32",
            "threads": torch.get_num_threads(),
        },
    }


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out as lines of a Markdown table, the head first; a cell is one line."""
    head, *body = rows
    return [f"| {' | '.join(map(_cell, row))} |" for row in (head, ["---"] * len(head), *body)]


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
