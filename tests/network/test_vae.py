# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The unified VAE (Sec. 4.1, Eq. 15-17): patches, posteriors, each position alone, statistics."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from modeling_mdm import MDMConfig, MDMForJointGeneration
from modeling_mdm.vae import MDMVAE, LatentStatistics, kl_divergence, patchify, unpatchify

float64 = torch.float64


def make_vae(**changes):
    values = {"vocab_size": 11, "patch_size": 2, "image_size": 4, "latent_dim": 6}
    values |= {"vae_hidden_size": 16, "vae_num_layers": 2}
    return MDMVAE(MDMConfig(**{**values, **changes}))


# --- Patches


@examples(
    batch=st.integers(0, 3),
    channels=st.sampled_from([1, 3]),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    size=st.integers(1, 4),
)
def test_pictures_are_cut_into_patches_row_by_row_and_put_together_again(
    batch, channels, rows, columns, size
):
    pixels = torch.randn(batch, channels, rows * size, columns * size)
    patches = patchify(pixels, size)
    assert patches.shape == (batch, rows * columns, size * size * channels)
    for b in range(batch):
        for row in range(rows):
            for column in range(columns):
                window = pixels[
                    b, :, row * size : (row + 1) * size, column * size : (column + 1) * size
                ]
                patch = patches[b, row * columns + column]
                # Every pixel of the window, and nothing else, in one order for all patches.
                assert torch.equal(patch.view(size, size, channels).permute(2, 0, 1), window)
    assert torch.equal(unpatchify(patches, size, (rows, columns)), pixels)


def test_patches_of_any_dtype_and_layout_make_the_round_trip():
    pixels = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    assert torch.equal(unpatchify(patchify(pixels, 2), 2, (2, 3)), pixels)
    last = pixels.float().contiguous(memory_format=torch.channels_last)
    assert torch.equal(unpatchify(patchify(last, 2), 2, (2, 3)), last)


# --- Eq. 17


def test_kl_equals_torch_distributions():
    mean, logvar = torch.randn(2, 5, 7, dtype=float64), 3 * torch.randn(2, 5, 7, dtype=float64)
    posterior = torch.distributions.Normal(mean, torch.exp(logvar / 2))
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    exact = torch.distributions.kl_divergence(posterior, prior).sum(-1)
    torch.testing.assert_close(kl_divergence(mean, logvar), exact, rtol=1e-12, atol=1e-12)
    zero = torch.zeros(1, 4, dtype=float64)
    assert kl_divergence(zero, zero).item() == 0


def test_posteriors_stay_within_what_float32_can_hold():
    vae = make_vae()
    with torch.no_grad():
        vae.posterior.bias.fill_(1e4)
        vae.posterior.bias[6::2] = -1e4
    mean, logvar = vae.encode(torch.tensor([[1, 2]]), "text")
    assert kl_divergence(mean * 0, logvar).isfinite().all()
    assert torch.exp(0.5 * logvar).isfinite().all() and (torch.exp(0.5 * logvar) > 0).all()


def test_log_variances_are_kept_from_minus_20_to_10_and_as_they_are_between():
    vae = make_vae(latent_dim=6)
    asked = torch.tensor([-1e4, -20.1, -19.9, 0.5, 9.9, 10.1])
    with torch.no_grad():
        vae.posterior.weight.zero_()
        vae.posterior.bias.copy_(torch.cat([3 * asked, asked]))
    mean, logvar = vae.encode(torch.tensor([1]), "text")
    assert torch.equal(mean[0], 3 * asked)
    assert torch.equal(logvar[0], torch.tensor([-20.0, -20.0, -19.9, 0.5, 9.9, 10.0]))


# --- Each position alone


@pytest.mark.parametrize("modality", ["text", "image"])
def test_no_position_sees_another(modality):
    """Change one position: all others are bitwise equal, in posteriors, latents and decodings."""
    vae = make_vae()
    if modality == "text":
        content = torch.arange(10).view(2, 5)
        changed = content.clone()
        changed[0, 3] = 10
    else:
        content = torch.randn(2, 5, 4)
        changed = content.clone()
        changed[0, 3] += 1
    others = torch.ones(2, 5, dtype=torch.bool)
    others[0, 3] = False
    pairs = list(zip(vae.encode(content, modality), vae.encode(changed, modality), strict=True))
    pairs.append((vae(content, modality), vae(changed, modality)))
    latents = torch.randn(2, 5, 6)
    moved = latents.clone()
    moved[0, 3] += 1
    pairs.append((vae.decode(latents, modality), vae.decode(moved, modality)))
    for before, after in pairs:
        assert torch.equal(before[others], after[others])
        assert not torch.equal(before[0, 3], after[0, 3])


