# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""From inputs to content: what every position is; and faults, each told with its fix."""

import math

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from tiny_model import MIXERS, make_model

from modeling_mdm import MDMConfig, MDMForJointGeneration
from modeling_mdm.inputs import EncodedInputs, encode_classes, encode_images, encode_text
from modeling_mdm.vae import MDMVAE

CONFIG = {
    "vocab_size": 11,
    "patch_size": 2,
    "image_size": 4,
    "latent_dim": 6,
    "vae_hidden_size": 16,
    "hidden_size": 16,
    "head_dim": 8,
    "state_size": 4,
    "num_hidden_layers": 1,
    "num_classes": 3,
}


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = MDMVAE(MDMConfig(**CONFIG))
    for statistics in vae.statistics.values():
        statistics.mean.normal_()
        statistics.variance.uniform_(0.5, 2)
    return vae


@pytest.fixture(scope="module")
def model():
    return MDMForJointGeneration(MDMConfig(**CONFIG)).eval()


# --- Words


def test_words_become_content_position_by_position(vae):
    input_ids = torch.tensor([[4, 5, 6, 0], [7, 1, 1, 1]])
    attention_mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    text_given = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    turn_ids = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])
    part = encode_text(vae, input_ids, attention_mask, text_given, turn_ids)
    assert torch.equal(part.target, input_ids)
    assert torch.equal(part.content.valid, attention_mask.bool())
    assert torch.equal(part.content.given, text_given)
    assert torch.equal(part.content.turn, turn_ids)
    mean, logvar = vae.encode(input_ids, "text")
    assert torch.equal(part.posterior_mean, mean) and torch.equal(part.posterior_logvar, logvar)
    # Given positions use the standardised posterior mean.
    statistics = vae.statistics["text"]
    expected = (mean - statistics.mean) / statistics.variance.sqrt()
    torch.testing.assert_close(part.content.latents, expected, rtol=1e-4, atol=1e-5)


def test_words_are_all_real_and_to_be_written_in_turn_0_unless_said_otherwise(vae):
    content = encode_text(vae, torch.tensor([[4, 5, 6]])).content
    assert content.valid.all() and not content.given.any() and not content.turn.any()
    assert content.place.tolist() == [[0, 1, 2]]


@examples(
    valid=st.lists(st.booleans(), min_size=1, max_size=8),
    steps=st.lists(st.integers(0, 1), min_size=8, max_size=8),
    of_padding=st.lists(st.integers(0, 5), min_size=8, max_size=8),
)
@settings(max_examples=60)
def test_word_index_counts_the_real_words_of_a_turn(vae, valid, steps, of_padding):
    """Turns only rise; padding may stand anywhere and be said to belong to any turn."""
    length, turn = len(valid), 0
    turns = []
    for n in range(length):
        turn += steps[n]
        turns.append(turn if valid[n] else of_padding[n])
    ids, mask = torch.zeros(1, length, dtype=torch.long), torch.tensor([valid])
    place = encode_text(vae, ids, mask, None, torch.tensor([turns])).content.place[0]
    for n in range(length):
        if valid[n]:
            before = [m for m in range(n) if valid[m] and turns[m] == turns[n]]
            assert place[n].item() == len(before)


def test_word_index_of_a_prompt_a_region_and_padding(vae):
    mask = torch.tensor([[1, 1, 0, 1, 1, 0]])
    turn = torch.tensor([[0, 0, 0, 1, 1, 1]])
    place = encode_text(vae, torch.zeros(1, 6).long(), mask, None, turn).content.place
    assert place[0, [0, 1, 3, 4]].tolist() == [0, 1, 0, 1]


# --- Pictures


