# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or absent, whenever the process or the disk gives out."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

logger = logging.get_logger(__name__)

# The leading underscore keeps the folder out of uploads to the Hub.
STAGING_FOLDER = "_saving"
# Names every file of a checkpoint and its size; a folder without it is not a whole checkpoint.
MANIFEST = "checkpoint_files.json"


def publish_checkpoint(staged: Path, final: Path) -> None:
    """Give a folder that is completely written its final name, in one step of the file system.

    A folder that already has that name (of a run that was resumed from before it) is replaced.
    """
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(staged)): path.stat().st_size for path in files}
    (staged / MANIFEST).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
    for path in (*files, staged / MANIFEST, staged):
        _flush_to_disk(path)
    if final.exists():
        final.rename(staged.with_name("replaced"))
    staged.rename(final)
    _flush_to_disk(final.parent)
    shutil.rmtree(staged.parent, ignore_errors=True)


def publish_files(staged: Path, final: Path) -> None:
    """Move every file of a folder that is completely written into another one."""
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    for path in files:
        _flush_to_disk(path)
    for path in files:
        target = final / path.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    _flush_to_disk(final)
    shutil.rmtree(staged, ignore_errors=True)


def find_fault(checkpoint: str | Path) -> str | None:
    """Say why a checkpoint cannot be gone on from, or return None where it is whole."""
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        return "there is no such folder"
    try:
        sizes = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not written to its end by MDMTrainer"
    except ValueError:
        return f"its {MANIFEST} is not readable"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return the checkpoint folders of a run, whole or not, newest first."""
    steps = {
        path: int(match.group(1))
        for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.is_dir() and (match := re.fullmatch(r".*-(\d+)", path.name))
    }
    return sorted(steps, key=steps.__getitem__, reverse=True)


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """Return the newest whole checkpoint of a run, warning about every newer one that is not."""
    for checkpoint in list_checkpoints(output_dir):
        fault = find_fault(checkpoint)
        if fault is None:
            return str(checkpoint)
        logger.warning(f"{checkpoint} is ignored: {fault}.")
    return None


def how_to_go_on(output_dir: str | Path) -> str:
    """Tell the user of a run that was interrupted what is left of it."""
    checkpoint = last_whole_checkpoint(output_dir)
    if checkpoint is None:
        return f"{output_dir} holds no checkpoint yet: the same command starts anew."
    return (
        f"The last checkpoint is {checkpoint}: the same command with --resume_from_checkpoint last "
        "goes on from there."
    )


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
