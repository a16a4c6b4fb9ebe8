# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Faults of clock, restarts and guidance window, and what a file says of them."""

import json

import pytest
import torch
from tiny_generation import generate
from tiny_model import mixed_batch

from modeling_mdm import MDMGenerationConfig
from modeling_mdm.generation_settings import CLOCK_END, CLOCK_START, MAX_LEAD

JOINT = [2, 7]  # items of the mixed batch that write both


def rows(*items):
    return {name: value[list(items)] for name, value in mixed_batch().items()}


NAN = float("nan")
FAULTS = {
    "negative lead": ({"joint_lead": -1.0}, r"`joint_lead` is -1.0.*0 to 17.*such as 2.0"),
    "lead of nan": ({"joint_lead": NAN}, r"`joint_lead` is nan.*0 to 17"),
    "lead of a word": ({"joint_lead": "two"}, r"`joint_lead` is 'two'.*0 to 17"),
    "long lead": ({"joint_lead": 17.5}, r"`joint_lead` is 17.5.*0 to 17"),
    "restarts": ({"num_restarts": -1}, "`num_restarts` is -1.*at least 0"),
    "half a restart": ({"num_restarts": 0.5}, "`num_restarts` is 0.5.*integer"),
    "many restarts": (
        {"num_restarts": 10**12, "num_inference_steps": 5},
        r"`num_inference_steps` is 5 for .*`num_restarts` = 10+ makes 10+1 passes.*or fewer",
    ),
    "few steps": (
        {"num_restarts": 2, "num_inference_steps": {"image": 2, "text": 3}},
        "`num_inference_steps` is 2 for image.*`num_restarts` = 2 makes 3 passes.*at least one",
    ),
    "restart before the clock": (
        {"num_restarts": 1, "restart_log_snr": -9.5},
        "`restart_log_snr` is -9.5 for .*from -9 to below 8",
    ),
    "restart after the clock": (
        {"num_restarts": 1, "restart_log_snr": {"text": 8}},
        "`restart_log_snr` is 8 for text.*from -9 to below 8",
    ),
    "restart after the picture's end": (
        {"num_restarts": 1, "restart_log_snr": {"image": 6.5}, "joint_lead": 4},
        "`restart_log_snr` is 6.5 for image.*`joint_lead` = 4 its clock ends at 6: use less",
    ),
    "no restart": (
        {"restart_log_snr": {"image": -3.0}},
        r"`restart_log_snr` is \{'image': -3.0\}, but `num_restarts` is 0.*leave it out",
    ),
    "restarts with words ahead": (
        {"num_restarts": 1, "joint_overlap": 0.5},
        "`num_restarts` is 1 with `joint_overlap` = 0.5.*use `joint_lead`",
    ),
    "window reversed": (
        {"guidance_window": (-1, -5)},
        r"`guidance_window` is \(-1, -5\) for .*the lower first",
    ),
    "empty window": (
        {"guidance_window": (-1, -1)},
        r"`guidance_window` is \(-1, -1\).*lower first",
    ),
    "window of nan": (
        {"guidance_window": {"text": (NAN, 1)}},
        "`guidance_window` is nan for text.*pair",
    ),
    "window of one": ({"guidance_window": -5.0}, r"`guidance_window` is -5.0 for .*pair"),
    "window of three": ({"guidance_window": [1, 2, 3]}, r"`guidance_window` is \[1, 2, 3\].*pair"),
    "window of a word": ({"guidance_window": "ab"}, "`guidance_window` is 'ab'.*pair"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_the_argument_the_value_and_the_fix(fault, exact):
    options, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        generate(exact, rows(*JOINT), **options)


def test_a_restart_log_snr_of_a_configuration_waits_for_restarts(exact):
    config = MDMGenerationConfig(restart_log_snr=-3.0)
    plain, waiting = generate(exact, rows(0)), generate(exact, rows(0), generation_config=config)
    assert torch.equal(plain.images, waiting.images)
    once, other = (
        generate(exact, rows(0), generation_config=chosen, num_restarts=1, num_inference_steps=4)
        for chosen in (None, config)
    )
    assert not torch.equal(once.images, other.images)


def test_the_options_are_the_same_from_a_file(exact, tmp_path):
    options = {
        "joint_lead": 2.0,
        "num_restarts": 1,
        "restart_log_snr": {"image": -3.0, "text": -2.0},
        "guidance_window": {"image": (-5.0, -1.0)},
        "num_inference_steps": 4,
    }
    config = MDMGenerationConfig(**options)
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    assert {name: stored[name] for name in options} == options | {
        "guidance_window": {"image": [-5.0, -1.0]}
    }
    loaded = MDMGenerationConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in options} == {
        name: getattr(config, name) for name in options
    }
    assert vars(loaded)["guidance_window"] == {"image": [-5.0, -1.0]}
    by_keyword = generate(exact, rows(*JOINT), **options)
    options.pop("num_inference_steps")
    by_file = generate(exact, rows(*JOINT), generation_config=loaded, num_inference_steps=4)
    assert torch.equal(by_keyword.images, by_file.images)


def test_the_clock_is_named():
    assert (CLOCK_START, CLOCK_END, MAX_LEAD) == (-9.0, 8.0, 17.0)


@pytest.mark.parametrize(
    "options",
    [
        {"num_inference_steps": 1},
        {"num_inference_steps": {"image": 1, "text": 4}},
        {"joint_overlap": 0.5},
        {"generation_config": MDMGenerationConfig(joint_overlap=0.0)},
    ],
    ids=str,
)
def test_a_models_own_restarts_are_left_out_where_they_do_not_go(options, exact, monkeypatch):
    """As with 0 of them, to the last bit; but a call that asks for them is told."""
    batch = {name: value[[7]] for name, value in mixed_batch().items()}
    batch["image_given"][:, :, 4:] = True
    expected = generate(exact, batch, **options)
    own = MDMGenerationConfig(num_restarts=1, restart_log_snr=-2.0)
    monkeypatch.setattr(exact, "generation_config", own)
    assert torch.equal(generate(exact, batch, **options).images, expected.images)
    with pytest.raises(ValueError, match="`num_restarts`"):
        generate(exact, batch, **options, num_restarts=1)
