# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`forward`: the loss and its parts, who gets a gradient, and what every random source does."""

import copy
import math

import pytest
import torch
from tiny_model import (
    CLASSES,
    LATENT,
    MIXERS,
    PATCHES,
    SIDE,
    VOCABULARY,
    WORDS,
    every_random_source,
    make_model,
    mixed_batch,
    tiny_config,
)

from modeling_mdm import MDMForJointGeneration
from modeling_mdm.decoder import DecoderInputs

CONFIGURATIONS = {
    **MIXERS,
    "trajectory": {"se_candidates": "trajectory"},
    "no-self-conditioning": {"self_conditioning": False},
    "no-null-tokens": {"num_null_tokens": 0},
    "no-selection": {"use_selection": False},
    "euler": {"discretization": "euler"},
    "paper-gradient": {"latent_gradient_scale": 1.0},
}


def run(model, batch=None, **changes):
    batch = mixed_batch() if batch is None else batch
    size = len(next(iter(batch.values())))
    return model(**batch, **{**every_random_source(size), **changes})


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


# --- the loss (Eq. 18)


def test_the_parts_and_their_weights_sum_to_the_loss():
    weights = {"se_weight": 3.0, "kl_weight": 0.25, "se_weight_image": 0.5, "se_weight_text": 2.0}
    out = run(make_model(**weights))
    parts = {name: out[name].item() for name in out if name.startswith("loss")}
    assert len(parts) == 8 and all(value > 0 for value in parts.values())
    assert all(out[name].dim() == 0 for name in parts)
    expected_se = 0.5 * parts["loss_se_image"] + 2 * parts["loss_se_text"]
    assert parts["loss_se"] == pytest.approx(expected_se, rel=1e-6)
    expected = parts["loss_rec_image"] + parts["loss_rec_text"] + 0.25 * parts["loss_kl"]
    expected += 3 * parts["loss_se"] + parts["loss_se_prediction"]
    assert parts["loss"] == pytest.approx(expected, rel=1e-6)


def test_the_output_has_logits_and_clean_estimates_of_every_position():
    model = make_model()
    out = run(model)
    assert out.logits.shape == (8, WORDS, VOCABULARY)
    assert out.clean_estimates["text"].shape == (8, WORDS, LATENT)
    assert out.clean_estimates["image"].shape == (8, PATCHES, LATENT)
    # For words, the mean of y_v under the probabilities that the logits give (section 4).
    words, _ = model.vae.encode(torch.arange(VOCABULARY), "text")
    statistics = model.vae.statistics["text"]
    y = (words - statistics.mean) / (statistics.variance + 1e-6).sqrt()
    expected = torch.einsum("btv,vd->btd", out.logits.softmax(-1), y)
    assert (out.clean_estimates["text"] - expected).abs().max() < 1e-9


def test_without_a_loss_every_loss_is_none():
    with_loss, without = run(make_model()), run(make_model(), return_loss=False)
    losses = [name for name in with_loss if name.startswith("loss")]
    assert losses and all(getattr(without, name) is None for name in losses)
    assert torch.equal(without.logits, with_loss.logits)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_a_batch_may_lack_a_modality(modality):
    names = {
        "text": ["input_ids", "attention_mask", "text_given", "turn_ids"],
        "image": ["pixel_values", "pixel_attention_mask", "image_given"],
    }[modality]
    rows = [1, 2, 3, 6, 7] if modality == "text" else [0, 2, 4, 5]
    batch = {name: mixed_batch()[name][rows] for name in names}
    model = make_model()
    out = run(model, batch)
    assert set(out.clean_estimates) == {modality}
    assert (out.logits is None) == (modality == "image")
    absent = "image" if modality == "text" else "text"
    assert out[f"loss_se_{absent}"] == out[f"loss_rec_{absent}"] == 0 < out.loss
    out.loss.backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert f"decoder.latent_proj.{modality}.weight" in touched
    assert f"decoder.latent_proj.{absent}.weight" not in touched


