# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The demo, run with a tiny untrained model: three contact sheets, their words, clear errors."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_digits import ROOT, load_script, make_config, make_processor

from modeling_mdm import MDMForJointGeneration

SCRIPT = ROOT / "examples" / "demo.py"
DIGIT_PROMPTS = ("a zero", "a scan of a one", "this is a two")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Save an untrained model and three pictures."""
    work = tmp_path_factory.mktemp("demo")
    torch.manual_seed(0)
    processor = make_processor()
    processor.save_pretrained(work / "checkpoint")
    MDMForJointGeneration(make_config(len(processor.tokenizer))).save_pretrained(
        work / "checkpoint"
    )
    (work / "pictures").mkdir()
    for number in range(3):
        picture = torch.randint(0, 256, (8, 8), dtype=torch.uint8).numpy()
        Image.fromarray(picture).save(work / "pictures" / f"{number}.png")
    return work


def run_demo(folders, output_dir, seed=0):
    demo = load_script(SCRIPT)
    # The shipped prompts are longer than the tiny model's region.
    demo.FASHION = replace(demo.FASHION, prompts=DIGIT_PROMPTS)
    demo.run(
        demo.DemoArguments(
            checkpoint=str(folders / "checkpoint"),
            pictures=str(folders / "pictures"),
            output_dir=str(output_dir),
            num_samples=4,
            num_inference_steps=2,
            seed=seed,
        )
    )


def test_demo_writes_four_sheets_and_prints_the_words(folders, tmp_path, capsys):
    run_demo(folders, tmp_path / "a")
    printed = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        *("joint.png", "text_to_image.png", "captioning.png", "together.png")
    }
    for name in ("joint", "text_to_image", "captioning", "together"):
        assert str(tmp_path / "a" / f"{name}.png") in printed
        with Image.open(tmp_path / "a" / f"{name}.png") as sheet:
            assert len(sheet.convert("L").getcolors()) > 10
    numbered = [line for line in printed.splitlines() if line.strip()[:1].isdigit()]
    assert len(numbered) == 4 + 2 * len(DIGIT_PROMPTS) + 3
    assert sum(line.endswith("a scan of a one") for line in numbered) == 2


def test_pictures_are_changed_and_asked_about(folders, tmp_path, capsys):
    demo = load_script(SCRIPT)
    show = demo.Show(
        *(str(folders / "checkpoint"), str(folders / "pictures"), DIGIT_PROMPTS),
        edits=(("0", "a one"), ("2", "a two")),
        questions=(("1", "a zero"),),
    )
    arguments = demo.DemoArguments(num_samples=2, num_inference_steps=2)
    demo.present(demo.Demo(arguments, show), tmp_path / "a")
    printed = capsys.readouterr().out
    changed = printed.split("what was asked to be changed")[1].splitlines()[1:5]
    assert [line.split(". ")[1] for line in changed] == ["given", "given", "a one", "a two"]
    assert "1. a zero - " in printed
    assert {"edits.png", "questions.png"} < {path.name for path in (tmp_path / "a").iterdir()}


def test_each_shipped_checkpoint_is_shown_the_colour_one_first(monkeypatch):
    demo = load_script(SCRIPT)
    monkeypatch.setattr(demo, "SHOWS", (demo.EMOJI, demo.FASHION))
    arguments = demo.DemoArguments(output_dir="out")
    assert [place for _, place in arguments.shows] == [
        Path("out/mdm-emoji"),
        Path("out/mdm-fashion"),
    ]
    for show in demo.SHOWS:
        named = {path.stem.split("_")[0] for path in Path(show.pictures).glob("*.png")}
        assert len(named) == 10
        assert {name for name, _ in (*show.edits, *show.questions)} <= named
    ((alone, place),) = demo.DemoArguments(demo.EMOJI.checkpoint, output_dir="out").shows
    assert (alone, place) == (demo.EMOJI, Path("out"))
    monkeypatch.setattr(demo, "SHOWS", (demo.FASHION,))
    assert arguments.shows == [(demo.FASHION, Path("out"))]


def test_the_seed_decides_the_samples(folders, tmp_path):
    run_demo(folders, tmp_path / "a", seed=1)
    run_demo(folders, tmp_path / "b", seed=1)
    run_demo(folders, tmp_path / "c", seed=2)
    first, again, other = ((tmp_path / name / "joint.png").read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_missing_pictures_are_named(folders, tmp_path):
    demo = load_script(SCRIPT)
    arguments = demo.DemoArguments(str(folders / "checkpoint"), str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"--pictures .*: no PNG file there"):
        demo.run(arguments)


def test_missing_checkpoint_ends_the_command_without_a_traceback(tmp_path, monkeypatch, capsys):
    outputs = tmp_path / "outputs"
    monkeypatch.setattr(
        sys, "argv", ["demo.py", f"--checkpoint={tmp_path}", f"--output_dir={outputs}"]
    )
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"demo.py: --checkpoint {tmp_path}: no model there")
    assert not outputs.exists()
