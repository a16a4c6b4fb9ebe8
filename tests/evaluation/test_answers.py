# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Figures with their errors, the answers that they are of, and what is kept on disk."""

import json

import pytest
import torch
from PIL import Image

from modeling_mdm.evaluation.tables.answers import Answers
from modeling_mdm.evaluation.tables.estimates import by_id, mean_of, require_same_ids
from modeling_mdm.evaluation.tables.processes import item_noise, own_share


def test_a_mean_and_its_error():
    found = mean_of([1.0, 2.0, 6.0])
    assert found.value == 3 and found.num_items == 3
    assert found.standard_error == pytest.approx(((4 + 1 + 9) / 2 / 3) ** 0.5)
    assert mean_of([5.0]).standard_error is None
    with pytest.raises(ValueError, match="values is empty"):
        mean_of([])


def test_ids_must_be_the_same():
    require_same_ids({1: "a", 2: "b"}, {2: 0, 1: 0})
    with pytest.raises(ValueError, match="answers has none for 'b', 'c', 'd' and 2 more"):
        require_same_ids({"a": 0}, dict.fromkeys("abcdef"))
    with pytest.raises(ValueError, match="answers has 'z', which nobody asked for"):
        require_same_ids({"a": 0, "z": 0}, {"a": 0})
    with pytest.raises(ValueError, match="x has 1 more than once: leave one of each"):
        by_id([(1, "a"), (2, "b"), (1, "c")], "x")


def test_answers_are_kept(tmp_path):
    answers = Answers.open(tmp_path, {"seed": 0, "limit": None})
    answers.add("VQA", "7", text="a dress")
    answers.add("VQA", "8", text="é")
    answers.add("VQAv2", "7", text="other")
    again = Answers.open(tmp_path, {"seed": 0, "limit": None})
    assert again.of("VQA") == {"7": {"text": "a dress"}, "8": {"text": "é"}}
    assert again.of("captions") == {}
    with pytest.raises(ValueError, match=r"other settings \(limit=None, now 5; seed=0, now 1\)"):
        Answers.open(tmp_path, {"seed": 1, "limit": 5})
    with pytest.raises(ValueError, match="other settings"):
        Answers.open(tmp_path, {"seed": 0, "limit": None, "guidance_scale": 2.0})


def test_an_answer_that_was_torn_was_never_given(tmp_path):
    answers = Answers.open(tmp_path, {})
    answers.add("VQA", "7", text="a")
    file = tmp_path / "answers" / "VQA.0.jsonl"
    file.write_bytes(file.read_bytes() + b'{"item": "8", "te')
    assert set(answers.of("VQA")) == {"7"}
    answers.add("VQA", "8", text="b")
    assert answers.of("VQA") == {"7": {"text": "a"}, "8": {"text": "b"}}


def test_two_answers_to_one_item_are_refused(tmp_path, monkeypatch):
    answers = Answers.open(tmp_path, {})
    answers.add("VQA", "7", text="a")
    monkeypatch.setenv("RANK", "1")
    answers.add("VQA", "7", text="b")
    with pytest.raises(ValueError, match="answers of VQA has '7' more than once"):
        answers.of("VQA")


def test_a_picture_is_kept_whole(tmp_path):
    answers = Answers(tmp_path)
    answers.keep("c", "000001", Image.new("L", (4, 4), 7))
    with Image.open(answers.picture("c", "000001")) as kept:
        assert kept.getpixel((0, 0)) == 7
    assert [file.name for file in (tmp_path / "samples" / "c").iterdir()] == ["000001.png"]


def test_every_item_has_noise_of_its_own():
    def draw(*item, seed=0):
        return torch.randn(3, generator=item_noise(seed, *item))

    assert torch.equal(draw("a", 1), draw("a", 1))
    others = (draw("a", 2), draw("b", 1), draw("a", 1, seed=1), draw("a1"), draw("a", "1"))
    assert not any(torch.equal(draw("a", 1), other) for other in others)


def test_processes_share_items_out(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        shares.append(own_share(list(range(10))))
    assert sorted(one for share in shares for one in share) == list(range(10))
    assert shares[0] == [0, 3, 6, 9]


def test_settings_are_plain_json(tmp_path):
    Answers.open(tmp_path, {"scale": (1, 2)})
    assert json.loads((tmp_path / "settings.json").read_text()) == {"scale": [1, 2]}
    Answers.open(tmp_path, {"scale": (1, 2)})