def test_hidden_states_are_those_of_the_pass_that_counts():
    """With self-conditioning, a first pass makes the estimates that are fed back."""
    for fed_back in (False, True):
        output = run(make_model(), self_condition=fed_back, output_hidden_states=True)
        states = output.hidden_states
        assert len(states) == make_model().config.num_hidden_layers + 1
        assert len({tuple(state.shape) for state in states}) == 1


def test_masks_that_are_left_out_say_that_everything_is_there_and_to_be_written():
    model, batch = make_model(), mixed_batch()
    plain = {"input_ids": batch["input_ids"], "pixel_values": batch["pixel_values"]}
    explicit = {
        **plain,
        "attention_mask": torch.ones(8, WORDS),
        "text_given": torch.zeros(8, WORDS),
        "turn_ids": torch.zeros(8, WORDS),
        "pixel_attention_mask": torch.ones(8, SIDE, SIDE),
        "image_given": torch.zeros(8, SIDE, SIDE),
        "image_turn_ids": torch.zeros(8, 1),
        "class_labels": torch.full((8,), -1),
    }
    out, expected = run(model, plain), run(model, explicit)
    assert out.loss == expected.loss and torch.equal(out.logits, expected.logits)


def test_padding_and_what_is_given_are_no_targets_of_the_score_entropy():
    model, batch = make_model(), mixed_batch()
    times = {g: torch.full((8,), 0.5, dtype=torch.float64) for g in ("text", "image")}
    out = run(model, batch, drop_prompt=torch.zeros(8, dtype=torch.bool), times=times, keep=1.0)
    noisy = batch["attention_mask"].bool() & ~batch["text_given"]
    negative = -out.logits.log_softmax(-1).gather(-1, batch["input_ids"][..., None])[..., 0]
    assert out.loss_se_text.item() == pytest.approx(negative[noisy].mean().item(), rel=1e-6)


# --- gradients


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_parameter_gets_a_gradient(name):
    model = make_model(**CONFIGURATIONS[name]).train()
    changes = {"keep": 1.0} if name == "no-selection" else {}
    got = gradients(model, run(model, **changes).loss)
    dead = [key for key, grad in got.items() if grad is None or (grad.numel() and not grad.any())]
    assert dead == []
    assert all(grad.isfinite().all() for grad in got.values())


def test_a_fresh_model_starts_from_its_best_linear_estimate_and_learns_at_once():
    """Gates, modulation and heads start at zero, and still no weight is stuck there."""
    torch.manual_seed(0)
    model = MDMForJointGeneration(tiny_config()).double().train()
    batch, sources = mixed_batch(), every_random_source(8)
    out = run(model, batch)
    mean, logvar = model.vae.encode(patches_of(batch["pixel_values"]), "image")
    z_0 = (mean + (logvar / 2).exp() * sources["posterior_noise"]["image"]) / (1 + 1e-6) ** 0.5
    t = sources["times"]["image"]
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    abar = (torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / start)[:, None, None]
    z_t = abar.sqrt() * z_0 + (1 - abar).sqrt() * sources["noise"]["image"]
    assert (out.clean_estimates["image"] - abar.sqrt() * z_t).abs().max() < 1e-6
    for _ in range(4):
        for name, grad in gradients(model, run(model).loss).items():
            model.get_parameter(name).data -= 1e-2 * grad
    got = gradients(model, run(model).loss)
    assert [name for name, grad in got.items() if not grad.any()] == []


def patches_of(pixels):
    """(b, 1, 8, 8) -> (b, 4, 16), by hand."""
    rows = [pixels[:, 0, i : i + 4, j : j + 4].flatten(1) for i in (0, 4) for j in (0, 4)]
    return torch.stack(rows, dim=1)


