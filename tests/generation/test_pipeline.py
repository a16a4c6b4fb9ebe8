# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The pipelines, with the package installed; without it, see test_remote_code.py."""

import json

import pytest
import torch
import transformers
from packaging import version
from PIL import Image
from tiny_digits import make_processor
from tiny_model import make_model
from transformers import AutoModel, pipeline
from transformers.pipelines import clean_custom_task

from modeling_mdm import (
    MDMForJointGeneration,
    MDMGenerateOutput,
    MDMGenerationConfig,
    MDMJointGenerationPipeline,
    MDMProcessor,
)
from modeling_mdm.generation_outputs import OutputWriter
from modeling_mdm.hub import JOINT_TASK

QUIET = {"num_inference_steps": 2, "show_progress": False}  # any-to-any writes into such a dict
PICTURE = Image.linear_gradient("L").resize((8, 8))
QUESTION = {
    "role": "user",
    "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "one"}],
}


@pytest.fixture(scope="module")
def parts():
    processor = make_processor()
    model = make_model(
        torch.float32,
        vocab_size=len(processor.tokenizer),
        max_text_length=processor.max_text_length,
        num_classes=10,
    )
    return {"model": model, "processor": processor}


@pytest.fixture
def joint(parts):
    """The pipeline of joint generation, with few steps."""
    return pipeline(JOINT_TASK, **parts, **QUIET)


@pytest.fixture
def any_to_any(parts):
    return pipeline("any-to-any", **parts)


@pytest.fixture
def image_text_to_text(parts):
    return pipeline("image-text-to-text", **parts)


def seeded():
    return torch.Generator().manual_seed(0)


# --- joint generation


def test_samples_are_those_of_generate_item_by_item(joint, parts):
    model, processor = parts["model"], parts["processor"]
    prompts = ["one", "a seven", "a four"]
    items = joint(prompts, generator=seeded(), num_return_sequences=2)
    inputs = processor(text=prompts, generate="joint", return_tensors="pt")
    out = model.generate(**inputs, generator=seeded(), num_return_sequences=2, **QUIET)
    expected = processor.post_process(out)
    assert [len(item) for item in items] == [2, 2, 2]
    for sample, other in zip([s for item in items for s in item], expected, strict=True):
        assert set(sample) == {"text", "image", "prompt"}
        assert sample["text"] == other.text and sample["prompt"] == other.prompt
        assert sample["image"].tobytes() == other.image.tobytes()
    assert [item[0]["prompt"] for item in items] == prompts


@pytest.mark.parametrize("where", ["at the call", "as a default"])
def test_words_lead_and_restart_as_in_generate(where, parts):
    options = {"joint_lead": 2.0, "num_restarts": 1, "restart_log_snr": {"image": -3.0}}
    options |= {"guidance_window": {"image": (-5.0, -1.0)}, "guidance_scale": 3.0}
    default, asked = (options, {}) if where == "as a default" else ({}, options)
    made = pipeline(JOINT_TASK, **parts, **QUIET, **default)("one", generator=seeded(), **asked)
    inputs = parts["processor"](text="one", generate="joint", return_tensors="pt")
    out = parts["model"].generate(**inputs, generator=seeded(), **QUIET, **options)
    sample = parts["processor"].post_process(out, inputs)[0]
    assert made[0]["image"].tobytes() == sample.image.tobytes() and made[0]["text"] == sample.text


def test_one_item_gives_its_samples_and_a_list_gives_lists(joint):
    (sample,) = joint(generator=seeded())
    assert isinstance(sample["text"], str) and sample["image"].size == (8, 8)
    assert "prompt" not in sample
    assert len(joint("one", num_return_sequences=3)) == 3
    assert [len(item) for item in joint(["one"], num_return_sequences=3)] == [3]
    assert [len(item) for item in joint(class_labels=[1, 2])] == [1, 1]


@pytest.mark.parametrize(
    ("generate", "given", "keys"),
    [
        ("image", {"text": "one"}, {"image"}),
        ("image", {"class_labels": 3}, {"image"}),
        ("text", {"images": PICTURE}, {"text"}),
        ("text", {"images": PICTURE, "text": "one"}, {"text", "prompt"}),
        ("joint", {"images": PICTURE}, {"text", "image"}),
    ],
)
def test_it_writes_either_or_both(joint, generate, given, keys):
    (sample,) = joint(**given, generate=generate)
    assert set(sample) == keys


