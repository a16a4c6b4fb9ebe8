# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The usual keyword arguments of a processor: how words are cut and aligned, what is refused."""

import json

import numpy as np
import pytest
import torch
from tiny_processor import (
    DRESS,
    END,
    GOWN,
    LENGTH,
    MASK,
    OF,
    PAD,
    PHOTO,
    SIDE,
    A,
    make_processor,
    picture,
)
from tiny_talks import QUESTION, TALK, assistant, make_model, read, say, short_run, show, user

from modeling_mdm.processor.image_processing_mdm import MDMImageProcessor
from modeling_mdm.processor.image_processing_pil_mdm import MDMImageProcessorPil


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def model(processor):
    return make_model(processor)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, [[A, PHOTO, END], [A, END, PAD]]),
        ({"padding": "max_length", "max_length": 4}, [[A, PHOTO, END, PAD], [A, END, PAD, PAD]]),
        ({"text_kwargs": {"pad_to_multiple_of": 4}}, [[A, PHOTO, END, PAD], [A, END, PAD, PAD]]),
        ({"padding_side": "left"}, [[A, PHOTO, END], [PAD, A, END]]),
        ({"truncation": True, "max_length": 2}, [[A, END], [A, END]]),
        ({"truncation": True, "max_length": 2, "padding": False}, [[A, END], [A, END]]),
    ],
)
def test_rows_of_texts(processor, options, rows):
    inputs = processor(text=["a photo", "a"], **options)
    assert inputs["input_ids"] == rows
    assert inputs["attention_mask"] == [[int(word != PAD) for word in row] for row in rows]
    assert inputs["text_given"] == [[word != PAD for word in row] for row in rows]


def test_a_longer_text_than_usual(processor):
    text = "a" + " of" * (LENGTH + 1)
    (row,) = processor(text=text, max_length=LENGTH + 3)["input_ids"]
    assert row == [A, *[OF] * (LENGTH + 1), END]
    with pytest.raises(ValueError, match=f"more than max_length={LENGTH + 2}; shorten it, or"):
        processor(text=text, max_length=LENGTH + 2)


def test_what_the_tokenizer_was_made_with_is_the_default():
    own = make_processor()
    own.tokenizer.init_kwargs |= {"padding": "max_length", "max_length": 5}
    try:
        assert own(text="a")["input_ids"] == [[A, END, PAD, PAD, PAD]]
        assert own(text="a", padding="longest")["input_ids"] == [[A, END]]
    finally:
        del own.tokenizer.init_kwargs["padding"], own.tokenizer.init_kwargs["max_length"]


def test_options_of_pictures_alone_and_in_a_dictionary(processor):
    image = picture(shape=(12, 20))
    size = {"height": 12, "width": 4}
    expected = processor(images=image, image_size=(12, 4), return_tensors="pt")
    for options in ({"size": size}, {"images_kwargs": {"size": size}}):
        inputs = processor(images=image, **options, return_tensors="pt")
        assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
    brighter = processor(images=image, rescale_factor=0.0, return_tensors="pt")
    assert (brighter["pixel_values"] == -1).all()


def test_a_conversation_has_its_options_too(processor):
    (words,) = processor.apply_chat_template(QUESTION, tokenize=True)
    assert words == [A, DRESS, END]

    def rows(conversation, **options):
        return processor.apply_chat_template(conversation, tokenize=True, processor_kwargs=options)

    padded = {"padding": "max_length", "max_length": 5}
    assert rows(QUESTION, **padded) == [[A, DRESS, END, PAD, PAD]]
    assert rows(QUESTION, **padded, padding_side="left") == [[PAD, PAD, A, DRESS, END]]
    assert rows(QUESTION, truncation=True, max_length=2) == [[A, DRESS]]
    with pytest.raises(ValueError, match="has 3 tokens, more than max_length=2; shorten it"):
        rows(QUESTION, max_length=2)
    opened = read(
        processor,
        QUESTION,
        add_generation_prompt=True,
        processor_kwargs={"truncation": True, "max_length": 1, "max_new_tokens": 2},
    )
    assert opened["input_ids"].tolist() == [[A, MASK, MASK]]
    small = {"size": {"height": 4, "width": 4}}
    inputs = read(processor, [user(show(picture(1)))], processor_kwargs=small)
    assert inputs["input_ids"].tolist() == [[END]]
    assert inputs["pixel_values"].shape[-2:] == (4, 4)


