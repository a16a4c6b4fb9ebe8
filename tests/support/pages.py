# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The pages of this project, and the blocks of code and commands that stand on them."""

import re
import shlex
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def pages() -> list[str]:
    """Names of all pages but those of the log, from the project's folder."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/tutorials/*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in files)


def log_pages() -> list[str]:
    """Names of the pages of the log."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/log/*.md"))


@lru_cache
def text_of(page: str) -> str:
    """Read a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a language on a page."""
    return [text for of, text in FENCED.findall(text_of(page)) if of == language]


def command_lines(page: str) -> list[list[str]]:
    """Words of every command on a page, without variables set for it and comments."""
    text = "".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in text.splitlines())
    return [line for line in lines if line]
