# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`mdm` as a user runs it: results, JSON, exit status, help."""

import io
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from tiny_digits import (
    CAPTIONS,
    ROOT,
    load_script,
    make_config,
    make_processor,
    save_config_folder,
)

from mdm_cli.main import main
from modeling_mdm import MDMForJointGeneration
from modeling_mdm.training.trainer import MDMTrainer
from modeling_mdm.version import __version__


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save an untrained model, a picture and a mask."""
    path = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    processor = make_processor()
    processor.save_pretrained(path)
    MDMForJointGeneration(make_config(len(processor.tokenizer))).save_pretrained(path)
    Image.new("L", (8, 8), 200).save(path / "picture.png")
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 4, 8, 8))
    mask.save(path / "mask.png")
    return path


def run(folder, command, *options):
    steps = [] if command == "score" else ["--num_inference_steps", "2"]
    return main([command, "--checkpoint", str(folder), "--quiet", *steps, *map(str, options)])


def test_generate_saves_pictures_and_prints_words(folder, tmp_path, capsys):
    options = ("--write", "joint", "--num_samples", 2, "--output_dir", tmp_path, "--json")
    assert run(folder, "generate", *options) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["image"] for result in results] == [
        str(tmp_path / f"joint-0-{number}.png") for number in range(2)
    ]
    assert all(isinstance(result["text"], str) for result in results)
    with Image.open(results[1]["image"]) as picture:
        assert picture.size == (8, 8)
    # The same seed writes the same samples, another one others; without --json, a line each.
    assert run(folder, "generate", *options[:-1]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{results[0]['image']}  {results[0]['text']}"


def test_generate_takes_the_options_of_the_sampler(folder, tmp_path, capsys, monkeypatch):
    asked, generate = [], MDMForJointGeneration.generate

    def watched(self, **kwargs):
        asked.append(kwargs)
        return generate(self, **kwargs)

    monkeypatch.setattr(MDMForJointGeneration, "generate", watched)
    options = ("--write", "joint", "--output_dir", tmp_path)
    sampler = ("--joint_lead", 2, "--num_restarts", 1, "--restart_log_snr", -1)
    assert run(folder, "generate", *options, *sampler, "--guidance_window", -5, -1) == 0
    expected = {"joint_lead": 2, "num_restarts": 1, "restart_log_snr": -1, "joint_overlap": None}
    assert asked[0].items() >= (expected | {"guidance_window": [-5, -1]}).items()
    assert run(folder, "generate", *options, "--joint_overlap", 0.5, "--joint_lead", 2) == 1
    assert "leave one of them out" in capsys.readouterr().err


def test_generate_repaints_where_the_mask_is_white(folder, tmp_path):
    given = ("--image", folder / "picture.png", "--mask", folder / "mask.png", "--text", "a zero")
    assert run(folder, "generate", "--write", "image", "--output_dir", tmp_path, *given) == 0
    with Image.open(tmp_path / "image-0-0.png") as picture:
        pixels = picture.convert("L")
    assert set(pixels.crop((0, 0, 8, 4)).tobytes()) == {200}
    assert set(pixels.crop((0, 4, 8, 8)).tobytes()) != {200}


def test_the_mask_is_fitted_as_the_picture_is(folder, tmp_path, capsys):
    """Of a wide picture the model sees the centre: what is white beside it is not repainted."""
    Image.new("L", (16, 8), 200).save(tmp_path / "wide.png")
    beside = Image.new("L", (16, 8))
    beside.paste(255, (0, 0, 4, 8))
    beside.save(tmp_path / "beside.png")
    given = ("--image", tmp_path / "wide.png", "--mask", tmp_path / "beside.png")
    assert run(folder, "generate", "--write", "image", "--output_dir", tmp_path, *given) == 1
    assert "image_mask is 0 everywhere" in capsys.readouterr().err


def test_watch_shows_the_sample_beside_the_result(folder, tmp_path, capsys):
    options = ("--write", "text", "--watch", "--image", folder / "picture.png", "--json")
    assert run(folder, "generate", *options, "--output_dir", tmp_path) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)[0]["text"].strip() in shown.err


def test_score_ranks_texts(folder, capsys):
    texts = ("--text", "a zero", "a one", "a two", "--image", folder / "picture.png")
    assert run(folder, "score", *texts, "--num_evaluations", 2, "--json") == 0
    results = json.loads(capsys.readouterr().out)
    bounds = [result["log_likelihood"] for result in results]
    assert bounds == sorted(bounds, reverse=True)
    assert {result["text"] for result in results} == {"a zero", "a one", "a two"}
    assert run(folder, "score", *texts, "--num_evaluations", 2) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith(results[0]["text"]) and f"{bounds[0]:.2f} nats" in first
    # Three evaluations tell how far off the bound may be, two do not.
    assert [result["standard_error"] for result in results] == [None] * 3
    assert run(folder, "score", *texts, "--num_evaluations", 3, "--json") == 0
    best = json.loads(capsys.readouterr().out)[0]
    assert best["standard_error"] > 0
    assert run(folder, "score", *texts, "--num_evaluations", 3) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert f"{best['log_likelihood']:.2f} ± {best['standard_error']:.2f} nats" in first


def test_chat_answers_line_by_line(folder, capsys, monkeypatch):
    lines = f"a zero\n/image {folder / 'picture.png'}\na one\n/quit\nnever read\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert run(folder, "chat", "--json", "--system", "a two", "--max_new_tokens", 4) == 0
    replies = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [reply["user"] for reply in replies] == ["a zero", "a one"]
    assert all(isinstance(reply["assistant"], str) for reply in replies)


def test_chat_answers_with_pictures_that_it_goes_on_from(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a zero\na one\n"))
    options = ("--write", "joint", "--output_dir", tmp_path, "--json", "--max_new_tokens", 4)
    assert run(folder, "chat", *options) == 0
    replies = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    paths = [str(tmp_path / f"chat-0-{number}.png") for number in (1, 3)]
    assert [reply["image"] for reply in replies] == paths
    assert all(isinstance(reply["assistant"], str) for reply in replies)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a zero\n"))
    assert run(folder, "chat", "--write", "image", "--output_dir", tmp_path) == 0
    assert capsys.readouterr().out == f"{paths[0]}\n"
    with Image.open(paths[0]) as picture:
        assert picture.size == (8, 8)


def test_chat_lets_a_model_choose_that_can(folder, tmp_path, capsys, monkeypatch):
    model = MDMForJointGeneration.from_pretrained(folder, use_mode_head=True)
    torch.nn.init.zeros_(model.mode_head.out_proj.weight)
    model.mode_head.out_proj.bias.data = torch.tensor([0.0, 1.0, 0.0])  # pictures, always
    model.save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a zero\na one\n"))
    assert run(tmp_path, "chat", "--json", "--output_dir", tmp_path) == 0
    replies = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [reply["assistant"] for reply in replies] == [None, None]
    assert all((tmp_path / f"chat-0-{number}.png").is_file() for number in (1, 3))
    monkeypatch.setattr(sys, "stdin", io.StringIO("a zero\n"))
    assert run(folder, "chat", "--write", "auto") == 1
    assert "no mode head" in capsys.readouterr().err


def test_chat_reads_of_every_message_what_is_new(folder, capsys, monkeypatch):
    read, generate = [], MDMForJointGeneration.generate

    def watched(self, **kwargs):
        out = generate(self, **kwargs)
        read.append((int(kwargs["text_given"].sum()), int(out.cache.positions_read)))
        return out

    monkeypatch.setattr(MDMForJointGeneration, "generate", watched)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a zero\na one\na two\n"))
    assert run(folder, "chat", "--max_new_tokens", 4) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert [positions for _, positions in read] == [words + 1 for words, _ in read]  # a start token


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("generate", ("--write", "image", "--mask", "m.png"), "--mask says what to repaint"),
        ("generate", ("--write", "text", "--image", "nowhere.png"), "nowhere.png"),
        ("generate", ("--write", "joint", "--watch", "--num_samples", 2), "--watch shows one"),
        ("generate", ("--write", "image", "--class_label", 99), "class_labels has 99"),
    ],
)
def test_failures_are_one_line_and_status_1(folder, capsys, command, options, message):
    assert run(folder, command, *options) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = [line for line in shown.err.splitlines() if line.startswith(f"mdm {command}: ")]
    assert message in line


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("fly",),
        ("score", "--checkpoint", "x"),
        ("generate", "--checkpoint", "x", "--write", "x"),
    ],
)
def test_misunderstood_commands_have_status_2(options, capsys):
    with pytest.raises(SystemExit) as ended:
        main(list(options))
    assert ended.value.code == 2
    assert "usage: mdm" in capsys.readouterr().err


def test_train_is_the_training_script(tmp_path, capsys):
    save_config_folder(tmp_path / "config")
    line = [
        *("--config", str(tmp_path / "config"), "--dataset", "digits", "--captions", str(CAPTIONS)),
        *("--max_steps", "2", "--per_device_train_batch_size", "2", "--logging_steps", "1"),
        *("--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true", "--limit", "8"),
    ]
    assert main(["train", *line, "--output_dir", str(tmp_path / "a")]) == 0
    assert main(["train", *line, "--output_dir", str(tmp_path / "a")]) == 1
    assert "mdm train: output_dir=" in capsys.readouterr().err  # it holds a run's checkpoints
    load_script(ROOT / "examples" / "train.py").main([*line, "--output_dir", str(tmp_path / "b")])
    states = [json.loads((tmp_path / n / "trainer_state.json").read_text()) for n in "ab"]
    losses = [[entry.get("loss") for entry in state["log_history"]] for state in states]
    assert losses[0] == losses[1] and len(losses[0]) >= 2
    assert (tmp_path / "a" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["train", "--config", "x"], "required: --dataset"),
        (["train", "--config", "x", "--dataset", "digits", "--max_step", "3"], "--max_step"),
        (["train", "nowhere.yaml"], "nowhere.yaml is not a file"),
        (["evaluate", "--judge", "x"], "required: --checkpoint, --captions"),
        (["export", "--checkpoint", "x"], "required: --output_dir"),
    ],
)
def test_misunderstood_commands_with_modules_have_status_2(line, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown and f"mdm {line[0]}" in shown


def test_a_command_whose_extra_is_missing_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "modeling_mdm.training.train", None)
    with pytest.raises(SystemExit) as ended:
        main(["train"])
    assert ended.value.code == 1
    assert 'pip install "modeling-mdm[train]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", ("--config", "--dataset", "--tasks", "--ema_decay", "--learning_rate")),
        ("evaluate", ("--checkpoint", "--judge", "--tasks", "--guidance_scale", "--json")),
        ("export", ("--checkpoint", "--output_dir", "--code", "--push_to_hub", "--json")),
        ("plan", ("--config", "--gpus", "--gpu", "--parallel", "--batch", "--output", "--json")),
    ],
)
def test_help_of_commands_with_modules(command, options, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: mdm {command}" in shown and f"    mdm {command} " in shown
    assert "(required)" in shown
    for option in options:
        assert option in shown


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for command in ("generate", "score", "chat", "plan", "train", "evaluate", "export"):
        assert f"\n    {command} " in shown and f"\n  mdm {command} " in shown


@pytest.mark.parametrize("command", ["generate", "score", "chat"])
def test_help_names_every_option(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--checkpoint", "--seed", "--json", "--quiet", "--device", "--image"):
        assert option in shown


MDM = [sys.executable, "-c", "import sys; from mdm_cli.main import main; sys.exit(main())"]
HEAVY = ("torch", "transformers", "numpy", "yaml", "PIL", "modeling_mdm")
GIVEN = ("--checkpoint", str(ROOT / "examples" / "checkpoints" / "mdm-fashion"))


def cpu_seconds(command):
    """Run a command; return it, and the time that its process took on a processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (("--version",), 0),
        (("--help",), 0),
        ((), 2),
        (("genarate",), 2),
        (("--vresion",), 2),
        (("generate", "--help"), 0),
        (("generate", *GIVEN), 2),
        (("generate", *GIVEN, "--write", "text", "--txet", "x"), 2),
        (("generate", *GIVEN, "--write", "music"), 2),
        (("generate", *GIVEN, "--write", "text", "--num_samples", "0"), 2),
        (("generate", *GIVEN, "--write", "text", "--mask", "m.png"), 1),
        (("generate", "--checkpoint", "nowhere/", "--write", "text"), 1),
        (("score", "--help"), 0),
        (("score", *GIVEN, "--text", "x", "--num_evaluation", "2"), 2),
        (("score", *GIVEN), 2),
        (("chat", "--help"), 0),
        (("chat", *GIVEN, "--sytem", "x"), 2),
        (("chat", *GIVEN, "--image", "nowhere.png"), 1),
    ],
)
def test_a_command_line_is_read_in_no_time(line, status):
    """Half a second of a processor at most, and nothing heavy imported."""
    done, seconds = cpu_seconds([*MDM[:1], "-X", "importtime", *MDM[1:], *line])
    assert done.returncode == status
    imported = [row.split("|")[-1].strip() for row in done.stderr.splitlines() if "|" in row]
    assert "argparse" in imported
    assert not {name.split(".")[0] for name in imported} & set(HEAVY)
    for _ in range(2):
        if seconds >= 0.5:  # a machine that is busy elsewhere
            seconds = min(seconds, cpu_seconds([*MDM, *line])[1])
    assert seconds < 0.5


