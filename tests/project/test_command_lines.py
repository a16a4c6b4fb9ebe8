# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every command line on the pages is read by its own parser; those that may be short run.

Words in capitals are placeholders: `OURS` says what each stands for here. A command whose first
word no parser here reads fails.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser
from idx_files import write_idx
from libraries import requirements
from pages import ROOT, command_lines, pages, text_of
from PIL import Image
from tiny_vision_sets import write_all
from torch.distributed.run import get_args_parser

from mdm_cli.endings import load_file
from mdm_cli.main import MODULES, make_parser

FASHION = ROOT / "examples" / "checkpoints" / "mdm-fashion"
BOOT = ROOT / "examples" / "pictures" / "fashion_mnist" / "9_ankle_boot.png"
FOLDERS = ("examples", "configuration", "processing", "benchmarks", "docs", "modeling_mdm", "tests")
WRITTEN = re.compile(r"--output\w*|--save\w*")  # options that name what is not there yet
COMMANDS = [(page, words) for page in pages() for words in command_lines(page)]
UNIQUE = {" ".join(words): words for _, words in COMMANDS}


# --- what placeholders stand for ---


def write_digits_as_fashion(folder):
    """Fashion-MNIST's four files, with few pictures of noise in them."""
    draw = np.random.default_rng(0)
    for prefix, count in (("train", 600), ("t10k", 40)):
        pixels = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder, prefix, pixels, np.arange(count) % 10)


def write_pictures(folder):
    """Forty pictures of one colour each, and what they are called."""
    folder.mkdir()
    rows = []
    for number in range(40):
        colour = ("red", "green", "blue")[number % 3]
        Image.new("RGB", (70, 64), colour).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"picture {number} in {colour}"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


def write_talks(file):
    """Conversations about one picture."""
    question = [{"type": "image", "image": str(BOOT)}, {"type": "text", "text": "a bag?"}]
    talk = [{"role": "user", "content": question}, {"role": "assistant", "content": "no"}]
    file.write_text(f"{json.dumps({'messages': talk})}\n" * 40, encoding="utf-8")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """What each placeholder stands for."""
    folder = tmp_path_factory.mktemp("ours")
    write_digits_as_fashion(folder / "fashion")
    write_pictures(folder / "pictures")
    write_talks(folder / "talks.jsonl")
    write_all(folder / "data")
    return {
        "FOLDER": str(folder / "fashion"),
        "PICTURES": str(folder / "pictures"),
        "PICTURE": str(BOOT),
        "TALKS": str(folder / "talks.jsonl"),
        "CHECKPOINT": str(FASHION),
        "DATA": str(folder / "data"),
        "FILE": str(folder / "file.json"),
    }


def with_ours(words, ours):
    """Put what is ours into the place of words in capitals, also behind `NAME=`."""
    return [re.sub(r"(?<![\w-])[A-Z]{4,}$", lambda m: ours[m[0]], word) for word in words]


# --- who reads what ---

required = lru_cache(requirements)


def read_mdm(words):
    name, *options = words
    if name in MODULES:
        importlib.import_module(MODULES[name][1]).parse(options)
    else:
        make_parser().parse_args(words)


def read_python(words):
    if words[0] == "-m":
        module, options = importlib.import_module(words[1]), words[2:]
    else:
        module, options = load_file(ROOT / words[0]), words[1:]
    if hasattr(module, "parse"):
        module.parse(options)
    elif hasattr(module, "cli"):  # of the benchmarks: what reads the words hands them to `main`
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(module, "main", lambda arguments: [])
            module.cli(options)
    else:
        assert hasattr(module, "main") and not options, f"nothing to read {options} by"


def read_torchrun(words):
    chosen = get_args_parser().parse_args(words)
    read_python([chosen.training_script, *chosen.training_script_args])


