# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The ready configurations load, and have the parameters that the page states."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from modeling_mdm import MDMConfig, MDMForJointGeneration, MDMProcessor

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted(path.parent.name for path in ROOT.glob("configuration/*/config.json"))


def stated_parameters() -> dict[str, float]:
    """Read the table of configurations: parameters without the VQ-VAE, by name."""
    rows = re.findall(
        r"^\| `(mdm-[\w-]+)` \|[^|]*\| ([\d.]+) ([MB]) \|",
        (ROOT / "docs" / "load.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {name: float(number) * {"M": 1e6, "B": 1e9}[unit] for name, number, unit in rows}


def test_the_page_states_every_preset():
    assert sorted(stated_parameters()) == PRESETS != []


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_what_the_page_states(name):
    config = MDMConfig.from_pretrained(ROOT / "configuration" / name)
    with torch.device("meta"):
        model = MDMForJointGeneration(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    front_end = model.vq.parameters() if model.vq is not None else ()
    count = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in front_end)
    assert count == pytest.approx(stated_parameters()[name], rel=0.01)


def test_the_large_presets_have_the_papers_blocks():
    for name, per_block in (("mdm-1b", 27.9e6), ("mdm-7b", 155e6)):
        config = MDMConfig.from_pretrained(ROOT / "configuration" / name)
        with torch.device("meta"):
            model = MDMForJointGeneration(config)
        blocks = sum(p.numel() for p in model.decoder.layers.parameters())
        assert len(model.decoder.layers) == 49
        assert config.hidden_size == 2048
        assert blocks / 49 == pytest.approx(per_block, rel=0.01)


@pytest.mark.parametrize("name", ["mdm-digits", "mdm-fashion", "mdm-emoji", "mdm-emoji-64"])
def test_presets_fit_their_processors(name):
    config = MDMConfig.from_pretrained(ROOT / "configuration" / name)
    processor = MDMProcessor.from_pretrained(ROOT / "processing" / name)
    assert len(processor.tokenizer) == config.vocab_size
    assert processor.max_text_length == config.max_text_length
    assert processor.patch_size == config.patch_size
    assert processor.tokenizer.pad_token_id == config.pad_token_id
    assert processor.tokenizer.mask_token_id == config.mask_token_id
    assert processor.tokenizer.eos_token_id == config.eos_token_id
    encoded = processor(generate="joint", return_tensors="pt")
    assert encoded["pixel_values"].shape[-1] == config.image_size


def test_the_script_writes_what_is_there(tmp_path):
    script = ROOT / "configuration" / "make_presets.py"
    for name, fields in runpy.run_path(str(script))["PRESETS"].items():
        MDMConfig(**fields).to_json_file(tmp_path / "config.json")
        written = (tmp_path / "config.json").read_text(encoding="utf-8")
        committed = (ROOT / "configuration" / name / "config.json").read_text(encoding="utf-8")
        ignored = re.compile(r'\s*"transformers_version": "[^"]*",?')
        assert ignored.sub("", written) == ignored.sub("", committed)
