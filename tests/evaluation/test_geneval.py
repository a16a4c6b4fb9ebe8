# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""GenEval's rules on detections made by hand, and its networks at a tiny size."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from modeling_mdm.evaluation.tables.geneval import (
    COLORS,
    Detection,
    Verdict,
    believable,
    geneval_figures,
    judge,
    read_prompts,
    relations,
)
from modeling_mdm.evaluation.tables.geneval_eyes import ColorNamer, Detector, box_of, crop


def at(x, y, size=10, score=0.95):
    return Detection((x, y, x + size, y + size), score)


def all_of(color):
    return lambda things, name: [color] * len(things)


def prompt(tag, *include, exclude=()):
    return {"tag": tag, "include": list(include), "exclude": list(exclude)}


def thing(name, count=1, **more):
    return {"class": name, "count": count, **more}


def is_right(asked, found, sees_colors=None):
    return judge(asked, found, sees_colors or all_of("red")).is_right


def test_a_thing_counts_above_its_threshold():
    asked = prompt("single_object", thing("dog"))
    assert is_right(asked, {"dog": [at(0, 0, score=0.31)]})
    assert not is_right(asked, {"dog": [at(0, 0, score=0.3)]})
    assert not is_right(asked, {"cat": [at(0, 0)]})
    assert not is_right(asked, {})
    assert is_right(asked, {"dog": [at(0, 0), at(20, 0)]})  # more of them are no harm


def test_two_things_must_both_be_there():
    asked = prompt("two_object", thing("dog"), thing("cup"))
    assert is_right(asked, {"dog": [at(0, 0)], "cup": [at(30, 0)]})
    verdict = judge(asked, {"dog": [at(0, 0)]}, all_of("red"))
    assert not verdict.is_right and verdict.reasons == ("cup: 0, 1 expected",)


@pytest.mark.parametrize("count, right", [(1, False), (2, True), (3, False)])
def test_counting_is_exact(count, right):
    asked = prompt("counting", thing("dog", 2), exclude=[thing("dog", 3)])
    assert is_right(asked, {"dog": [at(20 * n, 0) for n in range(count)]}) is right


def test_counting_asks_for_surer_things():
    asked = prompt("counting", thing("dog", 2), exclude=[thing("dog", 3)])
    two, doubtful = [at(0, 0), at(20, 0)], at(40, 0, score=0.9)
    assert is_right(asked, {"dog": [*two, doubtful]})
    assert not is_right(asked, {"dog": [*two, at(40, 0, score=0.901)]})


def test_the_surest_sixteen_come_first():
    scores = np.linspace(0.31, 0.99, 20)
    kept = believable({"dog": [at(0, 0, score=score) for score in scores]}, "single_object")
    assert [one.score for one in kept["dog"]] == sorted(scores, reverse=True)[:16]
    assert believable({"dog": [at(0, 0, score=0.1)]}, "single_object") == {}


def test_colors():
    asked = prompt("colors", thing("dog", color="red"))
    assert is_right(asked, {"dog": [at(0, 0)]})
    assert not is_right(asked, {"dog": [at(0, 0)]}, all_of("blue"))

    def first_is_blue(things, name):
        return ["blue" if one.box[0] == 0 else "red" for one in things]

    # Only the surest is looked at.
    assert not is_right(asked, {"dog": [at(0, 0, score=0.9), at(20, 0, score=0.8)]}, first_is_blue)
    assert is_right(asked, {"dog": [at(0, 0, score=0.7), at(20, 0, score=0.8)]}, first_is_blue)


def test_two_things_of_two_colors():
    asked = prompt("color_attr", thing("dog", color="red"), thing("cup", color="blue"))
    found = {"dog": [at(0, 0)], "cup": [at(30, 0)]}
    own = {"dog": "red", "cup": "blue"}
    assert is_right(asked, found, lambda things, name: [own[name]] * len(things))
    assert not is_right(asked, found)


@pytest.mark.parametrize(
    "x, y, expected",
    [
        (30, 0, {"right of"}),
        (-30, 0, {"left of"}),
        (0, 30, {"below"}),
        (0, -30, {"above"}),
        (30, 30, {"right of", "below"}),
        (2, 0, set()),  # 0.1 of 10 + 10: not apart
        (2.1, 0, set()),  # apart by 0.1 of 2.1 only
        (4.5, 0, {"right of"}),  # (4.5 - 2) / 4.5 > 1 / 2
        (3.9, 0, set()),
        (30, 12, {"right of"}),
        (0, 0, set()),
    ],
)
def test_where_one_thing_lies_of_another(x, y, expected):
    assert relations(at(100 + x, 100 + y), at(100, 100)) == expected


