# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `generate` is set to: which layer comes first, and what is refused because nothing heeds it.

The value that must come out is written here by hand: keyword, passed configuration, the model's own
configuration, default, in this order; None leaves a value to the next.
"""

import copy

import numpy as np
import pytest
import torch
from tiny_model import WORDS, make_model
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from modeling_mdm import MDMForJointGeneration, MDMGenerationConfig, generation_mdm
from modeling_mdm.generation_outputs import OutputWriter
from modeling_mdm.generation_steps import StepPlan

# The model's own configuration, no value of which is the default.
OWN = {
    "num_inference_steps": {"image": 5, "text": 6},
    "guidance_scale": {"image": 3.0, "text": 1.5},
    "joint_guidance_scale": {"image": 2.5, "text": 1.25},
    "joint_overlap": 0.25,
    "joint_lead": None,
    "guidance_window": {"image": (-6.0, 0.0), "text": (-4.0, 2.0)},
    "num_restarts": 2,
    "restart_log_snr": {"image": -3.0, "text": 1.0},
    "solver": "heun",
    "keep": 0.75,
    "use_cache": False,
    "compile": True,
    "cuda_graph": False,
    "num_return_sequences": 2,
    "show_progress": False,
    "max_new_tokens": 4,
}
DEFAULT = {
    "num_inference_steps": 30,
    "guidance_scale": {"image": 2.0, "text": 1.0},
    "joint_guidance_scale": 1.0,
    "joint_overlap": 1.0,
    "joint_lead": None,
    "guidance_window": None,
    "num_restarts": 0,
    "restart_log_snr": {"image": -4.0, "text": 0.0},
    "solver": {"image": "dpm_solver_2m", "text": "ddpm"},
    "keep": 1.0,
    "use_cache": True,
    "compile": False,
    "cuda_graph": True,
    "num_return_sequences": 1,
    "show_progress": True,
    "max_new_tokens": WORDS,
}
OTHER = {
    "num_inference_steps": 8,
    "guidance_scale": 4.0,
    "joint_guidance_scale": 3.0,
    "joint_overlap": 0.5,
    "joint_lead": 2.0,
    "guidance_window": (-5.0, -1.0),
    "num_restarts": 1,
    "restart_log_snr": -2.0,
    "solver": "ddim",
    "keep": 0.5,
    "num_return_sequences": 3,
    "max_new_tokens": 2,
}
BY_MODALITY = (
    *("num_inference_steps", "guidance_scale", "joint_guidance_scale", "guidance_window"),
    *("restart_log_snr", "solver"),
)


class Captured(Exception):
    """Carries the settings of a run that is not made."""


@pytest.fixture(scope="module")
def model():
    return make_model(torch.float32)


@pytest.fixture
def settings_of(model, monkeypatch):
    """What `generate` would run with."""

    def capture(network, encoded, noise, settings, reader, keeps_selection):
        raise Captured({**vars(settings), "length": encoded.content["text"].valid.shape[1]})

    def run(**options):
        with pytest.raises(Captured) as caught:
            model.generate(generation_mode="joint", **options)
        return caught.value.args[0]

    # What restarts and words that go ahead do to the steps is not asked here.
    monkeypatch.setattr(generation_mdm, "plan_steps", lambda *arguments: StepPlan([]))
    monkeypatch.setattr(generation_mdm, "make_solvers", lambda *arguments: {})
    monkeypatch.setattr(generation_mdm, "GuidedDenoiser", capture)
    monkeypatch.setattr(model, "generation_config", MDMGenerationConfig(**OWN))
    return run


def by_modality(name, value):
    if name not in BY_MODALITY or isinstance(value, dict):
        return value
    return {"image": value, "text": value}


@pytest.mark.parametrize("kind", [MDMGenerationConfig, GenerationConfig])
@pytest.mark.parametrize(
    ("name", "value"),
    [*OTHER.items(), *DEFAULT.items()],
    ids=[f"{kind}-{name}" for kind, of in (("other", OTHER), ("default", DEFAULT)) for name in of],
)
def test_a_partial_configuration_equals_the_keyword(name, value, kind, settings_of):
    """What it does not name is the model's own; an explicit value wins, the default's too."""
    by_keyword = settings_of(**{name: value})
    # transformers' own validation wants `do_sample` with several samples.
    passed = kind(**{name: value}, do_sample=True)
    assert by_keyword == settings_of(generation_config=passed)
    if value is None:
        expected = OWN
    elif (
        name == "joint_lead"
    ):  # it is another name for how words go ahead: see test_generation_steps.py
        expected = OWN | {name: value, "joint_overlap": 1.0}
    else:
        expected = OWN | {name: value}
    expected = {n: by_modality(n, value) for n, value in expected.items()}
    assert {n: by_keyword[n] for n in OWN} == expected
    assert by_keyword["length"] == expected["max_new_tokens"]


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("name", BY_MODALITY)
def test_what_names_one_modality_leaves_the_other_to_the_model(name, modality, settings_of):
    other = {"image": "text", "text": "image"}[modality]
    expected = {modality: OTHER[name], other: by_modality(name, OWN[name])[other]}
    value = {modality: OTHER[name]}
    assert settings_of(**{name: value})[name] == expected
    assert settings_of(generation_config=MDMGenerationConfig(**{name: value}))[name] == expected
    both = MDMGenerationConfig(**{name: {other: OTHER[name]}})
    assert settings_of(generation_config=both, **{name: value})[name] == by_modality(
        name, OTHER[name]
    )


def test_a_model_without_a_configuration_of_its_own_has_the_defaults(settings_of, model):
    model.generation_config = None
    expected = {name: by_modality(name, value) for name, value in DEFAULT.items()}
    settings = settings_of()
    assert {name: settings[name] for name in DEFAULT} == expected


def test_the_samples_are_those_of_the_keyword(model, monkeypatch):
    own = MDMGenerationConfig(guidance_scale=3.0, joint_overlap=0.25, show_progress=False)
    monkeypatch.setattr(model, "generation_config", own)

    def draw(**options):
        generator = torch.Generator().manual_seed(3)
        return model.generate(
            class_labels=torch.tensor([1]), generation_mode="joint", generator=generator, **options
        )

    keyword = draw(num_inference_steps=4)
    partial = draw(generation_config=MDMGenerationConfig(num_inference_steps=4))
    assert torch.equal(keyword.images, partial.images)
    assert torch.equal(keyword.sequences, partial.sequences)


# --- the usual length of a text is said, so that no pipeline invents one


def test_the_model_says_its_usual_length_and_no_file_keeps_it(tmp_path):
    model = make_model(torch.float32)
    assert model.generation_config.max_new_tokens == WORDS
    model.generation_config = MDMGenerationConfig(keep=0.5)
    assert model.generation_config.max_new_tokens == WORDS
    model.config.max_text_length = 9
    assert model.generation_config.max_new_tokens == 9
    model.save_pretrained(tmp_path)
    assert model.generation_config.max_new_tokens == 9
    assert "max_new_tokens" not in (tmp_path / "generation_config.json").read_text()
    assert copy.deepcopy(model).generation_config.max_new_tokens == 9
    longer = MDMForJointGeneration.from_pretrained(tmp_path, max_text_length=11)
    assert longer.generation_config.max_new_tokens == 11
    assert longer.generate(num_inference_steps=1, show_progress=False).sequences.shape == (1, 11)


def test_a_length_that_somebody_chose_stays(tmp_path):
    model = make_model(torch.float32)
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    model = MDMForJointGeneration.from_pretrained(tmp_path, max_text_length=11)
    assert model.generation_config.max_new_tokens == 3
    assert model.generate(num_inference_steps=1, show_progress=False).sequences.shape == (1, 3)


# --- one rule: what is passed is done or refused

# Of transformers' fields, those that no result depends on.
HARMLESS = {
    "assistant_confidence_threshold": 0.3,
    "assistant_early_exit": 2,
    "assistant_lookbehind": 5,
    "bos_token_id": 1,
    "cache_config": {"backend": "quanto"},
    "cache_implementation": "static",
    "compile_config": object(),
    "continuous_batching_config": object(),
    "disable_compile": True,
    "do_sample": True,
    "is_assistant": True,
    "low_memory": True,
    "max_cache_len": 64,
    "max_matching_ngram_size": 3,
    "num_assistant_tokens": 5,
    "num_assistant_tokens_schedule": "heuristic",
    "prefill_chunk_size": 8,
    "prompt_lookup_num_tokens": 3,
    "speculation_type": "dflash",
    "target_lookbehind": 5,
    "transformers_version": "5.0",
    "use_mtp": True,
}
READ = {"num_return_sequences", "use_cache", "guidance_scale", "max_new_tokens"}
READ |= {"return_dict_in_generate"}
# Of the others one value that asks for something, and those that ask for nothing.
EFFECTS = {
    "assistant_ensemble_weight": (0.5, []),
    "bad_words_ids": ([[5]], [[]]),
    "begin_suppress_tokens": ([5], []),
    "constraints": (["one"], []),
    "decoder_start_token_id": (4, []),
    "diversity_penalty": (0.5, [0.0]),
    "dola_layers": ("high", []),
    "early_stopping": ("never", [False]),
    "encoder_no_repeat_ngram_size": (2, [0]),
    "encoder_repetition_penalty": (1.5, [1.0]),
    "eos_token_id": (7, [3, [3]]),
    "epsilon_cutoff": (0.1, [0.0]),
    "eta_cutoff": (0.1, [0.0]),
    "exponential_decay_length_penalty": ((3, 1.5), []),
    "force_words_ids": ([[5]], []),
    "forced_bos_token_id": (5, []),
    "forced_eos_token_id": (5, []),
    "length_penalty": (0.5, [1.0]),
    "max_length": (12, []),
    "max_time": (1.0, []),
    "min_length": (4, [0]),
    "min_new_tokens": (4, [0]),
    "min_p": (0.1, [0.0]),
    "no_repeat_ngram_size": (2, [0]),
    "num_beam_groups": (2, [1]),
    "num_beams": (4, [1]),
    "output_attentions": (True, [False]),
    "output_hidden_states": (True, [False]),
    "output_logits": (True, [False]),
    "output_scores": (True, [False]),
    "pad_token_id": (7, [0]),
    "penalty_alpha": (0.5, []),
    "remove_invalid_values": (True, [False]),
    "renormalize_logits": (True, [False]),
    "repetition_penalty": (1.5, [1.0]),
    "sequence_bias": ({(5,): 1.0}, []),
    "stop_strings": (["."], [[]]),
    "suppress_tokens": ([5], [[]]),
    "temperature": (0.7, [1.0, 1, np.float32(1.0)]),
    "token_healing": (True, [False]),
    "top_h": (0.5, [1.0]),
    "top_k": (10, [0, 50]),
    "top_p": (0.9, [1.0]),
    "typical_p": (0.9, [1.0]),
    "watermarking_config": (object(), []),
}
FIELDS = sorted(name for name in vars(GenerationConfig()) if not name.startswith("_"))


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_transformers_is_done_refused_or_harmless(name, settings_of):
    if name in READ:
        return
    if name not in EFFECTS and name not in HARMLESS:  # of a release newer than this table
        with pytest.raises(ValueError, match=name):
            settings_of(**{name: "something"})
        return
    plain = settings_of()
    asked, harmless = EFFECTS.get(name, (None, [HARMLESS.get(name)]))
    for value in (None, *harmless):
        assert settings_of(**{name: value}) == plain
    if name in HARMLESS:
        return
    with pytest.raises(ValueError, match=rf"`generate` got {name}=.*(?i:leave them out)"):
        settings_of(**{name: asked})
    config = MDMGenerationConfig()
    setattr(config, name, asked)  # past transformers' own checks
    with pytest.raises(ValueError, match=rf"`generate` got {name}="):
        settings_of(generation_config=config)


@pytest.mark.parametrize(
    ("name", "harmless", "asked"),
    [
        ("tokenizer", [object()], None),
        ("assistant_tokenizer", [object()], None),
        ("assistant_model", [object()], None),
        ("synced_gpus", [True, False], None),
        ("use_model_defaults", [True], None),
        ("trust_remote_code", [True], None),
        ("logits_processor", [[], LogitsProcessorList()], [lambda ids, scores: scores]),
        ("stopping_criteria", [StoppingCriteriaList()], [lambda ids, scores: True]),
        ("prefix_allowed_tokens_fn", [], lambda batch, ids: [1]),
        ("negative_prompt_ids", [], torch.zeros(1, 2, dtype=torch.long)),
        ("negative_prompt_attention_mask", [], torch.zeros(1, 2, dtype=torch.long)),
        ("custom_generate", [], "transformers-community/dola"),
        ("num_inference_step", [], 3),
    ],
)
def test_other_arguments_of_transformers(name, harmless, asked, settings_of):
    plain = settings_of()
    for value in (None, *harmless):
        assert settings_of(**{name: value}) == plain
    if asked is not None:
        with pytest.raises(ValueError, match=rf"`generate` got {name}=.*num_inference_steps"):
            settings_of(**{name: asked})


def test_a_misspelt_field_of_a_configuration_is_refused(settings_of):
    for kind in (MDMGenerationConfig, GenerationConfig):
        with pytest.raises(ValueError, match="num_inference_step=8"):
            settings_of(generation_config=kind(num_inference_step=8))


def test_transformers_defaults_in_a_configuration_ask_for_nothing(settings_of, model):
    """`Seq2SeqTrainer` fills the model's configuration with them; 5.17's pipelines pass a copy."""
    plain = settings_of()
    own = model.generation_config
    own.update(**GenerationConfig._get_default_generation_params(), defaults_only=True)
    plain["return_dict_in_generate"] = False
    assert settings_of() == plain
    assert settings_of(generation_config=copy.deepcopy(own)) == plain


REGIONS = {
    "length of a picture": ({}, "image", {"max_new_tokens": 3}, "max_new_tokens` is 3.*'image'"),
    "size of words": ({}, "text", {"image_size": 8}, "image_size` is 8.*'text'"),
    "size by default": ({}, None, {"image_size": 8}, "image_size` is 8.*'text'"),
    "length beside masks": (
        {"input_ids": torch.ones(1, 3, dtype=torch.long)},
        "text",
        {"max_new_tokens": 3},
        "max_new_tokens` is 3.*masks",
    ),
    "size beside masks": (
        {
            "pixel_values": torch.zeros(1, 1, 8, 8),
            "image_given": torch.zeros(1, 8, 8, dtype=torch.bool),
        },
        "image",
        {"image_size": 8},
        "image_size` is 8.*masks",
    ),
}


@pytest.mark.parametrize("case", REGIONS)
def test_the_size_of_a_region_that_is_not_opened_is_refused(case, model):
    inputs, mode, options, message = REGIONS[case]
    with pytest.raises(ValueError, match=message + ".*leave it out"):
        model.generate(**inputs, generation_mode=mode, **options)


def test_a_length_of_a_configuration_waits_for_a_text(model):
    config = MDMGenerationConfig(max_new_tokens=3, num_inference_steps=1, show_progress=False)
    assert model.generate(generation_config=config).sequences.shape == (1, 3)
    assert model.generate(generation_config=config, generation_mode="image").sequences is None


# --- what transformers' callers do with what comes back


def test_what_is_passed_without_masks_is_given(model):
    words = torch.tensor([[5, 6, 7], [8, 9, 5]])
    options = {"num_inference_steps": 2, "show_progress": False, "max_new_tokens": 2}
    out = model.generate(words, attention_mask=torch.ones_like(words), **options)
    assert torch.equal(out.sequences[:, :3], words) and out.sequences.shape == (2, 5)
    pixels = torch.rand(1, 1, 8, 8)
    out = model.generate(pixel_values=pixels, **options)
    assert out.images is None and out.sequences.shape == (1, 2)
    words[0, 1] = model.config.mask_token_id
    out = model.generate(words, num_inference_steps=2, show_progress=False)
    known = words != model.config.mask_token_id
    assert torch.equal(out.sequences[known], words[known]) and out.sequences.shape == (2, 3)


def test_a_bare_tensor_on_request(model, monkeypatch):
    words = torch.tensor([[5, 6, 7]])
    options = {"num_inference_steps": 3, "show_progress": False}
    write = OutputWriter.words

    def write_anything(writer, latents):
        """This model would write the same word everywhere."""
        written = write(writer, latents)
        drawn = torch.randint(6, written.shape, generator=torch.Generator().manual_seed(5))
        return torch.where(writer.encoded.content["text"].noisy, drawn, written)

    monkeypatch.setattr(OutputWriter, "words", write_anything)

    def draw(**more):
        return model.generate(words, generator=torch.Generator().manual_seed(1), **options, **more)

    whole = draw(num_return_sequences=40)
    rows = draw(num_return_sequences=40, return_dict_in_generate=False)
    end, pad = model.config.eos_token_id, model.config.pad_token_id
    assert (whole.sequences[:, 3:] == end).any() and not torch.equal(rows, whole.sequences)
    for row, bare in zip(whole.sequences.tolist(), rows.tolist(), strict=True):
        length = 3 + row[3:].index(end) + 1 if end in row[3:] else len(row)
        assert bare == row[:length] + [pad] * (len(row) - length)
    assert torch.equal(whole[0, 3:], whole.sequences[0, 3:])  # as transformers' server reads it
    image = draw(generation_mode="image", return_dict_in_generate=False)
    assert torch.equal(image, draw(generation_mode="image").images)
    config = MDMGenerationConfig(return_dict_in_generate=False)
    assert torch.equal(draw(num_return_sequences=40, generation_config=config), rows)
    with pytest.raises(ValueError, match=r"`return_dict_in_generate` is False.*words and"):
        draw(generation_mode="joint", return_dict_in_generate=False)


def test_transformers_server_is_answered(model):
    """As `GenerateManager` calls it: a copy of the own configuration, and the processor."""
    config = copy.deepcopy(model.generation_config)
    config.max_new_tokens = 20
    config.num_inference_steps = 2
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3)}
    out = model.generate(**inputs, generation_config=config, tokenizer=object())
    assert out[0, 3:].shape == (20,)