def test_a_conversation_is_cut_where_its_tokenizer_says(processor):
    processor.tokenizer.truncation_side = "left"
    try:
        options = {"truncation": True, "max_length": 2}
        cut = processor.apply_chat_template(QUESTION, tokenize=True, processor_kwargs=options)
    finally:
        processor.tokenizer.truncation_side = "right"
    assert cut == [[DRESS, END]]


def test_pictures_by_address_as_others_write_it(processor, tmp_path):
    picture(1).save(tmp_path / "a.png")
    address = {"type": "image_url", "image_url": {"url": str(tmp_path / "a.png")}}
    found = read(processor, [user(address, say("a dress"))])
    assert torch.equal(found["pixel_values"], read(processor, QUESTION)["pixel_values"])


MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content[0].text }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m.content[0].text }}{{ ' photo' }}{% endif %}"
    "{% endfor %}"
)


def test_a_template_may_mark_what_the_assistant_says(processor):
    """Without `<end>` after the user's words there is one turn; the marks still part the two."""
    talks = [
        [user(say("a")), assistant(say(" gown")), user(say(" of")), assistant(say(" dress"))],
        [user(say("a <end>")), assistant(say(" gown <end>"))],
    ]
    inputs = read(
        processor,
        talks,
        chat_template=MARKED,
        return_assistant_tokens_mask=True,
        padding_side="left",
    )
    spoken = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(inputs["input_ids"], inputs["assistant_masks"], strict=True)
    ]
    typed = processor.tokenizer(" <end>", add_special_tokens=False)["input_ids"]
    assert spoken == [[GOWN, END, DRESS, END], [GOWN, *typed, END]]