def test_position():
    asked = prompt("position", thing("cup"), thing("dog", position=["left of", 0]))
    assert is_right(asked, {"cup": [at(50, 0)], "dog": [at(0, 0)]})
    assert not is_right(asked, {"cup": [at(0, 0)], "dog": [at(50, 0)]})
    verdict = judge(asked, {"dog": [at(0, 0)]}, all_of("red"))
    assert verdict.reasons == ("cup: 0, 1 expected", "dog: nothing that it could be left of")


def test_the_score_is_the_mean_of_the_categories():
    verdicts = [Verdict("counting", n < 1) for n in range(4)] + [Verdict("colors", True)] * 2
    found = geneval_figures(verdicts)
    assert found.by_category["counting"].value == 0.25 and found.by_category["colors"].value == 1
    assert found.score.value == pytest.approx(0.625) and found.score.num_items == 6
    of_counting = (0.75 * 0.25 * 4 / 3 / 4) ** 0.5
    assert found.score.standard_error == pytest.approx(of_counting / 2)
    assert list(found.by_category) == ["counting", "colors"]
    assert geneval_figures(verdicts[-1:]).score.standard_error is None
    with pytest.raises(ValueError, match="verdicts is empty"):
        geneval_figures([])


def test_prompts_are_read(tmp_path):
    file = tmp_path / "evaluation_metadata.jsonl"
    line = {"tag": "colors", "include": [thing("dog", color="red")], "prompt": "a red dog"}
    file.write_text(json.dumps(line) + "\n")
    assert read_prompts(file) == [line]
    file.write_text(json.dumps(line | {"tag": "colours"}) + "\n")
    with pytest.raises(ValueError, match="line 1: a prompt needs `prompt`, and a `tag` of single_"):
        read_prompts(file)


def test_a_box_and_what_is_cut_out():
    mask = np.zeros((6, 8), dtype=bool)
    mask[2:4, 3:7] = True
    mask[2, 3] = False
    assert box_of(mask) == (3, 2, 7, 4)
    cut = crop(Image.new("RGB", (8, 6), "red"), Detection(box_of(mask), 1.0, mask))
    assert cut.size == (4, 2)
    assert cut.getpixel((0, 0)) == (153, 153, 153) and cut.getpixel((1, 0)) == (255, 0, 0)


def test_weights_that_are_missing_are_named(tmp_path):
    with pytest.raises(OSError, match=r"detector='.*none' could not be loaded: GenEval needs its"):
        Detector(str(tmp_path / "none"))
    with pytest.raises(OSError, match="color_model='nobody/nothing' could not be loaded"):
        ColorNamer("nobody/nothing")


def tiny_detector(folder):
    size, names = {"height": 64, "width": 64}, {0: "dog", 1: "mouse"}
    backbone = transformers.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32),
        **dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), 16),
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        id2label=names,
    )
    transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    transformers.Mask2FormerImageProcessor(size=size).save_pretrained(folder)
    return str(folder)


def test_the_detector_gives_what_its_masks_show(tmp_path):
    detector = Detector(tiny_detector(tmp_path))
    with torch.no_grad():
        detector.model.class_predictor.bias[:] = torch.tensor([0.0, 6.0, 0.0])  # all are mice
    found = detector(Image.new("L", (50, 40), 200))
    assert list(found) == ["computer mouse"]
    for one in found["computer mouse"]:
        assert one.mask.shape == (40, 50) and one.box == box_of(one.mask) and one.score >= 0.3


def tiny_clip(folder):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "projection_dim": 8}
    letters = "abcdefghijklmnopqrstuvwxyz-"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>"]
    vocab = {token: n for n, token in enumerate([*tokens, "<|endoftext|>"])}
    ids = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config=shape | {"vocab_size": len(vocab)} | ids,
        vision_config=shape | {"image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    reader = transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8)
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=[])
    transformers.CLIPProcessor(reader, tokenizer).save_pretrained(folder)
    return str(folder)


def test_colors_are_named_by_the_nearest_mean_of_three_phrasings(tmp_path):
    namer = ColorNamer(tiny_clip(tmp_path))
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
    things = [at(0, 0), at(10, 10)]
    model, reader = namer.model, namer.processor

    def direction(output):
        values = getattr(output, "pooler_output", output).double()
        return values / values.norm(dim=-1, keepdim=True)

    means = []
    for color in COLORS:
        said = [f"a photo of a {color} cup", f"a photo of a {color}-colored cup"]
        said = [
            reader(text=text, return_tensors="pt")
            for text in [*said, f"a photo of a {color} object"]
        ]
        with torch.no_grad():
            means.append(sum(direction(model.get_text_features(**text)) for text in said))
    crops = [picture.crop((0, 0, 10, 10)), picture.crop((10, 10, 20, 20))]
    with torch.no_grad():
        seen = direction(model.get_image_features(**reader(images=crops, return_tensors="pt")))
    means = torch.cat(means)
    nearest = (seen @ (means / means.norm(dim=-1, keepdim=True)).T).argmax(-1)
    assert namer(picture, things, "cup") == [COLORS[index] for index in nearest]
