# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which type is computed in: bfloat16 where the processor has it, float32 where it emulates it."""

import copy
import json
import os
import re
import subprocess
import sys
import warnings
from functools import partial

import pytest
import torch
from tiny_digits import CAPTIONS, ROOT, make_config, make_processor

from modeling_mdm import MDMForJointGeneration, precision
from modeling_mdm.cli.main import main as mdm
from modeling_mdm.evaluation.evaluate import EvaluationArguments, parse
from modeling_mdm.evaluation.judge import JudgeArguments
from modeling_mdm.evaluation.ranking import RankingArguments
from modeling_mdm.precision import (
    RMSNorm,
    bfloat16_cost,
    describe_processor,
    has_bfloat16,
    use_bfloat16,
    warn_if_emulated,
)
from modeling_mdm.training import train
from modeling_mdm.training.arguments import MDMTrainingArguments

EVALUATION = partial(EvaluationArguments, checkpoint="c", judge="j", captions=str(CAPTIONS))
RANKING = partial(RankingArguments, checkpoint="c", captions=str(CAPTIONS))
TRAINING = partial(MDMTrainingArguments, report_to="none")
ARGUMENTS = [EVALUATION, RANKING, TRAINING, JudgeArguments]
NAMES = ["evaluation", "ranking", "training", "judge"]


@pytest.fixture
def messages(monkeypatch):
    """What was warned of."""
    found = []
    monkeypatch.setattr(precision.logger, "warning_once", found.append)
    return found


