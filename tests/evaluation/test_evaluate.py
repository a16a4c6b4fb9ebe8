# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`mdm evaluate` as a whole, on a tiny model of the digits that has learned nothing."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from tiny_digits import CAPTIONS, make_config, make_processor

from mdm_cli.main import main as mdm
from modeling_mdm.evaluation.judge_network import JudgeConfig, JudgeNetwork
from modeling_mdm.evaluation.tasks import Bench, EvaluationArguments
from modeling_mdm.modeling_mdm import MDMForJointGeneration


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    processor = make_processor()
    processor.save_pretrained(folder / "model")
    torch.manual_seed(0)
    MDMForJointGeneration(make_config(len(processor.tokenizer))).save_pretrained(folder / "model")
    config = JudgeConfig(10, (8, 8), widths=(8,), mirror=False)
    for name, changed in {
        "judge": {},
        "second": {"architecture": "mixer"},
        "half/upper": {"visible": "upper"},
        "half/lower": {"visible": "lower"},
    }.items():
        judge = JudgeNetwork(replace(config, **changed))
        judge.description = {"test": {"accuracy": 0.1 + 0.1 * len(changed)}}
        judge.save_pretrained(folder / name)
    return folder


def command(folder, **changed):
    chosen = {
        "checkpoint": folder / "model",
        "judge": folder / "judge",
        "captions": CAPTIONS,
        "dataset": "digits",
        "num_samples": 10,
        "inpainting_samples": 4,
        "num_inference_steps": 2,
        "guidance_scale": "1.0",
        "half_judges": folder / "half",
        "output": folder / "figures.json",
        **changed,
    }
    words = []
    for name, value in chosen.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *map(str, values)]
    return [*words, "--disable_tqdm"]


def test_all_that_looks_at_pictures(folder, capsys):
    words = command(
        folder,
        tasks=["inpainting", "joint", "reconstruction", "text_to_image"],
        measures=["borders", "frechet"],
        second_judge=folder / "second",
        samples_dir=folder / "sheets",
    )
    assert mdm(["evaluate", *words]) == 0
    printed = capsys.readouterr().out
    content = json.loads((folder / "figures.json").read_text())
    assert content["judge_test_accuracy"] == pytest.approx(0.1)
    assert content["second_judge_test_accuracy"] == pytest.approx(0.2)
    figures = content["figures"]
    assert list(figures) == ["joint", "text_to_image", "inpainting", "reconstruction"]
    for one in (figures["joint"], figures["text_to_image"][0], figures["reconstruction"]):
        assert set(one["measures"]) == {"frechet_judge", "frechet_second_judge", "borders"}
        distance = one["measures"]["frechet_judge"]
        assert distance["num_pictures"] == 10 and len(distance["interval"]) == 2
        assert distance["ratio"] == pytest.approx(distance["distance"] / distance["floor"])
        assert one["measures"]["borders"]["real_ratio"] > 0
    floors = {one["measures"]["frechet_judge"]["floor"] for one in figures["text_to_image"]}
    assert floors == {figures["joint"]["measures"]["frechet_judge"]["floor"]}
    assert figures["joint"]["second_judge"]["share_agreeing"] <= 1
    assert [one["repainted"] for one in figures["inpainting"]] == ["lower", "upper"]
    assert figures["inpainting"][0]["seam"]["real_step"] > 0
    assert {p.name for p in (folder / "sheets").iterdir()} == {
        "joint.png",
        "inpainting_lower.png",
        "inpainting_upper.png",
    }
    assert "right class, by both judges" in printed
    assert "| Frechet distance of the judge's features | joint | " in printed
    assert "| Frechet distance of the second judge's features | reconstruction | " in printed
    assert "| step across patch borders / inside | text to image, guidance 1 | " in printed
    assert "| step across the seam | inpainting, upper half | " in printed


def test_the_same_seed_gives_the_same_figures(folder):
    def figures(seed):
        words = command(folder, tasks=["reconstruction"], measures=["frechet"], seed=seed)
        assert mdm(["evaluate", *words, "--json"]) == 0
        return json.loads((folder / "figures.json").read_text())["figures"]["reconstruction"]

    one, again, other = figures(0), figures(0), figures(1)
    assert one | {"seconds": 0} == again | {"seconds": 0}
    intervals = [f["measures"]["frechet_judge"]["interval"] for f in (one, other)]
    assert intervals[0] != intervals[1]


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"second_judge": "nowhere"}, "second_judge='nowhere' is missing"),
        ({"half_judges": "nowhere", "tasks": ["inpainting"]}, "half_judges='nowhere"),
        ({"num_samples": 1, "measures": ["frechet"], "tasks": ["joint"]}, "at least 2 of each"),
        (
            {"num_samples": 2000, "measures": ["borders"], "tasks": ["joint"]},
            "num_samples=2000 is compared with 200 real pictures of class 0, of which",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder, capsys, changed, said):
    assert mdm(["evaluate", *command(folder, **changed)]) == 1
    error = capsys.readouterr().err
    *_, last = error.splitlines()
    assert last.startswith("mdm evaluate: ") and said in last


def test_no_samples_of_inpainting_are_no_inpainting(folder, capsys):
    words = command(folder, inpainting_samples=0, tasks=["inpainting"])
    with pytest.raises(SystemExit, match="2"):
        mdm(["evaluate", *words])
    assert "inpainting_samples=0 must be >= 1" in capsys.readouterr().err


def test_a_missing_library_names_the_extra(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    words = command(folder, tasks=["joint"], measures=["frechet"])
    assert mdm(["evaluate", *words]) == 1
    assert "torch-fidelity" in (error := capsys.readouterr().err)
    assert 'pip install "modeling-mdm[eval]"' in error


def test_borders_are_not_of_a_model_whose_codes_make_the_picture(folder):
    config = make_config(50)
    config.vq_config = {"model_type": "janus_vqgan"}
    chosen = EvaluationArguments("model", "judge", "captions", measures=["borders"])
    bench = Bench(torch.nn.Module(), None, None, None, chosen)
    bench.model.config = config
    with pytest.raises(ValueError, match=r"measures=\['borders'\] .* model with vq_config"):
        _ = bench.panel
