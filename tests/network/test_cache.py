# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The prompt cache: reading what is given once changes no result, and saves what it should."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import CLASSES, LATENT, MIXERS, VOCABULARY, make_model, mixed_batch

from modeling_mdm.cache import LayerCache, PromptCache
from modeling_mdm.convolution import last_inputs
from modeling_mdm.decoder import DecoderInputs
from modeling_mdm.sequence import take_part, whole

OPTIONS = {
    "plain": {"guidance_scale": 1.0},
    "guided": {"guidance_scale": {"image": 3.0, "text": 1.5}},
    "jointly guided": {"guidance_scale": 2.0, "joint_guidance_scale": 1.5},
    "heun": {"solver": "heun"},
    "ancestral": {"solver": "ddpm", "num_inference_steps": {"image": 5, "text": 2}},
    "samples": {"num_return_sequences": 3},
}


def run(model, batch, **options):
    options = {"num_inference_steps": 3, "show_progress": False, **options}
    generator = torch.Generator().manual_seed(7)
    return model.generate(**batch, generator=generator, output_trajectory=True, **options)


def assert_same(first, second, tolerance):
    for name in ("images", "sequences"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.double() - b.double()).abs().max() <= tolerance, name
    assert first.num_evaluations == second.num_evaluations
    for g, value in first.confidence.items():
        assert (value - second.confidence[g]).abs().max() < max(tolerance, 1e-6), g
    if "image" in first.trajectory:
        error = (first.trajectory["image"] - second.trajectory["image"]).abs().max()
        assert error <= tolerance


PASSES = ("scans at once", "scans one by one")


def agreements():
    """Every mixer and way to sample in every pass; in the fast lane each of both, but not both."""
    for i, mixer in enumerate(MIXERS):
        for j, (name, options) in enumerate(OPTIONS.items()):
            for k, passes in enumerate(PASSES):
                marks = [] if (i + 2 * k - j) % len(OPTIONS) == 0 else [pytest.mark.slow]
                yield pytest.param(
                    mixer, options, passes, id=f"{mixer}-{name}-{passes}", marks=marks
                )


@pytest.mark.parametrize(
    ("mixer", "options", "scan_passes"), [*agreements()], indirect=["scan_passes"]
)
def test_cached_and_uncached_runs_agree_in_float64(mixer, options, scan_passes):
    model = make_model(**MIXERS[mixer])
    batch = mixed_batch()
    cached = run(model, batch, **options)
    assert_same(cached, run(model, batch, use_cache=False, **options), 1e-10)


def selections():
    """Every mixer with scans in every pass; in the fast lane with one share that is kept."""
    for i, mixer in enumerate(["parallel", "cyclic", "separate", "few-scans"]):
        for j, keep in enumerate([0.75, 0.25]):
            for k, passes in enumerate(PASSES):
                marks = [] if (i + j + k) % 2 == 0 else [pytest.mark.slow]
                yield pytest.param(mixer, keep, passes, id=f"{mixer}-{keep}-{passes}", marks=marks)


@pytest.mark.parametrize(
    ("mixer", "keep", "scan_passes"), [*selections()], indirect=["scan_passes"]
)
def test_hard_selection_is_the_same_with_a_cache(mixer, keep, scan_passes):
    model = make_model(**MIXERS[mixer])
    options = {"keep": keep, "guidance_scale": 2.0}
    cached = run(model, mixed_batch(), **options)
    assert_same(cached, run(model, mixed_batch(), use_cache=False, **options), 1e-10)


