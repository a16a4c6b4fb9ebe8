# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The training script as a user runs it: its command line, a run, a killed run, two processes."""

import io
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from children import in_a_child
from PIL import Image
from safetensors.torch import load_file
from tiny_digits import CAPTIONS, ROOT, load_script, save_config_folder

from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.data.streams import MixedStream
from modeling_mdm.display import pictures
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training import train
from modeling_mdm.training.checkpoints import find_fault, last_whole_checkpoint
from modeling_mdm.training.command_line import pairs
from modeling_mdm.training.ema import EMA_FILE
from modeling_mdm.training.run_data import DataArguments, load_data
from modeling_mdm.training.trainer import MDMTrainer

SCRIPT = ROOT / "examples" / "train.py"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@pytest.fixture(scope="module")
def config_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    save_config_folder(folder)
    return folder


@pytest.fixture(scope="module")
def yaml_file(tmp_path_factory, config_folder):
    path = tmp_path_factory.mktemp("yaml") / "tiny.yaml"
    path.write_text(
        f"config: {config_folder}\ncaptions: {CAPTIONS}\ndataset: digits\neval_split: test\n"
        "eval_limit: 30\nper_device_train_batch_size: 4\nuse_cpu: true\ndisable_tqdm: true\n"
        "max_steps: 60\nlogging_steps: 1\nsave_steps: 8\neval_strategy: steps\neval_steps: 10\n"
        "num_samples: 2\nsample_steps: 2\nlearning_rate: 1e-3\nseed: 5\n"
    )
    return path


def logged_losses(folder):
    history = json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]
    return {h["step"]: {k: h[k] for k in h if "loss" in k} for h in history if "loss" in h}


def train_until_killed(step, *arguments):
    """Train, and be killed within a step: for use in a process of its own."""
    usual = MDMTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(self, *args, **kwargs)

    torch.set_num_threads(1)  # those of the parent are not there
    MDMTrainer.training_step = training_step
    train.main(list(map(str, arguments)))


