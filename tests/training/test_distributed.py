# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Training in one, two and four processes: the same losses, gradients, weights and averages.

"The same" is to the rounding of sums that are taken in another order; what is random is drawn as it
always is, by seed, step and item.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_run import train
from safetensors.torch import load_file
from tiny_digits import make_processor

from modeling_mdm.training.checkpoints import find_fault
from modeling_mdm.training.ema import EMA_FILE

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tests" / "support"
MIXED = {"joint": 0.2, "text": 0.4, "image": 0.4}  # of two items, often none has text, or a picture
LAUNCHERS = {
    "none": [],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": [
        *("-m", "accelerate.commands.launch", "--multi_gpu"),
        *("--num_processes", "2", "--main_process_port", "0"),
    ],
}


def start(launcher, script, *arguments):
    """Run a script in several processes, and return what it printed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, *LAUNCHERS[launcher], str(SCRIPTS / script), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def launch(launcher, folder, runs, *processes):
    """Do some runs in two processes, or so many, and return their reports."""
    start(launcher, "distributed_run.py", folder, json.dumps(runs), *processes)
    return {name: json.loads((folder / name / "report.json").read_text()) for name in runs}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_processor().save_pretrained(folder / "processor")
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """One process with the whole batch of 4, for 4 steps."""
    return train(folder / "alone", MIXED, per_device_train_batch_size=4)


@pytest.fixture(scope="module")
def together(folder, alone):
    """Two processes: from the start, by parts, and from the checkpoint that one process left."""
    shutil.copytree(folder / "alone" / "checkpoint-2", folder / "one-to-two" / "checkpoint-2")
    run = {"tasks": MIXED, "per_device_train_batch_size": 2}
    go_on = {**run, "resume": str(folder / "one-to-two" / "checkpoint-2")}
    parts = {**run, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    stream = {**run, "streamed": True, "limit": 7}
    stream_goes_on = {**stream, "resume": str(folder / "stream" / "checkpoint-2")}
    run["per_device_eval_batch_size"] = 4
    runs = {"together": run, "by-parts": parts, "one-to-two": go_on}
    runs |= {"stream": stream, "stream-goes-on": stream_goes_on, "split": "split"}
    return launch("none", folder, runs)


def steps(report):
    return {int(step): values for step, values in report["history"].items()}


def assert_same_course(found, expected, first=1, tolerance=1e-4):
    found, expected = steps(found), steps(expected)
    assert found.keys() == expected.keys() == set(range(1, 5))
    for step in range(first, 5):
        assert found[step].keys() == expected[step].keys()
        for name, value in expected[step].items():
            assert found[step][name] == pytest.approx(value, rel=tolerance, abs=1e-5), (step, name)


def assert_same_files(found, expected):
    # Adam divides rounding errors by the root of tiny second moments: weights differ by a share of
    # the learning rate of 1e-3.
    for name in ("model.safetensors", f"checkpoint-4/{EMA_FILE}", "checkpoint-4/model.safetensors"):
        ours, theirs = load_file(found / name), load_file(expected / name)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=3e-4, msg=f"{name} {key}")


def test_two_processes_equal_one_with_the_whole_batch(folder, alone, together):
    two = together["together"]
    assert (alone["processes"], two["processes"]) == (1, 2)
    assert sum(two["lacking"]) > 2 * alone["lacking"][0]  # one had a modality, the other had not
    assert all(values["grad_norm"] > 0 for values in steps(two).values())
    assert_same_course(two, alone)
    assert_same_files(folder / "together", folder / "alone")
    assert len(list((folder / "together" / "checkpoint-4").glob("rng_state_*"))) == 2


def test_accumulation_in_two_processes_equals_one_with_the_whole_batch(folder, alone, together):
    parts = together["by-parts"]
    assert parts["processes"] == 2 and min(parts["lacking"]) > alone["lacking"][0]
    assert_same_course(parts, alone)
    assert_same_files(folder / "by-parts", folder / "alone")


def test_evaluation_is_the_same_in_any_number_of_processes(alone, together):
    """Nine items by 8; by 2 x 8 and by 2 x 4, where the last batches are filled up."""
    expected = alone["evaluated"]
    assert len(expected) == 6 and all(value > 0 for value in expected.values())
    for name, report in together.items():
        if name == "split":
            continue
        assert report["evaluated"] == pytest.approx(expected, rel=1e-5), name


def test_processes_have_random_states_of_their_own(together):
    for report in (report for name, report in together.items() if name != "split"):
        assert len(set(report["random"])) == 2


def test_a_run_goes_on_in_more_processes(folder, alone, together):
    assert together["one-to-two"]["processes"] == 2
    assert_same_course(together["one-to-two"], alone, first=3)
    assert_same_files(folder / "one-to-two", folder / "alone")


def test_a_stream_is_shared_out_and_goes_on(folder, alone, together):
    """Seven items in batches of four: every batch but the first begins within a pass."""
    whole = {"streamed": True, "limit": 7, "per_device_train_batch_size": 4}
    expected = train(folder / "stream-alone", MIXED, **whole)
    assert_same_course(together["stream"], expected)
    assert_same_course(together["stream-goes-on"], expected)
    assert_same_files(folder / "stream", folder / "stream-alone")
    cut = str(folder / "stream" / "checkpoint-2")
    fewer = train(folder / "stream-fewer", MIXED, resume=cut, **whole)
    assert_same_course(fewer, expected, first=3)


def test_a_run_goes_on_in_fewer_processes(folder, alone, together):
    cut = folder / "two-to-one" / "checkpoint-2"
    shutil.copytree(folder / "together" / "checkpoint-2", cut)
    assert find_fault(cut) is None
    fewer = train(folder / "two-to-one", MIXED, resume=str(cut), per_device_train_batch_size=4)
    assert fewer["processes"] == 1
    assert_same_course(fewer, alone, first=3)
    assert_same_files(folder / "two-to-one", folder / "alone")


@pytest.mark.parametrize("batches", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, folder, alone, batches):
    shutil.copytree(folder / "processor", tmp_path / "processor")
    arguments = {
        "per_device_train_batch_size": 4 // batches,
        "gradient_accumulation_steps": batches,
    }
    parts = train(tmp_path / "parts", MIXED, **arguments)
    assert parts["lacking"][0] > alone["lacking"][0]
    assert_same_course(parts, alone)
    assert_same_files(tmp_path / "parts", folder / "alone")


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_nothing(tmp_path, folder, alone):
    shutil.copytree(folder / "processor", tmp_path / "processor")
    saving = train(
        tmp_path / "saving", MIXED, per_device_train_batch_size=4, gradient_checkpointing=True
    )
    assert_same_course(saving, alone, tolerance=1e-6)


def test_mixed_precision_stays_near(tmp_path, folder, alone):
    shutil.copytree(folder / "processor", tmp_path / "processor")
    half = train(tmp_path / "half", MIXED, per_device_train_batch_size=4, bf16=True)
    assert_same_course(half, alone, tolerance=0.05)
    assert half["history"] != alone["history"]
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


def test_a_split_model_equals_a_whole_one(together):
    """FSDP2: training, averages, evaluation, samples, saving and loading; ZeRO-3: averages."""
    agreed = [f"process {rank} of 2 agrees" for rank in range(2)]
    assert together["split"]["agreed"] == agreed


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_everything_at_once(launcher, folder, alone, tmp_path):
    """Two processes, accumulation, checkpointing and bfloat16 together, by either launcher."""
    shutil.copytree(folder / "processor", tmp_path / "processor")
    run = {
        "tasks": MIXED,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "bf16": True,
    }
    (report,) = launch(launcher, tmp_path, {"all": run}).values()
    assert report["processes"] == 2
    assert_same_course(report, alone, tolerance=0.05)
    assert find_fault(tmp_path / "all" / "checkpoint-4") is None


# --- ten steps of four items, shared out in every way

KINDS = {
    "set": {},
    "stream": {"streamed": True, "limit": 13},  # its end lies within a step
    "parts": {"parts": [2, 1]},
}


def ten_steps(kind, processes, accumulated=1, cut=None):
    """A run that ends as all others of its kind should."""
    return {
        "tasks": MIXED,
        "max_steps": 10,
        "save_steps": 5,
        **KINDS[kind],
        "per_device_train_batch_size": 4 // processes // accumulated,
        "gradient_accumulation_steps": accumulated,
        "resume": cut and str(cut / "checkpoint-5"),
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_losses_of_ten_steps_hang_on_no_number_of_processes(tmp_path):
    """One, two and four, accumulating or not, cut off in one number and gone on with in another."""
    folders = {processes: tmp_path / str(processes) for processes in (1, 2, 4)}
    for folder in folders.values():
        make_processor().save_pretrained(folder / "processor")
    one, two, four = folders.values()
    expected = {kind: train(one / kind, **ten_steps(kind, 1)) for kind in KINDS}
    found = [("set", 1, train(one / "set-by-parts", **ten_steps("set", 1, 4)))]
    for processes, cuts in ((2, [one / "stream"]), (4, [one / "set", two / "set"])):
        runs = {kind: ten_steps(kind, processes) for kind in KINDS}
        if processes == 2:
            runs["set-by-parts"] = ten_steps("set", 2, 2)
        for n, cut in enumerate(cuts):
            runs[f"{cut.name}-from-{n}"] = ten_steps(cut.name, processes, cut=cut)
        reports = launch("none", folders[processes], runs, processes)
        found += [(name.split("-")[0], processes, report) for name, report in reports.items()]
    fewer = train(one / "fewer", **ten_steps("stream", 1, cut=four / "stream"))
    found.append(("stream", 1, fewer))
    assert len(found) == 12
    for kind, processes, report in found:
        assert report["processes"] == processes
        values = steps(report)
        assert values.keys() == set(range(1, 11))
        for step, terms in steps(expected[kind]).items():
            assert values[step] == pytest.approx(terms, rel=1e-5, abs=1e-6), (kind, processes, step)