@pytest.mark.parametrize("mixer", ["parallel", "attention"])
def test_cached_and_uncached_runs_agree_in_float32(mixer):
    model = make_model(torch.float32, **MIXERS[mixer])
    batch = mixed_batch(torch.float32)
    cached = run(model, batch, guidance_scale=2.0)
    assert_same(cached, run(model, batch, guidance_scale=2.0, use_cache=False), 1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_finished_words_are_read_into_a_new_cache(overlap):
    model = make_model()
    rows = [2, 7]  # both modalities are written
    batch = {name: value[rows] for name, value in mixed_batch().items()}
    options = {"joint_overlap": overlap, "guidance_scale": 2.0, "num_inference_steps": 6}
    cached = run(model, batch, **options)
    assert_same(cached, run(model, batch, use_cache=False, **options), 1e-10)


def test_a_step_evaluates_the_noisy_positions_alone(monkeypatch):
    """Of captions with a picture of 4 patches, only words and their time token are evaluated."""
    model = make_model()
    lengths, original = [], model.decoder.layers[0].forward

    def forward(hidden_states, *args, **kwargs):
        lengths.append(hidden_states.shape[:2])
        return original(hidden_states, *args, **kwargs)

    monkeypatch.setattr(model.decoder.layers[0], "forward", forward)
    pictures = torch.rand(2, 1, 8, 8, dtype=torch.float64) * 2 - 1
    inputs = {"pixel_values": pictures, "image_given": torch.ones(2, 8, 8, dtype=torch.bool)}
    options = {"guidance_scale": 2.0, "num_return_sequences": 3, "max_new_tokens": 5}
    run(model, inputs, num_inference_steps=4, **options)
    branches, samples, null = 2, 6, model.config.num_null_tokens
    # Read once for all samples of an item: class, null and start tokens, and patches; without the
    # prompt only the tokens.
    assert lengths[:2] == [(2, 1 + null + 1 + 1 + 4), (2, 1 + null + 1 + 1)]
    assert lengths[2:] == [(branches * samples, 1 + 5)] * 4


def laid_out(model, batch):
    encoded = model.encode_inputs(**batch)
    dropped = torch.arange(len(batch["input_ids"])) % 3 == 0
    content = encoded.content
    sequence = model.decoder.lay_out(content, encoded.has_class, dropped, encoded.grid)
    return encoded, content, sequence


def decode(model, part, times, labels, cache=None, keep=1.0):
    torch.manual_seed(3)
    z = {g: c.latents for g, c in part.content.items()}
    times = {g: times.expand(1) for g in part.content}
    with torch.no_grad():
        inputs = (part.sequence, part.content, z, times, labels, None, keep, cache)
        return model.decoder(DecoderInputs(*inputs))


@pytest.mark.parametrize("mixer", MIXERS)
def test_parts_give_the_features_of_the_whole(mixer):
    model = make_model(**MIXERS[mixer])
    encoded, content, sequence = laid_out(model, mixed_batch())
    time, labels = torch.tensor(0.4, dtype=torch.float64), encoded.class_labels
    everything = decode(model, whole(sequence, content), time, labels)
    cache = PromptCache(len(model.decoder.layers))
    parts = {given: take_part(sequence, content, given) for given in (True, False)}
    features = {True: decode(model, parts[True], time, labels, cache)}
    cache.freeze()
    features[False] = decode(model, parts[False], time, labels, cache)
    compared = 0
    for is_given, part in parts.items():
        for g, got in features[is_given].items():
            expected = part.take(g, everything[g])
            real = part.real[g]
            compared += int(real.sum())
            assert not real.any() or (got - expected)[real].abs().max() < 1e-10
    assert compared == sum(int(part.valid.sum()) for part in content.values())


@pytest.mark.parametrize("mixer", MIXERS)
def test_reading_a_conversation_turn_by_turn_equals_reading_it_at_once(mixer):
    """All given; three turns of words and two pictures, items of different lengths."""
    model = make_model(**MIXERS[mixer])
    draw = torch.Generator().manual_seed(0)
    turns = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 2, 2, 0, 0]])
    mask = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])
    batch = {
        "input_ids": torch.randint(4, VOCABULARY, (2, 8), generator=draw),
        "attention_mask": mask,
        "text_given": torch.ones(2, 8, dtype=torch.bool),
        "turn_ids": turns,
        "pixel_values": torch.rand(2, 2, 1, 8, 8, generator=draw).double() * 2 - 1,
        "image_given": torch.ones(2, 2, 8, 8, dtype=torch.bool),
        "image_turn_ids": torch.tensor([[0, 2], [1, 2]]),
        "class_labels": torch.tensor([-1, CLASSES - 1]),
    }
    _, content, sequence = laid_out(model, batch)
    labels, time = batch["class_labels"], torch.tensor(0.0, dtype=torch.float64)
    at_once = PromptCache(len(model.decoder.layers))
    expected = decode(model, take_part(sequence, content, True), time, labels, at_once)
    by_turn, got = PromptCache(len(model.decoder.layers)), {}
    for turn in range(3):
        part = take_part(sequence, content, True, turns=(turn, turn + 1))
        features = decode(model, part, time, labels, by_turn)
        for g, values in features.items():
            base = got.get(g, torch.zeros_like(expected[g]))
            got[g] = part.put(g, values, base)
    for g, part in content.items():
        assert (got[g] - expected[g])[part.valid].abs().max() < 1e-10
    for mine, theirs in zip(by_turn.layers, at_once.layers, strict=True):
        for name, value in theirs.tensors.items():
            if name not in ("key", "value", "readable"):  # kept in the order of reading
                assert (mine.tensors[name] - value).abs().max() < 1e-10, name


