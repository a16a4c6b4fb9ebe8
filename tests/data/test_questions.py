# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions about pictures and the accuracy of answers to them."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_digits import ROOT
from tiny_processor import END, GOWN, PAD, A, make_processor, picture
from tiny_questions import FASHION_CAPTIONS, make_pictures, make_questions, make_talks
from tiny_talks import assistant, make_config, say, show, user

from modeling_mdm import MDMForJointGeneration
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.data.pictures import PictureDataset, Source
from modeling_mdm.data.questions import DRAWING, GARMENTS, KINDS, WHICH, FashionQuestions
from modeling_mdm.evaluation.figures import Sampling
from modeling_mdm.evaluation.questions import (
    answer_accuracy,
    question_figures,
    reply_accuracy,
    reply_figures,
)
from modeling_mdm.evaluation.tasks import Bench, EvaluationArguments, measure


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def label_of(part):
    return int(np.asarray(part["image"])[0, 0]) // 20


def test_questions_are_answered_by_the_labels():
    questions = make_questions(seed=3)
    counts = dict.fromkeys(KINDS, 0)
    said_yes, asked_for = [], set()
    for index in range(len(questions)):
        item = questions[index]
        counts[item["kind"]] += 1
        *pictures, question = item["messages"][0]["content"]
        answer = item["messages"][1]["content"][0]["text"]
        labels = [label_of(part) for part in pictures]
        if item["kind"] == "yes or no":
            said_yes.append(answer == "yes")
            asked_for.add(question["text"])
            # Sandal, sneaker and ankle boot are footwear; else one class is asked for.
            (name,) = re.fullmatch(r"is this (.*)\?", question["text"]).groups()
            fits = {5, 7, 9} if name == "footwear" else {GARMENTS.index(name)}
            assert (answer == "yes") == (labels[0] in fits)
        elif item["kind"] == "what":
            assert answer == GARMENTS[labels[0]]
        else:
            asked = labels[("first", "second").index(answer)]
            assert question["text"] == WHICH.format(GARMENTS[asked])
            assert labels[0] != labels[1]
    assert min(counts.values()) > 40
    assert 0.3 < np.mean(said_yes) < 0.7
    assert asked_for == {"is this footwear?", *(f"is this {name}?" for name in GARMENTS)}


def test_some_kinds_can_be_asked_more_often():
    asked = [make_questions(seed=3, weights=[1, 0, 3])[n]["kind"] for n in range(200)]
    assert "what" not in asked and 0.65 < asked.count("which") / 200 < 0.85
    only = make_questions(weights=[0.0, 0.0, 0.1])
    assert {only[n]["kind"] for n in range(50)} == {"which"}


def test_questions_depend_on_seed_epoch_and_index_alone():
    one, two = make_questions(seed=3), make_questions(seed=3)
    assert [one[n]["messages"] for n in (5, 7)] != [one[n]["messages"] for n in (7, 5)]
    shown = [str(one[n]["messages"][0]["content"][-1]) for n in range(50)]
    assert shown[::-1] == [str(two[n]["messages"][0]["content"][-1]) for n in range(49, -1, -1)]
    two.set_epoch(1)
    assert shown != [str(two[n]["messages"][0]["content"][-1]) for n in range(50)]


def test_some_items_ask_for_a_picture():
    table = CaptionTable(labels=tuple((f"thing {n}",) for n in range(10)), templates=("see {}",))
    questions = make_questions(drawings=0.5, captions=table)
    items = [questions[n] for n in range(200)]
    drawings = [item for item in items if item["kind"] == DRAWING]
    assert 60 < len(drawings) < 140
    for item in drawings:
        (asked,), (drawn,) = (message["content"] for message in item["messages"])
        assert asked["text"] == f"see thing {label_of(drawn)}"


