# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adaptive stopping, `torch.compile` and the CUDA graph: other ways to run the same evaluations."""

import copy

import pytest
import torch
from tiny_model import MIXERS, make_model, mixed_batch

STEPS = 6


def run(model, batch, **options):
    options = {"num_inference_steps": STEPS, "show_progress": False, **options}
    generator = [torch.Generator().manual_seed(seed) for seed in range(len(batch["input_ids"]))]
    return model.generate(**batch, generator=generator, **options)


def predicting(model, monkeypatch, entropies):
    """Let the head predict an entropy for every number of evaluations, the same everywhere."""
    calls = {"count": 0}
    denoise, head = model.denoise, model.score_entropy_head

    def counted(*args, **kwargs):
        calls["count"] += 1
        return denoise(*args, **kwargs)

    def predict(features):
        value = entropies(calls["count"], features)
        return torch.log1p(value.expand(features.shape[:-1]).float())

    monkeypatch.setattr(model, "denoise", counted)
    monkeypatch.setattr(head, "forward", predict)
    return calls


def test_a_threshold_that_is_never_met_changes_nothing(monkeypatch):
    model, batch = make_model(), mixed_batch()
    predicting(model, monkeypatch, lambda *_: torch.tensor(1.0))
    plain, stopping = run(model, batch), run(model, batch, stopping_entropy=0.5)
    assert torch.equal(plain.images, stopping.images)
    assert torch.equal(plain.sequences, stopping.sequences)
    assert plain.item_evaluations.tolist() == [STEPS] * 8
    assert stopping.item_evaluations.tolist() == [STEPS] * 8


@pytest.mark.parametrize("use_cache", [True, False])
def test_everything_stops_where_the_entropy_falls_below_the_threshold(monkeypatch, use_cache):
    model, batch = make_model(), mixed_batch()
    expected = run(model, batch, output_trajectory=True, use_cache=use_cache)
    low = torch.tensor(0.01)
    predicting(model, monkeypatch, lambda n, _: low if n >= 3 else low * 100)
    out = run(model, batch, stopping_entropy=0.1, use_cache=use_cache)
    assert out.num_evaluations == 3 and out.item_evaluations.tolist() == [3] * 8
    # What is finished is the clean estimate of that step.
    assert torch.allclose(out.images, expected.trajectory["image"][:, 2])
    assert torch.equal(out.sequences, expected.trajectory["text"][:, 2])


@pytest.mark.parametrize("mixer", ["parallel", "cyclic", "attention"])
def test_items_that_are_finished_leave_the_batch_and_change_no_other(monkeypatch, mixer):
    """By themselves and in the batch, items end at the same step with the same result."""
    model, batch = make_model(**MIXERS[mixer]), mixed_batch()
    # The norm of features stands in for a prediction: items meet the threshold at different steps.
    options = {"stopping_entropy": {"image": 1.2, "text": 1.2}, "guidance_scale": 2.0}
    predicting(model, monkeypatch, lambda n, f: 0.8 + f.norm(dim=-1).float() % 1 / n)
    out = run(model, batch, **options)
    assert len(set(out.item_evaluations.tolist())) > 1
    assert out.item_evaluations.max() <= out.num_evaluations <= STEPS
    monkeypatch.undo()
    for item in range(8):
        alone = {name: value[[item]] for name, value in batch.items()}
        predicting(model, monkeypatch, lambda n, f: 0.8 + f.norm(dim=-1).float() % 1 / n)
        generator = [torch.Generator().manual_seed(item)]
        single = model.generate(
            **alone,
            generator=generator,
            num_inference_steps=STEPS,
            show_progress=False,
            **options,
        )
        monkeypatch.undo()
        assert single.item_evaluations == out.item_evaluations[item]
        if single.images is not None:
            assert (single.images[0] - out.images[item]).abs().max() < 1e-10
        if single.sequences is not None:
            assert torch.equal(single.sequences[0], out.sequences[item])


def test_one_modality_may_stop_alone(monkeypatch):
    model = make_model()
    batch = {name: value[[2, 7]] for name, value in mixed_batch().items()}  # both are written
    predicting(model, monkeypatch, lambda n, _: torch.tensor(0.01))
    out = run(model, batch, stopping_entropy={"text": 0.1}, output_trajectory=True)
    assert out.item_evaluations.tolist() == [STEPS] * 2
    words = out.trajectory["text"]
    assert (words == words[:, :1]).all()
    pictures = out.trajectory["image"]
    assert not torch.allclose(pictures[:, 0], pictures[:, -1])


@pytest.mark.parametrize("entropy", [0, -1.0, {"image": 0.0}])
def test_a_threshold_must_be_above_zero(entropy):
    with pytest.raises(ValueError, match=r"`stopping_entropy` is .*above 0"):
        run(make_model(), mixed_batch(), stopping_entropy=entropy)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["parallel", "attention"])
def test_compiled_evaluations_give_the_same_result(mixer):
    model, batch = make_model(torch.float32, **MIXERS[mixer]), mixed_batch(torch.float32)
    plain = run(model, batch, guidance_scale=2.0)
    compiled = run(model, batch, guidance_scale=2.0, compile=True)
    assert (plain.images - compiled.images).abs().max() < 1e-4
    assert torch.equal(plain.sequences, compiled.sequences)
    chosen = ["sdpa"] * 2 if mixer == "attention" else ["quadratic", "torch"]
    assert [plain.kernel_backend, compiled.kernel_backend] == chosen


def test_what_was_compiled_serves_the_next_call_and_a_copy_computes_with_its_own_weights():
    model, batch = make_model(torch.float32), mixed_batch(torch.float32)
    options = {"guidance_scale": 1.0, "compile": True, "num_inference_steps": 2}
    run(model, batch, **options)
    frames = dict(torch._dynamo.utils.counters["frames"])
    run(model, batch, **options)
    assert dict(torch._dynamo.utils.counters["frames"]) == frames  # nothing was compiled anew
    other = copy.deepcopy(model)
    other.image_head.bias.data += 1.0
    plain = run(other, batch, **{**options, "compile": False})
    assert (run(other, batch, **options).images - plain.images).abs().max() < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_cuda_graph_gives_the_same_result(mixer):
    model = make_model(torch.float32, **MIXERS[mixer]).cuda()
    batch = {name: value.cuda() for name, value in mixed_batch(torch.float32).items()}
    plain = run(model, batch, guidance_scale=2.0, cuda_graph=False)
    graphed = run(model, batch, guidance_scale=2.0)
    assert (plain.images - graphed.images).abs().max() < 1e-4
    assert torch.equal(plain.sequences, graphed.sequences)