# --- Patches that are assembled


def assembling(**changes):
    """A VAE whose decoder looks around, in float64, with nothing left at zero."""
    torch.manual_seed(0)
    vae = make_vae(**{"image_decoder_layers": 1, **changes}).double()
    for layer in vae.assembly:
        torch.nn.init.normal_(layer.out_proj.weight, std=0.3)
    return vae


def test_assembly_starts_as_the_decoding_of_each_patch_alone():
    model = MDMForJointGeneration(
        MDMConfig(vae_hidden_size=16, hidden_size=32, head_dim=16, num_hidden_layers=1,
                  image_decoder_layers=2)
    )  # fmt: skip
    vae, latents = model.vae, torch.randn(2, 12, 16)
    alone = vae.patch_head(vae.decoder(vae.latent_embedding(latents)))
    assert torch.equal(vae.decode(latents, "image", (2, 2, 3)), alone)
    assert all(layer.convolution.weight.any() for layer in vae.assembly)


def test_assembly_equals_loops_over_the_patches_around():
    vae, rows, columns = assembling(), 3, 4
    valid = torch.rand(2, 2 * rows * columns) < 0.8
    latents = torch.randn(2, 2 * rows * columns, 6, dtype=float64)
    features = vae.decoder(vae.latent_embedding(latents)).view(4, rows, columns, -1)
    there, (layer,) = valid.view(4, rows, columns), vae.assembly
    expected = features.clone()
    for picture in range(4):
        for row in range(rows):
            for column in range(columns):
                total = layer.convolution.bias
                for down in (-1, 0, 1):
                    for right in (-1, 0, 1):
                        at = picture, row + down, column + right
                        inside = 0 <= at[1] < rows and 0 <= at[2] < columns
                        if inside and there[at]:
                            x = features[at] / (features[at].square().mean() + 1e-5).sqrt()
                            kernel = layer.convolution.weight[..., 1 + down, 1 + right]
                            total = total + kernel @ (x * layer.norm.weight)
                added = layer.out_proj.weight @ (total * total.sigmoid()) + layer.out_proj.bias
                expected[picture, row, column] += added
    decoded = vae.decode(latents, "image", (2, rows, columns), valid)
    torch.testing.assert_close(
        decoded, vae.patch_head(expected).view(2, -1, 4), rtol=1e-9, atol=1e-10
    )


def test_assembly_sees_its_own_picture_alone_and_no_padding():
    """Two layers reach two patches around; beyond, in other pictures and items, nothing moves."""
    vae, rows, columns = assembling(image_decoder_layers=2), 4, 5
    valid = torch.ones(2, 2, rows, columns, dtype=torch.bool)
    valid[0, 1, :, 3:] = False
    latents = torch.randn(2, 2, rows, columns, 6, dtype=float64)

    def decode(latents, valid):
        flat = latents.flatten(1, -2), "image", (latents.shape[1], rows, columns)
        return vae.decode(*flat, valid.flatten(1)).view(*valid.shape, -1)

    before, moved = decode(latents, valid), latents.clone()
    moved[0, 0, 0, 1] += 1
    changed = (decode(moved, valid) != before).any(-1)
    assert changed[0, 0, :3, :4].all() and changed.sum() == 12
    moved = latents.clone()
    moved[0, 1, :, 3:] = torch.nan  # of what is not there
    after = decode(moved, valid)
    assert torch.equal(after[valid], before[valid])
    # A picture alone, and without its padding, is the same as beside others.
    alone = decode(latents[1:, 1:], valid[1:, 1:])
    torch.testing.assert_close(alone[0, 0], before[1, 1], rtol=1e-12, atol=1e-12)
    narrow = vae.decode(latents[0, 1, :, :3].reshape(1, -1, 6), "image", (1, rows, 3))
    torch.testing.assert_close(
        narrow.view(rows, 3, -1), before[0, 1, :, :3], rtol=1e-12, atol=1e-12
    )


def test_words_are_decoded_as_without_assembly():
    vae, latents = assembling(), torch.randn(2, 5, 6, dtype=float64)
    features = vae.decoder(vae.latent_embedding(latents))
    assert torch.equal(vae.decode(latents, "text"), vae.word_head(features))


def test_assembly_asks_for_the_grid():
    with pytest.raises(ValueError, match=r"`grid` is None.*pass"):
        assembling().decode(torch.randn(1, 4, 6, dtype=float64), "image")


