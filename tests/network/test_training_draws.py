# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a step draws: times, independent or coupled, dropped prompts, selection, feeding back."""

import math

import pytest
import torch
from tiny_model import make_model


@pytest.fixture
def recorded(monkeypatch):
    """The arguments of every evaluation; only the first is made, the others give the same."""

    def record(model):
        calls, given = [], []
        original = model.denoise

        def denoise(inputs, candidates):
            calls.append({**vars(inputs), "candidates": candidates})
            given.append(given[0] if given else original(inputs, candidates))
            return given[-1]

        monkeypatch.setattr(model, "denoise", denoise)
        return calls

    return record


def many_joint_items(count):
    """Items that are written from nothing but a class, in both modalities."""
    return {
        "input_ids": torch.full((count, 2), 5),
        "pixel_values": torch.zeros(count, 1, 4, 4),
        "class_labels": torch.zeros(count, dtype=torch.long),
    }


def test_training_draws_as_the_configuration_says(recorded):
    changes = {"num_hidden_layers": 1, "coupled_time_probability": 0.0}
    model = make_model(torch.float32, **changes).train()
    calls, count = recorded(model), 2000
    torch.manual_seed(0)
    with torch.no_grad():
        model(**many_joint_items(count), return_loss=False)
    t, dropped = calls[-1]["times"], calls[-1]["class_labels"] == -1
    margin = 4 * (0.1 * 0.9 / count) ** 0.5
    assert abs(dropped.float().mean() - 0.1) < margin  # the prompt is dropped
    at_one = {g: t[g] == 1 for g in t}
    assert not (at_one["text"] & at_one["image"]).any()
    assert abs((at_one["text"] | at_one["image"]).float().mean() - 0.1) < margin
    assert abs(at_one["text"].float().mean() - 0.05) < margin
    for g in t:
        rest = t[g][~at_one[g]]
        assert rest.min() >= 0 and rest.max() < 1
        assert abs(rest.mean() - 0.5) < 0.03 and abs(rest.std() - 12**-0.5) < 0.02
    both = torch.stack([t[g][~(at_one["text"] | at_one["image"])] for g in t])
    assert abs(torch.corrcoef(both)[0, 1]) < 0.1  # drawn independently


def log_snr_by_hand(t):
    """Of the words, `tan` with s = 3, and of the picture, `cosine`; float64."""
    words = -2 * torch.log(3 * torch.tan(math.pi / 2 * t["text"].double()))
    angle = (t["image"].double() + 0.008) / 1.008 * math.pi / 2
    share = angle.cos().square() / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    return words, torch.log(share / (1 - share))


@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_coupled_times_lie_along_the_path_of_the_sampler(recorded, probability):
    changes = {"num_hidden_layers": 1, "coupled_time_probability": probability}
    model = make_model(torch.float32, **changes, null_modality_probability=0.2).train()
    calls, count = recorded(model), 4000
    torch.manual_seed(0)
    with torch.no_grad():
        model(**many_joint_items(count), return_loss=False)
    t = calls[-1]["times"]
    shown = (t["text"] < 1) & (t["image"] < 1)
    assert abs(shown.double().mean() - 0.8) < 0.03  # one side is hidden as ever
    words, picture = (log_snr[shown] for log_snr in log_snr_by_hand(t))
    inner = (words.abs() < 15) & (picture.abs() < 15)  # the clip moves what is beyond
    lead = (words - picture)[inner]
    coupled = (lead > 0.5 - 1e-3) & (lead < 3.5 + 1e-3)
    if probability == 1:
        assert coupled.all() and abs(lead.mean() - 2) < 0.1
        assert abs(lead.std() - 3 / 12**0.5) < 0.05  # evenly from 0.5 to 3.5
    else:
        assert 0.5 < coupled.double().mean() < 0.75  # a few of the independent ones fall there
    # Half follow the picture's uniform time and half the words', so both stay spread out.
    for modality in ("text", "image"):
        low, high = torch.quantile(t[modality][shown].double(), torch.tensor([0.1, 0.9]).double())
        assert low < 0.2 and high > 0.8


def test_times_are_coupled_only_in_training_and_only_where_both_are_written(recorded):
    changes = {"num_hidden_layers": 1, "coupled_time_probability": 1.0}
    model = make_model(torch.float32, **changes, null_modality_probability=0.0)
    calls, items = recorded(model), many_joint_items(1000)
    for is_training, given in ((False, False), (True, True)):
        calls.clear()
        torch.manual_seed(0)
        with torch.no_grad():
            model.train(is_training)
            mask = torch.full_like(items["input_ids"], given, dtype=torch.bool)
            model(**items, text_given=mask, return_loss=False)
        times = torch.stack([calls[-1]["times"][m].double() for m in ("text", "image")])
        assert abs(torch.corrcoef(times)[0, 1]) < 0.1


def test_a_time_that_is_nan_is_drawn(recorded):
    model = make_model(torch.float32, num_hidden_layers=1).train()
    calls = recorded(model)
    passed = torch.tensor([0.25, torch.nan] * 50)
    with torch.no_grad():
        model(**many_joint_items(100), times={"text": passed}, return_loss=False)
    t = calls[-1]["times"]
    assert (t["text"][::2] == 0.25).all()
    assert t["text"][1::2].unique().numel() > 40 and t["text"].isfinite().all()


def test_training_feeds_back_on_half_of_the_batches_and_selects(recorded):
    shares = (1.0, 1.0, 0.5, 0.25)
    model = make_model(torch.float32, num_hidden_layers=1, selection_keep=shares).train()
    calls, keeps, fed = recorded(model), [], 0
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(300):
            calls.clear()
            model(**many_joint_items(1), return_loss=False)
            assert calls[0]["estimates"] is None and len(calls) <= 2
            fed += len(calls) == 2 and calls[1]["estimates"] is not None
            keeps.append(calls[-1]["keep"])
            assert {call["keep"] for call in calls} == {keeps[-1]}
    assert abs(fed / 300 - 0.5) < 4 * (0.25 / 300) ** 0.5
    for share, expected in ((1.0, 0.5), (0.5, 0.25), (0.25, 0.25)):
        assert abs(keeps.count(share) / 300 - expected) < 4 * (0.25 / 300) ** 0.5


def test_evaluation_drops_hides_selects_and_feeds_back_nothing(recorded):
    model = make_model(torch.float32, num_hidden_layers=1)
    calls = recorded(model)
    with torch.no_grad():
        model(**many_joint_items(500), return_loss=False)
    (call,) = calls
    assert call["estimates"] is None and call["keep"] == 1 and (call["class_labels"] == 0).all()
    assert not any((t == 1).any() for t in call["times"].values())
