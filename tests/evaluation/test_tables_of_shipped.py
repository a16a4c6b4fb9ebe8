# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every column of Tables 1 to 3 on the shipped checkpoint: ten items each, in the real formats."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from shipped import ROOT
from test_geneval import tiny_clip, tiny_detector
from tiny_text_sets import write_sets
from tiny_vision_sets import write_all

from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.evaluation.fidelity import JudgeExtractor, fidelity_figures
from modeling_mdm.evaluation.judge_network import JudgeNetwork
from modeling_mdm.evaluation.tables.paper import TABLES

pytestmark = [pytest.mark.slow]
CHECKPOINT = ROOT / "examples" / "checkpoints" / "mdm-fashion"
JUDGE = ROOT / "examples" / "checkpoints" / "fashion-judge"
FASHION = Path("/usr/share/datasets/fashion-mnist")
needs_fashion = pytest.mark.skipif(
    not FASHION.is_dir(), reason="needs Fashion-MNIST: apt install dataset-fashion-mnist"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_all(folder)
    write_sets(folder)
    return folder


def mdm(out, table, data, *more, launcher=(sys.executable,)):
    words = ["examples/evaluate.py", "--checkpoint", str(CHECKPOINT), "--table", str(table)]
    words += ["--data_root", str(data), "--output_dir", str(out), "--extractor_judge", str(JUDGE)]
    words += ["--num_inference_steps", "5", "--num_evaluations", "1", "--bf16", "false"]
    command = [*launcher, *words, "--disable_tqdm", *more]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((out / f"table-{table}.json").read_text())


def test_table_1(data, tmp_path):
    eyes = ["--detector", tiny_detector(tmp_path / "detector")]
    eyes += ["--color_model", tiny_clip(tmp_path / "clip")]
    content = mdm(tmp_path / "out", 1, data, "--limit", "10", *eyes)
    found = content["columns"]
    assert tuple(found) == TABLES[1].columns
    assert found["COCO FID"]["estimate"]["num_items"] == 10
    assert found["GenEval"]["estimate"]["num_items"] == 4 * 6
    assert set(found["GenEval"]["details"]["by_category"]) == {
        *("single_object", "two_object", "counting", "colors", "position", "color_attr")
    }


def test_table_2(data, tmp_path):
    for library in ("lm_eval", "pycocoevalcap"):
        pytest.importorskip(library, reason='needs pip install "modeling-mdm[eval-text]"')
    found = mdm(tmp_path, 2, data)["columns"]
    assert tuple(found) == TABLES[2].columns
    counts = {column: one["estimate"]["num_items"] for column, one in found.items()}
    assert counts.pop("COCO") == 9 and counts.pop("MATH") == 14 and counts.pop("MMLU") == 57
    assert set(counts.values()) == {10}
    # It names what pictures show in the very words of these captions.
    assert found["Flickr30K"]["estimate"]["value"] > 100 < found["COCO"]["estimate"]["value"]
    page = (tmp_path / "table-2.md").read_text()
    assert page.count("![Samples of ") == 5 and "| mdm-fashion | " in page


def test_table_3(data, tmp_path):
    found = mdm(tmp_path, 3, data, "--limit", "10")["columns"]
    assert tuple(found) == TABLES[3].columns


def test_the_same_figures_by_two_processes(data, tmp_path):
    pytest.importorskip("lm_eval", reason='needs pip install "modeling-mdm[eval-text]"')
    columns = ("--columns", "VQAv2", "PIQA", "GSM8K", "--limit", "4")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    one = mdm(tmp_path / "one", 2, data, *columns)
    two = mdm(tmp_path / "two", 2, data, *columns, launcher=(sys.executable, *launcher))
    assert two["machine"]["processes"] == 2
    for column in ("VQAv2", "PIQA", "GSM8K"):
        assert one["columns"][column]["estimate"] == two["columns"][column]["estimate"]

    def said(out):
        files = [file for file in (out / "answers").iterdir() if "VQAv2" in file.name]
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return {line["item"]: line["text"] for line in lines}

    assert said(tmp_path / "one") == said(tmp_path / "two") and len(said(tmp_path / "one")) == 4


@pytest.fixture(scope="module")
def garments():
    """Pictures of Fashion-MNIST as arrays, of training and test."""
    sets = {}
    for split in ("train", "test"):
        data = load_training_data("fashion_mnist", split=split, data_dir=str(FASHION))
        sets[split] = [data[n]["image"] for n in range(1000)]
        sets[f"{split} labels"] = [data[n]["label"] for n in range(1000)]
    return sets


@needs_fashion
def test_the_order_of_distances_from_real_garments(garments):
    """Test against training pictures, blurred ones of three strengths, noise: FID's order."""
    judge = JudgeExtractor(JudgeNetwork.from_pretrained(JUDGE))
    real, others = garments["test"], garments["train"]
    rng = np.random.default_rng(0)
    sets = [others]
    sets += [
        [p.filter(ImageFilter.GaussianBlur(radius)) for p in others] for radius in (0.7, 1.2, 2)
    ]
    sets += [[Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)) for _ in others]]
    found = [fidelity_figures(one, real, judge) for one in sets]
    distances = [one.frechet_distance for one in found]
    assert distances == sorted(distances) and distances[1] > 2 * distances[0]
    kernels = [one.kid for one in found]
    assert kernels == sorted(kernels)
    assert found[0].precision > 0.6 < found[0].recall
    assert found[-1].precision < 0.1 and found[-1].recall == 0


@needs_fashion
def test_classes_left_out_cost_recall_and_foreign_pictures_precision(garments):
    judge = JudgeExtractor(JudgeNetwork.from_pretrained(JUDGE))
    real, others, labels = garments["test"], garments["train"], garments["train labels"]
    whole = fidelity_figures(others[:500], real, judge)
    few = [p for p, label in zip(others, labels, strict=True) if label < 5][:500]
    collapsed = fidelity_figures(few, real, judge)
    assert collapsed.recall < 0.7 * whole.recall
    assert collapsed.precision > 0.9 * whole.precision
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)) for _ in range(500)]
    mixed = fidelity_figures(others[:500] + noise, real, judge)
    assert mixed.precision < 0.6 * whole.precision
    assert mixed.recall >= whole.recall
