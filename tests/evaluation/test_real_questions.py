# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The text columns on real questions, BIG-bench's, where they are (`real_questions` says how)."""

import json

import pytest
from real_questions import FOLDER, RANKED, WRITTEN, ranked, write_questions, written

pytest.importorskip("lm_eval", reason='needs `pip install "modeling-mdm[eval-text]"`')
from test_text_columns import Toy, Words

from modeling_mdm.evaluation.tables.answers import Answers
from modeling_mdm.evaluation.tables.text_columns import (
    Source,
    load_tasks,
    text_figures,
)

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
needs_bigbench = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="needs BIG-bench's files: tests/support/real_questions.py"
)


def test_rows_of_a_schema_that_is_known():
    colours = {"input": "Which?", "target_scores": {"red": 0, "purple": 1, "blue": 0}}
    assert ranked(colours) == {
        "question": "Which?",
        "choices": {"text": ["red", "purple", "blue"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    }
    assert ranked({"input": "x", "target_scores": {"a": 1, "b": 1}}) is None
    assert ranked({"input": "x", "target": "3"}) is None
    assert written({"input": "x", "target": ["three", "3"]})["answer"] == "#### 3"
    assert written({"input": "x", "target": "-12"})["answer"] == "#### -12"
    assert written({"input": "x", "target": "three"}) is None


def measured(name, root, toy):
    loaded = load_tasks(Source(name, root), root / "tasks")
    answers = Answers.open(root / "out", {})
    options = {"num_evaluations": 1, "num_draws": 1, "seed": 0, "disable_tqdm": True}
    return text_figures(name, loaded, answers, toy, Words(), **options)


def rows_of(root, name):
    return [json.loads(line) for line in (root / name / "test.jsonl").read_text().splitlines()]


@needs_bigbench
@pytest.mark.slow
@pytest.mark.parametrize("task", RANKED)
def test_a_model_that_knows_nothing_is_at_chance(task, tmp_path):
    write_questions(task, tmp_path, "arc_easy", {"test": 200}, ranked)
    chances = [1 / len(row["choices"]["text"]) for row in rows_of(tmp_path, "arc_easy")]
    found = measured("ARC-E", tmp_path, Toy(own_noise=1e6))
    chance = sum(chances) / 200
    error = sum(one * (1 - one) for one in chances) ** 0.5 / 200
    assert found.accuracy.num_items == 200
    assert abs(found.accuracy.value / 100 - chance) < 3 * error


@needs_bigbench
@pytest.mark.slow
@pytest.mark.parametrize("task", WRITTEN)
def test_right_answers_are_right(task, tmp_path):
    write_questions(task, tmp_path, "gsm8k", {"test": 50, "train": 5}, written)
    rows = rows_of(tmp_path, "gsm8k")
    by_question = {row["question"]: row["answer"] for row in rows[:25]}  # it knows half

    class Solver(Toy):
        def generate(self, texts, **options):
            asked = [one.rsplit("Question: ", 1)[-1].rsplit("\nAnswer:", 1)[0] for one, _ in texts]
            return [by_question.get(one, "#### nothing") for one in asked]

    found = measured("GSM8K", tmp_path, Solver())
    known = sum(row["question"] in by_question for row in rows)
    assert found.accuracy.value == pytest.approx(100 * known / 50) and 25 <= known < 50
