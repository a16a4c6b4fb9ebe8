# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""lm-eval's tasks by toys whose likelihoods are known, on local files in the sets' own schema."""

import math
from types import SimpleNamespace

import pyarrow.json
import pyarrow.parquet
import pytest
import torch
from tiny_text_sets import write_sets

REASON = 'needs lm-eval: pip install "modeling-mdm[eval-text]"'
pytest.importorskip("lm_eval", reason=REASON)
from lm_eval.api.instance import Instance  # noqa: E402

from modeling_mdm.evaluation.tables.answers import Answers  # noqa: E402
from modeling_mdm.evaluation.tables.language_model import MDMLanguageModel  # noqa: E402
from modeling_mdm.evaluation.tables.text_columns import (  # noqa: E402
    TEXT_COLUMNS,
    Source,
    load_tasks,
    num_items,
    text_figures,
    wanted,
)

# datasets and lm-eval open files that nobody closes, and warn of what is theirs.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


class Inputs(dict):
    def to(self, device):
        return self


class Words:
    """A processor whose inputs are the texts themselves."""

    max_text_length = 8

    def __call__(self, text, return_tensors):
        return Inputs(texts=[(None, one) for one in text])

    def apply_chat_template(self, conversations, **options):
        said = [[message["content"] for message in one] for one in conversations]
        return Inputs(texts=[(one[0], one[-1]) for one in said], **self.asked(options))

    @staticmethod
    def asked(options):
        return {"length": options["max_new_tokens"]} if "max_new_tokens" in options else {}

    def post_process(self, out, inputs):
        return [SimpleNamespace(text=text) for text in out]


class Toy(torch.nn.Module):
    """Scores texts by the words' probabilities, plus noise that all texts of a call share."""

    device = torch.device("cpu")

    def __init__(self, probabilities=None, own_noise=0.0):
        super().__init__()
        self.probabilities, self.own_noise = probabilities or {}, own_noise
        self.calls = []

    def score(self, texts, content, num_evaluations, generator):
        self.calls.append(texts)
        shared = torch.randn((), generator=generator)
        own = self.own_noise * torch.randn(len(texts), generator=generator)
        known = [
            sum(math.log(self.probabilities.get(word, 1e-3)) for word in words)
            for words in ([*(context or "").split()[-1:], *text.split()] for context, text in texts)
        ]
        return SimpleNamespace(log_likelihood=torch.tensor(known) + 5 * shared + own)

    def generate(self, texts, length, num_inference_steps, generator, show_progress):
        self.calls.append(texts)
        noise = [int(torch.randint(1000, (), generator=one)) for one in generator]
        return [
            f"{context} {length} {n} STOP more"
            for (context, _), n in zip(texts, noise, strict=True)
        ]


def language_model(toy, **options):
    return MDMLanguageModel(model=toy, processor=Words(), disable_tqdm=True, **options)


def asked(kind, *requests):
    """Requests of one task: the number of a question, and what is asked."""
    return [
        Instance(kind, {}, tuple(one), n, ("task", question, 1))
        for n, (question, *one) in enumerate(requests)
    ]


def test_a_toy_of_two_words_is_ranked_as_its_likelihood():
    toy = Toy({"yes": 0.7, "no": 0.3})
    lm = language_model(toy)
    found = lm.loglikelihood(
        asked("loglikelihood", (0, "q", " yes"), (0, "q", " no"), (1, "r", " yes yes"))
    )
    (yes, greedy), (no, _), _ = found
    assert yes - no == pytest.approx(math.log(0.7 / 0.3), abs=1e-5) and greedy is False
    assert [len(texts) for texts in toy.calls] == [2, 1]  # a question's choices at a time
    assert toy.calls[0] == [("q", "yes"), ("q", "no")]


def test_choices_share_noise_and_questions_do_not():
    lm = language_model(Toy({"yes": 0.5, "no": 0.5}))
    pairs = ((0, "q", "yes"), (0, "q", "no"), (1, "q", "yes"), (1, "q", "no"))
    (a, _), (b, _), (c, _), (d, _) = lm.loglikelihood(asked("loglikelihood", *pairs))
    assert a == b and c == d and a != c
    again = language_model(Toy({"yes": 0.5, "no": 0.5})).loglikelihood(
        asked("loglikelihood", *pairs[2:])
    )
    assert again[0][0] == c  # whatever was asked before
    other = language_model(Toy({"yes": 0.5, "no": 0.5}), seed=1)
    assert other.loglikelihood(asked("loglikelihood", *pairs))[0][0] != a


def test_a_text_without_context_stands_alone():
    toy = Toy({"yes": 0.5})
    lm = language_model(toy)
    (rolling,) = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (0, "yes yes")))
    assert toy.calls == [[(None, "yes yes")]]
    ((same, _),) = lm.loglikelihood(asked("loglikelihood", (0, "", "yes yes")))
    assert rolling == same


def test_answers_are_cut_at_a_stop_and_have_their_own_noise():
    lm = language_model(Toy(), batch_size=2)
    settings = {"until": ["STOP", "nothing"], "max_gen_toks": 5}
    pairs = [(n, f"context {n}", settings) for n in range(3)] + [(3, "context 3", {"until": []})]
    found = lm.generate_until(asked("generate_until", *pairs))
    assert [text.split()[:3] for text in found[:3]] == [["context", str(n), "5"] for n in range(3)]
    assert not any("STOP" in text for text in found[:3])
    assert found[3].startswith("context 3 8 ") and found[3].endswith("STOP more")
    one_by_one = language_model(Toy(), batch_size=1).generate_until(asked("generate_until", *pairs))
    assert one_by_one == found


