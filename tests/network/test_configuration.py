# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The configuration: contradictions are refused with their fix, JSON keeps it, presets load."""

import json
from pathlib import Path

import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from modeling_mdm import MDMConfig

PRESETS = sorted((Path(__file__).resolve().parents[2] / "configuration").glob("*/config.json"))

CONTRADICTIONS = {
    "width and head size": (
        {"hidden_size": 100, "expand": 2, "head_dim": 64},
        ["`hidden_size * expand` is 200", "`head_dim` = 64", "change one"],
    ),
    "image and patch": (
        {"image_size": 28, "patch_size": 5},
        ["`image_size` is 28", "`patch_size` = 5", "change one"],
    ),
    "no patch": ({"patch_size": 0}, ["`image_size` is 28", "`patch_size` = 0", "change one"]),
    "width and attention heads": (
        {"mixer": "attention", "hidden_size": 256, "num_attention_heads": 3},
        ["`hidden_size` is 256", "`num_attention_heads` = 3", "change one"],
    ),
    "unknown image scan": (
        {"image_scans": [1, 5]},
        ["`image_scans` is [1, 5]", "out of [1, 2, 3, 4]"],
    ),
    "unknown text scan": ({"text_scans": [3]}, ["`text_scans` is [3]", "out of [1, 2]"]),
    "no scan": ({"text_scans": []}, ["`text_scans` is []", "at least one"]),
    "a scan twice": ({"image_scans": [1, 1]}, ["`image_scans` is [1, 1]", "distinct"]),
    **{
        f"unknown {name}": ({name: "other"}, [f"`{name}` is 'other'", "choose one of", choice])
        for name, choice in {
            "mixer": "mamba2",
            "scan_mode": "cyclic",
            "scan_projections": "separate",
            "discretization": "zoh",
            "image_schedule": "cosine",
            "text_schedule": "tan",
            "se_candidates": "trajectory",
            "kernel_backend": "reference",
        }.items()
    },
    "nothing kept": ({"selection_keep": [1.0, 0.0]}, ["`selection_keep` is [1.0, 0.0]", "(0, 1]"]),
    "more than all kept": ({"selection_keep": [1.5]}, ["`selection_keep` is [1.5]", "(0, 1]"]),
    "no share to keep": ({"selection_keep": []}, ["`selection_keep` is []", "at least one"]),
    "always without a prompt": (
        {"null_prompt_probability": 1.0},
        ["`null_prompt_probability` is 1.0", "[0, 1)"],
    ),
    "a negative probability": (
        {"null_modality_probability": -0.1},
        ["`null_modality_probability` is -0.1", "[0, 1)"],
    ),
    "more than always coupled": (
        {"coupled_time_probability": 1.5},
        ["`coupled_time_probability` is 1.5", "[0, 1]"],
    ),
    "an assembly of fewer than no layers": (
        {"image_decoder_layers": -1},
        ["`image_decoder_layers` is -1", "at least 0"],
    ),
    "an assembly behind a VQ-VAE": (
        {"image_decoder_layers": 1, "num_channels": 3, "vq_config": {"model_type": "janus_vqgan"}},
        ["`image_decoder_layers` is 1", "`vq_config`", "use 0"],
    ),
    "a special word outside the vocabulary": (
        {"vocab_size": 20, "mask_token_id": 20},
        ["`mask_token_id` is 20", "`vocab_size` = 20", "the tokenizer"],
    ),
    "one of several ends outside the vocabulary": (
        {"vocab_size": 20, "eos_token_id": [3, 25]},
        ["`eos_token_id` is [3, 25]", "`vocab_size` = 20"],
    ),
    "an empty range of Delta": (
        {"delta_min": 0.2, "delta_max": 0.1},
        ["`delta_min` is 0.2", "`delta_max` 0.1", "delta_min <= delta_max"],
    ),
    "two channels": ({"num_channels": 2}, ["`num_channels` is 2", "use 1 (grey) or 3 (colour)"]),
}


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
def test_a_contradiction_raises_an_error_that_names_argument_value_and_fix(contradiction):
    changes, said = CONTRADICTIONS[contradiction]
    with pytest.raises(Exception) as error:
        MDMConfig(**changes)
    # The strict base class wraps what a validator raises; its text and its cause stay.
    assert isinstance(error.value, ValueError) or isinstance(error.value.__cause__, ValueError)
    for text in said:
        assert text in str(error.value)


