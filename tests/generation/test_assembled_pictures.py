# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures whose patches are assembled: given ones are seen, known pixels stay, any grid goes."""

import json

import pytest
import torch
from tiny_generation import finish, generate, seeded
from tiny_model import make_model

from modeling_mdm import MDMForJointGeneration


@pytest.fixture(scope="module")
def assembling():
    return make_model(image_decoder_layers=1)


def repaint(pixels, given, **more):
    return {"pixel_values": pixels, "image_given": given, **more}


def test_what_is_repainted_is_decoded_beside_what_is_given(assembling):
    """The same latents beside other given patches: each patch that touches one comes out other."""
    pixels = torch.rand(2, 1, 8, 12, dtype=torch.float64)
    given = torch.zeros(2, 8, 12, dtype=torch.bool)
    given[:, :4, :4] = True
    given[0, 1, 1] = False  # a known pixel of a patch that is written: the patch is not given
    out, latents = finish(assembling, repaint(pixels, given), seeded(3, 3))
    known = given[:, None]
    assert torch.equal(out.images[known], pixels.to(out.images)[known])
    z = latents["image"][1:].repeat(2, 1, 1)
    z[1, 0] += 1  # the given patch in the corner
    patches = assembling.vae.decode(z, "image", (1, 2, 3))
    changed = (patches[0] != patches[1]).any(-1).view(2, 3)
    assert changed.tolist() == [[True, True, False], [True, True, False]]
    decoded = assembling.vae.decode(latents["image"][1:], "image", (1, 2, 3))
    corner = decoded[0, 5].view(4, 4).clamp(-1, 1)
    torch.testing.assert_close(out.images[1, 0, 4:, 8:].to(corner), corner, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(4, 4), (4, 20), (12, 8)])
def test_a_smaller_picture_is_the_same_in_a_wider_row(size, assembling):
    height, width = size
    small = torch.zeros(1, 1, height, width, dtype=torch.float64)
    wide = torch.zeros(1, 1, height, width + 8, dtype=torch.float64)
    there = torch.zeros(1, height, width + 8, dtype=torch.long)
    there[..., :width] = 1
    written = [torch.zeros_like(pixels[:, 0], dtype=torch.bool) for pixels in (small, wide)]
    alone = generate(assembling, repaint(small, written[0]), generator=seeded(1)).images
    inputs = repaint(wide, written[1], pixel_attention_mask=there)
    padded = generate(assembling, inputs, generator=seeded(1)).images
    assert (alone - padded[..., :width]).abs().max() < 1e-6
    assert alone.abs().min() > 0


def test_pictures_of_an_item_do_not_see_each_other(assembling):
    pixels = torch.rand(1, 2, 1, 8, 8, dtype=torch.float64)
    given = torch.ones(1, 2, 8, 8, dtype=torch.bool)
    given[0, 1] = False
    out, latents = finish(assembling, repaint(pixels, given), seeded(0))
    second = assembling.vae.decode(latents["image"][:, 4:], "image", (1, 2, 2))
    first = second[0, 0].view(4, 4).clamp(-1, 1)
    torch.testing.assert_close(out.images[0, 0, :4, :4].to(first), first, rtol=0, atol=1e-6)


def test_an_older_checkpoint_gets_layers_that_change_nothing_at_first(tmp_path):
    make_model(torch.float32).save_pretrained(tmp_path)
    old = MDMForJointGeneration.from_pretrained(tmp_path)
    assert old.config.image_decoder_layers == 0 and not old.vae.assembly
    new = MDMForJointGeneration.from_pretrained(tmp_path, image_decoder_layers=2)
    assert len(new.vae.assembly) == 2
    inputs = {"class_labels": torch.tensor([1, 3])}
    pictures = [
        generate(model, inputs, generation_mode="joint", generator=seeded(0, 1)).images
        for model in (old, new)
    ]
    assert torch.equal(*pictures)


def test_what_loading_adds_to_a_model_does_not_go_into_how_it_generates(tmp_path):
    model = make_model(torch.float32)
    model.generation_config.joint_lead = 2.0
    model.save_pretrained(tmp_path / "old")
    changes = {"image_decoder_layers": 1, "use_mode_head": True}
    new = MDMForJointGeneration.from_pretrained(tmp_path / "old", **changes)
    assert new.generation_config.joint_lead == 2.0
    new.save_pretrained(tmp_path / "new")
    names = {
        folder: json.loads((tmp_path / folder / "generation_config.json").read_text()).keys()
        for folder in ("old", "new")
    }
    assert names["new"] == names["old"]