def read_accelerate(words):
    assert words[0] == "launch"
    chosen = launch_command_parser().parse_args(words[1:])
    assert (ROOT / chosen.config_file).is_file()
    read_python([chosen.training_script, *chosen.training_script_args])


def read_make(words):
    command = ["make", "--dry-run", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def read_pip(words):
    """Of ours: an editable installation, whose extras exist."""
    (place,) = (words[n + 1] for n, word in enumerate(words) if word == "-e")
    for extra in re.findall(r"[\w-]+", place.removeprefix(".")):
        assert required((extra,)) != required(()), f"setup.py has no extra {extra}"


def read_launch_file(file, options):
    """A file that hands its options to a training run on each machine."""
    assert (ROOT / file).is_file()
    read_python(["examples/train.py", *options, "--use_cpu", "true", "--bf16", "false"])


def split_sbatch(words):
    """The file, and what it is told, behind Slurm's own options."""
    place = next(n for n, word in enumerate(words) if word.endswith(".sbatch"))
    return words[place], words[place + 1 :]


READERS = {
    "mdm": read_mdm,
    "python": read_python,
    "torchrun": read_torchrun,
    "accelerate": read_accelerate,
    "make": read_make,
    "pip": read_pip,
    "bash": lambda words: read_launch_file(words[0], words[1:]),
    "sbatch": lambda words: read_launch_file(*split_sbatch(words)),
    "jupyter": lambda words: None,  # not a library of ours: its files are looked for, as all are
    ".venv/bin/pre-commit": lambda words: None,
}


def missing_files(words):
    """Words that name a file of the project which is not there."""
    named = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word.split("/")[0] in FOLDERS and "/" in word and not WRITTEN.fullmatch(before)
    ]
    return [word for word in named if not (ROOT / word).exists()]


