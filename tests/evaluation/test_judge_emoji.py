# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The judge of the emoji world: its truth, colours and regions, what it learns and keeps."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import judge_emoji
from emojis.drawing import BACKGROUNDS
from judge_emoji import Examples, loss_of, main, measure, names_of, softened
from judge_emoji_network import (
    LEVELS,
    REGIONS,
    WIDTHS,
    EmojiJudge,
    EmojiJudgeConfig,
    soft_histogram,
)

CHECKPOINTS = Path(__file__).resolve().parents[2] / "examples" / "checkpoints"
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 220)}
THINGS = {"a square": (3, 3), "a bar": (1, 6), "a pole": (6, 1)}  # half their height and width
PLACES = {"left": (16, 8), "right": (16, 24), "above": (8, 16), "below": (24, 16)}


def draw(pixels, concept, where, style):
    (down, right), (row, column) = THINGS[concept], where
    level = 255 if style == "bright" else 0
    pixels[row - down : row + down, column - right : column + right] = level


def rows(count, seed):
    """Scenes of white or black boxes on coloured ground, with their truth."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        layout = str(rng.choice(["single", "count", "beside", "stacked", "alone"]))
        style, ground = str(rng.choice(["bright", "dark"])), str(rng.choice([*COLOURS]))
        pixels = np.empty((32, 32, 3), np.uint8)
        pixels[:] = COLOURS[ground]
        concept, number = str(rng.choice([*THINGS])), 1
        places = ["centre"]
        if layout == "single":
            draw(pixels, concept, (16, 16), style)
        elif layout == "count":
            number, places = int(rng.integers(2, 5)), [""]
            for where in [(8, 8), (24, 24), (8, 24), (24, 8)][:number]:
                draw(pixels, concept, where, style)
        elif layout == "alone":
            places = [str(rng.choice([*PLACES]))]
            draw(pixels, concept, PLACES[places[0]], style)
        else:
            places = ["left", "right"] if layout == "beside" else ["above", "below"]
        concepts = [concept, *rng.choice([n for n in THINGS if n != concept], len(places) - 1)]
        if len(places) == 2:
            for own, place in zip(concepts, places, strict=True):
                draw(pixels, own, PLACES[place], style)
        objects = [
            {"concept": str(own), "count": number, "place": place}
            for own, place in zip(concepts, places, strict=True)
        ]
        image = Image.fromarray(pixels)
        found.append(
            {"image": image, "layout": layout, "style": style, "background": ground}
            | {"objects": objects}
        )
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    (folder / "data").mkdir()
    for split, count, seed in (("train", 480, 0), ("test", 120, 1)):
        made = rows(count, seed)
        for row in made:
            file = io.BytesIO()
            row["image"].save(file, "PNG")
            row["image"] = {"bytes": file.getvalue(), "path": None}
        features = datasets.Features(
            {
                "image": datasets.Image(),
                **dict.fromkeys(("layout", "style", "background"), datasets.Value("string")),
                "objects": datasets.List(
                    {
                        **dict.fromkeys(("concept", "place"), datasets.Value("string")),
                        "count": datasets.Value("int64"),
                    }
                ),
            }
        )
        data = datasets.Dataset.from_list(made, features)
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("architecture", ["convolutional", "mixer"])
def test_the_command_learns_every_head(architecture, world, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(WIDTHS, architecture, (16, 32))
    options = f"--dataset {world} --output_dir {tmp_path} --architecture {architecture}"
    words = f"{options} --num_epochs 8 --batch_size 32 --disable_tqdm --bf16 false".split()
    judge = main(words)
    described = json.loads((tmp_path / "judge.json").read_text())
    for test in (described["test"], described["test_softened"]):
        assert all(test[head] > 0.9 for head in ("background", "style", "count", "place")), test
        assert test["concept"] > 0.9 and test["concept in top 5"] == 1.0  # of three
    assert f"{described['test']['style']:.1%}" in capsys.readouterr().out
    assert (described["num_train"], described["num_test"]) == (480, 120)
    # What is kept in half precision says the same, and is measured without training.
    loaded = EmojiJudge.from_pretrained(tmp_path)
    pictures = [row["image"] for row in rows(20, 5)]
    for name, seen in judge.probabilities(pictures).items():
        torch.testing.assert_close(loaded.probabilities(pictures)[name], seen, atol=0.02, rtol=0)
    before = (tmp_path / "judge.json").read_bytes()
    main([*words[:-5], "--num_epochs", "0"])
    assert f"{described['test']['style']:.1%}" in capsys.readouterr().out
    assert (tmp_path / "judge.json").read_bytes() == before


def tiny(names, **options):
    torch.manual_seed(0)
    return EmojiJudge(EmojiJudgeConfig(names, widths=(8, 8), **options)).eval()


NAMES = names_of(rows(200, 0))


def test_classes_are_those_of_the_truth():
    assert NAMES["background"] == sorted(COLOURS) and NAMES["count"] == ["1", "2", "3", "4"]
    assert NAMES["place"] == sorted([*PLACES, "centre", "several", "beside", "stacked"])
    counts = dict.fromkeys(THINGS, 0)
    for row in rows(200, 0):
        for thing in row["objects"]:
            counts[thing["concept"]] += 1
    assert NAMES["concept"] == sorted(counts, key=counts.get, reverse=True)


def test_a_concept_is_judged_in_its_region():
    row = next(row for row in rows(50, 2) if row["layout"] == "stacked")
    single = next(row for row in rows(50, 2) if row["layout"] == "single")
    unknown = {**single, "objects": [{"concept": "a zebra", "count": 1, "place": "centre"}]}
    judge = tiny(NAMES)
    truth = Examples.of([row, single, unknown], judge.config)
    number = NAMES["concept"].index
    expected = [[number(thing["concept"]) for thing in row["objects"]]]
    expected += [[number(single["objects"][0]["concept"]), -1], [-1, -1]]
    assert truth.concepts.tolist() == expected
    places = [[REGIONS[n] for n in own] for own in truth.regions.tolist()]
    assert places[:2] == [["above", "below"], ["whole", "whole"]]
    assert truth.whole["count"].tolist() == [NAMES["count"].index(n) for n in ("2", "1", "1")]
    # The loss, by hand in float64.
    with torch.no_grad():
        logits = judge(torch.zeros(3, 3, 32, 32))
    total = 0.0
    for head in ("background", "style", "count", "place"):
        for n, true in enumerate(truth.whole[head].tolist()):
            own = logits[head][n].double()
            total -= float(own[true] - own.exp().sum().log()) / 3
    for n, region, true in ((0, 3, expected[0][0]), (0, 4, expected[0][1]), (1, 0, expected[1][0])):
        own = logits["concept"][n, region].double()
        total -= float(own[true] - own.exp().sum().log()) / 3
    assert float(loss_of(logits, truth)) == pytest.approx(total, rel=1e-5)


def test_a_region_sees_its_half_alone():
    """But for what convolutions reach over the middle: the far corner is not seen."""
    judge = tiny(NAMES, image_size=64)
    images = torch.zeros(2, 3, 64, 64)
    images[1, :, :2, :2] = 1.0  # above, on the left
    with torch.no_grad():
        judge.region[1].weight[:, 8:] = 0  # no colours: they are of the whole
        judge.region[0] = torch.nn.Identity()
        plain, marked = judge(images)["concept"]
    changed = [not torch.allclose(plain[n], marked[n]) for n in range(len(REGIONS))]
    assert dict(zip(REGIONS, changed, strict=True)) == {
        "whole": True,
        "left": True,
        "right": False,
        "above": True,
        "below": False,
    }


def test_the_histogram_is_soft_and_sums_to_one():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.uniform(-1, 1, (2, 3, 4, 5))).float()
    expected = np.zeros((2, LEVELS, LEVELS, LEVELS))
    for n, picture in enumerate(images.double().numpy()):
        for red, green, blue in picture.reshape(3, -1).T:
            weights = []
            for value in (red, green, blue):
                place, own = (value + 1) / 2 * (LEVELS - 1), np.zeros(LEVELS)
                low = min(math.floor(place), LEVELS - 2)
                own[low], own[low + 1] = low + 1 - place, place - low
                weights.append(own)
            expected[n] += np.einsum("i,j,k", *weights) / 20
    found = soft_histogram(images)
    np.testing.assert_allclose(found.square(), expected.reshape(2, -1), atol=1e-6)
    np.testing.assert_allclose(found.square().sum(1), 1, atol=1e-5)


def test_the_histogram_of_one_colour_has_finite_gradients():
    images = torch.full((1, 3, 4, 4), -1.0, requires_grad=True)
    weight = torch.nn.Parameter(torch.ones(()))
    (soft_histogram(images.detach()) * weight).sum().backward()
    assert torch.isfinite(weight.grad)


def test_softening_blends_with_the_means_around():
    image = torch.zeros(2, 1, 5, 5)
    image[:, 0, 2, 2] = 9.0
    soft = softened(image, torch.tensor([0.0, 0.5]))
    assert torch.equal(soft[0], image[0])
    expected = torch.zeros(5, 5)
    expected[1:4, 1:4] = 0.5
    expected[2, 2] = 5.0
    torch.testing.assert_close(soft[1, 0], expected)


def test_shares_are_of_what_is_there():
    made = rows(30, 3)
    judge = tiny(NAMES)
    truth = Examples.of(made, judge.config)
    right = {head: own.clone() for head, own in truth.whole.items()}
    right["style"][:15] = 1 - right["style"][:15]

    def oracle(images):
        seen = {
            h: torch.nn.functional.one_hot(own, len(NAMES[h])).float() for h, own in right.items()
        }
        concepts = torch.zeros(30, len(REGIONS), len(NAMES["concept"]))
        for n in range(30):
            for region, concept in zip(truth.regions[n], truth.concepts[n], strict=True):
                if concept >= 0:
                    concepts[n, region, concept] = 1
        return seen | {"concept": concepts}

    judge.probabilities = oracle
    found = measure(judge, truth)
    assert found["style"] == 0.5 and found["background"] == found["count"] == found["place"] == 1
    assert found["concept"] == found["concept, 300 most frequent"] == 1
    empty = replace(truth, concepts=torch.full_like(truth.concepts, -1))
    assert measure(judge, empty)["concept"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--architecture perceptron", r"architecture='perceptron' must be one of"),
        ("--num_epochs -1", r"num_epochs=-1 must be >= 0"),
        ("--batch_size 1", r"batch_size=1 must be >= 2"),
        ("--limit 0", r"limit=0 must be >= 1"),
    ],
)
def test_arguments_are_judged(options, said):
    with pytest.raises(ValueError, match=said):
        judge_emoji.parse(["--dataset", "set", "--output_dir", "out", *options.split()])


def test_another_set_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    data = datasets.Dataset.from_dict({"text": ["a"]})
    data.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"has no columns \['background', 'image'.*emoji_world"):
        judge_emoji.read_rows(str(tmp_path), "train", None)
    with pytest.raises(FileNotFoundError, match="dataset='/nowhere'"):
        judge_emoji.read_rows("/nowhere", "train", None)


def test_a_folder_that_holds_no_judge(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"judge='.*' is missing"):
        EmojiJudge.from_pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors: train a judge"):
        EmojiJudge.from_pretrained(tmp_path)
    tiny(NAMES).save_pretrained(tmp_path)
    described = json.loads((tmp_path / "judge.json").read_text())
    described["config"]["widths"] = [8, 16]
    (tmp_path / "judge.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="is no judge of the emoji world"):
        EmojiJudge.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="names has"):
        EmojiJudgeConfig({**NAMES, "style": ["one"]})


@pytest.mark.parametrize(
    ("folder", "architecture"), [("emoji-judge", "convolutional"), ("emoji-judge-2", "mixer")]
)
def test_the_shipped_judges_reach_their_bars_but_that_of_style(folder, architecture):
    judge = EmojiJudge.from_pretrained(CHECKPOINTS / folder)
    assert judge.config.architecture == architecture
    told = judge.description["test"]
    bars = {"background": 0.99, "count": 0.98, "place": 0.97}
    bars["concept in top 5, 300 most frequent"] = 0.85
    assert {name: told[name] for name, bar in bars.items() if told[name] < bar} == {}
    pictures = []
    for colour in BACKGROUNDS.values():
        picture = Image.new("RGB", (64, 64), colour)
        ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill=(255, 204, 77))
        pictures.append(picture)
    names = judge.config.names["background"]
    seen = judge.probabilities(pictures)["background"].argmax(-1).tolist()
    assert [names[n] for n in seen] == [*BACKGROUNDS]
