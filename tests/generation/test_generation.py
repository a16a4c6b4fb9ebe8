# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`generate`: what comes back, seeds, words that go ahead, defaults, and what it refuses."""

import copy

import pytest
import torch
from tiny_generation import IMAGE, TEXT, generate, patch_mask, pictures, record, seeded
from tiny_model import LATENT, PATCHES, SIDE, WORDS, make_model, mixed_batch

from modeling_mdm import MDMGenerationConfig
from modeling_mdm.solvers import SOLVERS

# --- what comes back


@pytest.mark.parametrize(
    ("solver", "steps", "evaluations"),
    [
        ("heun", 4, 7),
        ("ddim", 4, 4),
        ("ddpm", 4, 4),
        ("dpm_solver_2m", 4, 4),
        ("heun", 1, 1),
        ({"image": "heun", "text": "ddpm"}, 4, 7),
        ({"image": "heun", "text": "ddpm"}, {"image": 2, "text": 5}, 6),
    ],
)
def test_number_of_evaluations(solver, steps, evaluations, exact, monkeypatch):
    calls = record(monkeypatch, exact)
    guided = {"guidance_scale": 2.0, "joint_guidance_scale": 1.5}
    out = generate(exact, mixed_batch(), solver=solver, num_inference_steps=steps, **guided)
    assert out.num_evaluations == evaluations == len(calls)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kernel_backend": "reference"}, "reference"),
        ({"kernel_backend": "torch"}, "torch"),
        ({"mixer": "attention"}, "sdpa"),
    ],
)
def test_the_kernel_that_ran_is_named(changes, expected):
    assert generate(make_model(**changes), mixed_batch()).kernel_backend == expected


def test_confidence(exact):
    batch = mixed_batch()
    out = generate(exact, batch, guidance_scale=1.0)
    real = batch["attention_mask"].bool()
    noisy = real & ~batch["text_given"]
    assert out.confidence["text"].shape == (8, WORDS)
    assert (out.confidence["text"][real & ~noisy] == 1).all()
    assert (out.confidence["text"][~real] == 0).all()
    assert out.confidence["image"].shape == (8, PATCHES)
    given, absent = patch_mask(batch["image_given"]), torch.arange(8)[:, None] == 3
    assert (out.confidence["image"][given & ~absent] == 1).all()
    assert (out.confidence["image"][3] == 0).all()
    written = torch.cat([out.confidence["text"][noisy], out.confidence["image"][~given & ~absent]])
    assert written.min() > 0 and written.max() <= 1 and (written < 1).float().mean() > 0.8


def test_confidence_of_a_word_is_its_probability(exact, monkeypatch):
    logits = {}
    original = exact.denoise

    def denoise(*args, **kwargs):
        out = original(*args, **kwargs)
        logits.update(out.logits)
        return out

    monkeypatch.setattr(exact, "denoise", denoise)
    batch = mixed_batch()
    out = generate(exact, batch, guidance_scale=1.0, use_cache=False)
    expected = logits["text"].softmax(-1).gather(-1, out.sequences[..., None])[..., 0].float()
    noisy = batch["attention_mask"].bool() & ~batch["text_given"]
    assert torch.allclose(out.confidence["text"][noisy], expected[noisy])


def test_confidence_of_a_patch_falls_with_the_score_entropy_of_one_latent_dimension(
    exact, monkeypatch
):
    """exp(-se / d), se from the head's log(1 + se), and no more than 1 where that is below 0."""
    features, model = {}, copy.deepcopy(exact)
    original = model.denoise

    def denoise(*args, **kwargs):
        out = original(*args, **kwargs)
        features.update(out.features)
        return out

    monkeypatch.setattr(model, "denoise", denoise)
    predict = model.score_entropy_head.predict
    predict.bias.data.fill_(0.3)
    batch = mixed_batch()
    out = generate(model, batch, guidance_scale=1.0, use_cache=False)
    predicted = features["image"] @ predict.weight[0] + 0.3
    entropy = predicted.exp() - 1
    assert (entropy > 0.3).any() and (entropy < 0).any()
    expected = torch.where(entropy > 0, torch.exp(-entropy / LATENT), 1.0).float()
    noisy = ~patch_mask(batch["image_given"])
    assert torch.allclose(out.confidence["image"][noisy], expected[noisy])


def test_trajectory(exact):
    batch = mixed_batch()
    steps = {"image": 5, "text": 3}
    out = generate(exact, batch, num_inference_steps=steps, output_trajectory=True)
    assert out.trajectory["image"].shape == (8, 5, 1, SIDE, SIDE)
    assert out.trajectory["text"].shape == (8, 5, WORDS)
    assert torch.equal(out.trajectory["image"][:, -1], out.images)
    assert torch.equal(out.trajectory["text"][:, -1], out.sequences)
    assert not torch.equal(out.trajectory["image"][:, 0], out.images)
    known = batch["image_given"][:, None, None].expand_as(out.trajectory["image"])
    pixels = batch["pixel_values"][:, None].expand_as(out.trajectory["image"])
    assert torch.equal(out.trajectory["image"][known], pixels[known])
    assert generate(exact, batch).trajectory is None