def test_trunks_are_shared_and_ends_are_not():
    vae = make_vae()
    latents = torch.randn(1, 3, 6)
    features = vae.decoder(vae.latent_embedding(latents))
    torch.testing.assert_close(vae.decode(latents, "text"), vae.word_head(features))
    torch.testing.assert_close(vae.decode(latents, "image"), vae.patch_head(features))
    mean, logvar = vae.posterior(vae.encoder(vae.embed_tokens(torch.tensor([4])))).chunk(2, -1)
    torch.testing.assert_close(vae.encode(torch.tensor([4]), "text"), (mean, logvar))
    patch = torch.randn(1, 4)
    mean, logvar = vae.posterior(vae.encoder(vae.patch_embedding(patch))).chunk(2, -1)
    torch.testing.assert_close(vae.encode(patch, "image"), (mean, logvar))


def test_word_latents_are_the_standardised_posterior_means_of_every_word():
    vae = make_vae()
    vae.statistics["text"].mean.normal_()
    vae.statistics["text"].variance.uniform_(0.5, 2)
    words = vae.word_latents()
    assert words.shape == (11, 6)
    for v in range(11):
        mean, _ = vae.encode(torch.tensor([v]), "text")
        expected = (mean - vae.statistics["text"].mean) / vae.statistics["text"].variance.sqrt()
        torch.testing.assert_close(words[v], expected[0], rtol=1e-5, atol=1e-5)


def test_code_latents_are_the_standardised_posterior_means_of_every_code():
    vae, codebook = make_vae(), torch.randn(7, 4)
    vae.statistics["image"].mean.normal_()
    vae.statistics["image"].variance.uniform_(0.5, 2)
    mean, _ = vae.posterior(vae.encoder(vae.patch_embedding(codebook))).chunk(2, -1)
    expected = (mean - vae.statistics["image"].mean) / vae.statistics["image"].variance.sqrt()
    torch.testing.assert_close(vae.code_latents(codebook), expected, rtol=1e-5, atol=1e-5)


def test_trunks_are_residual_and_take_the_configurations_epsilon():
    """x + W_2 silu(W_1 g x / sqrt(mean(x^2) + epsilon)) of every layer, written out."""
    vae = make_vae(layer_norm_epsilon=0.5).double()

    def by_hand(x, layers):
        for layer in layers:
            layer.norm.weight.data.uniform_(0.5, 2)
            up, down = layer.up_proj, layer.down_proj
            normed = layer.norm.weight * x / (x.square().mean(-1, keepdim=True) + 0.5).sqrt()
            inner = normed @ up.weight.T + up.bias
            x = x + (inner / (1 + torch.exp(-inner))) @ down.weight.T + down.bias
        return x

    patches, latents = torch.randn(3, 4, dtype=float64), torch.randn(3, 6, dtype=float64)
    mean = vae.posterior(by_hand(vae.patch_embedding(patches), vae.encoder))[:, :6]
    torch.testing.assert_close(vae.encode(patches, "image")[0], mean, rtol=1e-10, atol=1e-12)
    decoded = vae.patch_head(by_hand(vae.latent_embedding(latents), vae.decoder))
    torch.testing.assert_close(vae.decode(latents, "image"), decoded, rtol=1e-10, atol=1e-12)


def test_posteriors_of_a_bfloat16_vae_are_float32():
    for part in make_vae().bfloat16().encode(torch.tensor([1]), "text"):
        assert part.dtype == torch.float32


@pytest.mark.parametrize(
    ("part", "learning"),
    [
        ("embed_tokens", {"text"}),
        ("patch_embedding", {"image"}),
        ("encoder", {"text", "image"}),
        ("posterior", {"text", "image"}),
        ("decoder", set()),
    ],
)
def test_what_gives_a_modality_its_latents_makes_it_learn(part, learning):
    vae = make_vae().requires_grad_(False)
    getattr(vae, part).requires_grad_(True)
    assert {g for g in ("text", "image") if vae.learns(g)} == learning


# --- Running statistics