def test_a_patch_is_given_if_all_its_pixels_are_and_real_if_all_its_pixels_are(vae):
    image_given = torch.zeros(2, 4, 6, dtype=torch.bool)
    image_given[0, :2, :2] = True  # patch 0
    image_given[0, 2:, 3:] = True  # patch 5, and half of patch 4
    mask = torch.ones(2, 4, 6, dtype=torch.long)
    mask[1] = 0
    part, grid = encode_images(
        vae, torch.rand(2, 1, 4, 6), mask, image_given, torch.tensor([[3], [0]])
    )
    assert grid == (1, 2, 3)
    assert part.content.given.tolist() == [[True, False, False, False, False, True], [False] * 6]
    assert part.content.valid.tolist() == [[True] * 6, [False] * 6]
    assert part.content.turn.tolist() == [[3] * 6, [0] * 6]
    assert part.content.place[0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_several_pictures_stand_in_a_row_patch_by_patch(vae):
    pixels = torch.rand(2, 3, 1, 4, 2)
    given = torch.zeros(2, 3, 4, 2, dtype=torch.bool)
    given[1, 2] = True
    part, grid = encode_images(
        vae, pixels, image_given=given, image_turn_ids=torch.tensor([[0, 1, 2]] * 2)
    )
    assert grid == (3, 2, 1)
    for b in range(2):
        for m in range(3):
            for row in range(2):
                patch = pixels[b, m, 0, 2 * row : 2 * row + 2].flatten()
                assert torch.equal(part.target[b, 2 * m + row], patch)
    assert part.content.given.tolist() == [[False] * 6, [False] * 4 + [True] * 2]
    assert part.content.turn.tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    assert part.content.place[0].tolist() == [[0, 0], [1, 0]] * 3
    single, _ = encode_images(vae, pixels[:, 1])
    torch.testing.assert_close(single.posterior_mean, part.posterior_mean[:, 2:4])
    mean, _ = vae.encode(part.target, "image")
    statistics = vae.statistics["image"]
    expected = (mean - statistics.mean) / statistics.variance.sqrt()
    torch.testing.assert_close(part.content.latents, expected, rtol=1e-4, atol=1e-5)


def test_pictures_of_a_turn_stand_side_by_side(vae):
    pixels = torch.rand(2, 4, 1, 2, 4)  # a row of two patches each
    shown = torch.ones(2, 4, 2, 4)
    shown[1, 1] = 0
    turns = torch.tensor([[0, 0, 3, 0], [0, 0, 0, 3]])
    part, _ = encode_images(vae, pixels, shown, image_turn_ids=turns)
    columns = part.content.place[..., 1].view(2, 4, 2)
    assert columns[0].tolist() == [[0, 1], [2, 3], [0, 1], [4, 5]]
    assert columns[1, [0, 2, 3]].tolist() == [[0, 1], [2, 3], [0, 1]]  # nothing stands at [1, 1]
    assert not part.content.place[..., 0].any()


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_tells_the_pictures_of_a_turn_apart(mixer):
    model = make_model(torch.float64, **MIXERS[mixer]).eval()
    pair = torch.rand(1, 2, 1, 4, 4).double() * 2 - 1  # a patch each
    words = {"input_ids": torch.tensor([[5, 6]]), "text_given": torch.tensor([[True, False]])}
    noise = {"text": torch.ones(1, 2, 6).double(), "image": torch.ones(1, 2, 6).double()}
    outputs = [
        model(
            **words,
            pixel_values=pixels,
            image_given=torch.ones(1, 2, 4, 4).bool(),
            times={g: torch.full((1,), 0.5).double() for g in ("text", "image")},
            noise=noise,
            posterior_noise=noise,
            return_loss=False,
        ).logits[0, 1]
        for pixels in (pair, pair.flip(1))
    ]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-6


def test_pictures_are_all_real_and_to_be_written_in_turn_0_unless_said_otherwise(vae):
    part, _ = encode_images(vae, torch.rand(1, 1, 4, 4))
    assert part.content.valid.all() and not part.content.given.any()
    assert not part.content.turn.any()


# --- Classes and posteriors


def test_classes_are_read_and_absent_ones_are_minus_1():
    labels = encode_classes(torch.tensor([0, 2, -1]), 3, 3, torch.device("cpu"))
    assert labels.tolist() == [0, 2, -1]
    assert encode_classes(None, 3, 2, torch.device("cpu")).tolist() == [-1, -1]
    assert EncodedInputs({}, labels, (0, 0, 0)).has_class.tolist() == [True, True, False]


def test_posterior_samples_are_standardised_draws(vae):
    text = encode_text(vae, torch.tensor([[4, 5, 6]]))
    noise = torch.randn(1, 3, 6)
    inputs = EncodedInputs({"text": text}, torch.tensor([-1]), (0, 0, 0))
    (sample,) = inputs.sample_posterior({"text": noise}, vae).values()
    draw = text.posterior_mean + text.posterior_logvar.exp().sqrt() * noise
    statistics = vae.statistics["text"]
    expected = (draw - statistics.mean) / statistics.variance.sqrt()
    torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-5)


# --- Faults: the argument, the value and the fix are in the text


def words(**changes):
    return {"input_ids": torch.tensor([[4, 5, 6]]), **changes}


def picture(**changes):
    return {"pixel_values": torch.zeros(1, 1, 4, 4), **changes}


def pixels_with(value):
    pixels = torch.zeros(1, 1, 4, 4)
    pixels[0, 0, 1, 2] = value
    return picture(pixel_values=pixels)