def test_selection_tells_what_scans_read():
    """Of what is to be written, each scan reads the share that it keeps; of the rest, nothing."""
    torch.manual_seed(0)
    model = make_model(use_selection=True).eval()
    batch, keep = mixed_batch(), 0.5
    for use_cache in (True, False):
        options = {"keep": keep, "use_cache": use_cache, "guidance_scale": 2.0}
        options |= {"num_inference_steps": 3, "solver": "dpm_solver_2m"}
        out = generate(model, batch, output_selection=True, **options)
        noisy = {"image": ~patch_mask(batch["image_given"])}
        noisy["text"] = ~batch["text_given"] & batch["attention_mask"].bool()
        blocks = model.config.num_hidden_layers
        for modality, read in out.selection.items():
            assert read.dtype == torch.bool and read.shape[:3] == (8, 3, blocks)
            assert read.shape[-1] == noisy[modality].shape[1]
            assert not (read & ~noisy[modality][:, None, None, None]).any()
        both = torch.cat([out.selection["text"], out.selection["image"]], -1).sum(-1)
        count = torch.cat([noisy["text"], noisy["image"]], 1).sum(1)
        assert (both == (count * keep).ceil().long()[:, None, None, None]).all()
    assert generate(model, batch, keep=keep).selection is None
    with pytest.raises(ValueError, match="keep"):
        generate(model, batch, output_selection=True)
    with pytest.raises(ValueError, match="compile"):
        generate(model, batch, output_selection=True, keep=keep, compile=True)


def test_one_modality_gives_a_trajectory_of_one(exact):
    batch = {name: mixed_batch()[name][:1] for name in (*TEXT, *IMAGE)}
    out = generate(exact, batch, output_trajectory=True)
    assert set(out.trajectory) == set(out.confidence) == {"image"}


def test_the_callback_sees_times_and_estimates_and_stops_the_run(exact):
    seen = []

    def stop(info):
        seen.append(info)
        return info.step == 2

    options = {"num_inference_steps": 5, "solver": "ddim", "output_trajectory": True}
    out = generate(exact, mixed_batch(), callback_on_step_end=stop, **options)
    assert [info.step for info in seen] == [0, 1, 2] and seen[0].num_steps == 5
    for info, t in zip(seen, (1, 0.8, 0.6), strict=True):
        assert info.times == {"image": pytest.approx(t), "text": pytest.approx(t)}
        assert info.clean_estimates["image"].shape == (8, PATCHES, LATENT)
        assert info.clean_estimates["text"].shape == (8, WORDS, LATENT)
    assert out.num_evaluations == 3 and out.trajectory["text"].shape == (8, 3, WORDS)
    assert torch.equal(out.trajectory["text"][:, -1], out.sequences)
    assert torch.equal(out.trajectory["image"][:, -1], out.images)
    free = generate(exact, mixed_batch(), callback_on_step_end=lambda info: None, **options)
    assert free.num_evaluations == 5


def test_the_progress_bar_can_be_turned_off(exact, capfd):
    generate(exact, mixed_batch(), show_progress=False)
    assert capfd.readouterr().err == ""
    generate(exact, mixed_batch(), show_progress=True)
    assert "2/2" in capfd.readouterr().err


# --- same seed, same result


def same(first, second):
    return torch.equal(first.images, second.images) and torch.equal(
        first.sequences, second.sequences
    )


def test_a_seed_decides_the_result(exact):
    batch = mixed_batch()
    assert same(generate(exact, batch, seed=4), generate(exact, batch, seed=4))
    assert not same(generate(exact, batch, seed=4), generate(exact, batch, seed=5))
    generator = torch.Generator().manual_seed(4)
    first, second = (generate(exact, batch, generator=generator) for _ in range(2))
    assert same(first, generate(exact, batch, seed=4)) and not same(first, second)


def test_a_list_of_generators_is_one_for_each_item(exact):
    inputs = {"class_labels": torch.tensor([1, 1, 1])}
    options = {"generation_mode": "joint", "num_inference_steps": 3}
    out = generate(exact, inputs, generator=seeded(1, 2, 1), **options)
    assert torch.allclose(out.images[0], out.images[2])
    assert not torch.allclose(out.images[0], out.images[1])
    one = {"class_labels": torch.tensor([1])}
    twice = generate(exact, one, generator=seeded(1, 2), num_return_sequences=2, **options)
    assert torch.allclose(out.images[:2], twice.images)


# --- words that go ahead of the picture