def test_the_version_is_that_of_the_package():
    done, _ = cpu_seconds([*MDM, "--version"])
    assert done.stdout == f"mdm {__version__}\n" and done.stderr == ""


def interrupted(command, folder, when):
    """Run a command and interrupt it as soon as its standard error holds a text."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        if when in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.communicate(timeout=60)[1].splitlines()
    assert "Traceback" not in "".join(lines) + "\n".join(rest)
    return process.returncode, [line for line in rest if "import time:" not in line]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("mdm generate", [*MDM[1:], "generate", *GIVEN, "--write", "text"]),
        ("mdm train", [*MDM[1:], "train", "--config", "x", "--dataset", "digits"]),
        ("demo.py", [str(ROOT / "examples" / "demo.py")]),
    ],
)
def test_an_interrupt_during_imports_is_one_line_and_status_130(name, command, tmp_path):
    command = [sys.executable, "-X", "importtime", *command]
    ended = interrupted(command, tmp_path, "torch._")
    assert ended == (130, [f"{name}: interrupted."])


@pytest.mark.slow
def test_an_interrupt_of_a_conversation_is_one_line_and_status_130(folder, tmp_path):
    command = [*MDM, "chat", "--checkpoint", str(folder)]
    watched = [*command[:1], "-c", f"import sys; sys.stdin.isatty = lambda: True; {command[2]}"]
    ended = interrupted([*watched, *command[3:]], tmp_path, "/quit to leave")
    assert ended[0] == 130 and ended[1][-1].removeprefix("> ") == "mdm chat: interrupted."


def training_line(folder):
    save_config_folder(folder / "config")
    return [
        *("--config", str(folder / "config"), "--dataset", "digits", "--captions", str(CAPTIONS)),
        *("--per_device_train_batch_size", "2", "--max_steps", "100000", "--save_steps", "2"),
        *("--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true", "--limit", "8"),
        *("--save_total_limit", "2", "--output_dir", str(folder / "run")),
    ]


def test_an_interrupt_of_training_names_the_last_checkpoint(tmp_path, capsys, monkeypatch):
    line = training_line(tmp_path)
    compute_loss, steps = MDMTrainer.compute_loss, []

    def interrupted_loss(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) in (1, 4):
            os.kill(os.getpid(), signal.SIGINT)
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(MDMTrainer, "compute_loss", interrupted_loss)
    before = signal.getsignal(signal.SIGINT)
    assert main(["train", *line]) == 130
    assert "mdm train: interrupted." in (shown := capsys.readouterr().err)
    assert "holds no checkpoint" in shown
    assert main(["train", *line]) == 130
    ends = capsys.readouterr().err.splitlines()[-1]
    assert ends.startswith("mdm train: interrupted.") and "--resume_from_checkpoint last" in ends
    assert str(tmp_path / "run" / "checkpoint-2") in ends
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_an_interrupt_of_training_with_workers(tmp_path):
    line = [*training_line(tmp_path), "--dataloader_num_workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "train.py"), *line],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "run" / "checkpoint-2").exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # to the workers as well, as a terminal does
    shown = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in shown
    (ends,) = [row for row in shown.splitlines() if "interrupted" in row]
    assert ends == shown.splitlines()[-1] and "/run/checkpoint-" in ends
    again = [sys.executable, str(ROOT / "examples" / "train.py"), *line]
    again += ["--resume_from_checkpoint", "last", "--max_steps", "4"]
    subprocess.run(again, cwd=tmp_path, env=environment, check=True)


def test_the_module_is_the_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mdm", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("modeling_mdm.cli", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"mdm {__version__}\n"