def test_a_frozen_cache_does_not_change():
    layer = LayerCache()
    layer.store(state=torch.ones(1))
    cache = PromptCache(1)
    cache.layers = [layer]
    assert cache.is_recording
    cache.freeze()
    assert not cache.is_recording
    layer.store(state=torch.zeros(1), key=torch.zeros(1))
    assert layer.get("state") == 1 and layer.get("key") is None


def test_rows_of_a_cache_may_repeat():
    cache = PromptCache(2)
    for index, layer in enumerate(cache.layers):
        layer.store(state=torch.arange(3.0)[:, None] + 10 * index)
    cache.freeze()
    chosen = cache.rows(torch.tensor([2, 0, 0]))
    assert chosen.layers[1].get("state")[:, 0].tolist() == [12, 10, 10]
    assert not chosen.is_recording


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    taps=st.integers(1, 4),
    earlier=st.booleans(),
)
def test_last_inputs_are_those_before_the_next_position(lengths, taps, earlier):
    draw = torch.Generator().manual_seed(sum(lengths))
    batch, longest = len(lengths), max(lengths)
    x = torch.randn(batch, 2, longest, 3, generator=draw)  # in scan order
    order = torch.rand(batch, 2, longest, generator=draw).argsort(-1)
    stored = torch.zeros_like(x).scatter(2, order[..., None].expand_as(x), x)
    tail = torch.randn(batch, 2, taps, 3, generator=draw) if earlier else None
    got = last_inputs(stored, order, torch.tensor(lengths), tail, taps)
    for b, length in enumerate(lengths):
        history = [torch.zeros(2, 3)] * taps if tail is None else list(tail[b].unbind(1))
        history += list(x[b, :, :length].unbind(1))
        assert torch.equal(got[b], torch.stack(history[-taps:], 1))


def test_put_writes_where_a_part_stands_and_nowhere_else():
    _, content, sequence = laid_out(make_model(), mixed_batch())
    part = take_part(sequence, content, given=False)
    others = torch.randn(8, content["text"].given.shape[1], LATENT, dtype=torch.float64)
    values = torch.randn(*part.index["text"].shape, LATENT, dtype=torch.float64)
    result = part.put("text", values, others)
    noisy = content["text"].noisy
    assert torch.equal(result[~noisy], others[~noisy])
    assert torch.equal(part.take("text", result)[part.real["text"]], values[part.real["text"]])