@pytest.mark.parametrize("closed", [False, True])
def test_words_that_go_ahead_are_a_prompt_once_they_are_finished(closed):
    """Without any overlap, joint generation is writing a text and then a picture of it."""
    model = make_model()
    options = {"guidance_scale": {"image": 3.0, "text": 1.0}, "joint_overlap": 0.0}

    def write(inputs, mode, steps):
        options["generator"] = seeded(5)
        return generate(model, inputs, generation_mode=mode, num_inference_steps=steps, **options)

    words = write({}, "joint", 6).sequences[0].tolist()
    if closed:  # a text ends with its third word, and what follows is not part of a prompt
        model.config.eos_token_id = words[2]
        words = words[: words.index(words[2]) + 1]
    joint = write({}, "joint", 6)
    given = {"input_ids": torch.tensor([words]), "text_given": torch.ones(1, len(words))}
    picture = write(given, "image", 3)
    assert (joint.images - picture.images).abs().max() < 1e-10
    assert joint.num_evaluations == 6


def test_words_go_ahead_by_what_does_not_overlap(exact):
    seen = []
    options = {"generation_mode": "joint", "joint_overlap": 0.5, "num_inference_steps": 6}
    out = generate(exact, {}, callback_on_step_end=seen.append, **options)
    times = [[round(info.times[g], 3) for info in seen] for g in ("text", "image")]
    assert times == [[1, 0.75, 0.5, 0.25, 0, 0], [1, 1, 1, 0.75, 0.5, 0.25]]
    assert torch.equal(seen[-1].clean_estimates["text"], seen[3].clean_estimates["text"])
    assert out.num_evaluations == 6 and out.confidence["text"].min() > 0


def test_words_go_ahead_only_where_both_are_written(exact):
    """A caption and a picture of a class in one batch have nothing to share."""
    batch = {name: value[[1, 4]] for name, value in mixed_batch().items()}
    assert same(generate(exact, batch, joint_overlap=0.0), generate(exact, batch))


# --- faults


def test_nothing_to_generate_is_a_fault(exact):
    """Where everything is given a region is opened; only a batch of no items leaves nothing."""
    nothing = {"class_labels": torch.zeros(0, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"Nothing to generate.*0 items.*pass at least one"):
        generate(exact, nothing)


OPTIONS = {
    "no steps": ({"num_inference_steps": 0}, "`num_inference_steps` is 0.*at least 1"),
    "steps of one": (
        {"num_inference_steps": {"text": -1}},
        "`num_inference_steps` is -1 for text.*at least 1",
    ),
    "half a step": ({"num_inference_steps": 2.5}, "`num_inference_steps` is 2.5.*integer"),
    "solver": ({"solver": "euler"}, "`solver` is 'euler'.*heun, dpm_solver_2m, ddim, ddpm"),
    "solver of one": ({"solver": {"image": "rk4"}}, "`solver` is 'rk4' for image.*heun"),
    "modality": ({"guidance_scale": {"audio": 2.0}}, "`guidance_scale`.*'audio'.*image.*text"),
    "keyword": ({"temperature": 0.5}, r"temperature=0\.5.*MDMGenerationConfig.*num_inference"),
    "keep none": ({"keep": 0}, r"`keep` is 0.*\(0, 1\]"),
    "keep more": ({"keep": 1.5}, r"`keep` is 1\.5.*\(0, 1\]"),
    "samples": ({"num_return_sequences": 0}, "`num_return_sequences` is 0.*at least 1"),
    "overlap": ({"joint_overlap": 1.5}, r"`joint_overlap` is 1\.5.*\[0, 1\]"),
    "overlap of some": ({"joint_overlap": 0.5}, r"`joint_overlap` is 0\.5.*6 of 8 items.*or use 1"),
    "generators": ({"generator": seeded(0)}, "`generator`.* 1 for 8 items.*pass"),
    "mode": ({"generation_mode": "video"}, "`generation_mode` is 'video'.*text, image, joint"),
}


@pytest.mark.parametrize("fault", OPTIONS)
def test_a_fault_names_the_argument_the_value_and_the_fix(fault, exact):
    options, message = OPTIONS[fault]
    with pytest.raises(ValueError, match=message):
        generate(exact, mixed_batch(), **options)


def test_generators_are_counted_against_all_samples(exact):
    one = {"class_labels": torch.tensor([1])}
    with pytest.raises(ValueError, match=r"`generator`.* 1 for 2 items.*pass"):
        generate(exact, one, generator=seeded(0), num_return_sequences=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0.*at least 1"),
        ({"generation_mode": "image", "image_size": 6}, "`image_size` is .*6.*`patch_size` = 4"),
        ({"generation_mode": "image", "image_size": 0}, "`image_size` is .*0.*`patch_size` = 4"),
    ],
)
def test_a_region_of_an_impossible_size_is_a_fault(options, message, exact):
    with pytest.raises(ValueError, match=message):
        generate(exact, {"class_labels": torch.tensor([1])}, **options)