SPECIAL = {
    "time": "decoder.time_embedding.in_proj.weight",
    "time of words": "decoder.time_token.text.weight",
    "time of patches": "decoder.time_token.image.weight",
    "class": "decoder.class_embedding.weight",
    "start of text": "decoder.start_tokens.text",
    "start of image": "decoder.start_tokens.image",
    "null prompt": "decoder.null_tokens",
}


@pytest.mark.parametrize("mixer", MIXERS)
def test_special_tokens_get_a_gradient_where_they_stand(mixer):
    model = make_model(**MIXERS[mixer])
    batch = mixed_batch()
    kept, dropped = torch.zeros(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool)
    got = gradients(model, run(model, batch, drop_prompt=kept).loss_se)
    touched = {token for token, name in SPECIAL.items() if got[name].any()}
    assert touched == set(SPECIAL) - {"null prompt"}
    classes = got[SPECIAL["class"]].any(-1)
    assert classes.tolist() == [label in batch["class_labels"] for label in range(CLASSES)]
    got = gradients(model, run(model, batch, drop_prompt=dropped).loss_se)
    touched = {token for token, name in SPECIAL.items() if got[name].any()}
    assert touched == set(SPECIAL) - {"class"}


@pytest.mark.parametrize("name", ["parallel", "trajectory"])
def test_gradient_of_score_entropy_into_the_encoder_is_scaled(name):
    """`latent_gradient_scale`: 0 stops it, 1 is Eq. 18 taken literally; it is linear between."""
    encoder = ["vae.encoder.0.up_proj.weight", "vae.embed_tokens.weight", "vae.posterior.weight"]
    encoder += ["vae.patch_embedding.weight"]
    plain = {"self_condition": False, "keep": 1.0}
    got = {}
    for scale in (0.0, 0.25, 1.0):
        model = make_model(latent_gradient_scale=scale, **CONFIGURATIONS[name])
        everything = gradients(model, run(model, **plain).loss_se)
        got[scale] = [everything[name] for name in encoder]
        assert everything["decoder.latent_proj.image.weight"].any()
        whole = gradients(model, run(model, **plain).loss)
        assert all(whole[name].any() for name in encoder)  # by reconstruction and KL
    for stopped, part, full in zip(*got.values(), strict=True):
        assert stopped is None or not stopped.any()
        assert full.any() and (part - 0.25 * full).abs().max() < 1e-9 * full.abs().max()


def test_score_entropy_of_both_modalities_reaches_the_encoder():
    model = make_model(latent_gradient_scale=1.0)
    for g, other in (("text", "image"), ("image", "text")):
        got = gradients(model, run(model)[f"loss_se_{g}"])
        ends = {"text": "vae.embed_tokens.weight", "image": "vae.patch_embedding.weight"}
        assert got[ends[g]].any() and got[ends[other]].any()  # the other is read as a prompt


@pytest.mark.parametrize("mixer", ["parallel", "cyclic", "attention"])
def test_gradient_checkpointing_gives_equal_gradients(mixer):
    model = make_model(**MIXERS[mixer]).train()
    checkpointed = copy.deepcopy(model)
    enable = getattr(checkpointed, "activation_checkpointing_enable", None)
    (enable or checkpointed.gradient_checkpointing_enable)()  # renamed in transformers 5.2x
    calls = []
    checkpointed.decoder.layers[0].mixer.register_forward_hook(lambda *_: calls.append(1))
    expected = gradients(model, run(model).loss)
    got = gradients(checkpointed, run(checkpointed).loss)
    assert len(calls) == 3  # the estimate fed back, the step, and the step again
    for name, grad in expected.items():
        assert (grad - got[name]).abs().max() <= 1e-10 * grad.abs().max().clamp(min=1), name