@pytest.mark.parametrize("mode", ["text", "image", "joint"])
def test_what_is_to_be_written_has_one_name_and_an_alias(joint, mode):
    first, second = (joint(**{name: mode})[0] for name in ("generation_mode", "generate"))
    assert first.keys() == second.keys() == joint({"generation_mode": mode})[0].keys()
    with pytest.raises(ValueError, match="two names of one argument"):
        joint(generation_mode=mode, generate=mode)
    with pytest.raises(ValueError, match="generation_mode='sound' is unknown"):
        joint(generation_mode="sound")


def test_options_reach_the_processor_and_generate(joint):
    mask = torch.zeros(8, 8)
    mask[4:] = 1
    (sample,) = joint(images=PICTURE, image_mask=mask, generate="image")
    top = (0, 0, 8, 4)
    assert sample["image"].crop(top).tobytes() == PICTURE.crop(top).tobytes()
    assert joint(generate="image", image_size=(12, 8))[0]["image"].size == (8, 12)
    lengths = []

    def watch(step):
        lengths.append(step.clean_estimates["text"].shape[1])

    joint(generate="text", max_new_tokens=3, num_inference_steps=4, callback_on_step_end=watch)
    assert lengths == [3] * 4  # what a call says comes before what the pipeline was made with


def test_chats_are_answered(joint, parts):
    answer = {"role": "assistant", "content": "two"}
    chat = [QUESTION, answer, {"role": "user", "content": "a seven"}]
    (sample,) = joint(chat, generator=seeded())
    assert set(sample) == {"text", "image", "prompt"}
    items = joint([[QUESTION], [QUESTION]], generate="text")
    assert [len(item) for item in items] == [1, 1]
    inputs = parts["processor"].apply_chat_template(
        chat,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        generate="joint",
    )
    out = parts["model"].generate(**inputs, generator=seeded(), **QUIET)
    assert parts["processor"].post_process(out, inputs)[0].text == sample["text"]


def test_the_model_may_choose_what_to_write(parts):
    config = parts["model"].config.to_dict()
    names = ("vocab_size", "max_text_length", "num_classes")
    model = make_model(torch.float32, use_mode_head=True, **{name: config[name] for name in names})
    chooser = pipeline(JOINT_TASK, model=model, processor=parts["processor"], **QUIET)
    torch.nn.init.zeros_(model.mode_head.out_proj.weight)
    for mode, kinds in (("text", {"text"}), ("image", {"image"}), ("joint", {"text", "image"})):
        bias = [float(mode == other) for other in ("text", "image", "joint")]
        model.mode_head.out_proj.bias.data = torch.tensor(bias)
        for item in chooser([[QUESTION], [QUESTION]], generate="auto", max_new_tokens=3):
            assert set(item[0]) - {"prompt"} == kinds
        ((sample,),) = chooser(["one"], generate="auto", max_new_tokens=3)
        assert set(sample) - {"prompt"} == kinds


def test_samples_hold_what_was_chosen_for_them(parts):
    words = torch.full((3, 4), parts["processor"].tokenizer.eos_token_id)
    modes = ["text", "image", "joint"]
    out = MDMGenerateOutput(words, torch.zeros(3, 1, 8, 8), generation_modes=modes)
    samples = parts["processor"].post_process(out)
    assert [sample.text is not None for sample in samples] == [True, False, True]
    assert [sample.image is not None for sample in samples] == [False, True, True]


def test_what_cannot_be_done_is_named(joint, parts):
    with pytest.raises(ValueError, match="generate='video' is unknown; use 'joint', 'image'"):
        joint(generate="video")
    with pytest.raises(ValueError, match="class_labels"):
        joint([QUESTION], class_labels=1)
    with pytest.raises(ValueError, match="`processor` is None"):
        MDMJointGenerationPipeline(parts["model"])