def test_a_new_picture_of_another_size_than_the_given_one_is_a_fault(processor, model):
    inputs = processor(images=pictures(), return_tensors="pt")
    with pytest.raises(ValueError, match=r"`image_size` is .*12.*8.*"):
        generate(model, inputs, generation_mode="image", image_size=12)


def test_a_model_without_selection_refuses_to_select():
    for changes in ({"use_selection": False}, {"mixer": "attention"}):
        with pytest.raises(ValueError, match=r"`keep` is 0\.5.*1 for a model.*without selection"):
            generate(make_model(**changes), mixed_batch(), keep=0.5)


@pytest.mark.parametrize("changes", [{"num_null_tokens": 0}, {"null_prompt_probability": 0.0}])
def test_a_model_without_a_null_prompt_refuses_guidance_and_does_without(changes):
    model = make_model(**changes)
    for scale in (2.0, {"image": 2.0}, {"text": 0.5}):
        with pytest.raises(ValueError, match=r"`guidance_scale` is .*null prompt.*use 1"):
            generate(model, mixed_batch(), guidance_scale=scale)
    model.generation_config.guidance_scale = 2.0
    with pytest.raises(ValueError, match=r"`guidance_scale` is 2\.0.*null prompt.*use 1"):
        generate(model, mixed_batch())
    model.generation_config.guidance_scale = None
    assert same(generate(model, mixed_batch()), generate(model, mixed_batch(), guidance_scale=1.0))


def test_inputs_are_checked_as_in_forward(exact):
    batch = mixed_batch()
    batch["class_labels"] = torch.full((8,), 99)
    with pytest.raises(ValueError, match=r"`class_labels`.*99"):
        generate(exact, batch)


# --- defaults: keywords before the configuration before the class


def test_defaults_are_those_of_the_documentation(exact, monkeypatch):
    calls, seen = record(monkeypatch, exact), []
    batch = {name: value[7:] for name, value in mixed_batch().items()}
    out = exact.generate(**batch, callback_on_step_end=seen.append, generator=seeded(7))
    assert out.num_evaluations == len(seen) == 30 and len(calls[0].class_labels) == 2
    monkeypatch.undo()
    explicit = generate(
        exact,
        batch,
        generator=seeded(7),
        num_inference_steps=30,
        guidance_scale={"image": 2.0, "text": 1.0},
        joint_guidance_scale=1.0,
        solver={"image": "dpm_solver_2m", "text": "ddpm"},
        keep=1.0,
        num_return_sequences=1,
    )
    assert same(out, explicit)


def test_keywords_come_before_the_configuration(exact):
    config = MDMGenerationConfig(
        num_inference_steps={"image": 3},
        guidance_scale={"image": 3.0, "text": 1.5},
        solver="ddim",
        show_progress=False,
    )
    batch = mixed_batch()

    def run(**options):
        return exact.generate(**batch, generator=seeded(*range(8)), **options)

    configured = run(generation_config=config, num_inference_steps={"text": 2})
    explicit = run(
        num_inference_steps={"image": 3, "text": 2},
        guidance_scale={"image": 3.0, "text": 1.5},
        solver="ddim",
        show_progress=False,
    )
    assert same(configured, explicit) and configured.num_evaluations == 3
    changed = run(
        generation_config=config,
        num_inference_steps=2,
        guidance_scale={"image": 1.0},
        solver="ddpm",
    )
    explicit = run(
        num_inference_steps=2,
        guidance_scale={"image": 1.0, "text": 1.5},
        solver="ddpm",
        show_progress=False,
    )
    assert same(changed, explicit) and changed.num_evaluations == 2


def test_a_configuration_that_names_one_modality_leaves_the_other_at_its_default(exact):
    config = MDMGenerationConfig(solver={"image": "ddim"}, show_progress=False)
    options = {"num_inference_steps": 2, "generator": seeded(*range(8))}
    out = exact.generate(**mixed_batch(), generation_config=config, **options)
    options["generator"] = seeded(*range(8))
    solver = {"image": "ddim", "text": "ddpm"}
    assert same(out, exact.generate(**mixed_batch(), solver=solver, **options))


def test_what_transformers_pipelines_pass_along_is_accepted(processor, model):
    inputs = processor(images=pictures(), return_tensors="pt")
    out = generate(model, inputs, max_new_tokens=4, pad_token_id=0, eos_token_id=3, do_sample=True)
    assert out.sequences.shape == (2, 4)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_every_solver_runs_with_one_step(solver, exact):
    out = generate(exact, mixed_batch(), solver=solver, num_inference_steps=1)
    assert out.num_evaluations == 1 and out.images.isfinite().all()
