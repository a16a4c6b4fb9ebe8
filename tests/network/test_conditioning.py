# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is given reaches what is noisy past the scans too: as one vector, and place by place."""

import pytest
import torch
from tiny_model import LATENT, make_model, mixed_batch

from modeling_mdm import MDMConfig, MDMForJointGeneration
from modeling_mdm.cache import PromptCache
from modeling_mdm.content import ModalityContent
from modeling_mdm.decoder import PlaceConditioning, PooledConditioning
from modeling_mdm.inputs import patch_places

WIDTH = 7
GRID = (3, 1, 2)  # three pictures of two patches


def make_content(given, valid):
    given, valid = torch.tensor(given), torch.tensor(valid)
    latents = torch.randn(*given.shape, LATENT, dtype=torch.float64)
    turn = torch.zeros_like(given, dtype=torch.long)
    return ModalityContent(latents, given, valid, turn, turn)


def make_pictures(given, valid, turns):
    """Three pictures of two patches in each item; those of a turn stand side by side."""
    given, valid = (torch.tensor(mask).repeat_interleave(2, 1) for mask in (given, valid))
    latents = torch.randn(*given.shape, LATENT, dtype=torch.float64)
    turn = torch.tensor(turns)
    place = patch_places(turn, torch.ones_like(turn, dtype=torch.bool), *GRID[1:])
    return ModalityContent(latents, given, valid, turn.repeat_interleave(2, 1), place)


@pytest.fixture
def pooling():
    torch.manual_seed(0)
    module = PooledConditioning(LATENT, WIDTH).double()
    for projection in module.proj.values():
        torch.nn.init.normal_(projection.weight)
    return module


CONTENT = {
    "text": ([[True, True, False, True], [True] * 4], [[True, True, True, False], [False] * 4]),
    "image": ([[False, True], [True, True]], [[True, True], [True, True]]),
}


def test_given_latents_are_added_up_and_divided_by_the_root_of_their_number(pooling):
    content = {name: make_content(*masks) for name, masks in CONTENT.items()}
    words, patches = (content[name].latents for name in ("text", "image"))
    text, image = (pooling.proj[name].weight for name in ("text", "image"))
    expected = [
        text @ (words[0, 0] + words[0, 1]) / 2**0.5 + image @ patches[0, 1],
        image @ (patches[1, 0] + patches[1, 1]) / 2**0.5,
    ]
    pooled = pooling(content, None, torch.float64)
    torch.testing.assert_close(pooled, torch.stack(expected))


def test_nothing_of_a_dropped_prompt_is_read(pooling):
    content = {name: make_content(*masks) for name, masks in CONTENT.items()}
    before = pooling(content, None, torch.float64)
    content["text"].latents[1] = torch.nan
    content["text"].latents[0, 2:] = torch.inf
    torch.testing.assert_close(pooling(content, None, torch.float64), before)


def test_parts_that_a_cache_reads_one_after_the_other_equal_the_whole(pooling):
    content = {name: make_content(*masks) for name, masks in CONTENT.items()}
    whole = pooling(content, None, torch.float64)
    cache = PromptCache(1)
    for name in ("text", "image"):
        pooling({name: content[name]}, cache, torch.float64)
    cache.freeze()
    noisy = make_content([[False]] * 2, [[True]] * 2)
    for _ in range(2):  # a cache that is only read stays what it is
        again = pooling({"image": noisy}, cache, torch.float64)
        torch.testing.assert_close(again, whole)


@pytest.fixture
def placing():
    torch.manual_seed(0)
    module = PlaceConditioning(LATENT, WIDTH).double()
    torch.nn.init.normal_(module.proj.weight)
    return module


def place(module, content, cache=None):
    return module(content, GRID, cache, torch.float64)


YES, NO = True, False


@pytest.mark.parametrize(
    ("given", "valid", "turns", "source"),
    [
        ([YES, YES, NO], [YES, YES, YES], [0, 2, 3], 1),  # the later of two turns
        ([YES, YES, NO], [YES, YES, YES], [2, 0, 3], 0),
        ([YES, YES, NO], [YES, YES, YES], [0, 0, 1], 1),  # of one turn the last
        ([YES, YES, NO], [YES, NO, YES], [0, 2, 3], 0),  # the other one was dropped
        ([NO, YES, NO], [YES, NO, YES], [0, 0, 0], None),
    ],
)
def test_a_noisy_patch_is_shown_what_was_given_last_at_its_place(
    placing, given, valid, turns, source
):
    content = make_pictures([given], [valid], [turns])
    content.latents[~content.valid] = torch.nan
    shown = place(placing, content).unflatten(1, (3, 2))
    expected = torch.zeros(1, 2, WIDTH, dtype=torch.float64)
    if source is not None:
        expected = placing.proj(content.latents.unflatten(1, (3, 2))[:, source])
    for number, own in enumerate(given):
        own = own or not valid[number]
        torch.testing.assert_close(
            shown[:, number], torch.zeros_like(expected) if own else expected
        )