@pytest.mark.parametrize("backend", ["reference", "torch", "torch_factored", "quadratic"])
def test_gradient_checkpointing_works_with_every_backend(backend):
    """Its hooks give what was saved once only: a gradient of our own must not ask twice."""
    model = make_model(kernel_backend=backend).train()
    checkpointed = copy.deepcopy(model)
    enable = getattr(checkpointed, "activation_checkpointing_enable", None)
    (enable or checkpointed.gradient_checkpointing_enable)()
    expected = gradients(model, run(model).loss)
    for name, grad in gradients(checkpointed, run(checkpointed).loss).items():
        assert torch.allclose(grad, expected[name], rtol=1e-9, atol=1e-10), name


@pytest.mark.parametrize("mixer", ["parallel", "separate", "attention"])
def test_bf16_autocast_is_finite_and_near_float32(mixer):
    batch, sources = mixed_batch(torch.float32), every_random_source(8, torch.float32)
    model = make_model(torch.float32, **MIXERS[mixer]).train()
    exact, rough = (copy.deepcopy(model) for _ in range(2))
    sources["keep"] = 1.0  # what is selected is not a continuous function of rounding
    expected = gradients(exact, exact(**batch, **sources).loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = rough(**batch, **sources).loss
    got = {name: grad for name, grad in gradients(rough, loss).items() if grad is not None}
    assert loss.isfinite() and all(grad.isfinite().all() for grad in got.values())
    error = sum((grad - expected[name]).square().sum() for name, grad in got.items())
    norm = sum(expected[name].square().sum() for name in got)
    assert (error / norm).sqrt() < 0.1


# --- random sources


def test_every_random_source_is_an_argument():
    """With all of them passed nothing is left to chance; each of them is heeded."""
    model, losses = make_model(se_candidates="trajectory").train(), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        losses.append(run(copy.deepcopy(model)).loss.item())
    assert losses[0] == losses[1]
    model.eval()
    plain, other = run(model).loss.item(), every_random_source(8, seed=9)
    changed = {**other, "keep": 0.25, "self_condition": False}
    changed["drop_prompt"] = ~every_random_source(8)["drop_prompt"]
    for name, value in changed.items():
        assert run(model, **{name: value}).loss.item() != plain, name


@pytest.mark.parametrize("name", ["times", "noise", "posterior_noise", "decoder_noise"])
def test_a_source_may_be_passed_for_one_modality(name):
    model, fixed = make_model(), every_random_source(8)[name]
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(run(model, **{name: {"text": fixed["text"]}}).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_running_statistics_are_those_of_real_positions_and_of_training_alone():
    model, batch = make_model(torch.float32), mixed_batch(torch.float32)
    for statistics in model.vae.statistics.values():
        statistics.updates.zero_()
    before = copy.deepcopy(model.vae.statistics.state_dict())
    with torch.no_grad():
        model(**batch)
        assert all(torch.equal(v, before[k]) for k, v in model.vae.statistics.state_dict().items())
        model.train()(**batch)
        means, _ = model.vae.encode(batch["input_ids"], "text")
        real = means[batch["attention_mask"].bool()]
        found = model.vae.statistics["text"]
        assert (found.mean - real.mean(0)).abs().max() < 1e-5  # the first update is a plain mean
        assert (found.variance - real.var(0, unbiased=False)).abs().max() < 1e-5
        means, _ = model.vae.encode(patches_of(batch["pixel_values"]), "image")
        real = means[batch["pixel_attention_mask"][:, 0, 0].bool()].flatten(0, 1)
        assert (model.vae.statistics["image"].mean - real.mean(0)).abs().max() < 1e-5


# --- what is given depends on nothing that is noisy (section 6)


@pytest.mark.parametrize(
    ("mixer", "keep"),
    [(name, keep) for name in MIXERS for keep in (1.0, 0.5) if name != "attention" or keep == 1],
)
def test_given_positions_see_neither_noise_nor_time_nor_estimates(mixer, keep):
    model = make_model(**MIXERS[mixer])
    batch = mixed_batch()
    encoded = model.encode_inputs(**batch)
    dropped = torch.zeros(8, dtype=torch.bool)
    sequence = model.decoder.lay_out(encoded.content, encoded.has_class, dropped, encoded.grid)

    def features(seed, fed_back):
        sources = every_random_source(8, seed=seed)
        estimates = sources["posterior_noise"] if fed_back else None
        args = (encoded.content, sources["noise"], sources["times"], encoded.class_labels)
        with torch.no_grad():
            return model.decoder(DecoderInputs(sequence, *args, estimates, keep))

    first, other, fed = features(0, False), features(1, False), features(0, True)
    for g, part in encoded.content.items():
        known = part.valid & part.given
        assert known.any() and part.noisy.any()
        for second in (other, fed):
            assert (first[g] - second[g])[known].abs().max() < 1e-10
            assert (first[g] - second[g])[part.noisy].abs().amin() > 0


# --- faults


def faulty(name, value):
    batch = mixed_batch()
    batch[name] = value
    return batch


BAD_PIXELS = torch.zeros(8, 1, SIDE, SIDE)
BAD_PIXELS[0, 0, 0, 0] = torch.nan
FAULTS = {
    "ids above": (("input_ids", torch.full((8, WORDS), VOCABULARY)), "`input_ids`.* 24.*use"),
    "ids below": (("input_ids", torch.full((8, WORDS), -1)), "`input_ids`.*-1.*use"),
    "id shape": (("input_ids", torch.zeros(8, dtype=torch.long)), "`input_ids`.*pass"),
    "text mask": (("attention_mask", torch.ones(8, 3)), r"`attention_mask`.*\(8, 3\).*\(8, 6\)"),
    "given words": (("text_given", torch.ones(8, 3)), r"`text_given`.*\(8, 3\).*\(8, 6\)"),
    "turns": (("turn_ids", torch.ones(8, 3)), r"`turn_ids`.*\(8, 3\).*\(8, 6\)"),
    "nan": (("pixel_values", BAD_PIXELS), r"`pixel_values`.*nan.*\[-1, 1\]"),
    "range": (("pixel_values", BAD_PIXELS.nan_to_num(255.0)), r"`pixel_values`.*255.*\[-1, 1\]"),
    "channels": (("pixel_values", torch.zeros(8, 3, SIDE, SIDE)), "`pixel_values`.* 3 .* 1"),
    "sides": (("pixel_values", torch.zeros(8, 1, 6, SIDE)), "`pixel_values`.*6 x 8.*multiples"),
    "axes": (("pixel_values", torch.zeros(SIDE, SIDE)), "`pixel_values`.*2 axes.*pass"),
    "pixel mask": (("image_given", torch.ones(8, SIDE)), r"`image_given`.*\(8, "),
    "label": (("class_labels", torch.full((8,), CLASSES)), "`class_labels`.* 5.*0 to 4"),
    "negative label": (("class_labels", torch.full((8,), -2)), "`class_labels`.*-2.*0 to 4"),
    "labels": (("class_labels", torch.zeros(3)), r"`class_labels`.*\(3,\).*\(8,\)"),
    "batch": (("pixel_values", torch.zeros(3, 1, SIDE, SIDE)), "`(image_given|input_ids)`.*8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_the_argument_the_value_and_the_fix(fault):
    change, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        make_model()(**faulty(*change))


def test_neither_words_nor_pictures_is_a_fault():
    with pytest.raises(ValueError, match=r"`input_ids` nor `pixel_values`.*pass"):
        make_model()(class_labels=torch.tensor([1]))


def test_batches_of_different_sizes_are_a_fault():
    words, pixels = torch.full((3, 2), 5), torch.zeros(2, 1, SIDE, SIDE)
    with pytest.raises(ValueError, match="`input_ids` holds 3 items, `pixel_values` 2"):
        make_model()(input_ids=words, pixel_values=pixels)