@pytest.fixture(params=[True, False], ids=["in hardware", "emulated"])
def hardware(request, monkeypatch, messages):
    """A CPU of either kind, and no launcher that was told a type."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    monkeypatch.setattr(precision, "has_bfloat16", lambda device="cpu": request.param)
    monkeypatch.setattr(precision, "default_device", lambda: "cpu")
    return request.param


# --- what a processor has ---


def python(code, **environment):
    """Run Python as on another processor; return what it prints."""
    command = [sys.executable, "-c", code]
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "modeling_mdm")}
    environment = {**os.environ, **environment}
    environment.pop("ACCELERATE_MIXED_PRECISION")
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize(
    "held",
    [
        {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
        # AVX-512 without bfloat16: emulated too.
        pytest.param({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, marks=pytest.mark.slow),
    ],
    ids=["avx2", "avx512"],
)
def test_an_older_processor_computes_in_float32_and_says_what_bfloat16_costs(held):
    code = (
        "from precision import *\n"  # that file alone: the package takes seconds to import
        "print(use_bfloat16('auto'), describe_processor())\n"
        "print(use_bfloat16(True), use_bfloat16('true'), bfloat16_cost())\n"
    )
    if "avx2" not in held.values() and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no AVX-512")
    lines = python(code, **held).splitlines()
    assert lines[0].startswith("False ") and lines[0].endswith("bfloat16 emulated")
    assert ("AVX2" in lines[0]) == (held["ONEDNN_MAX_CPU_ISA"] == "AVX2")
    said = [line for line in lines if "This CPU emulates bfloat16" in line]
    assert len(said) == 1
    chosen, again, cost = lines[1].split()
    assert chosen == again == "True"
    assert f"takes {float(cost):.1f} times as long as in float32" in said[0]
    # Measured, not looked up: what no instruction does is slower on every processor.
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert float(cost) > 1.5


@pytest.mark.parametrize(
    ("features", "supported", "expected"),
    [
        ({"avx2": True}, False, False),
        ({"avx2": True, "avx512_f": True, "avx512_bw": True}, True, False),
        ({"avx512_f": True, "avx512_bf16": True}, True, True),
        ({"amx_tile": True, "amx_bf16": True}, True, True),
        ({"amx_tile": True, "amx_bf16": True}, False, False),  # oneDNN does not use it
        ({"neon": True, "bf16": True}, True, True),  # Arm
    ],
)
def test_instructions_for_bfloat16_decide(features, supported, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    namespace = type(
        "Operations", (), {"_is_mkldnn_bf16_supported": staticmethod(lambda: supported)}
    )
    monkeypatch.setattr(torch.ops, "mkldnn", namespace)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert has_bfloat16("cpu") is expected


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_is_asked_for_what_it_does_itself(native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or native,
    )
    assert has_bfloat16("cuda:1") is native
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not has_bfloat16("cuda")


def test_measuring_disturbs_nothing():
    bfloat16_cost.cache_clear()
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.autocast("cpu", torch.bfloat16):
        cost = bfloat16_cost()
        assert torch.is_autocast_enabled("cpu")
    assert cost > 0 and bfloat16_cost() == cost  # measured once
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


# --- what is chosen ---


@pytest.mark.parametrize("asked", [True, "true", "True", "yes", False, "false", "FALSE", "no"])
def test_what_is_asked_for_by_name_is_done(asked, hardware, messages):
    wanted = str(asked).lower() in ("true", "yes")
    assert use_bfloat16(asked) is wanted
    assert bool(messages) == (wanted and not hardware)


def test_auto_is_what_the_processor_has_and_never_warns(hardware, messages):
    assert use_bfloat16("auto") is hardware and not messages


@pytest.mark.parametrize("told", ["no", "bf16", "fp16"])
def test_under_auto_the_launcher_is_heard(told, hardware, messages, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
    assert use_bfloat16("auto") is (told == "bf16")
    assert bool(messages) == (told == "bf16" and not hardware)
    assert use_bfloat16(True) and not use_bfloat16(False)  # of a word the launcher knows nothing


@pytest.mark.parametrize("make", ARGUMENTS, ids=NAMES)
def test_every_command_chooses_so(make, hardware, messages):
    assert make().bf16 is hardware and not messages
    assert make(bf16="auto").bf16 is hardware
    assert make(bf16=False).bf16 is make(bf16="false").bf16 is False
    assert make(bf16="true").bf16 is make(bf16=True).bf16 is True
    assert bool(messages) != hardware
    with pytest.raises(ValueError, match="bf16='half' is no choice: use auto, true or false"):
        make(bf16="half")


def test_training_is_told_before_accelerate_is(hardware, tmp_path):
    args = TRAINING(output_dir=str(tmp_path))
    assert args.mixed_precision == ("bf16" if hardware else "no")
    assert TRAINING(bf16=True).mixed_precision == "bf16"
    assert TRAINING(bf16=False).mixed_precision == "no"
    other = TRAINING(fp16=True)  # asked for by name, so auto steps back
    assert (other.bf16, other.mixed_precision) == (False, "fp16")


@pytest.mark.parametrize(
    ("file", "words", "expected"),
    [
        ("", [], None),
        ("bf16: auto", [], None),
        ("bf16: true", [], True),
        ("bf16: false", [], False),
        ("bf16: true", ["--bf16", "auto"], None),
        ("bf16: true", ["--bf16", "false"], False),
        ("bf16: false", ["--bf16"], True),
        ("", ["--bf16", "True"], True),
    ],
)
def test_file_and_command_line_take_auto_true_and_false(file, words, expected, hardware, tmp_path):
    expected = hardware if expected is None else expected
    common = f"{file}\n"
    train_file, evaluation_file = tmp_path / "train.yaml", tmp_path / "evaluate.yaml"
    train_file.write_text(f"config: c\ndataset: digits\nreport_to: none\n{common}")
    evaluation_file.write_text(f"checkpoint: c\njudge: j\ncaptions: {CAPTIONS}\n{common}")
    assert train.parse([str(train_file), *words])[2].bf16 is expected
    assert parse([str(evaluation_file), *words])[0].bf16 is expected


@pytest.mark.parametrize("read", [train.parse, parse], ids=["train", "evaluate"])
def test_help_shows_the_three_choices_and_the_default(read, capsys):
    with pytest.raises(SystemExit):
        read(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    start = shown.index("--bf16 [{auto,true,false}]")
    assert "(default: auto)" in shown[start : shown.index("--", start + 9)]


def test_no_command_that_we_hand_out_asks_for_bfloat16_by_name():
    pages = [*ROOT.glob("[!C]*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile"]
    files = pages + sorted((ROOT / "examples").rglob("*.yaml"))
    named = re.compile(r"bf16[ =:]+true|--bf16(?! (auto|false|true))", re.IGNORECASE)
    assert len(files) > 6
    assert not [file for file in files if named.search(file.read_text(encoding="utf-8"))]


# --- where it is computed ---


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MDMForJointGeneration(make_config(len(make_processor().tokenizer))).eval()


def test_a_model_in_bfloat16_says_so_where_it_is_emulated(model, hardware, messages):
    inputs = make_processor()(text=["a zero"], generate="image", return_tensors="pt")
    scored = make_processor()(text=["a zero"], return_tensors="pt")
    half = copy.deepcopy(model).to(torch.bfloat16)
    calls = {
        "generate": lambda m: m.generate(**inputs, num_inference_steps=1, show_progress=False),
        "score": lambda m: m.score(**scored, content="text", num_evaluations=1),
    }
    for call in calls.values():
        messages.clear()
        call(model)
        assert not messages
        call(half)
        assert bool(messages) != hardware
        messages.clear()
        with torch.autocast("cpu", torch.bfloat16):
            call(model)
        assert bool(messages) != hardware


def test_only_bfloat16_on_a_cpu_is_warned_of(hardware, messages):
    warn_if_emulated(torch.float32, "cpu")
    warn_if_emulated(torch.bfloat16, "cuda:0")
    assert not messages
    warn_if_emulated(torch.bfloat16, torch.device("cpu"))
    assert bool(messages) != hardware


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_the_command_line_computes_in_what_was_chosen(
    stored, model, hardware, messages, tmp_path, monkeypatch, capsys
):
    copy.deepcopy(model).to(stored).save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    seen = []

    def generate(self, *args, **kwargs):
        seen.append((self.vae.embed_tokens.weight.dtype, torch.is_autocast_enabled("cpu")))
        raise RuntimeError("seen")

    monkeypatch.setattr(MDMForJointGeneration, "generate", generate)
    words = ["generate", "--checkpoint", str(tmp_path), "--write", "joint"]
    for option, chosen in (
        ([], hardware),
        (["--bf16", "true"], True),
        (["--bf16", "false"], False),
    ):
        assert mdm([*words, *option]) == 1
        assert seen.pop() == (stored if chosen else torch.float32, chosen)
    assert bool(messages) != hardware


@torch.no_grad()
def test_autocast_without_gradients_warns_of_nothing(model):
    """torch warns where a norm's input and weight differ in type; here warnings are errors."""
    inputs = make_processor()(text=["a zero"], generate="image", return_tensors="pt")
    torch.set_warn_always(True)  # not only the first time in this process
    try:
        with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
            warnings.simplefilter("error")
            out = model.generate(**inputs, num_inference_steps=2, show_progress=False)
    finally:
        torch.set_warn_always(False)
    assert out.images.isfinite().all()


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("of_input", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("of_weight", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_keeps_the_type_of_its_input(of_input, of_weight, gradients):
    x = torch.randn(3, 5, 48).to(of_input)
    norm = RMSNorm(48, eps=1e-5, dtype=of_weight)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    wide, weight = x.double(), norm.weight.double()
    truth = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    with torch.set_grad_enabled(gradients):
        found = norm(x)
    assert found.dtype == of_input
    error = (found.double() - truth).square().mean().sqrt() / truth.square().mean().sqrt()
    assert error < (1e-6 if of_input == torch.float32 else 5e-3)


def test_every_speed_that_training_logs_names_the_processor(tmp_path):
    options = (
        f"--config {ROOT}/configuration/mdm-digits --processor {ROOT}/processing/mdm-digits "
        f"--dataset digits --captions {CAPTIONS} --eval_split test --limit 8 --eval_limit 4 "
        "--config_overrides hidden_size=32 num_hidden_layers=1 head_dim=16 "
        "--max_steps 2 --per_device_train_batch_size 4 --logging_steps 1 --save_strategy no "
        "--eval_strategy steps --eval_steps 2 --num_samples 0 --use_cpu true --report_to none "
        "--disable_tqdm true"
    )
    train.main([*options.split(), "--output_dir", str(tmp_path)])
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    speeds = [h for h in history if any("samples_per_second" in name for name in h)]
    assert len(speeds) == 4  # two steps, an evaluation, the whole
    assert {h["machine"] for h in speeds} == {f"{describe_processor()}; in float32"}