def test_a_part_of_a_picture_hides_what_an_earlier_one_shows_there(placing):
    content = make_pictures([[YES, NO, NO]], [[YES, YES, YES]], [[0, 1, 1]])
    content.given[0, 3] = True  # the right half of the second picture
    shown = place(placing, content)
    of = placing.proj.weight @ content.latents[0].mT
    torch.testing.assert_close(shown[0, 2], of[:, 0])
    torch.testing.assert_close(shown[0, 4:].mT, of[:, [0, 3]])
    assert not shown[0, [0, 1, 3]].any()


def test_pictures_that_a_cache_reads_turn_by_turn_are_shown_alike(placing):
    content = make_pictures([[YES, YES, NO], [YES, NO, NO]], [[YES] * 3] * 2, [[0, 1, 2]] * 2)
    whole, cache = place(placing, content), PromptCache(1)
    for first in (0, 2):
        index = torch.arange(first, first + 2).expand(2, -1)
        place(placing, content.take(index, content.given.gather(1, index)), cache)
    cache.freeze()
    index = torch.arange(4, 6).expand(2, -1)
    noisy = content.take(index, torch.ones_like(index, dtype=torch.bool))
    for _ in range(2):  # a cache that is only read stays what it is
        torch.testing.assert_close(place(placing, noisy, cache), whole[:, 4:])


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("shows", [True, False])
def test_an_edit_sees_its_source_patch_by_patch_though_no_scan_carries_it(
    shows, use_cache, monkeypatch
):
    model = make_model(place_conditioning=shows)
    for layer in model.decoder.layers:
        monkeypatch.setattr(layer.mixer, "forward", lambda normed, *_: normed)
    options = {"num_inference_steps": 2, "show_progress": False, "use_cache": use_cache}
    given = torch.ones(1, 2, 8, 8, dtype=torch.bool)
    given[:, 1] = False

    def drawn(source):
        pixels = torch.stack([source, torch.zeros_like(source)], 1)
        generator = torch.Generator().manual_seed(0)
        inputs = {"pixel_values": pixels, "image_given": given}
        inputs["image_turn_ids"] = torch.tensor([[0, 1]])
        return model.generate(**inputs, generator=generator, **options).images

    source = torch.rand(1, 1, 8, 8, dtype=torch.float64) * 2 - 1
    other = source.clone()
    other[..., :4, 4:] *= -1  # one of four patches
    change = (drawn(source) - drawn(other)).abs()
    assert bool(change[..., :4, 4:].max() > 1e-6) == shows
    change[..., :4, 4:] = 0
    assert change.max() < 1e-12


def test_a_prompt_of_pictures_and_its_edit_are_cached_exactly_and_teach_the_weights():
    """Two pictures of one turn, one of the next, and a last one that is written."""
    model = make_model(pooled_conditioning=True, place_conditioning=True)
    pixels = torch.rand(2, 4, 1, 8, 8, dtype=torch.float64) * 2 - 1
    given = torch.ones(2, 4, 8, 8, dtype=torch.bool)
    given[:, 3] = False
    inputs = {"pixel_values": pixels, "image_given": given}
    inputs["image_turn_ids"] = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 2]])
    options = {"num_inference_steps": 3, "show_progress": False, "guidance_scale": 2.0}
    cached, plain = (
        model.generate(
            **inputs, generator=torch.Generator().manual_seed(0), use_cache=caches, **options
        ).images
        for caches in (True, False)
    )
    torch.testing.assert_close(cached, plain, rtol=0, atol=1e-10)
    model.train()(**inputs, drop_prompt=torch.zeros(2, dtype=torch.bool)).loss.backward()
    assert model.decoder.place_conditioning.proj.weight.grad.any()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("pools", [True, False])
def test_words_reach_the_picture_though_no_scan_carries_them(pools, use_cache, monkeypatch):
    model = make_model(pooled_conditioning=pools)
    for layer in model.decoder.layers:
        monkeypatch.setattr(layer.mixer, "forward", lambda normed, *_: normed)
    batch = {name: value[:1] for name, value in mixed_batch().items()}  # text to image
    options = {"num_inference_steps": 2, "show_progress": False, "use_cache": use_cache}

    def drawn(words):
        generator = torch.Generator().manual_seed(0)
        return model.generate(**{**batch, "input_ids": words}, generator=generator, **options)

    change = drawn(batch["input_ids"]).images - drawn(batch["input_ids"].roll(1, -1)).images
    assert bool(change.abs().max() > 1e-6) == pools


def test_weights_that_were_trained_without_it_go_on_as_they_were(tmp_path):
    plain = make_model(torch.float32)
    plain.save_pretrained(tmp_path)
    flags = {"pooled_conditioning": True, "place_conditioning": True}
    more = MDMForJointGeneration.from_pretrained(tmp_path, **flags).eval()
    batch = mixed_batch(torch.float32)
    times = {name: torch.full((8,), 0.5) for name in ("text", "image")}
    torch.manual_seed(3)
    expected = plain(**batch, times=times)
    torch.manual_seed(3)
    found = more(**batch, times=times)
    torch.testing.assert_close(found.loss, expected.loss)
    found.loss.backward()
    for projection in more.decoder.pooled_conditioning.proj.values():
        assert projection.weight.grad.any()


def test_both_are_asked_for():
    config = MDMConfig()
    assert not config.pooled_conditioning and not config.place_conditioning
    assert not [n for n, _ in make_model().named_parameters() if "conditioning" in n]