@pytest.mark.parametrize("line", UNIQUE)
def test_every_command_is_read_by_its_own_parser(line, ours, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = UNIQUE[line]
    assert not missing_files(words)
    program, *rest = with_ours(words, ours)
    READERS[program](rest)


def test_the_checks_see_what_is_wrong(ours, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert missing_files(["python", "examples/tran.py", "--output_dir", "docs/none"]) == [
        "examples/tran.py"
    ]
    for program, words in (
        ("mdm", "generate --checkpoint CHECKPOINT --wrte image"),
        ("mdm", "train examples/configs/digits.yaml --max_stepps 3"),
        ("torchrun", "--nproc_per_node 2 examples/train.py examples/configs/digits.yaml --no"),
        ("torchrun", "--nproc_per_mode 2 examples/train.py examples/configs/digits.yaml"),
        ("accelerate", "launch --config examples/train.py"),
        ("make", "bench-quickly"),
        ("pip", "install -e .[trian]"),
    ):
        with pytest.raises((SystemExit, Exception)):
            READERS[program](with_ours(words.split(), ours))
    with pytest.raises(KeyError):
        with_ours(["SOMETHING"], ours)


def test_all_kinds_of_commands_are_shown():
    shown = {words[0] for _, words in COMMANDS}
    assert shown == set(READERS)
    assert {words[1] for _, words in COMMANDS if words[0] == "mdm"} == set(make_commands())


def make_commands():
    (commands,) = (a.choices for a in make_parser()._actions if a.dest == "command")
    return commands


def test_the_results_of_the_readme_name_commands(ours):
    rows = re.findall(r"^\| .+\| `(--tasks [^`]+)` \|$", text_of("README.md"), re.MULTILINE)
    assert len(rows) == 5
    for options in rows:
        read_python(["examples/evaluate.py", "--data_dir", ours["FOLDER"], *options.split()])


# --- those that may be short run ---

TRAINING = "--max_steps 2 --report_to none --disable_tqdm true --dataloader_num_workers 0"
TRAINING += " --output_dir EMPTY"
MEASURING = "--num_samples 2 --limit 4 --num_inference_steps 2 --guidance_scale 2.0"
MEASURING += " --inpainting_samples 2"
FILLING = (
    f"--num_inference_steps 2 --limit 4 --extractor_judge {FASHION.with_name('fashion-judge')}"
)
# What makes a command short, by its program and first word or words; the last match counts, and
# None says that it is not run: by size, or because it does not end.
SHORTER = {
    "mdm generate": "--num_inference_steps 3",
    "mdm score": "",
    "mdm chat": "--num_inference_steps 3",
    "mdm plan": "",
    "mdm encode": "",
    "mdm encode --config configuration/mdm-1b": None,
    "mdm train": TRAINING,
    "mdm evaluate": MEASURING,
    "mdm evaluate --checkpoint CHECKPOINT --table": FILLING,
    "mdm export": "",
    "python examples/export.py": "",
    "python examples/train.py": TRAINING,
    "python examples/train.py --config configuration/mdm-1b": None,
    "python examples/train.py examples/configs/mdm_300m_1xh100.yaml": None,
    "python processing/train_tokenizer.py --streams": None,
    "bash": None,
    "sbatch": None,
    "python examples/finetune.py": f"{TRAINING} --test_questions 0",
    "python examples/evaluate.py": f"{MEASURING} --output figures.json",
    "python examples/app.py": None,
    "python processing/train_tokenizer.py": "",
    "python -m modeling_mdm.evaluation.judge": "--num_epochs 1 --limit 200 --output_dir judge",
    "python -m modeling_mdm.evaluation.ranking": "--num_pictures 2",
    "python -m benchmarks": None,
    "python -m benchmarks.roofline": "",
    "torchrun": TRAINING,
    "torchrun --nproc_per_node 2 examples/train.py examples/configs/fashion_mnist_more.yaml": (
        f"{TRAINING} --config {FASHION}"
    ),
    "torchrun --nproc_per_node 2 examples/finetune.py": f"{TRAINING} --test_questions 0",
    "accelerate": TRAINING,
    "accelerate launch --config_file configuration/accelerate/fsdp2.yaml": None,
    "accelerate launch --config_file configuration/accelerate/hsdp.yaml": None,
    "accelerate launch --config_file configuration/accelerate/two_processes.yaml "
    "examples/evaluate.py": FILLING,
}
# What a run reads that takes long to make.
INSTEAD = {"runs/fashion-questions/merged": str(FASHION)}


def shortened(line):
    """The options that make a command short, or None where it is not run."""
    matches = [start for start in SHORTER if line.startswith(start)]
    return SHORTER[max(matches, key=len)] if matches else None


RUN = [line for line in UNIQUE if shortened(line) is not None]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder like the project's, in which commands write: what they read is linked."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("examples", "configuration", "processing"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_what_is_written_stays_on_the_desk():
    """No command that runs writes into a linked folder."""
    for line in RUN:
        words = f"{line} {shortened(line)}".split()
        written = [words[n + 1] for n, word in enumerate(words) if WRITTEN.fullmatch(word)]
        assert not written or written[-1].split("/")[0] not in FOLDERS, line


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("line", RUN)
def test_a_short_command_runs(line, ours, desk, tmp_path):
    """In the order of the pages: own pictures are trained on with the tokenizer made before."""
    options = with_ours(shortened(line).split(), {"EMPTY": str(tmp_path)})
    words = [INSTEAD.get(word, word) for word in with_ours(UNIQUE[line], ours)]
    # As they stand in a virtual environment, but by the Python that runs the tests.
    program = {
        "mdm": ["-m", "modeling_mdm.cli"],
        "python": [],
        "torchrun": ["-m", "torch.distributed.run"],
        "accelerate": ["-m", "accelerate.commands.accelerate_cli"],
    }[words[0]]
    command = [sys.executable, *program, *words[1:], *options]
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command,
        cwd=desk,
        env={**os.environ, **paths},
        input="what is this?\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
