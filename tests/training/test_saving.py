# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the trainer: killed while it saves, on a full disk, damaged, restored."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from children import in_a_child
from safetensors.torch import load_file
from tiny_trainer import losses, make_trainer
from transformers import TrainerCallback

from modeling_mdm.training.checkpoints import MANIFEST, STAGING_FOLDER, find_fault
from modeling_mdm.training.ema import EMA_FILE
from modeling_mdm.training.trainer import (
    MDMTrainer,
)


def test_only_the_newest_checkpoints_stay_and_the_best_is_found_again(tmp_path):
    trainer = make_trainer(
        tmp_path,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    folders = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert best.parent == tmp_path and best.name in folders
    assert len(folders) == 2 and "checkpoint-16" in folders
    state = json.loads((best / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]) == best
    at_best = load_file(best / EMA_FILE)
    for name, average in trainer.average.averages.items():
        assert torch.equal(average, at_best[name])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_killed_while_it_saves_leaves_the_older_checkpoint_and_no_other(
    tmp_path, monkeypatch
):
    save_state = MDMTrainer._save_rng_state

    def die_in_the_second_save(trainer, output_dir):
        if trainer.state.global_step == 8:
            os._exit(9)  # as SIGKILL does: no cleaning up
        save_state(trainer, output_dir)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(MDMTrainer, "_save_rng_state", die_in_the_second_save)
        make_trainer(tmp_path).train()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [STAGING_FOLDER, "checkpoint-4"]
    resumed = make_trainer(tmp_path)
    resumed.train(True)
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    assert losses(resumed) == losses(whole)
    assert not (tmp_path / STAGING_FOLDER).exists()


class DiskFillsUp(TrainerCallback):
    """From the end of a step on, every file that grows beyond some bytes is a write error."""

    def __init__(self, step, num_bytes):
        self.step, self.num_bytes = step, num_bytes

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, hard_limit))


def run_in_a_child(work):
    """Run a function in a process of its own; it must end well."""
    status, printed = in_a_child(work)
    assert status == 0, printed


# Room for nothing, for the weights, for all but the optimizer's state.
@pytest.mark.parametrize("num_bytes", [50, 300, 1500])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_full_disk_leaves_the_previous_checkpoint_whole_and_says_so(tmp_path, num_bytes):
    make_trainer(tmp_path, max_steps=4).train()
    trainer = make_trainer(tmp_path, max_steps=8, logging_strategy="no")
    trainer.add_callback(DiskFillsUp(8, num_bytes))

    def go_on():
        with pytest.raises(OSError, match=r"checkpoint-8 could not be.*checkpoint-4, is whole"):
            trainer.train(True)

    run_in_a_child(go_on)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    assert find_fault(tmp_path / "checkpoint-4") is None


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_first_save_on_a_full_disk_says_that_there_is_no_earlier_one(tmp_path):
    trainer = make_trainer(tmp_path, logging_strategy="no")
    trainer.add_callback(DiskFillsUp(4, 50))

    def start():
        with pytest.raises(OSError, match="There is no earlier one"):
            trainer.train()

    run_in_a_child(start)
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_full_disk_leaves_the_older_model_whole(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4)
    trainer.train()
    (tmp_path / "model.safetensors").write_text("an older model")

    def save():
        DiskFillsUp(4, 300).on_step_end(trainer.args, trainer.state, trainer.control)
        with pytest.raises(OSError, match="nothing was changed"):
            trainer.save_model()

    run_in_a_child(save)
    assert (tmp_path / "model.safetensors").read_text() == "an older model"
    assert not (tmp_path / STAGING_FOLDER).exists()


@pytest.mark.slow
def test_a_full_disk_of_the_run_is_none_of_the_tests_own_output(tmp_path):
    """Which may be a file, and longer than the limit."""
    printed = tmp_path / "printed.txt"
    printed.write_text("x" * 5000)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "full_disk",
    ]
    with printed.open("a") as output:
        done = subprocess.run(
            [*command, "-m", "not slow"], stdout=output, cwd=Path(__file__).parent
        )
    assert done.returncode == 0, printed.read_text()[5000:]


def test_a_finished_run_is_restored_without_another_step(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4)
    trainer.train()
    again = make_trainer(tmp_path, max_steps=4)
    assert again.train(True).global_step == 4
    assert losses(again) == losses(trainer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4"]
    for name, average in trainer.average.averages.items():
        assert torch.equal(average, again.average.averages[name])
        assert torch.equal(trainer.model.get_parameter(name), again.model.get_parameter(name))
    longer = make_trainer(tmp_path, max_steps=5)
    assert longer.train(True).global_step == 5


def test_a_damaged_checkpoint_cannot_be_resumed_by_name(tmp_path):
    make_trainer(tmp_path, max_steps=4).train()
    (tmp_path / "checkpoint-4" / MANIFEST).unlink()
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint-4.*not a whole checkpoint"):
        trainer.train(str(tmp_path / "checkpoint-4"))
    with pytest.raises(ValueError, match="no whole checkpoint"):
        trainer.train(True)


def test_a_checkpoint_without_an_average_cannot_be_resumed_with_one(tmp_path):
    make_trainer(tmp_path, max_steps=4, ema_decay=0).train()
    assert not (tmp_path / "checkpoint-4" / EMA_FILE).exists()
    with pytest.raises(ValueError, match="ema_decay=0"):
        make_trainer(tmp_path, ema_decay=0.5).train(True)
