# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The ranking of captions by `score`: with a model whose mistakes are planned, and the shipped one.

A picture of one grey level, 20 * class, is scored against a caption of every class.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchFeature

from modeling_mdm import MDMForJointGeneration, MDMProcessor
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.pictures import PictureDataset, Source
from modeling_mdm.evaluation import ranking
from modeling_mdm.evaluation.ranking import RankingArguments, main, ranking_figures

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TABLE = CaptionTable(
    labels=(("a cat", "a tom"), ("a dog", "a hound"), ("a cow", "an ox")),
    templates=("a photo of {}", "this is {}"),
)
ALL = TABLE.all_captions()
LABELS = [0, 1, 2, 2, 1, 0, 0]
# What the model takes a picture of each class for: by its bound, and by its score entropy.
BY_BOUND = {0: 0, 1: 2, 2: 2}
BY_ENTROPY = {0: 1, 1: 1, 2: 0}


class LevelProcessor:
    """Encodes a caption as its number in the table and a picture as its level."""

    @classmethod
    def from_pretrained(cls, folder):
        return cls()

    def __call__(self, images, text, return_tensors):
        assert return_tensors == "pt" and len(images) == len(text)
        levels = [[int(np.asarray(image)[0, 0]) // 20] for image in images]
        numbers = [[ALL.index(caption)] for caption in text]
        return BatchFeature({"input_ids": torch.tensor(numbers), "class": torch.tensor(levels)})


class LevelModel(torch.nn.Module):
    """Scores as planned; a picture costs 10 nats for each class, so that batches differ."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.calls = []

    @classmethod
    def from_pretrained(cls, folder, dtype=None):
        return cls()

    def score(self, content, num_evaluations, generator, **inputs):
        assert content == "text" and not self.training
        captions = [ALL[number] for number in inputs["input_ids"][:, 0].tolist()]
        pictures = inputs["class"][:, 0].tolist()
        self.calls.append((pictures, captions, num_evaluations, generator.initial_seed()))
        pairs = [(p, TABLE.label_of(c)) for p, c in zip(pictures, captions, strict=True)]
        return SimpleNamespace(
            log_likelihood=torch.tensor([-10.0 * p - 2.0 * (c != BY_BOUND[p]) for p, c in pairs]),
            score_entropy=torch.tensor([10.0 * p + 3.0 * (c != BY_ENTROPY[p]) for p, c in pairs]),
        )


def make_data(labels):
    pictures = np.zeros((len(labels), 6, 6), np.uint8)
    pictures += np.array([20 * (label or 0) for label in labels], np.uint8)[:, None, None]
    return PictureDataset(Source(pictures, labels=labels))


def rank(model, labels, **changed):
    options = {"batch_size": 2, "disable_tqdm": True, **changed}
    arguments = RankingArguments(checkpoint="", captions="", **options)
    return ranking_figures(model.eval(), LevelProcessor(), TABLE, make_data(labels), 4, arguments)


def test_shares_and_nats_are_those_of_the_plan():
    model = LevelModel()
    figures = rank(model, LABELS)
    count = len(LABELS)
    assert figures.num_pictures == count and figures.num_evaluations == 4
    assert figures.right_by_bound == pytest.approx(5 / count)  # the dogs are taken for cows
    assert figures.right_by_score_entropy == pytest.approx(2 / count)  # only dogs are right
    nats = {0: 0.0, 1: -10.0 - 2.0, 2: -20.0}
    mean = sum(nats[label] for label in LABELS) / count
    assert figures.nats_of_true_caption == pytest.approx(mean, abs=5e-4)


def test_every_picture_meets_one_caption_of_each_class_in_one_phrasing():
    model = LevelModel()
    rank(model, LABELS, seed=5)
    assert [len(pictures) for pictures, *_ in model.calls] == [6, 6, 6, 3]  # the last batch is one
    assert {(count, seed) for *_, count, seed in model.calls} == {(4, 5)}
    pictures = [picture for call in model.calls for picture in call[0]]
    captions = [caption for call in model.calls for caption in call[1]]
    assert pictures == [label for label in LABELS for _ in range(3)]
    phrasings = []
    for first in range(0, len(captions), 3):
        trio = captions[first : first + 3]
        (phrasing,) = {TABLE.captions_of(label).index(c) for label, c in enumerate(trio)}
        phrasings.append(phrasing)
    assert len(set(phrasings)) > 1
    again = LevelModel()
    rank(again, LABELS, seed=5)
    assert again.calls == model.calls


def test_only_the_first_pictures_are_ranked():
    figures = rank(LevelModel(), LABELS, num_pictures=2)
    assert figures.num_pictures == 2 and figures.right_by_bound == 0.5


@pytest.mark.parametrize("labels", [[], [0, None]])
def test_pictures_without_labels_are_refused(labels):
    with pytest.raises(ValueError, match="dataset has no labelled pictures"):
        rank(LevelModel(), labels)


def test_the_command_measures_each_number_of_evaluations(tmp_path, monkeypatch, capsys):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(ranking, "MDMForJointGeneration", LevelModel)
    monkeypatch.setattr(ranking, "MDMProcessor", LevelProcessor)
    for number, label in enumerate(LABELS):
        path = tmp_path / "set" / "test" / f"class{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 6), 20 * label).save(path)
    (tmp_path / "table.json").write_text(json.dumps(TABLE.to_dict()))
    found = main(
        [
            *("--checkpoint", "anywhere", "--captions", str(tmp_path / "table.json")),
            *("--dataset", str(tmp_path / "set"), "--num_evaluations", "1", "3"),
            *("--output", str(tmp_path / "ranking.json"), "--disable_tqdm", "true"),
        ]
    )
    written = json.loads((tmp_path / "ranking.json").read_text())
    assert [one["num_evaluations"] for one in written] == [1, 3]
    assert [one["right_by_bound"] for one in written] == [pytest.approx(5 / 7)] * 2
    assert [one.right_by_bound for one in found] == [one["right_by_bound"] for one in written]
    assert capsys.readouterr().out.count("right_by_bound") == 2


def test_the_shipped_model_knows_its_pictures():
    """One test picture of each class: chance gets one of the ten right."""
    paths = sorted((EXAMPLES / "pictures" / "fashion_mnist").glob("*.png"))
    labels = [int(path.name.split("_")[0]) for path in paths]
    pictures = np.stack([np.asarray(Image.open(path).convert("L")) for path in paths])
    checkpoint = EXAMPLES / "checkpoints" / "mdm-fashion"
    figures = ranking_figures(
        MDMForJointGeneration.from_pretrained(checkpoint).eval(),
        MDMProcessor.from_pretrained(checkpoint),
        CaptionTable.from_json(EXAMPLES / "captions" / "fashion_mnist.json"),
        PictureDataset(Source(pictures, labels=labels)),
        2,
        RankingArguments(checkpoint="", captions="", disable_tqdm=True),
    )
    assert labels == list(range(10))
    assert figures.right_by_bound >= 0.7 and figures.right_by_score_entropy >= 0.7
