# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The code in saved folders: all of it, none, or one file that says how to get it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

CODE_FIELDS = ("auto_map", "custom_pipelines")
SETTINGS = ("config.json", "processor_config.json", "tokenizer_config.json")
SIGNPOST = "mdm_export_first"


def remove_code(folder: Path) -> None:
    """Delete the code in a saved folder and what names it."""
    for path in folder.glob("*.py"):
        path.unlink()
    for path in _settings(folder):
        settings = json.loads(path.read_text(encoding="utf-8"))
        for section in _sections(settings):
            for code_field in CODE_FIELDS:
                section.pop(code_field, None)
        _write(path, settings)


def replace_code_by_signpost(folder: Path, final: Path) -> None:
    """Leave, of the code of a checkpoint, one file whose import says what to do.

    A run writes many checkpoints, and whoever goes on from them has this package. An Auto class
    that is to run the code in the folder finds this file in its place.

    Args:
        folder: a saved folder.
        final: the name that it will have.
    """
    found = False
    for path in _settings(folder):
        settings = json.loads(path.read_text(encoding="utf-8"))
        for section in _sections(settings):
            section.pop("custom_pipelines", None)
            section["auto_map"] = {
                kind: f"{SIGNPOST}.{str(name).rsplit('.', 1)[-1]}"
                for kind, name in section.get("auto_map", {}).items()
            }
            found = found or bool(section["auto_map"])
        _write(path, settings)
    for path in folder.glob("*.py"):
        path.unlink()
    if found:
        message = (
            f"{final} is a checkpoint of a run and carries no code. Where modeling-mdm is "
            "installed, `import modeling_mdm` comes first; a folder that loads anywhere is written "
            f"by `mdm export --checkpoint {shlex.quote(str(final))} --output_dir FOLDER`."
        )
        text = "# Copyright 2026 The MDM Authors.\n# SPDX-License-Identifier: Apache-2.0\n"
        text += f"raise ImportError(\n    {message!r}\n)\n"
        (folder / f"{SIGNPOST}.py").write_text(text, encoding="utf-8")


def _settings(folder: Path) -> list[Path]:
    return [folder / name for name in SETTINGS if (folder / name).is_file()]


def _sections(settings: dict[str, Any]) -> list[dict[str, Any]]:
    return [section for section in (settings, settings.get("image_processor")) if section]


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