def test_an_item_padded_at_the_left_is_the_same_to_the_model(processor, model):
    question = {"add_generation_prompt": True, "max_new_tokens": 3}
    batch = read(processor, [TALK, QUESTION], **question, padding_side="left")
    alone = read(processor, QUESTION, **question)
    words, pictures = alone["input_ids"].shape[1], batch["pixel_values"].shape[1]
    shapes = {"text": tuple(batch["input_ids"].shape), "image": (2, 4 * pictures)}
    draw = torch.Generator().manual_seed(3)
    noise = {g: torch.randn(*shape, 4, generator=draw) for g, shape in shapes.items()}
    own = {"text": noise["text"][1:, -words:], "image": noise["image"][1:, :4]}

    def logits(inputs, noise):
        rows = len(inputs["input_ids"])
        sources = {
            "times": {g: torch.full((rows,), 0.5) for g in noise},
            "noise": noise,
            "posterior_noise": {g: torch.zeros_like(value) for g, value in noise.items()},
        }
        with torch.no_grad():
            return model(**inputs, **sources, return_loss=False).logits[-1, -words:]

    torch.testing.assert_close(logits(batch, noise), logits(alone, own), atol=1e-5, rtol=1e-4)
    outputs = short_run(model, batch)
    samples = processor.post_process(outputs, batch)
    assert samples[1].prompt == "a dress"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "left"}, "padding='left' is unknown"),
        ({"padding_side": "top"}, "padding_side='top' is unknown; use 'right' or 'left'"),
        ({"padding": False}, "padding='do_not_pad' leaves rows of 2 to 3 words"),
        ({"add_special_tokens": False}, "add_special_tokens=False is not possible: every text"),
        ({"truncation": "do_not_truncate", "max_length": 2}, "more than max_length=2; shorten it"),
        ({"genrate": "image"}, r"\['genrate'\] are no arguments of this processor"),
        ({"text_kwargs": {"paddding": True}}, r"text_kwargs has \{'paddding': True\}, which are"),
        ({"images_kwargs": {"sizes": 4}}, r"images_kwargs has \{'sizes': 4\}, which are no"),
        ({"common_kwargs": {"padding": True}}, r"common_kwargs has \{'padding': True\}, which are"),
        ({"max_length": 0}, "max_length=0 is no length; use 1 or more, or None"),
        ({"text_kwargs": {"max_length": -1}, "truncation": True}, "max_length=-1 is no length"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of=0 is no length; use 1 or more"),
        ({"text_kwargs": {"stride": 2}}, r"\['stride'\] are not possible with MDM's processor"),
        ({"return_offsets_mapping": True}, r"\['return_offsets_mapping'\] are not possible"),
        ({"text_kwargs": {"padding": True}, "padding": True}, "padding was passed two times"),
        ({"videos": [1]}, "videos and audio are not read by MDM"),
    ],
)
def test_faults(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor(text=["a photo", "a"], **options)


def test_what_is_common_to_texts_and_pictures(processor):
    inputs = processor(text="a", images=picture(1), common_kwargs={"return_tensors": "np"})
    assert all(isinstance(value, np.ndarray) for value in inputs.values())


def test_a_conversation_has_no_usual_length(processor):
    for options in ({"max_length": 0}, {"text_kwargs": {"max_length": 0}}):
        with pytest.raises(ValueError, match="max_length=0 is no length"):
            read(processor, QUESTION, processor_kwargs=options)
    with pytest.raises(ValueError, match="padding='max_length' needs max_length here"):
        read(processor, QUESTION, processor_kwargs={"padding": "max_length"})
    with pytest.raises(ValueError, match="chat_template=None, and there is no default among"):
        named = make_processor(chat_template={"short": "a"})
        named.apply_chat_template(QUESTION, tokenize=True)


@pytest.mark.parametrize("back_end", [MDMImageProcessor, MDMImageProcessorPil])
def test_channels_and_their_statistics(back_end):
    pixels = np.random.default_rng(0).random((4, SIDE, SIDE), dtype=np.float32)
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    prepare = back_end(size={"height": SIDE, "width": SIDE})
    found = prepare(
        pixels,
        do_convert_rgb=False,
        input_data_format="channels_first",
        image_mean=mean,
        image_std=std,
        return_tensors="np",
    )
    expected = [(c - m) / s for c, m, s in zip(pixels, mean, std, strict=True)]
    np.testing.assert_allclose(found["pixel_values"][0], expected, atol=1e-6)


@pytest.mark.parametrize("back_end", [MDMImageProcessor, MDMImageProcessorPil])
def test_either_back_end_is_saved_with_both(back_end, tmp_path):
    """A machine with torchvision and one without take from one folder what they can run."""
    back_end().save_pretrained(tmp_path / "alone")
    make_processor(back_end).save_pretrained(tmp_path / "within")
    alone = json.loads((tmp_path / "alone" / "preprocessor_config.json").read_text())
    within = json.loads((tmp_path / "within" / "processor_config.json").read_text())
    for folder, config in (("alone", alone), ("within", within["image_processor"])):
        both = config["auto_map"]["AutoImageProcessor"]
        assert both == [
            "image_processing_pil_mdm.MDMImageProcessorPil",
            "image_processing_mdm.MDMImageProcessor",
        ]
        for place in both:
            assert (tmp_path / folder / f"{place.split('.')[0]}.py").is_file()


def test_a_loaded_processor_knows_where_its_code_is(tmp_path):
    make_processor().save_pretrained(tmp_path)
    again = type(make_processor()).from_pretrained(tmp_path)
    assert again.to_dict()["auto_map"] == {"AutoProcessor": "processing_mdm.MDMProcessor"}
    assert make_processor().to_dict()["auto_map"] == again.to_dict()["auto_map"]
