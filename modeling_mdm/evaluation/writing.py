# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How results are written: JSON that is whole or not there, and tables of Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, the old file staying whole until the new one is complete."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, target)


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out as lines of a Markdown table, the head first; a cell is one line."""
    head, *body = rows
    return [f"| {' | '.join(map(_cell, row))} |" for row in (head, ["---"] * len(head), *body)]


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