@examples(updates=st.integers(1, 12), seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_statistics_are_plain_averages_at_first_and_exponential_later(updates, seed):
    """Rates 1, 1/2, 1/3 ... until the momentum; padding, however wild, is not counted."""
    momentum = 0.2
    generator = torch.Generator().manual_seed(seed)
    statistics = LatentStatistics(3, momentum).double()
    mean, variance = torch.zeros(3, dtype=float64), torch.ones(3, dtype=float64)
    for update in range(updates):
        latents = torch.randn(2, 5, 3, dtype=float64, generator=generator) * 3 + 1
        valid = torch.rand(2, 5, generator=generator) < 0.8
        valid[0, :2] = True
        real = torch.stack([latents[b, n] for b, n in valid.nonzero().tolist()])
        latents[~valid] = 1e6
        statistics.update(latents, valid)
        rate = max(1 / (update + 1), momentum)
        mean = (1 - rate) * mean + rate * real.mean(0)
        variance = (1 - rate) * variance + rate * real.var(0, correction=0)
    torch.testing.assert_close(statistics.mean, mean)
    torch.testing.assert_close(statistics.variance, variance)
    assert statistics.updates.item() == updates


def test_standardised_latents_have_mean_0_and_variance_1():
    statistics = LatentStatistics(4, 0.01).double()
    latents = torch.randn(8, 50, 4, dtype=float64) * torch.tensor([0.1, 1, 5, 30]) - 7
    valid = torch.rand(8, 50) < 0.7
    statistics.update(latents, valid)
    standard = statistics.standardize(latents)[valid]
    assert standard.mean(0).abs().max() < 1e-6
    assert (standard.var(0, correction=0) - 1).abs().max() < 1e-3
    before = [buffer.clone() for buffer in statistics.buffers()]
    statistics.standardize(latents)
    for buffer, old in zip(statistics.buffers(), before, strict=True):
        assert torch.equal(buffer, old)


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_that_says_nothing_of_the_variance_changes_no_statistics(count):
    statistics = LatentStatistics(2, 0.01)
    valid = torch.zeros(2, 3, dtype=torch.bool)
    valid[0, :count] = True
    statistics.update(torch.full((2, 3, 2), 9.0), valid)
    assert statistics.mean.tolist() == [0, 0] and statistics.variance.tolist() == [1, 1]
    statistics.update(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]]), torch.ones(1, 2).bool())
    assert statistics.mean.tolist() == [2, 4] and statistics.variance.tolist() == [1, 4]


def test_latents_that_never_vary_are_not_divided_by_zero():
    statistics = LatentStatistics(2, 0.01)
    statistics.update(torch.ones(1, 5, 2), torch.ones(1, 5).bool())
    assert statistics.standardize(torch.ones(1, 5, 2)).tolist() == [[[0.0, 0.0]] * 5]


def test_statistics_are_float32_and_counts_whole_where_the_default_type_is_shorter():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        statistics = LatentStatistics(2, 0.01)
    finally:
        torch.set_default_dtype(before)
    kinds = {name: buffer.dtype for name, buffer in statistics.named_buffers()}
    assert kinds == {"mean": torch.float32, "variance": torch.float32, "updates": torch.long}


def test_steps_in_parts_of_any_size_are_those_of_all_their_latents():
    """Parts of one latent and of none, in several steps one after another."""
    statistics = LatentStatistics(3, 0.01).double()
    mean, variance = torch.zeros(3, dtype=float64), torch.ones(3, dtype=float64)
    for step, sizes in enumerate([(2, 3), (1, 0, 1, 3), (0, 1, 4), (5,)]):
        latents = torch.randn(5, 3, dtype=float64) * 2 + 10**step
        for part in latents.split(list(sizes)):
            padded, valid = torch.full((1, 6, 3), 1e6, dtype=float64), torch.zeros(1, 6).bool()
            padded[0, : len(part)], valid[0, : len(part)] = part, True
            statistics.update(padded, valid, torch.tensor(5))
        mean = mean.lerp(latents.mean(0), 1 / (step + 1))
        variance = variance.lerp(latents.var(0, correction=0), 1 / (step + 1))
        torch.testing.assert_close(statistics.mean, mean)
        torch.testing.assert_close(statistics.variance, variance)
    assert statistics.updates == 4


def test_a_step_goes_on_where_the_model_is_moved_to():
    statistics, valid = LatentStatistics(3, 0.01), torch.ones(1, 2).bool()
    statistics.update(torch.randn(1, 2, 3), valid, torch.tensor(4))
    statistics.to("meta")
    latents = torch.randn(1, 2, 3, device="meta")
    statistics.update(latents, valid.to("meta"), torch.tensor(4, device="meta"))
    assert statistics.mean.is_meta


