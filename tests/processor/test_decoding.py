# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The way back: from what the model wrote to words and pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_processor import AN, DRESS, END, GOWN, IS, MASK, OF, PAD, SIDE, WHAT, A, picture, pixels

from modeling_mdm.processor.samples import MDMSample


def generated(rows=None, images=None, **more):
    sequences = None if rows is None else torch.tensor(rows)
    return SimpleNamespace(sequences=sequences, images=images, **more)


ROWS = {
    "region": ([A, DRESS, END, PAD, PAD], "a dress", None),
    "region without end": ([A, DRESS, AN], "a dress a", None),
    "region closed by padding": ([A, DRESS, PAD, GOWN], "a dress", None),
    "prompt and region": ([A, WHAT, END, A, GOWN, END, PAD], "a gown", "a what"),
    "prompt and region without end": ([A, WHAT, END, A, GOWN], "a gown", "a what"),
    "prompts and region": ([A, END, WHAT, END, A, GOWN, END], "a gown", "a what"),
    "nothing": ([PAD, PAD], "", None),
    "only an end": ([END, PAD], "", None),
}


@pytest.mark.parametrize("name", ROWS)
def test_texts(processor, name):
    row, text, prompt = ROWS[name]
    assert processor.post_process(generated([row])) == [MDMSample(text, None, prompt)]


def test_turns_tell_prompt_from_region(processor):
    """Where the model wrote nothing, or something after `<end>`, only turns tell what is what."""
    inputs = processor(text=["a what", "a"], generate="text", max_new_tokens=4, return_tensors="pt")
    rows = [[A, WHAT, END, END, PAD, PAD, PAD], [A, END, A, GOWN, END, OF, PAD]]
    expected = [MDMSample("", None, "a what"), MDMSample("a gown", None, "a")]
    assert processor.post_process(generated(rows), inputs=inputs) == expected
    assert processor.post_process(generated(rows, turn_ids=inputs["turn_ids"])) == expected
    assert [sample.text for sample in processor.post_process(generated(rows))] == ["a what", " of"]


def test_turns_of_a_region_that_generate_opened(processor):
    """`generation_mode="text"` appends a region behind the text, alignment padding and all."""
    inputs = processor(text=["a what", "a"], return_tensors="pt")
    rows = [[A, WHAT, END, A, END, OF], [A, END, PAD, GOWN, END, PAD]]
    samples = processor.post_process(generated(rows), inputs=inputs)
    assert samples == [MDMSample("a", None, "a what"), MDMSample(" gown", None, "a")]
    samples = processor.post_process(generated([[A, END, OF]]), inputs={"pixel_values": None})
    assert samples == [MDMSample("a")]


def test_a_region_without_a_prompt(processor):
    inputs = processor(generate="joint", max_new_tokens=4, return_tensors="pt")
    samples = processor.post_process(generated([[A, END, OF, END]]), inputs=inputs)
    assert samples == [MDMSample("a")]


def test_several_samples_of_each_item(processor):
    inputs = processor(text=["a what", "a"], generate="text", max_new_tokens=2, return_tensors="pt")
    rows = [[A, WHAT, END, A, END]] * 2 + [[A, END, GOWN, END, PAD]] * 2
    samples = processor.post_process(generated(rows), inputs=inputs)
    assert [sample.prompt for sample in samples] == ["a what", "a what", "a", "a"]
    assert [sample.text for sample in samples] == ["a", "a", " gown", " gown"]
    with pytest.raises(ValueError, match="inputs has 2 items, which do not divide 3 outputs"):
        processor.post_process(generated(rows[:3]), inputs=inputs)


def test_texts_with_special_tokens(processor):
    rows = [[A, WHAT, END, MASK, PAD]]
    (sample,) = processor.post_process(generated(rows), skip_special_tokens=False)
    assert sample.text == "a what<end><mask><pad>"
    (sample,) = processor.post_process(generated([[A, MASK, WHAT, END]]))
    assert sample.text == "a what"


def test_images_and_texts(processor):
    images = torch.stack([pixels(picture(0)), pixels(picture(1))])[:, None]
    samples = processor.post_process(generated([[A, END], [GOWN, END]], images))
    assert [sample.text for sample in samples] == ["a", " gown"]
    for seed, sample in enumerate(samples):
        np.testing.assert_array_equal(np.asarray(sample.image), np.asarray(picture(seed)))
    samples = processor.post_process(generated(None, images))
    assert [(sample.text, sample.image.size) for sample in samples] == [(None, (SIDE, SIDE))] * 2


def test_nothing_generated(processor):
    with pytest.raises(ValueError, match="outputs has neither sequences nor images; pass what"):
        processor.post_process(generated())


def test_what_pipelines_call(processor):
    """Pipelines cut the decoded prompt off the decoded row, so a row is decoded whole."""
    rows = torch.tensor([[A, WHAT, END, A, GOWN, END, PAD]])
    images = pixels(picture())[None, None]
    for outputs in (rows, generated(rows.tolist(), images)):
        for decode in (
            processor.post_process_image_text_to_text,
            processor.post_process_multimodal_output,
        ):
            assert decode(outputs) == ["a whata gown"]
            assert decode(outputs, skip_special_tokens=False) == ["a what<end>a gown<end><pad>"]
    for outputs in (images, generated(None, images)):
        (image,) = processor.post_process_multimodal_output(outputs, generation_mode="image")
        np.testing.assert_array_equal(np.asarray(image), np.asarray(picture()))
    with pytest.raises(ValueError, match="generated_outputs has no images; generate with"):
        processor.post_process_multimodal_output(rows, generation_mode="image")
    with pytest.raises(ValueError, match="generated_outputs has no sequences; generate with"):
        processor.post_process_image_text_to_text(images)
    with pytest.raises(ValueError, match="generation_mode='joint' is unknown"):
        processor.post_process_multimodal_output(rows, generation_mode="joint")


def test_decoding(processor):
    assert processor.decode([A, WHAT, END]) == "a what<end>"
    assert processor.batch_decode([[A, END], [A, IS]], skip_special_tokens=True) == ["a", "a is"]
