# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters under FSDP2, HSDP and context parallel learn what they learn in one process."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from test_splitting import assert_same_losses, do
from tiny_digits import make_config, make_processor
from tiny_questions import save_picture, talk
from torch.distributed.checkpoint import FileSystemReader

from modeling_mdm import MDMForJointGeneration
from modeling_mdm.cli.export import export
from modeling_mdm.data.conversations import unseen_words

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    # peft asks the model by transformers' old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

STEPS = 6


def save_base(folder):
    """A model with words that it never saw, which get embeddings that learn."""
    processor = make_processor()
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    model = MDMForJointGeneration(make_config(len(processor.tokenizer)))
    with torch.no_grad():
        words = processor.tokenizer("a one", add_special_tokens=False)["input_ids"]
        model.vae.embed_tokens.weight[words] *= 1e3
    assert set(words) <= set(unseen_words(model))
    model.save_pretrained(folder)


def save_talks(folder):
    """Eight talks, half of which show no picture: a process often lacks what another has."""
    rows = []
    for number in range(8):
        shown = {"type": "image", "image": save_picture(folder / f"{number}.png", 30 * number)}
        rows.append(talk(shown if number % 2 else {"type": "text", "text": "so: "}))
    (folder / "talks.jsonl").write_text("\n".join(map(json.dumps, rows)))


def job(folder, processes, more=None, **changes):
    options = {
        "model": folder / "base",
        "dataset": folder / "talks" / "talks.jsonl",
        "use_cpu": "true",
        "bf16": "false",
        "report_to": "none",
        "disable_tqdm": "true",
        "lora_rank": 2,
        "mode_head": "true",
        "learning_rate": 1e-3,
        "ema_decay": 0.9,
        "per_device_train_batch_size": 4 // processes,
        "max_steps": STEPS,
        "save_steps": 2,
        "logging_steps": 1,
        **(more or {}),
    }
    arguments = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return processes, {"arguments": arguments, **changes}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split-adapters")
    save_base(folder / "base")
    save_talks(folder / "talks")
    return folder


@pytest.fixture(scope="module")
def reports(folder):
    jobs = {
        "alone": job(folder, 1),
        "fsdp2": job(folder, 2, mesh="fsdp2"),
        "cut": job(folder, 2, mesh="fsdp2", killed=5),
        "on-2": job(folder, 2, mesh="fsdp2", goes_on="cut"),
        "on-1": job(folder, 1, goes_on="cut"),
        "hsdp": job(folder, 4, mesh="hsdp"),
        "shared": job(folder, 2, {"context_parallel_size": 2}, mesh="ddp"),
        "shared-split": job(folder, 4, {"context_parallel_size": 2}, mesh="fsdp2"),
    }
    return do(folder, jobs)


def assert_same_adapters(found, expected):
    ours, theirs = (load_file(run / "adapter_model.safetensors") for run in (found, expected))
    assert ours.keys() == theirs.keys()
    for part in ("lora_A", "lora_B", "mode_head", "embed_tokens"):
        assert any(part in name for name in theirs), part
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5, msg=name)


PROCESSES = {"fsdp2": 2, "on-2": 2, "on-1": 1, "hsdp": 4, "shared": 2, "shared-split": 4}


@pytest.mark.parametrize("run", PROCESSES)
def test_adapters_learn_as_in_one_process(folder, reports, run):
    (alone,) = reports["alone"]
    assert len(alone["history"]) == STEPS
    for report in reports[run]:
        assert report["processes"] == PROCESSES[run] == len(reports[run])
        assert_same_losses(report, alone)
    assert_same_adapters(folder / run, folder / "alone")


def test_blocks_are_split_and_what_is_frozen_stays(reports):
    for run in ("fsdp2", "on-2", "hsdp", "shared-split"):
        assert len(reports[run][0]["frozen"][0]) > 50
        for report in reports[run]:
            assert report["split_blocks"] == 1  # all of this model
            before, after = report["frozen"]
            assert before == after == reports["alone"][0]["frozen"][0]


def test_one_process_lacked_pictures_that_the_other_had(reports):
    assert sum(reports["alone"][0]["lacking"]) == 0
    assert sum(reports["fsdp2"][0]["lacking"]) > 0


def test_split_adapters_generate_what_whole_ones_do(reports):
    expected = reports["alone"][0]["generated"]
    for report in reports["fsdp2"]:
        assert report["generated"]["words"] == expected["words"]
        assert report["generated"]["picture"] == pytest.approx(expected["picture"], abs=1e-3)


def test_the_saved_folder_loads_with_peft_and_is_the_merged_model(folder, reports):
    base = MDMForJointGeneration.from_pretrained(folder / "base", use_mode_head=True)
    loaded = peft.PeftModel.from_pretrained(base, folder / "fsdp2").merge_and_unload()
    expected = MDMForJointGeneration.from_pretrained(folder / "alone" / "merged").state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_a_checkpoint_holds_adapters_alone_and_is_exported_merged(folder, reports):
    checkpoint = folder / "fsdp2" / f"checkpoint-{STEPS}"
    names = FileSystemReader(checkpoint / "sharded").read_metadata().state_dict_metadata
    frozen = {f"model.{name}" for name in reports["fsdp2"][0]["frozen"][0]}
    assert not frozen & names.keys() and any("lora_A" in name for name in names)
    export(str(checkpoint), str(folder / "exported"), code=False)
    found, expected = (
        MDMForJointGeneration.from_pretrained(folder / name).state_dict()
        for name in ("exported", "fsdp2/merged")
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6, msg=name)