@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_run_killed_with_sigkill_and_resumed_equals_one_that_was_not(yaml_file, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    short = ["--max_steps", 16]
    work = partial(train_until_killed, 12, yaml_file, "--output_dir", cut, *short)
    status, printed = in_a_child(work)
    assert status == -signal.SIGKILL, printed
    assert not (cut / "model.safetensors").exists()  # it was not finished
    assert last_whole_checkpoint(cut) is not None, printed

    train.main([str(yaml_file), "--output_dir", str(whole), *map(str, short)])
    go_on = ["--resume_from_checkpoint", "last", *map(str, short)]
    train.main([str(yaml_file), "--output_dir", str(cut), *go_on])
    expected, found = logged_losses(whole), logged_losses(cut)
    assert len(expected) == 16 and found == expected
    for name in ("model.safetensors", f"checkpoint-16/{EMA_FILE}"):
        weights, again = load_file(whole / name), load_file(cut / name)
        assert all(torch.equal(value, again[key]) for key, value in weights.items())

    # What the run leaves is a model that loads and generates, beside pictures of samples.
    model = MDMForJointGeneration.from_pretrained(whole)
    processor = MDMProcessor.from_pretrained(whole)
    inputs = processor(text=["a zero"], generate="image", return_tensors="pt")
    out = model.generate(**inputs, num_inference_steps=1, show_progress=False)
    assert processor.post_process(out)[0].image.size == (8, 8)
    with Image.open(whole / "samples" / "step-0000010.png") as sheet:
        assert sheet.width > 100
    evaluations = json.loads((whole / "trainer_state.json").read_text())["log_history"]
    assert any("eval_loss_se_text" in h for h in evaluations)


def test_tensorboard_gets_every_part_of_the_loss_and_the_sheet(yaml_file, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    shown, draw = [], pictures.contact_sheet

    def contact_sheet(samples, **options):
        shown.extend(samples)
        return draw(samples, **options)

    monkeypatch.setattr(pictures, "contact_sheet", contact_sheet)
    options = "--max_steps 2 --eval_steps 2 --save_strategy no --report_to tensorboard"
    train.main([str(yaml_file), *options.split(), "--output_dir", str(tmp_path / "run")])
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"images": 0})
    events.Reload()
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    logged = {h["step"]: h for h in history if "loss" in h}
    parts = {name for h in logged.values() for name in h if name.startswith("loss_")}
    expected = {f"loss_{kind}_{g}" for kind in ("se", "rec") for g in ("image", "text")}
    assert expected | {"loss_kl"} <= parts
    counts = ("samples_per_second", "tokens_per_second", "pictures_per_second")
    for name in (*parts, "loss", "grad_norm", *counts, "resident_peak_bytes"):
        found = {e.step: e.value for e in events.Scalars(f"train/{name}")}
        assert found == pytest.approx({n: h[name] for n, h in logged.items() if name in h})
        assert all(np.isfinite(value) for value in found.values())
    # The sheet has pictures with captions, and is the one that lies in the folder.
    assert [sample.image.size for sample in shown] == [(8, 8)] * 2
    assert all(isinstance(sample.text, str) for sample in shown)
    (sheet,) = events.Images("samples")
    drawn = [io.BytesIO(sheet.encoded_image_string), tmp_path / "run/samples/step-0000002.png"]
    seen, kept = (np.asarray(Image.open(source).convert("RGB")) for source in drawn)
    assert np.array_equal(seen, kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        [
            *("accelerate.commands.launch", "--multi_gpu"),
            *("--num_processes", "2", "--main_process_port", "0"),
        ],
    ],
)
def test_two_processes_train_one_model(launcher, yaml_file, tmp_path):
    arguments = [yaml_file, "--output_dir", tmp_path, "--max_steps", 8, "--save_steps", 4]
    line = [sys.executable, "-m", *launcher, str(SCRIPT), *map(str, arguments)]
    line += ["--eval_strategy", "no"]
    subprocess.run(line, env=ENVIRONMENT, check=True, timeout=300)
    checkpoint = tmp_path / "checkpoint-4"
    # A file of random states for each process: there were two.
    assert {p.name for p in checkpoint.glob("rng_state_*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    assert find_fault(checkpoint) is None
    expected = logged_losses(tmp_path)
    for later in ("checkpoint-8", "trainer_state.json", "model.safetensors"):
        (tmp_path / later).rename(tmp_path / f"first-{later}")
    subprocess.run(
        [*line, "--resume_from_checkpoint", "last"], env=ENVIRONMENT, check=True, timeout=300
    )
    assert logged_losses(tmp_path) == expected


def test_the_command_line_wins_over_the_file(yaml_file, tmp_path):
    model_args, data_args, args = train.parse(
        [str(yaml_file), "--max_steps", "7", "--output_dir", str(tmp_path), "--tasks", "joint=2"]
    )
    assert (args.max_steps, args.seed, args.learning_rate) == (7, 5, 1e-3)
    assert data_args.dataset == "digits" and data_args.tasks == ["joint=2"]
    assert model_args.processor is None


def test_unknown_keys_fail_in_the_file_and_on_the_command_line(yaml_file, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml_file.read_text() + "max_step: 3\n")
    with pytest.raises(ValueError, match=r"wrong\.yaml.*\['max_step'\]"):
        train.parse([str(wrong)])
    with pytest.raises(ValueError, match="--max_step"):
        train.parse([str(yaml_file), "--max_step", "3"])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        train.parse(["nowhere.yaml"])
    with pytest.raises(SystemExit):
        train.parse(["--dataset", "digits"])  # without --config


def test_help_names_every_argument(capsys):
    with pytest.raises(SystemExit) as exit_info:
        load_script(SCRIPT).main(["--help"], load_script(SCRIPT).__doc__)
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    for name in ("--config", "--dataset", "--tasks", "--ema_decay", "--max_train_seconds", "joint"):
        assert name in shown
    assert "python examples/train.py examples/configs/digits.yaml\n" in shown


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "fashion_all"])
def test_the_shipped_files_name_parts_that_fit_together(monkeypatch, name):
    monkeypatch.chdir(ROOT)
    # What the longest of them goes on from is the end of another run: here what it ended with.
    start = ["--config", "examples/checkpoints/mdm-fashion"] if name == "fashion_all" else []
    model_args, data_args, args = train.parse([f"examples/configs/{name}.yaml", *start])
    assert args.max_steps > 0 and data_args.dataset in (name, "fashion_mnist")
    processor = MDMProcessor.from_pretrained(model_args.processor)
    model = train.make_model(model_args, processor)
    assert model.config.vocab_size == len(processor.tokenizer)
    table = CaptionTable.from_json(data_args.captions)
    assert model.config.num_classes == table.num_classes
    assert model.config.max_text_length == processor.max_text_length
    processor(text=table.all_captions(), padding="max_length", return_tensors="pt")  # none too long


def test_tasks_and_columns_read_as_pairs_or_mappings():
    assert pairs("tasks", ["joint=1", "text=0.5"]) == {"joint": 1, "text": 0.5}
    assert pairs("tasks", {"joint": 1}) == {"joint": 1}
    assert pairs("columns", None) == {}
    with pytest.raises(ValueError, match=r"tasks holds \['joint'\]"):
        pairs("tasks", ["joint"])


