# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The trainer, on a model of two weights that uses every random source there is.

The same properties are checked on MDM itself, through the training script, in
test_train_script.py.
"""

import random
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from tiny_trainer import BATCH, NUM_ITEMS, losses, make_trainer, without_timings

from modeling_mdm.training import trainer as trainer_module
from modeling_mdm.training.checkpoints import STAGING_FOLDER, find_fault
from modeling_mdm.training.ema import EMA_FILE
from modeling_mdm.training.trainer import (
    MDMTrainingArguments,
    RunningMeans,
    fixed_random_state,
)

EVALUATED = {"save_steps": 2, "eval_strategy": "steps", "eval_steps": 4}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A run without evaluation: to be compared with, not to be gone on with."""
    trainer = make_trainer(tmp_path_factory.mktemp("quiet"))
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run with evaluation, and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(folder, **EVALUATED)
    trainer.train()
    return trainer, folder


# Step 6 is inside the first epoch (of 10 steps), step 10 its end, step 12 inside the second.
@pytest.mark.parametrize("step", [6, 10, 12])
def test_a_resumed_run_repeats_the_losses_and_the_weights(tmp_path, reference, step):
    reference, whole = reference
    cut = tmp_path / "cut" / f"checkpoint-{step}"
    shutil.copytree(whole / cut.name, cut)
    random.seed(99)
    np.random.seed(99)
    resumed = make_trainer(tmp_path / "cut", **EVALUATED)
    torch.manual_seed(99)
    resumed.train(True)
    assert without_timings(resumed.state.log_history) == without_timings(
        [h for h in reference.state.log_history if "train_runtime" not in h]
        + [h for h in resumed.state.log_history if "train_runtime" in h]
    )
    for name, average in reference.average.averages.items():
        assert torch.equal(average, resumed.average.averages[name])
    assert resumed.average.num_updates == 16


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_resumed_run_repeats_the_losses_with_workers_and_accumulation(tmp_path):
    arguments = {"gradient_accumulation_steps": 2, "max_steps": 8}
    reference = make_trainer(tmp_path / "whole", **arguments)
    reference.train()
    cut = tmp_path / "cut" / "checkpoint-4"
    shutil.copytree(tmp_path / "whole" / cut.name, cut)
    resumed = make_trainer(tmp_path / "cut", **arguments, dataloader_num_workers=2)
    resumed.train(str(cut))
    assert losses(resumed) == losses(reference)


def test_seeds_differ_between_epochs_and_items(tmp_path):
    trainer = make_trainer(tmp_path)
    dataset = trainer.train_dataset
    seeds = [dataset[i]["seed"] for i in range(NUM_ITEMS)]
    dataset.set_epoch(1)
    seeds += [dataset[i]["seed"] for i in range(NUM_ITEMS)]
    assert len(set(seeds)) == 2 * NUM_ITEMS
    dataset.set_epoch(0)
    assert dataset[5]["seed"] == seeds[5]
    assert dataset._epoch.is_shared()  # so workers that outlive an epoch learn of the next one


def test_evaluation_does_not_disturb_training_and_is_repeatable(tmp_path, quiet):
    evaluated = make_trainer(tmp_path / "evaluated", eval_strategy="steps", eval_steps=3)
    evaluated.train()
    assert losses(evaluated) == losses(quiet)
    assert evaluated.evaluate()["eval_loss"] == evaluated.evaluate()["eval_loss"]


def test_evaluation_and_the_saved_model_use_the_average_but_checkpoints_the_weights(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4)
    trainer.train()
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    seen = []
    trainer.model.register_forward_hook(lambda m, *_: seen.append(m.weight.detach().clone()))
    trainer.evaluate()
    average = trainer.average.averages
    assert seen and all(torch.equal(weight, average["weight"]) for weight in seen)
    (tmp_path / "model.safetensors").write_text("an older model")
    trainer.save_model()
    assert not (tmp_path / STAGING_FOLDER).exists()
    saved = load_file(tmp_path / "model.safetensors")
    checkpoint = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    beside = load_file(tmp_path / "checkpoint-4" / EMA_FILE)
    for name, weight in weights.items():
        assert not torch.equal(weight, average[name])
        assert torch.equal(saved[name], average[name])
        assert torch.equal(checkpoint[name], weight)
        assert torch.equal(beside[name], average[name])
        assert torch.equal(trainer.model.get_parameter(name), weight)


