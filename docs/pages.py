# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The pages and pictures that stand outside `docs/`, and links that hold in a checkout and here.

Every relative link on a page names a file as it lies in the repository, so that it can be followed
there; here it leads to the page or the copied picture that the file becomes. A link to a file that
is neither fails the strict build, as one to a missing file does.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Files of the repository, and the pages that they are.
PAGES = {
    "README.md": "index.md",
    "EQUATIONS.md": "equations.md",
    "LOG.md": "log.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
# Folders whose pages and pictures are shown, and where.
SHOWN = {"benchmarks/results": "measured"} | {
    card.parent.relative_to(ROOT).as_posix(): f"cards/{card.parent.name}"
    for card in sorted((ROOT / "examples" / "checkpoints").glob("*/README.md"))
}
TARGET = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")

REFERENCE = re.compile(r"\[(<code>(\w+)[^<]*</code>)\]")  # [`X`] in a docstring


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what stands outside `docs/`."""
    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for folder in SHOWN:
        for source in sorted((ROOT / folder).iterdir()):
            if place := place_of(source):
                files.append(File.generated(config, place, abs_src_path=str(source)))
    return files


def place_of(file: Path) -> str | None:
    """Say where a file of the repository stands among the pages, or None if it is none of them."""
    name = file.relative_to(ROOT).as_posix()
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    folder = SHOWN.get(file.parent.relative_to(ROOT).as_posix())
    if folder is not None and file.suffix in (".md", ".png"):
        return f"{folder}/{file.name}"
    return PAGES.get(name)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    here = Path(page.file.abs_src_path or "").parent

    def turned(match: re.Match[str]) -> str:
        file = Path(os.path.normpath(here / match[2]))
        if not file.is_relative_to(ROOT) or (place := place_of(file)) is None:
            return match[0]
        away = os.path.relpath(place, Path(page.file.src_uri).parent)
        return match[1] + Path(away).as_posix() + match[3]

    return TARGET.sub(turned, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link what a docstring names as [`X`], where X has its place on the page."""

    def linked(match: re.Match[str]) -> str:
        anchor = f"modeling_mdm.{match[2]}"
        return f'<a href="#{anchor}">{match[1]}</a>' if f'id="{anchor}"' in html else match[1]

    return REFERENCE.sub(linked, html)