def test_a_contradiction_is_refused_on_loading_too(tmp_path):
    MDMConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["patch_size"] = 5
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(Exception, match="`patch_size` = 5"):
        MDMConfig.from_pretrained(tmp_path)


def test_json_keeps_every_field(tmp_path):
    config = MDMConfig(
        vocab_size=77,
        image_scans=(2, 3),
        text_scans=(1,),
        selection_keep=(1.0, 0.5),
        scan_mode="cyclic",
        mixer="attention",
        num_attention_heads=8,
        vq_config={"model_type": "janus_vqgan", "embed_dim": 8},
        num_channels=3,
        tan_scale=2.5,
        kl_weight=0.5,
    )
    config.save_pretrained(tmp_path)
    loaded = MDMConfig.from_pretrained(tmp_path)
    plain = json.loads(json.dumps(config.to_dict()))  # tuples are lists in JSON
    assert json.loads(json.dumps(loaded.to_dict())) == plain
    assert loaded.joint_scans == config.joint_scans
    assert loaded.model_type == "mdm"


def test_defaults_are_the_papers():
    config = MDMConfig()
    assert config.discretization == "zoh" and config.scan_mode == "parallel"
    assert config.text_schedule == "tan"
    assert config.latent_gradient_scale == 0
    assert config.null_prompt_probability == 0.1


@pytest.mark.parametrize(
    ("image_scans", "text_scans", "expected"),
    [
        ([1, 2, 3, 4], [1, 2], ((1, 1), (2, 2), (3, 1), (4, 2))),  # Table 3, 1234/12
        ([1, 2], [1], ((1, 1), (2, 2))),  # Table 3, 12/1
        ([1, 2], [1, 2], ((1, 1), (2, 2))),
        ([1], [1], ((1, 1),)),
        ([3], [1], ((3, 1),)),
        ([4, 3], [2, 1], ((3, 1), (4, 2))),
        ([1, 3], [1, 2], ((1, 1), (2, 2), (3, 1))),  # text order 2 comes with its pair
        ([2], [1], ((1, 1), (2, 2))),
    ],
)
def test_joint_scans_of_a_subset(image_scans, text_scans, expected):
    assert MDMConfig(image_scans=image_scans, text_scans=text_scans).joint_scans == expected


@examples(
    image_scans=st.sets(st.integers(1, 4), min_size=1),
    text_scans=st.sets(st.integers(1, 2), min_size=1),
)
@settings(max_examples=45)
def test_every_chosen_order_is_read_by_exactly_the_scans_that_pair_it(image_scans, text_scans):
    config = MDMConfig(image_scans=sorted(image_scans), text_scans=sorted(text_scans))
    scans = config.joint_scans
    assert len(set(scans)) == len(scans)
    assert set(scans) <= {(1, 1), (2, 2), (3, 1), (4, 2)}
    for order in image_scans:
        assert len([pair for pair in scans if pair[0] == order]) == 1
    for order in text_scans:
        assert any(pair[1] == order for pair in scans)
    for image, text in scans:  # no scan is for nothing
        assert image in image_scans or text in text_scans


def test_sizes_that_follow_from_others():
    config = MDMConfig(hidden_size=192, expand=2, head_dim=64)
    assert (config.inner_size, config.num_ssm_heads) == (384, 6)
    assert config.num_attention_heads == 3 and config.intermediate_size == 512
    assert MDMConfig(num_attention_heads=2, intermediate_size=99).intermediate_size == 99


def test_there_are_presets():
    assert {"mdm-digits", "mdm-fashion"} <= {path.parent.name for path in PRESETS}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.parent.name)
def test_presets_load_and_say_what_they_are(path):
    config = MDMConfig.from_pretrained(path.parent)
    saved = json.loads(path.read_text())
    for name, value in saved.items():
        if name != "transformers_version":
            loaded = getattr(config, name)
            assert (list(loaded) if isinstance(loaded, tuple) else loaded) == value, name
    assert saved["model_type"] == "mdm"
    assert config.num_ssm_heads * config.head_dim == config.inner_size


def test_a_setting_that_went_is_read_where_it_is_off_and_named_where_it_is_on():
    assert not hasattr(MDMConfig(exact_ratio_gain=False), "exact_ratio_gain")
    with pytest.raises(ValueError, match=r"exact_ratio_gain.* is True.*0\.1\.0 was the last"):
        MDMConfig(exact_ratio_gain=True)
    with pytest.raises(ValueError, match="exact_ratio_gain"):
        MDMConfig.from_dict({"model_type": "mdm", "exact_ratio_gain": True})