def test_it_saves_all_that_it_needs(joint, parts, tmp_path):
    joint.save_pretrained(tmp_path)
    assert (tmp_path / "pipeline_mdm.py").is_file()
    loaded = MDMForJointGeneration.from_pretrained(tmp_path)
    again = pipeline(
        JOINT_TASK, model=loaded, processor=MDMProcessor.from_pretrained(tmp_path), **QUIET
    )
    ours, theirs = joint("one", generator=seeded())[0], again("one", generator=seeded())[0]
    assert ours["text"] == theirs["text"]
    assert ours["image"].tobytes() == theirs["image"].tobytes()


def test_the_configuration_stays_plain(parts, tmp_path):
    """Where `pipeline` takes a task from `custom_pipelines`, it puts classes into it."""
    parts["model"].save_pretrained(tmp_path)
    config = parts["model"].config
    assert clean_custom_task(config.custom_pipelines[JOINT_TASK])[0]["pt"] == (AutoModel,)
    with pytest.raises(TypeError, match="JSON"):
        config.to_json_string()
    pipeline(JOINT_TASK, **parts)
    stored = json.loads(config.to_json_string())["custom_pipelines"][JOINT_TASK]
    assert stored["pt"] == ["AutoModel"]


# --- any to any


def test_text_goes_on_after_its_prompt(any_to_any):
    (record,) = any_to_any("one", generate_kwargs=dict(QUIET), max_new_tokens=3)
    assert record["input_text"] == "one" and record["generated_text"].startswith("one")
    assert len(record["generated_text"]) > len("one")
    (new,) = any_to_any("one", generate_kwargs=dict(QUIET), return_full_text=False)
    assert not new["generated_text"].startswith("one")


def test_a_picture_with_words_or_without_gives_text(any_to_any):
    for text in ("one", ""):
        (record,) = any_to_any(text=text, images=PICTURE, generate_kwargs=dict(QUIET))
        assert record["generated_text"].startswith(text) and record["generated_text"] != text


def test_a_batch_of_any_lengths(any_to_any):
    prompts = ["one", "a four"]
    records = any_to_any(text=prompts, images=[PICTURE, PICTURE], generate_kwargs=dict(QUIET))
    assert [record["input_text"] for record in records] == prompts
    for record in records:
        assert record["generated_text"].startswith(record["input_text"])


def test_pictures_are_written_on_request(any_to_any):
    records = any_to_any(["one", "two"], generation_mode="image", generate_kwargs=dict(QUIET))
    assert [record["generated_image"].size for record in records] == [(8, 8)] * 2
    (record,) = any_to_any("", images=PICTURE, generation_mode="image", generate_kwargs=dict(QUIET))
    assert record["generated_image"].size == (8, 8)


def test_chat_messages(any_to_any):
    (record,) = any_to_any([QUESTION], generate_kwargs=dict(QUIET))
    assert [message["role"] for message in record["generated_text"]] == ["user", "assistant"]
    records = any_to_any(
        [[QUESTION], [QUESTION]], generate_kwargs=dict(QUIET), return_full_text=False
    )
    assert all(isinstance(r["generated_text"], str) for (r,) in records)


def test_several_samples_of_an_item_are_refused(any_to_any):
    options = {**QUIET, "num_return_sequences": 2}
    with pytest.raises(ValueError, match=r"num_return_sequences=2, .* gives one sample"):
        any_to_any(["one", "two"], generate_kwargs=options)


# --- transformers' pipelines for text: any-to-any, image-text-to-text, text-generation


@pytest.fixture(params=["any-to-any", "image-text-to-text"])
def writer(request, parts):
    return pipeline(request.param, **parts)


@pytest.fixture
def regions(monkeypatch):
    """How many words each call had to write, which are all the same word."""
    lengths = []

    def write(writer, latents):
        encoding = writer.encoded.modalities["text"]
        positions = encoding.content
        lengths.append(int(positions.noisy[0].sum()))
        words = torch.where(positions.noisy, 30, encoding.target)
        return torch.where(positions.valid, words, 0)

    monkeypatch.setattr(OutputWriter, "words", write)
    return lengths


