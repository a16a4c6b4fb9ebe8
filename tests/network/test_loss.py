# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts of the training loss (Eq. 14-18) against sums over positions written by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_mdm import MDMConfig, MDMForJointGeneration
from modeling_mdm.diffusion import NoiseSchedule
from modeling_mdm.inputs import EncodedInputs, encode_images, encode_text, lay_out_content
from modeling_mdm.loss import (
    MEANS,
    Prediction,
    Tallies,
    combine_tallies,
    count_items,
    count_items_in_batches,
    diffusion_losses,
    loss_counts,
    masked_mean,
    position_score_entropy,
    reconstruction_losses,
)
from modeling_mdm.vae import MDMVAE, kl_divergence

float64 = torch.float64
BATCH, WORDS, PATCHES, VOCABULARY, LATENT = 3, 5, 4, 11, 6


def tiny_config(**changes):
    values = {
        "vocab_size": VOCABULARY,
        "image_size": 4,
        "patch_size": 2,
        "max_text_length": WORDS,
        "latent_dim": LATENT,
        "vae_hidden_size": 12,
        "vae_num_layers": 1,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "state_size": 8,
        "head_dim": 8,
        "num_trajectory_candidates": 3,
    }
    return MDMConfig(**{**values, **changes})


def draw_inputs():
    """Two modalities, every kind of position: given, noisy and padding."""
    generator = torch.Generator().manual_seed(3)
    attention_mask = torch.ones(BATCH, WORDS, dtype=torch.long)
    attention_mask[1, 3:] = 0
    text_given = torch.rand(BATCH, WORDS, generator=generator) < 0.3
    image_given = torch.zeros(BATCH, 4, 4, dtype=torch.bool)
    image_given[0, :2, 2:] = True
    image_given[2] = True
    return {
        "input_ids": torch.randint(VOCABULARY, (BATCH, WORDS), generator=generator),
        "attention_mask": attention_mask,
        "text_given": text_given,
        "pixel_values": torch.rand(BATCH, 1, 4, 4, generator=generator, dtype=float64) * 2 - 1,
        "image_given": image_given,
    }


@pytest.fixture
def encoded():
    """A VAE in float64 with posteriors of every width, and a batch that it has encoded."""
    torch.manual_seed(1)
    vae = MDMVAE(tiny_config()).double()
    torch.nn.init.normal_(vae.posterior.bias, std=0.5)
    inputs = draw_inputs()
    text = encode_text(vae, inputs["input_ids"], inputs["attention_mask"], inputs["text_given"])
    image, grid = encode_images(vae, inputs["pixel_values"], image_given=inputs["image_given"])
    encoded = EncodedInputs(
        {"text": text, "image": image}, torch.full((BATCH,), -1, dtype=torch.long), grid
    )
    return vae, encoded


def latents_like(encoded):
    return {g: torch.randn_like(part.posterior_mean) for g, part in encoded.modalities.items()}


def count(batch):
    return count_items(tiny_config(), batch.content)


def log_softmax(values):
    top = max(values)
    log_sum = top + math.log(sum(math.exp(v - top) for v in values))
    return [v - log_sum for v in values]


def softmax(values):
    return [math.exp(v) for v in log_softmax(values)]


