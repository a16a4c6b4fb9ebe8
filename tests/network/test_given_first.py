# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What given first is for: given positions do not depend on noisy ones or on time.

And whatever padding holds changes nothing.
"""

import dataclasses

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from tiny_block import float64, make_config, randomise

from modeling_mdm.content import ModalityContent
from modeling_mdm.decoder import DecoderInputs, MDMDecoder

VARIANTS = {
    "parallel": {},
    "cyclic": {"scan_mode": "cyclic", "num_hidden_layers": 4},
    "separate": {"scan_projections": "separate"},
    "cyclic separate": {
        "scan_mode": "cyclic",
        "scan_projections": "separate",
        "num_hidden_layers": 4,
    },
    "euler": {"discretization": "euler"},
    "12/1": {"image_scans": [1, 2], "text_scans": [1]},
    "reference": {"kernel_backend": "reference"},
    "attention": {"mixer": "attention"},
    "conditioned": {"pooled_conditioning": True, "place_conditioning": True},
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def make_decoder(variant, **changes):
    return randomise(MDMDecoder(make_config(**VARIANTS[variant], **changes)).double()).eval()


def make_modality(given, valid, turn, place):
    latents = torch.randn(*given.shape, 3, dtype=float64)
    return ModalityContent(latents, given, valid, turn, place)


def draw_batch(batch, num_words, grid, with_padding=True):
    """Words and patches of every kind, in turns 0 and 1, and all that a decoder reads of them."""
    pictures, rows, columns = grid
    content = {}
    for g, length in (("text", num_words), ("image", pictures * rows * columns)):
        given = torch.rand(batch, length) < 0.5
        valid = torch.rand(batch, length) < (0.75 if with_padding else 2)
        turn = (torch.rand(batch, length) < 0.4).long()
        if g == "text":
            place = torch.arange(length).expand(batch, -1)
        else:
            index = torch.arange(length) % (rows * columns)
            place = torch.stack([index // columns, index % columns], -1).expand(batch, -1, -1)
        content[g] = make_modality(given, valid, turn, place)
    return content


def run(decoder, content, grid, z_t, times, estimates, keep, labels, dropped):
    sequence = decoder.lay_out(content, labels >= 0, dropped, grid)
    with torch.no_grad():
        return decoder(DecoderInputs(sequence, content, z_t, times, labels, estimates, keep))


def draw_noisy(content):
    batch = content["text"].given.shape[0]
    latents = {g: torch.randn_like(part.latents) for g, part in content.items()}
    estimates = {g: torch.randn_like(part.latents) for g, part in content.items()}
    return latents, {g: torch.rand(batch, dtype=float64) for g in content}, estimates


def shares_and_training():
    """Every variant with each share that is kept, while training or not; half of it fast."""
    for i, variant in enumerate(VARIANTS):
        for j, keep in enumerate([1.0, 0.5]):
            for k, training in enumerate([False, True]):
                marks = [] if (i + j + k) % 2 else [pytest.mark.slow]
                name = f"{variant}-{keep}-{'training' if training else 'evaluation'}"
                yield pytest.param(variant, keep, training, id=name, marks=marks)


@pytest.mark.parametrize(("variant", "keep", "training"), [*shares_and_training()])
def test_given_features_do_not_depend_on_noisy_positions_or_time(variant, keep, training):
    decoder = make_decoder(variant).train(training)
    grid, labels = (2, 2, 2), torch.tensor([1, -1, 3])
    content = draw_batch(3, 6, grid)
    dropped = torch.tensor([False, False, True])
    features = [
        run(decoder, content, grid, *draw_noisy(content), keep, labels, dropped) for _ in range(2)
    ]
    without = draw_noisy(content)[:2]
    features.append(run(decoder, content, grid, *without, None, keep, labels, dropped))
    for g, part in content.items():
        fixed, moving = part.given & part.valid, part.noisy
        assert fixed.any() and moving.any()
        for other in features[1:]:
            assert (features[0][g] - other[g])[fixed].abs().max() < 1e-10
            assert (features[0][g] - other[g])[moving].abs().max() > 1e-3


@variants
def test_given_features_have_no_gradient_from_noisy_positions(variant):
    decoder = make_decoder(variant)
    grid, labels = (1, 2, 3), torch.tensor([2, -1])
    content = draw_batch(2, 5, grid)
    z_t, times, estimates = draw_noisy(content)
    sources = [*z_t.values(), *times.values(), *estimates.values()]
    for tensor in sources:
        tensor.requires_grad_()
    sequence = decoder.lay_out(content, labels >= 0, labels > 9, grid)
    features = decoder(DecoderInputs(sequence, content, z_t, times, labels, estimates, 0.5))
    for part in ("given", "noisy"):
        total = sum(
            (features[g] * (getattr(content[g], part) & content[g].valid)[..., None]).sum()
            for g in content
        )
        gradients = torch.autograd.grad(total, sources, retain_graph=True)
        largest = max(gradient.abs().max().item() for gradient in gradients)
        assert largest < 1e-10 if part == "given" else largest > 1e-3


@variants
def test_what_is_known_does_reach_the_noisy_positions(variant):
    """Noisy words and patches read given ones of both modalities, and one another."""
    decoder = make_decoder(variant)
    grid, labels = (1, 2, 2), torch.tensor([-1])
    for source in ("text", "image"):
        content = draw_batch(1, 4, grid, with_padding=False)
        for g, part in content.items():
            part.turn.zero_()
            part.given.fill_(g == source)
        noise = draw_noisy(content)
        before = run(decoder, content, grid, *noise, 1.0, labels, labels > 9)
        content[source].latents = torch.randn_like(content[source].latents)
        after = run(decoder, content, grid, *noise, 1.0, labels, labels > 9)
        other = {"text": "image", "image": "text"}[source]
        assert (before[other] - after[other]).abs().amin(-1).min() > 1e-9


@variants
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_whatever_padding_holds_changes_nothing(variant, keep):
    decoder = make_decoder(variant)
    grid, labels = (2, 2, 2), torch.tensor([0, -1, 2])
    content = draw_batch(3, 6, grid)
    z_t, times, estimates = draw_noisy(content)
    first = run(decoder, content, grid, z_t, times, estimates, keep, labels, labels == 2)

    def refill(tensor, valid):
        padding = torch.randn_like(tensor) * 10
        return torch.where(valid[..., None], tensor, padding)

    changed = {}
    for g, part in content.items():
        valid = part.valid
        assert not valid.all()
        flipped = torch.where(valid, part.given, ~part.given)
        turn = torch.where(valid, part.turn, 2)
        changed[g] = dataclasses.replace(
            part, latents=refill(part.latents, valid), given=flipped, turn=turn
        )
        z_t[g], estimates[g] = refill(z_t[g], valid), refill(estimates[g], valid)
    second = run(decoder, changed, grid, z_t, times, estimates, keep, labels, labels == 2)
    for g, part in content.items():
        assert (first[g] - second[g])[part.valid].abs().max() < 1e-10


@variants
@examples(seed=st.integers(0, 10**6), keep=st.sampled_from([1.0, 0.5]))
@settings(max_examples=4)
def test_an_item_in_a_batch_equals_the_item_alone_with_its_padding_taken_out(variant, seed, keep):
    torch.manual_seed(seed)
    decoder = make_decoder(variant)
    grid, labels = (3, 2, 2), torch.tensor([3, -1])
    content = draw_batch(2, 6, grid)
    picture = torch.rand(2, 3) < 0.7
    content["image"].valid = picture.repeat_interleave(4, dim=1)
    noise = draw_noisy(content)
    z_t, times, estimates = noise
    together = run(decoder, content, grid, *noise, keep, labels, labels < 0)
    for b in range(2):
        kept = {g: part.valid[b].nonzero()[:, 0] for g, part in content.items()}
        if any(len(positions) == 0 for positions in kept.values()):
            continue
        alone = {
            g: ModalityContent(
                *(getattr(part, f.name)[b : b + 1, kept[g]] for f in dataclasses.fields(part))
            )
            for g, part in content.items()
        }
        features = run(
            decoder,
            alone,
            (len(kept["image"]) // 4, 2, 2),
            {g: z_t[g][b : b + 1, kept[g]] for g in alone},
            {g: times[g][b : b + 1] for g in alone},
            {g: estimates[g][b : b + 1, kept[g]] for g in alone},
            keep,
            labels[b : b + 1],
            labels[b : b + 1] < 0,
        )
        for g in alone:
            assert (features[g][0] - together[g][b, kept[g]]).abs().max() < 1e-10


@variants
def test_an_absent_modality_is_the_same_as_one_of_padding(variant):
    decoder = make_decoder(variant)
    labels, grid = torch.tensor([1, -1]), (1, 2, 2)
    content = draw_batch(2, 5, grid)
    content["image"].valid = torch.zeros(2, 4, dtype=torch.bool)
    z_t, times, estimates = draw_noisy(content)
    both = run(decoder, content, grid, z_t, times, estimates, 1.0, labels, labels > 9)
    alone = run(
        decoder,
        {"text": content["text"]},
        (0, 0, 0),
        {"text": z_t["text"]},
        {"text": times["text"]},
        {"text": estimates["text"]},
        1.0,
        labels,
        labels > 9,
    )
    assert set(alone) == {"text"}
    valid = content["text"].valid
    assert (both["text"] - alone["text"])[valid].abs().max() < 1e-10