def test_the_names_are_those_of_the_caption_table():
    table = CaptionTable.from_json(ROOT / "examples" / "captions" / "fashion_mnist.json")
    assert tuple(names[0] for names in table.labels) == GARMENTS


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"drawings": 1.0}, r"drawings=1\.0 must"),
        ({"drawings": 0.5}, "needs captions"),
        ({"weights": [1, 1]}, r"weights=\[1, 1\] must be 3 numbers"),
        ({"weights": [1, 1, -1]}, r"weights=\[1, 1, -1\] must"),
        ({"weights": [0, 0, 0]}, r"weights=\[0, 0, 0\] must"),
    ],
)
def test_faults_of_questions(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_questions(**kwargs)
    unlabelled = PictureDataset(Source(np.zeros((3, 8, 8), np.uint8), texts=["a"] * 3))
    with pytest.raises(ValueError, match="without a label"):
        FashionQuestions(unlabelled)


def test_accuracy_is_the_share_of_answers_word_for_word(processor):
    model = MDMForJointGeneration(make_config(processor)).eval()
    items = [
        {"messages": [user(say("a")), assistant(say(answer))], "kind": kind}
        for answer, kind in (("a gown", "x"), ("a dress", "x"), ("a gown", "y"))
    ]

    class AlwaysAGown:
        training, device = False, torch.device("cpu")
        eval = train = lambda self, mode=True: self

        def generate(self, input_ids, turn_ids, **kwargs):
            assert kwargs["num_inference_steps"] == 3
            sequences = torch.where(turn_ids == 1, PAD, input_ids)
            for row, turns in zip(sequences, turn_ids, strict=True):
                (places,) = (turns == 1).nonzero(as_tuple=True)
                row[places[:3]] = torch.tensor([A, GOWN, END])
            return sequences

    def ask(model, **kwargs):
        return answer_accuracy(
            model, processor, items, max_new_tokens=4, batch_size=2, num_inference_steps=3, **kwargs
        )

    assert ask(AlwaysAGown()) == {"all": 2 / 3, "x": 0.5, "y": 1.0}
    assert set(ask(model)) == {"all", "x", "y"}
    with pytest.raises(ValueError, match="items is empty"):
        answer_accuracy(model, processor, [])


def test_a_model_chooses_what_a_reply_holds(processor):
    """The share of requests that get words, a picture or both as their answer has."""
    answers = {
        "text": assistant(say("a gown")),
        "image": assistant(show(picture(1))),
        "joint": assistant(say("a gown"), show(picture(1))),
    }
    items = [
        {"messages": [user(say("a")), answers[kind]], "kind": kind}
        for kind in ("text", "image", "joint", "joint")
    ]

    class Chooses:
        training, device = True, torch.device("cpu")
        modes = iter(["text", "text", "joint", "image"])
        eval = train = lambda self, mode=True: self

        def generate(self, input_ids, generation_mode, num_inference_steps, **kwargs):
            assert generation_mode == "auto"
            assert len(input_ids) <= 2 and (input_ids == END).any()
            return SimpleNamespace(generation_modes=[next(self.modes) for _ in input_ids])

    shares = reply_accuracy(Chooses(), processor, items, batch_size=2)
    assert shares == {"all": 0.5, "text": 1.0, "image": 0.0, "joint": 0.5}
    Chooses.modes = iter(["text", "text", "joint", "image"])
    figures = reply_figures(Chooses(), processor, items, Sampling(batch_size=2))
    assert (figures.share_right, figures.num_samples) == (0.5, 4)
    ((task, count, _, right, worst),) = figures.rows([])
    assert (task, count, right, worst) == ("replies of the right kind", "4", "50.0%", "image 0.0%")
    with pytest.raises(ValueError, match="items is empty"):
        reply_accuracy(Chooses(), processor, [])
    model = MDMForJointGeneration(make_config(processor)).eval()
    with pytest.raises(ValueError, match="no mode head"):
        reply_accuracy(model, processor, items)


def test_a_model_with_a_mode_head_replies(processor):
    model = MDMForJointGeneration(make_config(processor, use_mode_head=True))
    talks = make_talks(seed=1)
    items = [item for n in range(400) if (item := talks[n])["kind"] == "both"][:6]
    shares = reply_accuracy(model, processor, items)
    assert set(shares) == {"all", "both"} and model.training
    asked = [{"messages": [user(say("a")), assistant(say("a gown"))], "kind": "x"}] * 3
    figures = question_figures(model, processor, asked, Sampling(num_inference_steps=2))
    assert figures.num_samples == 3 and set(figures.share_right_by_kind) == {"x"}


def test_mdm_evaluate_asks_held_out_questions_of_all_kinds(processor, tmp_path):
    path = tmp_path / "none"
    chosen = EvaluationArguments("c", "j", str(path), tasks=["questions", "replies"], num_samples=4)
    chosen.num_inference_steps = 2
    captions = CaptionTable.from_json(FASHION_CAPTIONS)
    model = MDMForJointGeneration(make_config(processor, use_mode_head=True))
    bench = Bench(model, processor, None, captions, chosen)
    bench.pictures = make_pictures()
    figures = measure(bench)
    assert {name: found.num_samples for name, found in figures.items()} == {
        "questions": 4,
        "replies": 4,
    }
    assert not {"questions", "replies"} & set(EvaluationArguments("c", "j", str(path)).tasks)