@given(
    length=st.integers(0, 5),
    mask=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_masked_mean_counts_only_what_the_mask_holds(length, mask):
    values = torch.randn(1, length, dtype=float64, requires_grad=True)
    mask = torch.tensor([mask[:length]], dtype=torch.bool)
    kept = [v for v, m in zip(values[0].tolist(), mask[0].tolist(), strict=True) if m]
    mean = masked_mean(values, mask, mask.sum().clamp(min=1))
    assert mean.item() == pytest.approx(sum(kept) / len(kept) if kept else 0.0)
    mean.backward()
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_counts_are_shared_by_the_processes_whose_gradients_are_averaged(processes, monkeypatch):
    """n / p, so that the mean over p processes of sums by it is the sum by n; never 0."""
    monkeypatch.setattr("modeling_mdm.loss.num_processes", lambda: processes)
    counts = {name: torch.tensor(n) for n, name in enumerate(("none", "one", "two"))}
    found = loss_counts(tiny_config(), None, counts)
    assert {name: n.item() for name, n in found.items()} == pytest.approx(
        {"none": 1, "one": 1 / processes, "two": 2 / processes}
    )


def test_where_gradients_are_off_a_process_counts_for_itself(encoded, monkeypatch):
    monkeypatch.setattr("modeling_mdm.loss.num_processes", lambda: 2)
    monkeypatch.setattr("modeling_mdm.loss.sum_counts", lambda counts: pytest.fail("asked others"))
    _, batch = encoded
    with torch.no_grad():
        found = loss_counts(tiny_config(), batch, None)
    text, image = batch.content["text"], batch.content["image"]
    assert found["noisy_text"] == (text.valid & ~text.given).sum() > 1
    assert found["real_image"] == image.valid.sum() > 1
    assert found["asking"] == 1


@pytest.mark.parametrize("absent", ["text", "image"])
def test_one_batch_is_counted_by_its_masks_and_lacks_a_modality_as_a_number(absent):
    """By hand, of `draw_inputs`; 0 of what is absent is a count like others."""
    batch = draw_inputs()
    text, image = ("input_ids", "attention_mask", "text_given"), ("pixel_values", "image_given")
    valid, words_given = batch["attention_mask"].bool(), batch["text_given"]
    noisy_patches = [[True, False, True, True], [True] * 4, [False] * 4]  # by draw_inputs
    expected = {
        "noisy_text": (valid & ~words_given).sum().item(),
        "real_text": BATCH * WORDS - 2,
        "noisy_image": sum(map(sum, noisy_patches)),
        "real_image": BATCH * PATCHES,
    }
    for name in text if absent == "text" else image:
        del batch[name]
    expected |= {name: 0 for name in expected if name.endswith(absent)}
    counts = count_items_in_batches(tiny_config(use_mode_head=True), [batch])
    assert counts.pop("asking") == 0  # what is given stands amid what is noisy, of one turn
    assert {name: n.item() for name, n in counts.items()} == expected
    for use_mode_head in (False, True):
        own = count_items(tiny_config(use_mode_head=use_mode_head), lay_out_content(2, batch))
        assert all(n.dtype == torch.long and n.dim() == 0 for n in own.values())


@pytest.mark.parametrize(("use_mode_head", "asking"), [(False, 0), (True, BATCH)])
def test_items_that_ask_are_counted_where_a_head_learns_from_them(use_mode_head, asking):
    batch = draw_inputs()
    batch["text_given"][:], batch["image_given"][:] = True, False  # pictures of words
    content = lay_out_content(2, batch)
    assert count_items(tiny_config(use_mode_head=use_mode_head), content)["asking"] == asking


def test_masked_mean_ignores_nan_outside_its_mask():
    values = torch.tensor([[1.0, math.nan, 3.0]])
    mask = torch.tensor([[True, False, True]])
    assert masked_mean(values, mask, mask.sum()).item() == 2


# --- Eq. 15-17


def test_image_reconstruction_is_equation_15(encoded):
    vae, batch = encoded
    z_0, noise = latents_like(batch), latents_like(batch)
    losses = reconstruction_losses(vae, batch, z_0, noise, 0.3, count(batch))
    decoded = vae.decode(z_0["image"] + 0.3 * noise["image"], "image")
    pixels = draw_inputs()["pixel_values"]
    total = 0.0
    for b in range(BATCH):
        for row in range(2):
            for column in range(2):  # the patch at (row, column), its pixels in reading order
                patch = pixels[b, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
                total += ((patch - decoded[b, 2 * row + column]) ** 2).sum().item()
    assert losses["loss_rec_image"].item() == pytest.approx(total / (BATCH * PATCHES), rel=1e-6)


def test_image_reconstruction_leaves_out_padding_and_takes_noise_of_any_type():
    """Three channels: a patch has other values than a picture patches."""
    torch.manual_seed(1)
    vae, pixels = MDMVAE(tiny_config(num_channels=3)), torch.rand(1, 3, 4, 4) * 2 - 1
    mask = torch.ones(1, 4, 4)
    mask[0, 2:, :2] = 0
    image, grid = encode_images(vae, pixels, mask)
    batch = EncodedInputs({"image": image}, torch.full((1,), -1), grid)
    z_0, noise = torch.randn(1, PATCHES, LATENT), torch.randn(1, PATCHES, LATENT, dtype=float64)
    losses = reconstruction_losses(vae, batch, {"image": z_0}, {"image": noise}, 0.3, count(batch))
    decoded = vae.decode(z_0 + 0.3 * noise.float(), "image").detach().view(2, 2, 2, 2, 3)
    squares = [
        (decoded[row, column, i, j, c] - pixels[0, c, 2 * row + i, 2 * column + j]).item() ** 2
        for row, column in ((0, 0), (0, 1), (1, 1))
        for i in range(2)
        for j in range(2)
        for c in range(3)
    ]
    assert losses["loss_rec_image"].item() == pytest.approx(sum(squares) / 3, rel=1e-5)


def test_text_reconstruction_is_equation_16_over_real_words(encoded):
    vae, batch = encoded
    z_0, noise = latents_like(batch), latents_like(batch)
    losses = reconstruction_losses(vae, batch, z_0, noise, 0.3, count(batch))
    logits = vae.decode(z_0["text"] + 0.3 * noise["text"], "text")
    inputs = draw_inputs()
    each = []
    for b in range(BATCH):
        for n in range(WORDS):
            if inputs["attention_mask"][b, n]:
                word = inputs["input_ids"][b, n].item()
                each.append(-math.log(softmax(logits[b, n].tolist())[word]))
    assert len(each) == BATCH * WORDS - 2
    assert losses["loss_rec_text"].item() == pytest.approx(sum(each) / len(each), rel=1e-6)


def test_kl_is_equation_17_as_torch_distributions_has_it(encoded):
    vae, batch = encoded
    losses = reconstruction_losses(
        vae, batch, latents_like(batch), latents_like(batch), 0.1, count(batch)
    )
    expected = 0.0
    for part in batch.modalities.values():
        posterior = torch.distributions.Normal(
            part.posterior_mean, torch.exp(part.posterior_logvar / 2)
        )
        prior = torch.distributions.Normal(torch.zeros_like(part.posterior_mean), 1.0)
        each = torch.distributions.kl_divergence(posterior, prior).sum(-1)
        assert (
            kl_divergence(part.posterior_mean, part.posterior_logvar).sub(each).abs().max() < 1e-9
        )
        expected += each[part.content.valid].mean().item()
    assert expected > 0.1
    assert losses["loss_kl"].item() == pytest.approx(expected, rel=1e-6)


# --- Eq. 14


def draw_predictions(content, candidates=0):
    predictions = {}
    for g, part in content.items():
        z_0, z_t, estimate = torch.randn(3, *part.latents.shape, dtype=float64)
        times = torch.tensor([0.2, 0.5, 0.9], dtype=float64)
        predictions[g] = Prediction(z_0, z_t, estimate, times, NoiseSchedule("cosine"))
        if candidates:
            shape = (*z_0.shape[:2], candidates, z_0.shape[2])
            predictions[g].candidate_noise = torch.randn(shape, dtype=float64)
    predictions["text"].logits = torch.randn(BATCH, WORDS, VOCABULARY, dtype=float64)
    predictions["text"].target = draw_inputs()["input_ids"]
    return predictions


def expected_score_entropies(predictions):
    """Every position's score entropy by hand: a list by item and position."""
    text, image = predictions["text"], predictions["image"]
    words = [
        [
            -math.log(softmax(text.logits[b, n].tolist())[text.target[b, n].item()])
            for n in range(WORDS)
        ]
        for b in range(BATCH)
    ]
    patches = []
    for b in range(BATCH):
        t = image.times[b].item()
        start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        abar = math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / start
        weight = min(1 / (1 - abar), 5.0)
        squares = (image.estimate[b] - image.z_0[b]).square().sum(-1).tolist()
        patches.append([weight * square / 2 for square in squares])
    return {"text": words, "image": patches}


@pytest.mark.parametrize("maximum", [1.5, 5.0])
def test_the_weight_of_pixels_is_capped_where_the_configuration_says(encoded, maximum):
    _, batch = encoded
    image = draw_predictions(batch.content)["image"]
    found = position_score_entropy(tiny_config(denoising_weight_max=maximum), image)
    squares = (image.estimate - image.z_0).square().sum(-1) / 2
    alpha_bar = torch.cos((image.times + 0.008) / 1.008 * math.pi / 2).square()
    alpha_bar = alpha_bar / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    weight = (1 / (1 - alpha_bar)).tolist()
    assert weight[0] > 5 and 1.5 < weight[1] < 5 and weight[2] < 1.5
    weight = torch.tensor([min(w, maximum) for w in weight], dtype=float64)
    torch.testing.assert_close(found, weight[:, None] * squares, rtol=1e-9, atol=0)


def test_score_entropy_is_equation_14_over_noisy_positions(encoded):
    _, batch = encoded
    predictions = draw_predictions(batch.content)
    predicted = {g: torch.randn(part.latents.shape[:2]) for g, part in batch.content.items()}
    config = tiny_config(se_weight_image=0.5, se_weight_text=3.0)
    losses = diffusion_losses(config, batch.content, predictions, predicted, count(batch))
    expected, fit = {}, 0.0
    for g, values in expected_score_entropies(predictions).items():
        noisy = batch.content[g].noisy
        assert 0 < noisy.sum() < noisy.numel()
        places = [(b, n) for b, n in noisy.nonzero().tolist()]
        expected[g] = sum(values[b][n] for b, n in places) / len(places)
        misses = [predicted[g][b, n].item() - math.log(1 + values[b][n]) for b, n in places]
        fit += sum(miss**2 for miss in misses) / len(places)
        assert losses[f"loss_se_{g}"].item() == pytest.approx(expected[g], rel=1e-5)
    total = 0.5 * expected["image"] + 3 * expected["text"]
    assert losses["loss_se"].item() == pytest.approx(total, rel=1e-5)
    assert losses["loss_se_prediction"].item() == pytest.approx(fit, rel=1e-5)


def test_trajectory_candidates_stand_at_even_former_times(encoded):
    """K former states at t/(K+1), ..., Kt/(K+1), softmax over them on both sides."""
    _, batch = encoded
    content = {"image": batch.content["image"]}
    # In sixths, which float32 does not hold.
    image = draw_predictions(batch.content, candidates=5)["image"]
    predicted = {"image": torch.zeros(BATCH, PATCHES)}
    config = tiny_config(se_candidates="trajectory")
    losses = diffusion_losses(config, content, {"image": image}, predicted, count(batch))

    def abar(t):
        start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / start

    def log_density(z, clean, a):
        squares = (z - math.sqrt(a) * clean).square().sum().item()
        return -squares / (2 * (1 - a)) - len(z) / 2 * math.log(2 * math.pi * (1 - a))

    each = []
    for b, n in content["image"].noisy.nonzero().tolist():
        t, log_r, log_s = image.times[b].item(), [], []
        a_t, z_t, z_0 = abar(t), image.z_t[b, n], image.z_0[b, n]
        for k in range(5):
            a_s = abar(t * (k + 1) / 6)
            kept = a_t / a_s
            variance = 1 / (1 / (1 - a_s) + kept / (1 - kept))
            mean = variance * (
                math.sqrt(a_s) * z_0 / (1 - a_s) + math.sqrt(kept) * z_t / (1 - kept)
            )
            y = mean + math.sqrt(variance) * image.candidate_noise[b, n, k]
            for clean, out in ((z_0, log_r), (image.estimate[b, n], log_s)):
                out.append(log_density(y, clean, a_s) - log_density(z_t, clean, a_t))
        log_s, log_r = log_softmax(log_s), log_softmax(log_r)
        each.append(sum(math.exp(q) * (q - p) for p, q in zip(log_s, log_r, strict=True)))
    expected = sum(each) / len(each)
    assert losses["loss_se_image"].item() == pytest.approx(expected, rel=1e-6)
    found = position_score_entropy(config, image)[content["image"].noisy]
    assert found.tolist() == pytest.approx(each, rel=1e-9)


@pytest.mark.parametrize("candidates", ["exact", "trajectory"])
@pytest.mark.parametrize("size", [0.0, 1.0, 100.0, 1e4])
def test_every_candidate_set_is_finite_in_float32_at_every_time(encoded, candidates, size):
    """Vocabulary, codebook, closed form and former states; estimates and logits of any size."""
    _, batch = encoded
    config = tiny_config(se_candidates=candidates)
    for times in ([0.0, 1e-6, 1e-3], [0.5, 1 - 1e-6, 1.0]):
        predictions = draw_predictions(batch.content, candidates=3)
        predictions["image"].schedule = NoiseSchedule("linear")
        sources = []
        for prediction in predictions.values():
            prediction.z_0, prediction.z_t = prediction.z_0.float(), prediction.z_t.float()
            prediction.times = torch.tensor(times)
            prediction.candidate_noise = prediction.candidate_noise.float()
            prediction.estimate = (size * prediction.estimate.float()).requires_grad_()
            sources.append(prediction.estimate)
        text, image = predictions["text"], predictions["image"]
        text.logits = (size * text.logits.float()).requires_grad_()
        codes = Prediction(**vars(image))
        codes.logits = (size * torch.randn(BATCH, PATCHES, 7)).requires_grad_()
        codes.target = torch.randint(7, (BATCH, PATCHES))
        for picture in (image, codes):
            predicted = {g: torch.zeros(part.given.shape) for g, part in batch.content.items()}
            predictions = {"text": text, "image": picture}
            losses = diffusion_losses(config, batch.content, predictions, predicted, count(batch))
            assert all(loss.isfinite() for loss in losses.values())
            assert losses["loss_se_text"] >= 0 and losses["loss_se_image"] >= 0
            gradients = torch.autograd.grad(
                losses["loss_se"], [*sources, text.logits, codes.logits], allow_unused=True
            )
            assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
            assert any(gradient is not None and gradient.any() for gradient in gradients)


# --- Eq. 18


def test_total_is_equation_18_and_each_modality_may_be_absent():
    config = tiny_config(kl_weight=0.25, se_weight=3.0)
    model = MDMForJointGeneration(config).double().eval()
    inputs = draw_inputs()
    picture = {name: inputs[name] for name in ("pixel_values", "image_given")}
    words = {name: inputs[name] for name in ("input_ids", "attention_mask", "text_given")}
    for given_inputs in (inputs, picture, words):
        out = model(**given_inputs)
        parts = SimpleNamespace(**{name: out[name].item() for name in out if "loss" in name})
        total = parts.loss_rec_image + parts.loss_rec_text + 0.25 * parts.loss_kl
        total += 3.0 * parts.loss_se
        # The paper's four terms, and what the score-entropy head, and nothing else, learns from.
        assert parts.loss == pytest.approx(total + parts.loss_se_prediction, rel=1e-6)
        assert (parts.loss_rec_image > 0) == ("pixel_values" in given_inputs)
        assert (parts.loss_rec_text > 0) == ("input_ids" in given_inputs)
        assert (parts.loss_se_image > 0) == ("pixel_values" in given_inputs)
        assert (parts.loss_se_text > 0) == ("input_ids" in given_inputs)


def test_tallies_add_up_item_by_item_what_the_mask_holds():
    tallies = Tallies(torch.zeros(2))
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    tallies.add("loss_kl_text", values, torch.tensor([[True, False, True], [False, True, False]]))
    tallies.add("loss_kl_text", values[:, 0], torch.tensor([True, True]))
    found = tallies.values[:, MEANS.index("loss_kl_text")]
    assert found.tolist() == [[1.0 + 4.0 + 1.0, 3.0], [16.0 + 8.0, 2.0]]  # sums and counts
    assert tallies.values.sum() == found.sum()


@pytest.mark.parametrize("use_mode_head", [False, True])
def test_summed_tallies_are_the_losses_of_one_batch(use_mode_head):
    """Eq. 14 to 18 of means by hand: of none, of one position and of several."""
    config = tiny_config(
        kl_weight=0.25,
        se_weight=3.0,
        se_weight_image=0.5,
        se_weight_text=2.0,
        use_mode_head=use_mode_head,
    )
    sums = {
        "loss_se_text": (3.0, 2),
        "loss_se_image": (7.0, 1),
        "loss_se_prediction_text": (5.0, 4),
        "loss_se_prediction_image": (9.0, 6),
        "loss_rec_text": (0.0, 0),
        "loss_rec_image": (11.0, 8),
        "loss_kl_text": (13.0, 10),
        "loss_kl_image": (17.0, 1),
        "loss_mode": (19.0, 5),
    }
    tallies = torch.tensor([sums[name] for name in MEANS], dtype=float64)
    expected = {
        "loss_se_text": 1.5,
        "loss_se_image": 7.0,
        "loss_se": 2 * 1.5 + 0.5 * 7,
        "loss_se_prediction": 5 / 4 + 9 / 6,
        "loss_rec_text": 0.0,
        "loss_rec_image": 11 / 8,
        "loss_kl": 1.3 + 17,
    }
    if use_mode_head:
        expected["loss_mode"] = 19 / 5
    expected["loss"] = 11 / 8 + 0.25 * (1.3 + 17) + 3 * (2 * 1.5 + 0.5 * 7) + 5 / 4 + 9 / 6
    expected["loss"] += expected.get("loss_mode", 0.0)
    found = combine_tallies(config, tallies)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected)
    with pytest.raises(ValueError, match="zip"):  # of other means than these
        combine_tallies(config, tallies[:-1])
