# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Given pictures are mirrored and shifted; what is written, partly too, stays."""

import pytest
import torch

from modeling_mdm.data.augmentation import AugmentsGiven


def collator(pixels, given):
    """A collator that gives copies of these, whatever it is asked for."""
    return lambda items: {"pixel_values": pixels.clone(), "image_given": given.clone(), "x": 1}


def variants(picture):
    """All that may become of a picture (channels, height, width), by hand."""
    found = []
    _, height, width = picture.shape
    for is_mirrored in (False, True):
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                moved = torch.empty_like(picture)
                for row in range(height):
                    for column in range(width):
                        source = min(max(column + right, 0), width - 1)
                        source = width - 1 - source if is_mirrored else source
                        moved[:, row, column] = picture[
                            :, min(max(row + down, 0), height - 1), source
                        ]
                found.append(moved)
    return found


def test_given_pictures_take_every_variant_and_written_ones_none():
    pixels = torch.rand(200, 1, 4, 5)
    given = torch.ones(200, 4, 5, dtype=torch.bool)
    given[1::4] = False  # written
    given[3::4, :2] = False  # partly
    items = [{"seed": n} for n in range(200)]
    collate = AugmentsGiven(collator(pixels, given), seed=3)
    batch = collate(items)
    assert torch.equal(batch["pixel_values"][1::2], pixels[1::2]) and batch["x"] == 1
    seen = set()
    for row in range(0, 200, 2):
        which = next(
            n
            for n, variant in enumerate(variants(pixels[row]))
            if torch.equal(batch["pixel_values"][row], variant)
        )
        seen.add(which)
    assert len(seen) == 18
    assert torch.equal(collate(items)["pixel_values"], batch["pixel_values"])
    others = AugmentsGiven(collator(pixels, given), seed=4)(items)["pixel_values"]
    assert not torch.equal(others, batch["pixel_values"])


@pytest.mark.parametrize("channels", [1, 3])
def test_several_pictures_of_an_item_are_each_their_own(channels):
    pixels = torch.rand(1, 3, channels, 6, 6)
    given = torch.ones(1, 3, 6, 6, dtype=torch.bool)
    given[0, 2] = False
    batch = AugmentsGiven(collator(pixels, given))([{"seed": 5}])
    assert batch["pixel_values"].shape == pixels.shape
    assert torch.equal(batch["pixel_values"][0, 2], pixels[0, 2])
    for place in (0, 1):
        shown = batch["pixel_values"][0, place]
        assert any(torch.equal(shown, variant) for variant in variants(pixels[0, place]))


def test_batches_without_pictures_and_items_without_seeds_pass():
    assert AugmentsGiven(lambda items: {"input_ids": 1})([{}]) == {"input_ids": 1}
    pixels, given = torch.rand(1, 1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    assert AugmentsGiven(collator(pixels, given))([{}])["pixel_values"].shape == pixels.shape
