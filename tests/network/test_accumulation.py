# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A training step over several batches is one over a batch that holds all of their items."""

import pytest
import torch
from tiny_model import every_random_source, make_model, mixed_batch

from modeling_mdm.draws import ItemKeys
from modeling_mdm.loss import count_items_in_batches
from modeling_mdm.vae import LatentStatistics

PARTS = {
    "two": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "four": [[0, 1], [2, 3], [4, 5], [6, 7]],
    # The fourth item has no picture, the fifth no words: the others of their batches are taken.
    "lacking": [[3], [4], [0, 1, 2, 5, 6, 7]],
    "lacking-at-last": [[0, 1, 2, 5, 6, 7], [4], [3]],
}
MODALITIES = {
    "attention_mask": ("input_ids", "attention_mask", "text_given", "turn_ids"),
    "pixel_attention_mask": ("pixel_values", "pixel_attention_mask", "image_given"),
}


def cut(batch, rows):
    """Some items, without a modality that none of them has."""
    batch = {name: value[rows] for name, value in batch.items()}
    for mask, names in MODALITIES.items():
        if not batch[mask].any():
            batch = {name: value for name, value in batch.items() if name not in names}
    return batch


def draws(rows):
    """What is random in the step of all items, of some of them."""
    sources = every_random_source(8)
    for name, value in sources.items():
        if isinstance(value, dict):
            sources[name] = {g: part[rows] for g, part in value.items()}
        elif isinstance(value, torch.Tensor):
            sources[name] = value[rows]
    return sources


def keyed(step):
    """Nothing is passed: the model draws by the items' places in the batch of all."""
    return lambda rows: {"item_keys": ItemKeys(5, step, torch.tensor(rows))}


def step(parts, draws=draws, **changes):
    """One step: the sums of the losses, the gradients and the statistics after it."""
    model, losses = make_model(use_mode_head=True, **changes).train(), {}
    batches = [cut(mixed_batch(), rows) for rows in parts]
    counts = count_items_in_batches(model.config, batches) if len(parts) > 1 else None
    for batch, rows in zip(batches, parts, strict=True):
        out = model(**batch, **draws(rows), num_items_in_batch=counts)
        out.loss.backward()
        for name in out:
            if name.startswith("loss"):
                losses[name] = losses.get(name, 0) + out[name].detach().double()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses, gradients, dict(model.vae.statistics.named_buffers())


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_losses_gradients_and_statistics_are_those_of_the_whole(parts):
    whole = step([list(range(8))])
    assert len(whole[0]) == 9 and all(value > 0 for value in whole[0].values())
    assert all(gradient.any() for gradient in whole[1].values())
    for found, expected in zip(step(parts), whole, strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("number", [0, 3], ids=["feeds back", "selects"])
def test_what_is_drawn_by_keys_hangs_on_no_batch(number, parts):
    """Times, coupled and hidden, dropped prompts, noise, selection and what is fed back."""
    changes = {"se_candidates": "trajectory", "null_prompt_probability": 0.5}
    whole = step([list(range(8))], keyed(number), **changes)
    other = step([list(range(8))], keyed(number + 1), **changes)
    moved = {name for name, value in whole[0].items() if value != other[0][name]}
    assert moved == whole[0].keys() - {"loss_kl", "loss_mode"}  # which nothing random enters
    for found, expected in zip(step(parts, keyed(number), **changes), whole, strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=name)


def test_counts_are_those_of_the_masks():
    """By hand, of the batch's table: words, patches, and items with a prompt and no known part."""
    config = make_model(use_mode_head=True).config
    counts = count_items_in_batches(config, [cut(mixed_batch(), rows) for rows in PARTS["lacking"]])
    assert {name: int(value) for name, value in counts.items()} == {
        "real_text": 4 + 5 + 6 + 6 + 0 + 3 + 6 + 6,
        "noisy_text": 0 + 5 + 6 + 4 + 0 + 0 + 2 + 3,
        "real_image": 7 * 4,
        "noisy_image": 4 + 0 + 4 + 0 + 4 + 2 + 0 + 4,
        "asking": 4,
    }


def test_batches_of_neither_words_nor_pictures_are_refused():
    with pytest.raises(ValueError, match="Neither `input_ids` nor `pixel_values`"):
        count_items_in_batches(make_model().config, [{"class_labels": torch.tensor([1])}])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_statistics_of_any_type_count_exactly(dtype):
    """Three parts of 257, which bfloat16 does not hold."""
    statistics = LatentStatistics(2, 0.01).to(dtype)
    latents, valid = torch.randn(3, 1, 257, 2, dtype=dtype) + 3, torch.ones(1, 257).bool()
    for index in range(3):
        assert statistics.updates == 0
        statistics.update(latents[index], valid, torch.tensor(3 * 257))
    assert statistics.updates == 1
    every, rounding = latents.double().flatten(0, 2), torch.finfo(dtype).eps
    expected = {"mean": every.mean(0), "variance": every.var(0, correction=0)}
    for name, value in expected.items():
        assert (getattr(statistics, name).double() / value - 1).abs().max() < 30 * rounding


def test_statistics_wait_for_the_last_part_and_then_start_anew():
    model = make_model().train()
    statistics = model.vae.statistics["text"]
    for update in range(1, 3):
        before = statistics.mean.clone()
        for latents, waits in ((torch.randn(1, 3, 6), True), (torch.randn(1, 2, 6), False)):
            statistics.update(latents, torch.ones(latents.shape[:2]).bool(), torch.tensor(5))
            assert torch.equal(statistics.mean, before) == waits
        assert statistics.updates == update