def test_the_parts_of_the_loss_are_means_between_logs(tmp_path, quiet):
    every_fourth = make_trainer(tmp_path / "every_fourth", logging_steps=4)
    every_fourth.train()
    single = [h for h in quiet.state.log_history if "loss" in h]
    averaged = [h for h in every_fourth.state.log_history if "loss" in h]
    for name in ("loss_se_image", "loss_se_text", "loss_kl"):
        mean = np.mean([h[name] for h in single[4:8]])
        assert averaged[1][name] == pytest.approx(mean, rel=1e-6)
    assert "loss_rec_image" not in averaged[1]
    total = averaged[1]["loss_se_image"] + averaged[1]["loss_se_text"]
    assert averaged[1]["loss"] == pytest.approx(total, rel=1e-6)


def test_evaluation_reports_the_parts_of_the_loss(tmp_path):
    metrics = make_trainer(tmp_path).evaluate()
    total = metrics["eval_loss_se_image"] + metrics["eval_loss_se_text"]
    assert metrics["eval_loss"] == pytest.approx(total, rel=1e-5)


def test_samples_are_drawn_from_the_average_once_an_evaluation(tmp_path):
    weights = []

    def sheet(model, processor, args):
        weights.append(model.weight.detach().clone())
        return Image.new("L", (args.num_samples, 1))

    trainer = make_trainer(tmp_path, max_steps=4, num_samples=5)
    trainer.sample_sheet = sheet
    trainer.train()
    trainer.eval_dataset = {"one": trainer.eval_dataset, "two": trainer.eval_dataset}
    metrics = trainer.evaluate()
    assert {"eval_one_loss_kl", "eval_two_loss_kl"} <= metrics.keys()
    assert len(weights) == 1
    assert torch.equal(weights[0], trainer.average.averages["weight"])
    with Image.open(tmp_path / "samples" / "step-0000004.png") as picture:
        assert picture.size == (5, 1)


def test_tensorboard_gets_losses_speed_and_samples(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = make_trainer(
        tmp_path,
        max_steps=4,
        num_samples=5,
        logging_steps=2,
        report_to="tensorboard",
        eval_strategy="steps",
        eval_steps=4,
    )
    trainer.sample_sheet = lambda model, processor, args: Image.new("L", (7, args.num_samples), 90)
    trainer.train()
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"images": 0})
    events.Reload()
    logged = {h["step"]: h for h in trainer.state.log_history if "loss" in h}
    for name in ("loss", "loss_se_image", "loss_se_text", "loss_kl", "grad_norm"):
        found = {e.step: e.value for e in events.Scalars(f"train/{name}")}
        assert found == pytest.approx({step: h[name] for step, h in logged.items()}, rel=1e-6)
    assert events.Scalars("eval/loss_se_image")[0].step == 4
    (sheet,) = events.Images("samples")
    assert (sheet.step, sheet.width, sheet.height) == (4, 7, 5)
    assert all(e.value > 0 for e in events.Scalars("train/samples_per_second"))


def test_the_speed_counts_all_items_and_leaves_evaluation_out(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=3)
    now = [100.0]
    monkeypatch.setattr(trainer_module.time, "monotonic", lambda: now[0])
    trainer._last_log = (10, 100.0)
    trainer.state.global_step = 15
    monkeypatch.setattr(
        transformers.Trainer, "evaluate", lambda *args: now.__setitem__(0, now[0] + 50) or {}
    )
    trainer.evaluate()
    now[0] += 2
    assert trainer._speed() == pytest.approx(5 * BATCH * 3 / 2)
    assert trainer._last_log == (15, 152.0)


