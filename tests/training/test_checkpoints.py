# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders: whole, damaged, absent."""

import logging
from pathlib import Path

import pytest

from modeling_mdm.training.checkpoints import (
    MANIFEST,
    STAGING_FOLDER,
    find_fault,
    last_whole_checkpoint,
    list_checkpoints,
    publish_checkpoint,
)


def publish(run: Path, step: int, content: str = "weights") -> Path:
    staged = run / STAGING_FOLDER / f"checkpoint-{step}"
    (staged / "inner").mkdir(parents=True)
    (staged / "model.safetensors").write_text(content)
    (staged / "inner" / "optimizer.pt").write_text("state")
    publish_checkpoint(staged, run / staged.name)
    return run / staged.name


def test_a_published_checkpoint_is_whole_and_leaves_nothing_aside(tmp_path):
    checkpoint = publish(tmp_path, 10)
    assert find_fault(checkpoint) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_publishing_replaces_a_checkpoint_of_the_same_step(tmp_path):
    publish(tmp_path, 10, "old")
    checkpoint = publish(tmp_path, 10, "new")
    assert (checkpoint / "model.safetensors").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def remove_file(checkpoint: Path) -> None:
    (checkpoint / "inner" / "optimizer.pt").unlink()


def truncate_file(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_text("weig")


def remove_manifest(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).unlink()


def truncate_manifest(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).write_text('{"model')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_file, "optimizer.pt is missing"),
        (truncate_file, "model.safetensors has 4 bytes instead of 7"),
        (remove_manifest, "not written to its end"),
        (truncate_manifest, "not readable"),
    ],
)
def test_a_damaged_checkpoint_is_ignored_with_a_warning(tmp_path, caplog, damage, message):
    whole, damaged = publish(tmp_path, 9), publish(tmp_path, 10)
    damage(damaged)
    assert message in find_fault(damaged)
    # transformers' loggers do not reach the root logger, where caplog listens.
    logger = logging.getLogger("modeling_mdm.training.checkpoints")
    logger.addHandler(caplog.handler)
    try:
        assert last_whole_checkpoint(tmp_path) == str(whole)
    finally:
        logger.removeHandler(caplog.handler)
    assert f"{damaged} is ignored" in caplog.text


def test_checkpoints_are_ordered_by_step_not_by_name(tmp_path):
    for step in (9, 100, 20):
        publish(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-999").write_text("a file is no checkpoint")
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["checkpoint-100", "checkpoint-20", "checkpoint-9"]
    assert last_whole_checkpoint(tmp_path / "nowhere") is None
    assert find_fault(tmp_path / "nowhere") == "there is no such folder"