TEXT_FAULTS = {
    "ids outside the vocabulary": (
        {"input_ids": torch.tensor([[4, 11]])},
        ["`input_ids`", "11", "vocabulary", "use the processor"],
    ),
    "negative ids": (
        {"input_ids": torch.tensor([[-100, 4]])},
        ["`input_ids`", "-100", "vocabulary", "use the processor"],
    ),
    "ids without a batch": (
        {"input_ids": torch.tensor([4, 5])},
        ["`input_ids`", "(2,)", "pass (batch, text_length)"],
    ),
    **{
        f"{name} of a wrong shape": (
            words(**{name: torch.ones(1, 4).long()}),
            [f"`{name}`", "(1, 4)", "must have that of `input_ids`", "(1, 3)"],
        )
        for name in ("attention_mask", "text_given", "turn_ids")
    },
}
IMAGE_FAULTS = {
    "NaN": (pixels_with(math.nan), ["`pixel_values`", "nan", "[-1, 1]", "image processor"]),
    "infinity": (pixels_with(math.inf), ["`pixel_values`", "inf", "[-1, 1]"]),
    "pixels of 0 to 255": (pixels_with(255.0), ["`pixel_values`", "255.0", "[-1, 1]"]),
    "pixels below -1": (pixels_with(-1.5), ["`pixel_values`", "-1.5", "[-1, 1]"]),
    "sides that patches do not fill": (
        picture(pixel_values=torch.zeros(1, 1, 4, 5)),
        ["`pixel_values`", "4 x 5", "multiples of `patch_size` = 2"],
    ),
    "no pixels": (
        picture(pixel_values=torch.zeros(1, 1, 0, 4)),
        ["`pixel_values`", "0 x 4", "multiples of `patch_size`"],
    ),
    "colour for a grey model": (
        picture(pixel_values=torch.zeros(1, 3, 4, 4)),
        ["`pixel_values`", "3 channels", "reads 1"],
    ),
    "no batch": (
        picture(pixel_values=torch.zeros(1, 4, 4)),
        ["`pixel_values`", "3 axes", "pass (batch, channels, height, width)"],
    ),
    **{
        f"{name} {of}": (
            picture(**{name: torch.ones(shape)}),
            [f"`{name}`", f"shape {shape}", "by pixel", "without channels, (1, 4, 4)"],
        )
        for name in ("image_given", "pixel_attention_mask")
        for of, shape in {"by patch": (1, 2, 2), "of another batch": (2, 4, 4)}.items()
    },
    "turns of the wrong number of pictures": (
        picture(image_turn_ids=torch.zeros(1, 2).long()),
        ["`image_turn_ids`", "(1, 2)", "one turn for each picture", "(1, 1)"],
    ),
}
CLASS_FAULTS = {
    "a class too many": ([3], ["`class_labels`", "3", "3 classes", "use 0 to 2"]),
    "a class below none": ([-2], ["`class_labels`", "-2", "3 classes", "-1 for none"]),
    "a class for two items": ([1, 1], ["`class_labels`", "(2,)", "one label an item", "(1,)"]),
}
EVERY_FAULT = {**TEXT_FAULTS, **IMAGE_FAULTS}
for name, (labels, said) in CLASS_FAULTS.items():
    EVERY_FAULT[name] = words(class_labels=torch.tensor(labels)), said
EVERY_FAULT["nothing at all"] = {}, ["`input_ids`", "`pixel_values`", "pass text, images or both"]
EVERY_FAULT["more texts than pictures"] = (
    {**picture(), "input_ids": torch.zeros(2, 3).long()},
    ["`input_ids` holds 2", "`pixel_values` 1", "pass as many of both"],
)


@pytest.mark.parametrize("fault", EVERY_FAULT)
def test_a_fault_raises_an_error_that_names_argument_value_and_fix(fault, model):
    inputs, said = EVERY_FAULT[fault]
    with pytest.raises(ValueError) as error:
        model(**inputs)
    for text in said:
        assert text in str(error.value)


def test_a_class_for_a_model_without_classes_is_refused_with_the_only_way_out():
    with pytest.raises(ValueError, match=r"`class_labels` holds 0: this model knows no classes"):
        encode_classes(torch.tensor([0]), 0, 1, torch.device("cpu"))
    assert encode_classes(torch.tensor([-1]), 0, 1, torch.device("cpu")).tolist() == [-1]


def test_rounding_at_the_ends_of_the_pixel_range_is_no_fault(vae):
    pixels = torch.full((1, 1, 2, 2), 1 + 1e-6)
    encode_images(vae, torch.cat([pixels, -pixels]))


def test_valid_inputs_of_every_kind_are_accepted(model):
    for inputs in (words(), picture(), {**words(), **picture()}):
        for labels in (None, torch.tensor([2]), torch.tensor([-1])):
            assert model(**inputs, class_labels=labels).loss.isfinite()