def test_training_stops_with_a_checkpoint_when_its_time_is_over(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=10**6, save_strategy="no", max_train_seconds=0.3)
    trainer.train()
    step = trainer.state.global_step
    assert 0 < step < 10**6
    assert find_fault(tmp_path / f"checkpoint-{step}") is None


def test_the_rate_falls_to_nothing_over_the_last_seconds(tmp_path, monkeypatch):
    now, used = [100.0], []
    trainer = make_trainer(
        tmp_path, max_steps=50, learning_rate=1e-4, logging_steps=1, save_strategy="no",
        max_train_seconds=10, decay_train_seconds=4,
    )  # fmt: skip

    class ASecondAStep(transformers.TrainerCallback):
        def on_optimizer_step(self, args, state, control, optimizer, **kwargs):
            used.append(optimizer.param_groups[0]["lr"])
            now[0] += 1

    monkeypatch.setattr(trainer_module.time, "monotonic", lambda: now[0])
    trainer.add_callback(ASecondAStep())
    trainer.train()
    assert used == pytest.approx([1e-4] * 7 + [0.75e-4, 0.5e-4, 0.25e-4])
    told = [h["learning_rate"] for h in trainer.state.log_history if "learning_rate" in h]
    assert told == pytest.approx(used)


@pytest.mark.parametrize("limit", [None, 3.0])
def test_seconds_to_decay_in_are_those_of_a_limit(tmp_path, limit):
    with pytest.raises(ValueError, match=r"decay_train_seconds=4\.0 .* set that too"):
        MDMTrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, max_train_seconds=limit, decay_train_seconds=4.0
        )


def test_bfloat16_autocast_works_on_a_cpu(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4, bf16=True)
    trainer.train()
    assert all(np.isfinite(loss) for loss in losses(trainer).values())
    assert trainer.average.averages["weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "value"),
    [("ema_decay", 1.0), ("max_train_seconds", 0.0), ("num_samples", -1), ("sample_steps", 0)],
)
def test_arguments_out_of_range_are_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        MDMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})


def test_the_defaults_are_the_papers(tmp_path):
    args = MDMTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.learning_rate, args.weight_decay, args.ema_decay) == (1e-4, 0.0, 0.9999)
    assert args.optim.startswith("adamw") and args.warmup_steps == 0
    trainer = make_trainer(tmp_path, learning_rate=1e-4, max_steps=6)
    trainer.train()
    rates = {h["learning_rate"] for h in trainer.state.log_history if "learning_rate" in h}
    assert rates == {1e-4}


def test_running_means_skip_what_is_absent():
    means = RunningMeans()
    means.add({"a": torch.tensor(1.0), "b": None})
    means.add({"a": torch.tensor(2.0), "b": torch.tensor(5.0)})
    gathered = means.pop(lambda mine: torch.cat([mine, mine + 1]))  # two processes
    assert gathered == {"a": 2.0, "b": 5.5}
    assert means.pop(lambda mine: mine) == {}


def test_running_means_count_a_step_of_several_parts_once():
    means = RunningMeans()
    for share, parts in ((1 / 2, [2.0, 4.0]), (1.0, [8.0])):
        for part in parts:
            means.add({"summed": torch.tensor(part)}, 1.0, share)
            means.add({"averaged": torch.tensor(part)}, share, share)
    popped = means.pop(lambda mine: mine)
    assert popped == {"summed": (6 + 8) / 2, "averaged": (3 + 8) / 2}


def test_the_parts_of_an_accumulated_loss_sum_to_it(tmp_path):
    """10 batches an epoch by threes: its last step has one alone."""
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=3, logging_steps=4, max_steps=8)
    trainer.train()
    logs = [h for h in trainer.state.log_history if "loss" in h]
    assert len(logs) == 2
    for log in logs:
        assert log["loss"] == pytest.approx(log["loss_se_image"] + log["loss_se_text"], rel=1e-5)


def test_a_fixed_random_state_ends_with_its_block():
    def draw():
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = draw()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    inside = []
    for _ in range(2):
        with fixed_random_state(7):
            inside.append(draw())
    assert inside[0] == inside[1]
    assert draw() == expected
