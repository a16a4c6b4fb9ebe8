# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A VQ-VAE in front of pictures trains and generates through the same calls as pixels do."""

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError

from modeling_mdm import MDMConfig, MDMForJointGeneration
from modeling_mdm.vq import VQFrontEnd

SMALL = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "embed_dim": 4}
JANUS = {
    **SMALL,
    "model_type": "janus_vqgan",
    "num_embeddings": 24,
    "latent_channels": 32,
    "num_patches": 4,
}
EMU3 = {
    **SMALL,
    "model_type": "emu3_vqgan",
    "codebook_size": 24,
    "latent_channels": 4,
    "temporal_downsample_factor": 1,
    "attn_resolutions": [],
    "hidden_size": 32,
}


def make_model(vq_config, **fields):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "max_text_length": 5, "image_size": 8, "patch_size": 2}
    sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16, "state_size": 8}
    sizes |= {"latent_dim": 6, "vae_hidden_size": 16, "num_channels": 3, "vq_config": vq_config}
    return MDMForJointGeneration(MDMConfig(**{**sizes, **fields}))


@pytest.fixture(params=[JANUS, EMU3], ids=["janus", "emu3"])
def model(request):
    return make_model(request.param)


def make_batch(items=3):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(items, 3, 8, 8, generator=generator) * 2 - 1
    words = torch.randint(4, 20, (items, 5), generator=generator)
    return {"pixel_values": pixels, "input_ids": words}


def test_every_trained_parameter_gets_a_gradient_and_the_front_end_none(model):
    model.train()
    batch = make_batch()
    given = torch.zeros(3, 8, 8, dtype=torch.bool)
    given[0] = True
    out = model(
        **batch, image_given=given, keep=0.5, drop_prompt=torch.tensor([True, False, False])
    )
    out.loss.backward()
    assert not any(parameter.requires_grad for parameter in model.vq.parameters())
    assert not model.vq.model.training
    expected = {"decoder.class_embedding.weight"}
    missing = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    }
    assert missing <= expected


def test_the_picture_is_trained_as_words_are_by_cross_entropy_over_the_codebook(model):
    model.eval()
    batch = make_batch()
    encoded = model.encode_inputs(**batch)
    codes = encoded.modalities["image"].symbols
    assert codes.shape == (3, 16)
    assert codes.max() < 24
    torch.manual_seed(2)
    out = model(**batch)
    torch.manual_seed(2)
    denoised = {}
    original = model.denoise

    def spy(*args, **kwargs):
        denoised["result"] = original(*args, **kwargs)
        return denoised["result"]

    model.denoise = spy
    model(**batch)
    logits = denoised["result"].logits["image"].double()
    assert logits.shape == (3, 16, 24)
    entropy = F.cross_entropy(logits.transpose(1, 2), codes)
    torch.testing.assert_close(out.loss_se_image.double(), entropy, rtol=1e-5, atol=1e-6)


def test_a_batch_is_learned(model):
    model.train()
    batch = make_batch(2)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=3e-3
    )
    losses = []
    for _ in range(60):
        out = model(**batch, keep=1.0)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((out.loss_se_image.item(), out.loss_rec_image.item()))
    early, late = torch.tensor(losses[:10]).mean(0), torch.tensor(losses[-10:]).mean(0)
    assert late[0] < 0.7 * early[0]
    assert late[1] < early[1]


def test_it_generates_and_keeps_known_pixels(model):
    model.eval()
    batch = make_batch()
    known = torch.zeros(3, 8, 8, dtype=torch.bool)
    known[:, :4] = True
    out = model.generate(
        pixel_values=batch["pixel_values"],
        image_given=known,
        num_inference_steps=2,
        show_progress=False,
    )
    where = known[:, None].expand_as(out.images)
    assert torch.equal(out.images[where], batch["pixel_values"][where])
    out = model.generate(
        generation_mode="joint", image_size=12, num_inference_steps=2, show_progress=False
    )
    assert out.images.shape == (1, 3, 12, 12)
    assert out.images.isfinite().all()
    assert out.sequences.shape == (1, 5)


def test_weights_come_from_a_checkpoint_of_the_same_class(model, tmp_path):
    torch.manual_seed(5)
    other = type(model.vq.model)(model.vq.model.config)
    other.save_pretrained(tmp_path)
    model.vq.load_pretrained(str(tmp_path))
    assert torch.equal(model.vq.codebook, other.quantize.embedding.weight)
    pixels = make_batch()["pixel_values"]
    codes = model.vq(pixels)
    assert codes.shape == (3, 16)
    assert model.vq.decode(codes, (4, 4)).shape == (3, 3, 8, 8)


def test_saving_and_loading_keeps_the_front_end(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = MDMForJointGeneration.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("vq_config", "patch_size", "words"),
    [
        ({"model_type": "chameleon_vqgan"}, 2, "has no decoder"),
        ({}, 2, "choose one of janus_vqgan"),
        (JANUS, 4, "`patch_size` is 4"),
    ],
)
def test_a_front_end_that_does_not_fit_is_named(vq_config, patch_size, words):
    with pytest.raises(ValueError, match=words):
        VQFrontEnd(vq_config, patch_size)


def test_a_front_end_needs_colour():
    with pytest.raises(StrictDataclassError, match="`num_channels` is 1"):
        make_model(JANUS, num_channels=1)