def test_a_text_is_as_long_as_the_models_unless_asked(writer, regions, parts):
    usual = parts["model"].config.max_text_length
    for request in ({"text": "", "images": PICTURE}, {"text": "one"}, {"text": [QUESTION]}):
        writer(**request, generate_kwargs=dict(QUIET))
        assert regions.pop() == usual
        writer(**request, generate_kwargs=dict(QUIET), max_new_tokens=3)
        assert regions.pop() == 3
        writer(**request, generate_kwargs=QUIET | {"max_new_tokens": 40})
        assert regions.pop() == 40
        writer(**request, generate_kwargs=dict(QUIET), max_new_tokens=256)
        assert regions.pop() == 256
        config = MDMGenerationConfig(**QUIET)
        writer(**request, generate_kwargs={"generation_config": config})
        assert regions.pop() == usual
        config.max_new_tokens = 5
        writer(**request, generate_kwargs={"generation_config": config})
        assert regions.pop() == 5
        assert not regions


def test_a_configuration_that_a_pipeline_hands_over_may_be_partial(writer, parts):
    """It changes no more than the keyword would."""
    records = []
    for options in ({"num_inference_steps": 3}, MDMGenerationConfig(num_inference_steps=3)):
        given = options if isinstance(options, dict) else {"generation_config": options}
        torch.manual_seed(4)
        records += writer(
            text="one", images=PICTURE, generate_kwargs={**given, "show_progress": False}
        )
    assert records[0] == records[1]


def test_a_text_ends_at_its_end(writer, parts, monkeypatch):
    """What a region holds behind `<end>` is no part of the text, in either pipeline."""
    tokenizer = parts["processor"].tokenizer
    one, two, end = (tokenizer.convert_tokens_to_ids(word) for word in ("one", "two", "<end>"))
    one, two = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in (" one", " two"))
    region = torch.tensor([*one, end, *two, end, *two])

    def write(writer, latents):
        words = writer.encoded.modalities["text"].target.clone()
        words[:, -len(region) :] = region
        return words

    monkeypatch.setattr(OutputWriter, "words", write)

    def options():  # some pipelines write into what they are passed
        return {"generate_kwargs": dict(QUIET), "max_new_tokens": len(region)}

    assert writer(text="a", images=PICTURE, **options())[0]["generated_text"] == "a one"
    (record,) = writer(text=[QUESTION], return_full_text=False, **options())
    assert record["generated_text"].strip() == "one"


def test_captions_and_chats_of_image_text_to_text(image_text_to_text, parts):
    samples = 2 if version.parse(transformers.__version__).release >= (5, 24) else 1
    options = {"generate_kwargs": QUIET | {"num_return_sequences": samples}}
    records = image_text_to_text(text=["", "one"], images=[PICTURE, PICTURE], **options)
    said = [text for text in ("", "one") for _ in range(samples)]
    assert [record["input_text"] for record in records] == said
    assert all(record["generated_text"].startswith(record["input_text"]) for record in records)
    one = image_text_to_text("one", generate_kwargs=dict(QUIET))
    assert one[0]["generated_text"].startswith("one")
    (record,) = image_text_to_text(text=[QUESTION], generate_kwargs=dict(QUIET))
    assert [message["role"] for message in record["generated_text"]] == ["user", "assistant"]
    records = image_text_to_text(text=[[QUESTION], [QUESTION]], generate_kwargs=dict(QUIET))
    assert len(records) == 2
    (record,) = image_text_to_text(
        text="one", images=PICTURE, generate_kwargs=dict(QUIET), return_tensors=True
    )
    given = parts["processor"](text="one")["input_ids"][0]
    assert record["generated_token_ids"][: len(given)].tolist() == given


def test_stop_words_are_refused_with_the_fix(writer):
    with pytest.raises(ValueError, match=r"stop_strings=\['\.'\].*cut it afterwards"):
        writer(text="one", images=PICTURE, stop_sequence=".")


def test_text_generation_works_or_names_what_it_sent(parts):
    """In some versions it samples at a temperature of 0.7 unless told otherwise."""
    tokenizer = parts["processor"].tokenizer
    writer = pipeline("text-generation", model=parts["model"], tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"temperature=0\.7.*'any-to-any' or 'image-text-to-text'"):
        writer("one", temperature=0.7, **QUIET)
    (record,) = writer("one", temperature=1.0, **QUIET)
    assert record["generated_text"].startswith("one")
