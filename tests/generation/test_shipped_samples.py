# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The shipped checkpoint draws what it is asked and says what it sees: a broken sampler does not.

Ten pictures and ten captions, one of each class, in 6 steps, which is as few as leave no doubt.
Over 5 seeds the right code gave, of 10: pictures right 10 at every seed and with every solver;
captions right 10, or 9 at 1 to 2 seeds of 5 (never with Heun); of 10 pictures written together
with their captions 7 to 10 agree (10 seeds). Chance is 1 of 10. Turned about, the signs of the
v-prediction, of guidance, of Heun's step, of DPM-Solver's and of both parts of Eq. 3's mean each
made these tests fail. What they do not see, test_solvers.py does: Heun's provisional state, and
the noise that DDIM keeps, which may as well be its negative.
"""

from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling_mdm import MDMForJointGeneration, MDMProcessor
from modeling_mdm.data.captions import CaptionTable
from modeling_mdm.evaluation.judge import JudgeNetwork
from modeling_mdm.solvers import SOLVERS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CLASSES, STEPS, ENOUGH, ENOUGH_TOGETHER = range(10), 6, 8, 5


@pytest.fixture(scope="module")
def model():
    return MDMForJointGeneration.from_pretrained(EXAMPLES / "checkpoints" / "mdm-fashion").eval()


@pytest.fixture(scope="module")
def processor():
    return MDMProcessor.from_pretrained(EXAMPLES / "checkpoints" / "mdm-fashion")


@pytest.fixture(scope="module")
def judge():
    return JudgeNetwork.from_pretrained(EXAMPLES / "checkpoints" / "fashion-judge")


@pytest.fixture(scope="module")
def table():
    return CaptionTable.from_json(EXAMPLES / "captions" / "fashion_mnist.json")


def sample(model, processor, inputs, **options):
    out = model.generate(
        **processor(**inputs, return_tensors="pt"),
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        show_progress=False,
        **options,
    )
    return processor.post_process(out)


def agreeing(some, others):
    return sum(one == other for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("solver", SOLVERS)
def test_pictures_are_of_what_was_asked(model, processor, judge, table, solver):
    texts = [table.captions_of(label)[0] for label in CLASSES]
    inputs = {"text": texts, "generate": "image"}
    samples = sample(model, processor, inputs, solver={"image": solver})
    assert agreeing(judge.classify([one.image for one in samples]), CLASSES) >= ENOUGH


@pytest.mark.parametrize("solver", SOLVERS)
def test_captions_name_what_is_seen(model, processor, table, solver):
    paths = sorted((EXAMPLES / "pictures" / "fashion_mnist").glob("*.png"))
    assert [int(path.name[0]) for path in paths] == list(CLASSES)
    inputs = {"images": [Image.open(path) for path in paths], "generate": "text"}
    samples = sample(model, processor, inputs, solver={"text": solver})
    assert agreeing([table.label_of(one.text) for one in samples], CLASSES) >= ENOUGH


def test_pictures_and_captions_that_were_written_together_agree(model, processor, judge, table):
    samples = sample(model, processor, {"generate": "joint"}, num_return_sequences=10)
    said = [table.label_of(one.text) for one in samples]
    assert agreeing(judge.classify([one.image for one in samples]), said) >= ENOUGH_TOGETHER
