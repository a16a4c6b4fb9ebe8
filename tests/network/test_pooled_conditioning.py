# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pooled conditioning: what is given modulates what is noisy, whoever has read it."""

import pytest
import torch
from tiny_model import LATENT, make_model, mixed_batch

from modeling_mdm import MDMConfig, MDMForJointGeneration
from modeling_mdm.cache import PromptCache
from modeling_mdm.content import ModalityContent
from modeling_mdm.decoder import PooledConditioning

WIDTH = 7


def make_content(given, valid, latents=None):
    given, valid = torch.tensor(given), torch.tensor(valid)
    if latents is None:
        latents = torch.randn(*given.shape, LATENT, dtype=torch.float64)
    turn = torch.zeros_like(given, dtype=torch.long)
    return ModalityContent(latents, given, valid, turn, turn)


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
    pooled = MDMForJointGeneration.from_pretrained(tmp_path, pooled_conditioning=True).eval()
    batch = mixed_batch(torch.float32)
    times = {name: torch.full((8,), 0.5) for name in ("text", "image")}
    torch.manual_seed(3)
    expected = plain(**batch, times=times)
    torch.manual_seed(3)
    found = pooled(**batch, times=times)
    torch.testing.assert_close(found.loss, expected.loss)
    found.loss.backward()
    for projection in pooled.decoder.pooled_conditioning.proj.values():
        assert projection.weight.grad.any()


def test_the_flag_is_asked_for():
    assert not MDMConfig().pooled_conditioning
    names = [name for name, _ in make_model().named_parameters()]
    assert not [name for name in names if "pooled" in name]