def test_what_is_kept_is_not_asked_again(tmp_path):
    pairs = ((0, "q", "yes"), (0, "q", "no"), (1, "q", "yes"))
    answers = Answers.open(tmp_path, {})
    first = language_model(Toy({"yes": 0.5}), answers=answers)
    found = first.loglikelihood(asked("loglikelihood", *pairs[:2]))
    toy = Toy({"yes": 0.5})
    lm = language_model(toy, answers=answers)
    assert lm.loglikelihood(asked("loglikelihood", *pairs))[:2] == found
    assert toy.calls == [[("q", "yes")]]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="pass either pretrained= or model="):
        MDMLanguageModel()
    with pytest.raises(ValueError, match="device='nowhere' cannot be used here"):
        MDMLanguageModel(pretrained="x/y", device="nowhere")
    with pytest.raises(ValueError, match="num_evaluations=0 must be >= 1"):
        language_model(Toy(), num_evaluations=0)


def figures(name, folder, toy, num_draws=1, **options):
    write_sets(folder)
    answers = Answers.open(folder / "out", {})
    loaded = load_tasks(Source(name, folder), folder / "tasks")
    return text_figures(
        name, loaded, answers, toy, Words(), num_evaluations=2, num_draws=num_draws, seed=0,
        disable_tqdm=True, **options,
    )  # fmt: skip


SURE = {"a": 0.9, "dress": 0.9, "A": 0.1}


@pytest.mark.parametrize(
    "name", ["HellaSwag", "OpenBookQA", "WinoGrande", "ARC-E", "ARC-C", "BoolQ", "PIQA"]
)
def test_each_set_in_its_own_schema(name, tmp_path):
    found = figures(name, tmp_path, Toy(SURE))
    assert found.accuracy.num_items == 10
    assert len(found.calibration.confidence) == 10
    if name in ("BoolQ", "PIQA"):  # half of the answers are the dress, or yes
        assert found.accuracy.value == 50
        assert found.accuracy.standard_error == pytest.approx(100 * (0.25 / 9) ** 0.5)
    else:
        assert found.accuracy.value == 100 and found.accuracy.standard_error == 0


def test_a_model_that_knows_nothing_is_at_chance(tmp_path):
    """Draws of noise tell how far: 10 items of 4 choices, 20 draws."""
    found = figures("HellaSwag", tmp_path, Toy(own_noise=100.0), num_draws=20)
    assert abs(found.accuracy.value - 25) < 4 * found.noise_error
    assert found.noise_error == pytest.approx(100 * (0.25 * 0.75 / 200) ** 0.5, rel=0.4)
    assert found.num_draws == 20 and found.num_evaluations == 2


def test_how_sure_a_choice_is_against_how_often_it_is_right(tmp_path):
    """The dress at 0.9 and three others at 0.001, articles alike: the softmax of products."""
    sure = figures("OpenBookQA", tmp_path, Toy(SURE), num_draws=2).calibration
    assert sure.confidence == pytest.approx([0.9 / (0.9 + 3e-3)] * 20)
    assert all(sure.is_right)


def test_mathematics_is_written(tmp_path):
    class Solver(Toy):
        def generate(self, texts, **options):
            asked = [context.rsplit("Question: ", 1)[-1].split()[0] for context, _ in texts]
            return [f"so #### {int(n) + 1}" for n in asked]

    found = figures("GSM8K", tmp_path, Solver())
    assert found.accuracy.value == 100 and found.accuracy.num_items == 10
    assert found.calibration is None


def test_math_is_averaged_over_its_kinds(tmp_path):
    class Solver(Toy):
        def generate(self, texts, **options):
            return ["it is $0$" for _ in texts]

    found = figures("MATH", tmp_path, Solver())
    assert found.accuracy.value == 50 and found.accuracy.num_items == 14
    assert set(found.by_task.values()) == {50.0} and len(found.by_task) == 7


def test_parquet_is_read(tmp_path):
    write_sets(tmp_path, "piqa")
    lines = tmp_path / "piqa" / "validation.jsonl"
    table = pyarrow.json.read_json(lines)
    for n, part in enumerate((table.slice(0, 6), table.slice(6))):
        pyarrow.parquet.write_table(part, lines.with_name(f"validation-0000{n}-of-00002.parquet"))
    lines.unlink()
    column, source = TEXT_COLUMNS["PIQA"], Source("PIQA", tmp_path)
    assert wanted(column, tmp_path) == [] and num_items(source, None) == 10
    answers = Answers.open(tmp_path / "out", {})
    options = {"num_evaluations": 1, "num_draws": 1, "seed": 0, "disable_tqdm": True}
    loaded = load_tasks(Source("PIQA", tmp_path), tmp_path / "tasks")
    found = text_figures("PIQA", loaded, answers, Toy(SURE), Words(), **options)
    assert found.accuracy.num_items == 10 and found.accuracy.value == 50


def test_files_that_are_missing_are_listed(tmp_path):
    column, source = TEXT_COLUMNS["GSM8K"], Source("GSM8K", tmp_path)
    assert wanted(column, tmp_path) == [
        tmp_path / "gsm8k" / "test.jsonl",
        tmp_path / "gsm8k" / "train.jsonl",
    ]
    write_sets(tmp_path, "gsm8k")
    assert wanted(column, tmp_path) == []
    assert num_items(source, None) == 10 and num_items(source, 3) == 3
    assert len(wanted(TEXT_COLUMNS["MMLU"], tmp_path)) == 2 * 57
