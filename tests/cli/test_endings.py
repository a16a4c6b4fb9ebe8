# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How commands and scripts end: one line on standard error, a status, missing places by name."""

import inspect
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from PIL import Image
from tiny_digits import CAPTIONS, ROOT, load_script, make_config, make_processor

from mdm_cli.endings import perform
from mdm_cli.main import main
from mdm_cli.places import is_hub_id, require_writable, require_writable_file
from modeling_mdm import MDMForJointGeneration
from modeling_mdm.training import loading
from modeling_mdm.training.command_line import read_command_line
from modeling_mdm.training.train import DataArguments

SCRIPTS = {
    **{name: f"examples/{name}.py" for name in ("train", "evaluate", "export", "finetune")},
    **{name: f"examples/{name}.py" for name in ("demo", "inpainting", "app")},
    "train_tokenizer": "processing/train_tokenizer.py",
}
# What each needs beside what is under test; the placeholders are folders of `places`.
REQUIRED = {
    "train": "--config {model} --dataset digits --output_dir {new}",
    "evaluate": "--checkpoint {model} --judge {model} --captions {captions} --output {new}/f.json",
    "export": "--checkpoint {model} --output_dir {new}",
    "finetune": "--model {model} --dataset {talk} --output_dir {new} --use_cpu true",
    "demo": "--checkpoint {model} --pictures {model} --output_dir {new}",
    "inpainting": "--checkpoint {model} --pictures {model} --output_dir {new}",
    "app": "--checkpoint {model}",
    "train_tokenizer": "--captions {captions} --output_dir {new}",
    "generate": "--checkpoint {model} --write joint --output_dir {new}",
    "score": "--checkpoint {model} --text x",
    "chat": "--checkpoint {model} --output_dir {new}",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders that exist, and one that does not."""
    folder = tmp_path_factory.mktemp("places")
    processor = make_processor()
    processor.save_pretrained(folder / "model")
    MDMForJointGeneration(make_config(len(processor.tokenizer))).save_pretrained(folder / "model")
    Image.new("L", (8, 8)).save(folder / "model" / "picture.png")
    (folder / "talk.jsonl").write_text('{"messages": []}\n')
    (folder / "empty").mkdir()
    found = {"model": "model", "talk": "talk.jsonl", "new": "new", "empty": "empty"}
    return {
        "captions": str(CAPTIONS),
        **{name: str(folder / path) for name, path in found.items()},
        "no_folder": str(folder / "talk.jsonl" / "inner"),
    }


def run(name, words, monkeypatch, capsys):
    """Run a script, or a command of `mdm`; return (status, standard output, standard error)."""
    with pytest.raises(SystemExit) as ended:
        if name in SCRIPTS:
            path = str(ROOT / SCRIPTS[name])
            monkeypatch.setattr(sys, "argv", [path, *words])
            runpy.run_path(path, run_name="__main__")
        else:
            raise SystemExit(main([name.removeprefix("mdm "), *words]))
    return (ended.value.code, *capsys.readouterr())


OWN_SCRIPTS = sorted(
    path
    for folder in ("examples", "examples/data", "processing", "configuration")
    for path in (ROOT / folder).glob("*.py")
    if "run_script(__file__" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("path", OWN_SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_parses_is_what_it_runs(path):
    """A command hands all that `parse` gives to `run`: one that takes more fails at the end."""
    script = load_script(path)
    parsed = get_args(get_type_hints(script.parse)["return"])
    needed = [
        one
        for one in inspect.signature(script.run).parameters.values()
        if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    if Any not in parsed:  # said without numbers
        assert len(needed) == len(parsed) and Ellipsis not in parsed


@pytest.mark.parametrize("name", [*SCRIPTS, *(f"mdm {n}" for n in ("train", "evaluate", "export"))])
def test_help_and_misspelt_options(name, places, monkeypatch, capsys):
    """Both before anything is read or written."""
    status, shown, errors = run(name, ["--help"], monkeypatch, capsys)
    assert status == 0 and errors == "" and "usage: " in shown and "--" in shown
    line = REQUIRED[name.removeprefix("mdm ")].format(**places).split()
    status, shown, errors = run(name, [*line, "--mispselt", "1"], monkeypatch, capsys)
    assert status == 2 and shown == "" and "--mispselt" in errors
    program = name if name.startswith("mdm ") else f"{name}.py"
    assert len(errors.splitlines()) == 1 and errors.startswith(f"{program}: ")
    assert not os.path.exists(places["new"])


MISSING = [
    *(("train", option) for option in ("config", "processor", "dataset", "captions", "output_dir")),
    *(("evaluate", option) for option in ("checkpoint", "judge", "captions", "output")),
    *(("export", option) for option in ("checkpoint", "output_dir")),
    *(("finetune", option) for option in ("model", "dataset", "output_dir")),
    *(("demo", option) for option in ("checkpoint", "pictures", "output_dir")),
    *(("inpainting", option) for option in ("checkpoint", "pictures", "output_dir")),
    *(("app", option) for option in ("checkpoint",)),
    *(("train_tokenizer", option) for option in ("captions", "text_files", "output_dir")),
    *(("generate", option) for option in ("checkpoint", "image", "output_dir")),
    *(("score", option) for option in ("checkpoint", "image")),
    *(("chat", option) for option in ("checkpoint", "image", "output_dir")),
]


@pytest.mark.parametrize(("name", "option"), MISSING)
def test_a_missing_place_is_called_missing(name, option, places, monkeypatch, capsys):
    if name == "app":
        monkeypatch.setitem(sys.modules, "gradio", type(sys)("gradio"))
    line = REQUIRED[name].format(**places).split()
    place = places["no_folder"] if option.startswith("output") else "nowhere/"
    status, shown, errors = run(name, [*line, f"--{option}", place], monkeypatch, capsys)
    ends = errors.splitlines()[-1]
    program = f"{name}.py" if name in SCRIPTS else f"mdm {name}"
    assert status == 1 and shown == "" and ends.startswith(f"{program}: ")
    assert place.rstrip("/") in ends and option in ends
    words = ("is missing", "is not a file", "no model there", "no PNG file", "is no folder")
    assert any(word in ends for word in words)
    assert "huggingface.co" not in errors and "Repo id" not in errors
    assert not os.path.exists(places["new"])


@pytest.mark.parametrize("name", ["train", "evaluate", "export", "mdm generate"])
def test_what_could_be_an_id_is_called_both(name, places, monkeypatch, capsys):
    line = REQUIRED[name.removeprefix("mdm ")].format(**places).split()
    option = "--config" if name == "train" else "--checkpoint"
    if name == "evaluate":  # the judge is read first
        from modeling_mdm.evaluation.judge import JudgeNetwork

        judge = torch.nn.Linear(1, 1)
        monkeypatch.setattr(JudgeNetwork, "from_pretrained", lambda folder: judge)
    status, _, errors = run(name, [*line, option, "some/model"], monkeypatch, capsys)
    ends = errors.splitlines()[-1]
    assert status == 1 and "'some/model' is no folder here, and as an id of the Hub" in ends


@pytest.mark.parametrize("name", ["train", "export", "app", "mdm generate"])
def test_an_empty_folder_is_no_model(name, places, monkeypatch, capsys):
    if name == "app":
        monkeypatch.setitem(sys.modules, "gradio", type(sys)("gradio"))
    line = REQUIRED[name.removeprefix("mdm ")].format(**places).split()
    option = "--config" if name == "train" else "--checkpoint"
    status, _, errors = run(name, [*line, option, places["empty"]], monkeypatch, capsys)
    ends = errors.splitlines()[-1]
    assert status == 1 and places["empty"] in ends and "config.json" in ends
    assert "huggingface.co" not in errors


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("--dataset fashion_mnist --data_dir nowhere/", "data_dir='nowhere' is missing"),
        ("--dataset nowhere.yaml", "dataset='nowhere.yaml' is missing"),
        ("--dataset nowhere", "'nowhere' is no folder here, and as an id of the Hub"),
        ("--dataset some/pictures", "'some/pictures' is no folder here, and as an id of the Hub"),
        ("--dataset digits --resume_from_checkpoint nowhere", "there is no such folder"),
    ],
)
def test_missing_data(data, message, places, monkeypatch, capsys):
    line = [*("--config", places["model"], "--output_dir", places["new"]), *data.split()]
    status, _, errors = run("train", [*line, "--use_cpu", "true"], monkeypatch, capsys)
    assert status == 1 and message in errors.splitlines()[-1]


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    asked = []

    class NoNetwork(Exception):
        __module__ = "httpx2"

    def model_info(self, place, timeout):
        asked.append((place, timeout))
        raise NoNetwork("Name or service not known")

    monkeypatch.setattr(loading, "is_offline_mode", lambda: False)
    monkeypatch.setattr(loading.HfApi, "model_info", model_info)
    message = "config='some/model' is no folder here, and as an id of the Hub .* not known"
    with pytest.raises(OSError, match=message):
        loading.load_pretrained(MDMForJointGeneration, "config", "some/model")
    assert asked == [("some/model", loading.HUB_SECONDS)]


def test_a_network_that_is_down_is_one_line(capsys):
    class ConnectError(Exception):
        __module__ = "httpx2._exceptions"

    def fail():
        raise ConnectError("Name or service not known")

    assert perform("program", lambda: (lambda argv: (), fail), []) == 1
    assert capsys.readouterr().err == "program: Name or service not known\n"


def test_ids_of_the_hub_look_like_ids():
    assert all(map(is_hub_id, ("a/b", "gpt2", "me/mdm-1.0_x")))
    paths = ("nowhere/", "./a", "../a", "/a/b", "a/b/c", "~/a", "", "a b", "a/..", "-a/b")
    assert not any(map(is_hub_id, paths))


def test_writing_needs_permission(tmp_path):
    require_writable("--output_dir", str(tmp_path / "new" / "inner"))
    assert not list(tmp_path.iterdir())
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):  # root may write everywhere but where the system is mounted so
        tmp_path = Path("/proc")
        if not tmp_path.is_dir():
            pytest.skip("root, and no folder that refuses it")
    with pytest.raises(PermissionError, match=r"--output_dir='.*new' cannot be written to"):
        require_writable("--output_dir", str(tmp_path / "new"))
    with pytest.raises(PermissionError, match=r"output='.*f.json' cannot be written to"):
        require_writable_file("output", str(tmp_path / "new" / "f.json"))
    with pytest.raises(IsADirectoryError, match=r"output='.*' is a folder: name a file"):
        require_writable_file("output", str(tmp_path))


@pytest.mark.parametrize("device", ["cdua", "cuda:99"])
@pytest.mark.parametrize("name", ["mdm generate", "mdm score", "mdm chat", "evaluate", "app"])
def test_a_device_that_is_not_there(name, device, places, monkeypatch, capsys):
    if name == "app":
        monkeypatch.setitem(sys.modules, "gradio", type(sys)("gradio"))
    line = REQUIRED[name.removeprefix("mdm ")].format(**places).split()
    status, _, errors = run(name, [*line, "--device", device], monkeypatch, capsys)
    ends = errors.splitlines()[-1]
    assert status == 1 and f"device='{device}' cannot be used here" in ends


def test_a_value_of_another_kind(places, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.yaml").write_text("num_samples: [1]\n")
    line = [str(tmp_path / "bad.yaml"), *REQUIRED["train"].format(**places).split()]
    status, _, errors = run("train", line, monkeypatch, capsys)
    assert status == 2 and errors.startswith("train.py: ")


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "words"])
def test_a_file_that_holds_no_values(text, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"bad.yaml (is no YAML|holds)"):
        read_command_line((DataArguments,), [str(tmp_path / "bad.yaml")], None)


# --- what `perform` makes of exceptions


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (ValueError("a\n  b"), "program: a b\n"),
        (OSError("disk"), "program: disk\n"),
        (RuntimeError("device"), "program: device\n"),
        (ImportError("no peft"), 'program: no peft: pip install "modeling-mdm[train]"\n'),
    ],
)
def test_failures_are_one_line(error, ends, capsys):
    def fail():
        raise error

    assert perform("program", lambda: (lambda argv: (), fail), [], "train") == 1
    assert capsys.readouterr() == ("", ends)


@pytest.mark.parametrize("kind", [KeyError, TypeError, AssertionError, AttributeError, IndexError])
def test_bugs_keep_their_traceback(kind):
    def fail():
        raise kind("bug")

    with pytest.raises(kind, match="bug"):
        perform("program", lambda: (lambda argv: (), fail), [])


def ended(script):
    """Run a script in a process of its own; return status and standard error."""
    prelude = "import os, signal, sys, time\nfrom mdm_cli.endings import perform\n"
    prelude += "from mdm_cli.interrupts import unwinding\n"
    prelude += "def interrupt():\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(20)\n"
    start = "\nsys.exit(perform('program', lambda: (lambda argv: (), run), []))\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + script + start],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr, done.stdout


def test_an_interrupt_leaves_at_once_even_where_it_would_be_swallowed():
    script = """
def run():
    print("written before")
    try:
        interrupt()
    except BaseException:
        print("swallowed")
"""
    assert ended(script) == (130, "program: interrupted.\n", "written before\n")


def test_an_interrupt_unwinds_where_there_is_something_to_close():
    script = """
def run():
    with unwinding(lambda: "go on"):
        try:
            interrupt()
        finally:
            print("closed")
"""
    assert ended(script) == (130, "program: interrupted. go on\n", "closed\n")


def test_a_second_interrupt_leaves_at_once():
    script = """
def run():
    with unwinding(lambda: "go on"):
        try:
            interrupt()
        finally:
            interrupt()
            print("closed")
"""
    assert ended(script) == (130, "program: interrupted.\n", "")


def test_forked_processes_leave_the_word_to_their_parent():
    script = """
def run():
    with unwinding(lambda: "go on"):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        interrupt()
"""
    assert ended(script) == (130, "program: interrupted. go on\n", "7\n")


def test_of_several_processes_the_first_one_speaks():
    script = "\nos.environ['RANK'] = '1'\ndef run():\n    interrupt()\n"
    assert ended(script) == (130, "", "")