def test_a_config_that_does_not_fit_its_processor_is_refused(config_folder, tmp_path):
    processor = MDMProcessor.from_pretrained(config_folder)
    size = len(processor.tokenizer)

    def make(**overrides):
        fields = [f"{name}={value}" for name, value in overrides.items()]
        return train.make_model(train.ModelArguments(str(config_folder), None, fields), processor)

    with pytest.raises(ValueError, match=f"vocab_size={size + 1}.*{size} words"):
        make(vocab_size=size + 1)
    with pytest.raises(ValueError, match=r"\['hidden'\]"):
        make(hidden=3)
    model = make(hidden_size=32)
    assert model.config.hidden_size == 32
    model.save_pretrained(tmp_path)
    trained = train.ModelArguments(str(tmp_path))
    assert train.make_model(trained, processor).config.hidden_size == 32
    trained.config_overrides = ["hidden_size=16"]
    with pytest.raises(ValueError, match="cannot change the trained model"):
        train.make_model(trained, processor)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An offline cache of the Hub with one repository, `me/mine`: its snapshot's folder."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--me--mine"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return repository / "snapshots" / ("0" * 40)


@pytest.mark.parametrize("shard_size", ["1GB", "50KB"])
def test_training_goes_on_from_weights_on_the_hub(hub, config_folder, shard_size):
    processor = MDMProcessor.from_pretrained(config_folder)
    trained = train.make_model(train.ModelArguments(str(config_folder)), processor)
    trained.save_pretrained(hub, max_shard_size=shard_size)
    assert (hub / "model.safetensors").is_file() == (shard_size == "1GB")
    for folder in (str(hub), "me/mine"):
        again = train.make_model(train.ModelArguments(folder), processor).state_dict()
        assert all(torch.equal(again[k], value) for k, value in trained.state_dict().items())
    with pytest.raises(ValueError, match="cannot change the trained model in 'me/mine'"):
        train.make_model(train.ModelArguments("me/mine", None, ["hidden_size=16"]), processor)


def test_a_config_alone_on_the_hub_makes_a_new_model(hub, config_folder):
    processor = MDMProcessor.from_pretrained(config_folder)
    config = json.loads((config_folder / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps(config))
    arguments = train.ModelArguments("me/mine", None, ["hidden_size=32"])
    # Weights may be there that never reached the cache.
    with pytest.raises(ValueError, match="config='me/mine' has no weights in the cache, and offl"):
        train.make_model(arguments, processor)
    absent = hub.parents[1] / ".no_exist" / hub.name
    absent.mkdir(parents=True)
    for name in ("model.safetensors", "model.safetensors.index.json"):
        (absent / name).touch()
    assert train.make_model(arguments, processor).config.hidden_size == 32


def test_what_streams_have_no_use_for_is_refused(config_folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text("- path: nowhere\n")
    line = [
        *("--config", str(config_folder), "--dataset", str(tmp_path / "recipe.yaml")),
        *("--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--max_steps", "1"),
    ]
    given = {
        "limit": 3,
        "augment": True,
        "captions": str(CAPTIONS),
        "columns": ["image=x"],
        "train_split": "test",
        "eval_split": "test",
        "eval_limit": 2,
        "data_dir": "here",
    }
    for name, value in given.items():
        words = value if isinstance(value, list) else [str(value)]
        with pytest.raises(ValueError, match="cannot be used with the streams of") as fault:
            train.main([*line, f"--{name}", *words])
        assert str(fault.value).startswith(f"{name}={value!r} ")
    with pytest.raises(ValueError, match=r"^augment=True, limit=3 cannot be used"):
        train.main([*line, "--limit", "3", "--augment", "true"])


def test_a_new_run_does_not_start_on_top_of_an_old_one(tmp_path):
    args = train.MDMTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert train.checkpoint_to_resume(args) is None
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match="--resume_from_checkpoint last"):
        train.checkpoint_to_resume(args)
    args.resume_from_checkpoint = "last"
    assert train.checkpoint_to_resume(args) == last_whole_checkpoint(tmp_path) is None


def test_a_set_is_evaluated_on_beside_streams(config_folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text("- path: nowhere\n")
    processor = MDMProcessor.from_pretrained(config_folder)
    named = {"eval_dataset": "digits", "eval_split": "test", "eval_limit": 4}
    args = DataArguments(dataset=str(tmp_path / "recipe.yaml"), captions=None, **named)
    stream, data = load_data(args, processor, 2, 0)
    assert isinstance(stream, MixedStream) and len(data) == 4
    expected = load_training_data("digits", split="test", limit=4)
    assert [data[n]["label"] for n in range(4)] == [expected[n]["label"] for n in range(4)]
    args.eval_split = None
    with pytest.raises(ValueError, match=r"eval_dataset='digits' needs --eval_split"):
        load_data(args, processor, 2, 0)
    args.eval_dataset, args.eval_columns = None, ["image=a"]
    with pytest.raises(ValueError, match=r"eval_columns=.* cannot be used with the streams"):
        load_data(args, processor, 2, 0)
