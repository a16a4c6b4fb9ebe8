# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights split over processes: FSDP2 over four, HSDP over two by two, as one process trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_digits import make_processor

from modeling_mdm.cli.export import export
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.training.checkpoints import find_fault, last_whole_checkpoint

ROOT = Path(__file__).resolve().parents[2]
RUN = {
    "tasks": {"joint": 0.2, "text": 0.4, "image": 0.4},  # of one item, none has text, or a picture
    "max_steps": 10,
    "save_steps": 3,
    "bf16": False,
}


def job(processes, **changes):
    return processes, {**RUN, "per_device_train_batch_size": 4 // processes, **changes}


def do(folder, jobs):
    """Do some jobs, each in processes of its own, and return what they reported by process."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    script = str(ROOT / "tests" / "support" / "split_run.py")
    command = [sys.executable, script, str(folder), json.dumps(jobs)]
    subprocess.run(command, env=environment, check=True, timeout=1500)
    reports = {}
    for name, (processes, what) in jobs.items():
        ended = json.loads((folder / f"{name}.ended").read_text())
        ranks = range(processes)
        logs = "\n".join((folder / f"{name}-{rank}.log").read_text()[-3000:] for rank in ranks)
        expected = -9 if "killed" in what else 0
        assert ended == [expected] * processes, (name, ended, logs)
        if not expected:
            texts = [(folder / f"{name}-{rank}.json").read_text() for rank in ranks]
            reports[name] = [json.loads(text) for text in texts]
    return reports


def write_pictures(folder):
    """Ten pictures with captions, of which one is damaged."""
    folder.mkdir()
    lines = []
    for n in range(10):
        Image.new("L", (8, 8), 20 * n).save(folder / f"{n}.png")
        lines.append(json.dumps({"file_name": f"{n}.png", "text": "a zero"}))
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:-40])
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    make_processor().save_pretrained(folder / "processor")
    return folder


@pytest.fixture(scope="module")
def reports(folder):
    """All jobs, whose processes share what is imported once."""
    short = {"source": write_pictures(folder / "pictures"), "limit": None}
    short |= {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 2}
    half = {"bf16": True, "max_steps": 3}
    jobs = {
        "alone": job(1, checks=True),
        "fsdp2": job(4, mesh="fsdp2", checks=True),
        "hsdp": job(4, mesh="hsdp", checks=True),
        "cut": job(4, mesh="fsdp2", killed=7),
        "on-1": job(1, goes_on="cut"),
        "on-2": job(2, mesh="fsdp2", goes_on="cut"),
        "on-4": job(4, mesh="hsdp", goes_on="cut"),
        "short": job(4, mesh="fsdp2", **short),
        "shared-2": job(4, mesh="fsdp2", context_parallel_size=2),
        "alone-4-heads": job(1, heads=4),
        "shared-4": job(4, mesh="hsdp", context_parallel_size=4, heads=4),
        "shared-ddp": job(2, mesh="ddp", context_parallel_size=2),
        "half": job(4, mesh="fsdp2", **half),
        "half-alone": job(1, **half),
    }
    return do(folder, jobs)


def assert_same_losses(report, expected, tolerance=1e-5):
    assert report["history"].keys() == expected["history"].keys()
    for step, values in expected["history"].items():
        found = report["history"][step]
        assert found == pytest.approx(values, rel=tolerance, abs=1e-6), step


def assert_same_weights(found, expected):
    # Adam divides rounding errors by the root of tiny second moments: weights differ by a share of
    # the learning rate of 1e-3.
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("mesh", ["fsdp2", "hsdp"])
def test_four_processes_train_as_one(folder, reports, mesh):
    (alone,) = reports["alone"]
    assert len(alone["history"]) == 10
    for report in reports[mesh]:
        assert report["processes"] == 4
        assert_same_losses(report, alone)
        assert sum(report["lacking"]) > 4 * alone["lacking"][0]
    assert_same_weights(
        load_file(folder / mesh / "model.safetensors"),
        load_file(folder / "alone" / "model.safetensors"),
    )


@pytest.mark.parametrize("run", ["shared-2", "shared-4", "shared-ddp"])
def test_processes_that_share_sequences_train_as_one(folder, reports, run):
    alone = "alone-4-heads" if run == "shared-4" else "alone"
    for report in reports[run]:
        assert report["processes"] == (2 if run == "shared-ddp" else 4)
        assert_same_losses(report, reports[alone][0])
    assert_same_weights(
        load_file(folder / run / "model.safetensors"),
        load_file(folder / alone / "model.safetensors"),
    )


@pytest.mark.parametrize(("mesh", "shards"), [("fsdp2", 4), ("hsdp", 2)])
def test_weights_and_averages_are_split(reports, mesh, shards):
    whole = reports["alone"][0]["held"]
    for kind, everything in enumerate(whole):
        held = [report["held"][kind] for report in reports[mesh]]
        assert sum(held) == everything * 4 / shards
        assert max(held) < 1.6 * everything / shards  # the first has what does not divide


@pytest.mark.parametrize("mesh", ["fsdp2", "hsdp"])
def test_a_split_model_generates_what_a_whole_one_does(reports, mesh):
    expected = reports["alone"][0]["generated"]
    for report in reports[mesh]:
        assert report["generated"]["words"] == expected["words"]
        assert report["generated"]["picture"] == pytest.approx(expected["picture"], abs=1e-3)


@pytest.mark.parametrize("mesh", ["fsdp2", "hsdp"])
def test_no_process_holds_more_than_a_file_of_the_model(folder, reports, mesh):
    for rank, report in enumerate(reports[mesh]):
        gathered = report["gathered"]
        assert gathered["tensors"] > 20 and gathered["all"] > 4 * 20_000
        bound = 20_000 if rank == 0 else 0
        assert gathered["held"] <= bound + gathered["largest"]
    files = sorted((folder / mesh / "small").glob("*.safetensors"))
    assert len(files) > 4
    found = {name: value for file in files for name, value in load_file(file).items()}
    assert found.keys() == load_file(folder / mesh / "model.safetensors").keys()


@pytest.mark.parametrize("mesh", ["fsdp2", "hsdp"])
def test_the_saved_folder_is_an_ordinary_one(folder, reports, mesh):
    names = {path.name for path in (folder / mesh).glob("*.py")}
    assert names == {path.name for path in (folder / "alone").glob("*.py")}
    settings = [json.loads((folder / run / "config.json").read_text()) for run in (mesh, "alone")]
    assert settings[0] == settings[1]
    model = MDMForJointGeneration.from_pretrained(folder / mesh)
    assert_same_weights(model.state_dict(), load_file(folder / "alone" / "model.safetensors"))
    with safe_open(folder / mesh / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("run", ["on-1", "on-2", "on-4"])
def test_a_killed_run_goes_on_in_any_number_of_processes(folder, reports, run):
    # The second was begun in step 6, and may have been named in step 7.
    assert "checkpoint-3" in {path.name for path in (folder / "cut").glob("checkpoint-*")}
    for report in reports[run]:
        assert report["processes"] == int(run[-1]) == len(reports[run])
        assert_same_losses(report, reports["alone"][0])
    assert_same_weights(
        load_file(folder / run / "model.safetensors"),
        load_file(folder / "alone" / "model.safetensors"),
    )


def test_the_last_checkpoint_of_parts_is_whole(folder, reports):
    checkpoint = Path(last_whole_checkpoint(folder / "hsdp"))
    assert checkpoint.name == "checkpoint-10" and find_fault(checkpoint) is None
    assert not list(checkpoint.glob("*.safetensors"))  # nobody gathered it
    assert len(list(checkpoint.glob("sharded/*.distcp"))) > 1
    export(str(checkpoint), str(folder / "exported"), code=False)
    expected = MDMForJointGeneration.from_pretrained(folder / "hsdp").state_dict()
    found = MDMForJointGeneration.from_pretrained(folder / "exported").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_damaged_and_few_items_stop_nobody(reports):
    """Nine items of ten by eight: the second step is filled up."""
    for report in reports["short"]:
        assert set(report["history"]) == {"1", "2"}
        assert all(values["grad_norm"] > 0 for values in report["history"].values())


def test_what_must_stay_float32_does(reports):
    (alone,) = reports["half-alone"]
    for report in reports["half"]:
        assert report["types"] == alone["types"]
        assert "A_log torch.float32" in report["types"] and "x torch.bfloat16" in report["types"]
        assert_same_losses(report, alone, tolerance=0.02)
        assert report["history"] != reports["fsdp2"][0]["history"]
