# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What scans read, as a share of blocks and as a sheet."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_digits import make_config, make_processor

from modeling_mdm import MDMForJointGeneration
from modeling_mdm.display.selection import dotted, faded, read_by_scan, selection_sheet


def output_of(read):
    return SimpleNamespace(selection={"image": read}, trajectory={})


def test_blocks_that_share_a_scan_are_counted_together():
    """Cyclic: five blocks of two scans; block b has scan b % 2."""
    read = torch.zeros(1, 1, 5, 1, 3, dtype=torch.bool)
    read[0, 0, 0, 0, 0] = read[0, 0, 2, 0, 0] = read[0, 0, 1, 0, 1] = True
    config = SimpleNamespace(joint_scans=((1, 1), (2, 2)), scan_mode="cyclic")
    shares = read_by_scan(output_of(read), config)["image"]
    assert torch.allclose(shares, torch.tensor([[[[2 / 3, 0, 0], [0, 1 / 2, 0]]]]))
    config.scan_mode = "parallel"
    both = read_by_scan(output_of(torch.cat([read, ~read], 3)), config)["image"]
    assert torch.allclose(both[0, 0, 0], torch.tensor([2 / 5, 1 / 5, 0]))
    assert torch.allclose(both[0, 0, 1], torch.tensor([3 / 5, 4 / 5, 1]))


def test_patches_fade_by_what_is_not_read():
    image = Image.new("RGB", (4, 4), (55, 55, 55))
    shown = np.asarray(faded(image, torch.tensor([9.0, 1, 0.5, 0, 1]), 2))  # the last picture's
    assert (shown[:2, :2] == 55).all() and (shown[:2, 2:] == 155).all()
    assert (shown[2:, :2] == 255).all() and (shown[2:, 2:] == 55).all()


def test_pieces_that_are_not_read_are_dots():
    tokenizer = make_processor().tokenizer
    ids = tokenizer("two and two", add_special_tokens=False).input_ids
    words = torch.tensor([*ids, tokenizer.eos_token_id, 7])
    assert dotted(tokenizer, words, torch.ones(len(words))) == "two and two"
    none = dotted(tokenizer, words, torch.zeros(len(words)))
    assert set(none) == {"·", " "} and none.count("·") == len(ids)
    assert dotted(tokenizer, words[-2:], torch.ones(2)) == ""


@pytest.mark.parametrize("scan_mode", ["cyclic", "parallel"])
def test_a_sheet_has_a_row_for_each_scan(scan_mode):
    processor = make_processor()
    config = make_config(len(processor.tokenizer))
    config.update({"use_selection": True, "scan_mode": scan_mode})
    torch.manual_seed(0)
    model = MDMForJointGeneration(config).eval()

    def run(solver="ddim", **options):
        return model.generate(
            **processor(generation_mode="joint", return_tensors="pt"),
            num_inference_steps=4,
            keep=0.5,
            solver=solver,
            generator=torch.Generator().manual_seed(0),
            **options,
        )

    both = {"output_selection": True, "output_trajectory": True}
    sheet = selection_sheet(run(**both), processor, config, columns=3, picture_size=32)
    lone = selection_sheet(run(**both), processor, config, columns=2, picture_size=32)
    assert sheet.width > lone.width and sheet.height >= 32 * len(config.joint_scans)
    with pytest.raises(ValueError, match="Heun"):
        selection_sheet(run("heun", **both), processor, config)
    with pytest.raises(ValueError, match="output_selection=True"):
        selection_sheet(run(output_trajectory=True), processor, config)
    with pytest.raises(ValueError, match="output_trajectory=True"):
        selection_sheet(run(output_selection=True), processor, config)
    with pytest.raises(ValueError, match="columns"):
        selection_sheet(run(**both), processor, config, columns=1)