def update_in_processes(monkeypatch, parts, totals=(None,), width=3):
    """The statistics of processes that update together: parts[step][process] of (n, width)."""
    processes = [LatentStatistics(width, 0.2) for _ in parts[0]]
    monkeypatch.setattr("modeling_mdm.vae.num_processes", lambda: len(processes))

    def update(statistics, part, total):
        if part is None:
            statistics.update(None, None, total)
        else:
            padded = torch.cat([part, torch.full((1, width), 1e6)])[None].to(part.dtype)
            valid = torch.arange(padded.shape[1])[None] < len(part)
            statistics.update(padded, valid, total)

    for step, total in zip(parts, totals, strict=True):
        sent = []

        def send(moments, sent=sent):
            sent.append(moments)
            return moments

        monkeypatch.setattr("modeling_mdm.vae.sum_over_processes", send)
        for statistics, part in zip(processes, step, strict=True):
            update(copy.deepcopy(statistics), part, total)
        whole = sum(sent)
        monkeypatch.setattr("modeling_mdm.vae.sum_over_processes", lambda _, whole=whole: whole)
        for statistics, part in zip(processes, step, strict=True):
            update(statistics, part, total)
    return processes


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, float64])
def test_statistics_of_processes_are_those_of_all_latents_and_the_same_in_each(
    width, dtype, monkeypatch
):
    """Of different counts, one without any; far from 0, where float32 squares tell nothing."""
    latents = (torch.randn(9, width, dtype=float64) * 0.5 + 3000).to(dtype)
    none = latents[:0]
    step = [latents[:2], None, none, latents[2:]]
    for statistics in update_in_processes(monkeypatch, [step], width=width):
        every = latents.double()
        torch.testing.assert_close(statistics.mean, every.mean(0).float(), rtol=1e-6, atol=0)
        torch.testing.assert_close(
            statistics.variance, every.var(0, correction=0).float(), rtol=1e-2, atol=0
        )
        assert statistics.mean.dtype == statistics.variance.dtype == torch.float32
        assert statistics.updates == 1


def test_steps_of_processes_in_parts_are_those_of_all_their_latents(monkeypatch):
    """Parts in which all processes together have none, one, and many."""
    latents = torch.randn(6, 3)
    parts = [[None, latents[:0]], [latents[:1], None], [latents[1:3], latents[3:]]]
    for statistics in update_in_processes(monkeypatch, parts, [torch.tensor(6)] * 3):
        torch.testing.assert_close(statistics.mean, latents.mean(0))
        torch.testing.assert_close(statistics.variance, latents.var(0, correction=0))
        assert statistics.updates == 1


def test_a_step_in_which_no_process_has_two_latents_changes_no_statistics(monkeypatch):
    parts = [[None, torch.zeros(0, 3)], [torch.ones(1, 3), None]]
    for statistics in update_in_processes(monkeypatch, parts, [None, None]):
        assert statistics.mean.tolist() == [0] * 3 and statistics.variance.tolist() == [1] * 3
        assert statistics.updates == 0


def test_latents_that_are_the_same_in_all_processes_have_variance_0(monkeypatch):
    """Never below, as the difference of rounded squares may be."""
    width = 64
    same = torch.rand(1, width) + 0.1
    step = [same.repeat(3, 1), same.repeat(4, 1)]
    for statistics in update_in_processes(monkeypatch, [step], width=width):
        assert (statistics.variance >= 0).all() and statistics.variance.max() < 1e-6


# --- Learning


def test_overfits_a_batch_of_patches_and_words_to_near_zero_reconstruction():
    vae = make_vae(vae_hidden_size=48, latent_dim=8)
    words, patches = torch.arange(11)[None], torch.rand(1, 12, 4) * 2 - 1
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-3)
    errors = []
    for _ in range(150):
        losses = []
        for modality, content in (("text", words), ("image", patches)):
            mean, logvar = vae.encode(content, modality)
            latents = vae.statistics[modality].standardize(
                mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            )
            decoded = vae.decode(latents, modality)
            if modality == "text":
                losses.append(F.cross_entropy(decoded[0], words[0]))
            else:
                losses.append((decoded - patches).square().sum(-1).mean())
            vae.statistics[modality].update(mean.detach(), torch.ones(content.shape[:2]).bool())
            losses.append(1e-5 * kl_divergence(mean, logvar).mean())
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        errors.append((losses[0].item(), losses[2].item()))
    assert errors[0][0] > 1.5 and errors[0][1] > 0.5
    assert max(error[0] for error in errors[-5:]) < 0.02  # nats a word, of ln 11 = 2.4
    assert max(error[1] for error in errors[-5:]) < 0.05  # of 4 pixels with variance 1/3
    reconstructed = vae.decode(vae(words, "text"), "text").argmax(-1)
    assert torch.equal(reconstructed, words)
