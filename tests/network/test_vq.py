# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A VQ-VAE in front of pictures trains and generates through the same calls as pixels do."""

import copy
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import split_torch_state_dict_into_shards
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from tiny_digits import ROOT, make_config, make_processor
from tiny_vq import EMU3, JANUS, make_batch, make_model, whole_model
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from modeling_mdm import MDMConfig, MDMForJointGeneration
from modeling_mdm.generation_outputs import OutputWriter
from modeling_mdm.training.train import ModelArguments
from modeling_mdm.training.train import make_model as make_trainable
from modeling_mdm.vae import VQFrontEnd


@pytest.fixture(params=[JANUS, EMU3], ids=["janus", "emu3"])
def model(request):
    return make_model(request.param)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_codes_are_chosen_in_float32_in_a_model_of_a_short_type(model, dtype, monkeypatch):
    model.eval().to(dtype)
    chosen = {}
    monkeypatch.setattr(model.vq, "decode", lambda codes, grid: chosen.setdefault("codes", codes))
    patches = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    monkeypatch.setattr(model.vae, "decode", lambda latents, modality, grid, valid: patches)
    encoded = model.encode_inputs(**make_batch())
    writer = OutputWriter(model, encoded, {"pixel_values": make_batch()["pixel_values"]})
    writer.pictures(torch.zeros(3, 16, 6))
    distances = (patches.double()[:, :, None] - model.vq.codebook.double()).square().sum(-1)
    assert torch.equal(chosen["codes"], distances.argmin(-1))


def test_a_cast_model_writes_pictures(model):
    model.eval().bfloat16()
    out = model.generate(generation_mode="image", num_inference_steps=2, show_progress=False)
    assert out.images.isfinite().all()


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


# --- Trained weights


@pytest.fixture(params=[JANUS, EMU3], ids=["janus", "emu3"])
def untrained(request):
    return make_model(request.param, trained=False)


@pytest.mark.parametrize("max_shard_size", ["1GB", "60KB"])
@pytest.mark.parametrize("prefix", ["model.vqmodel.", "vqmodel.", "", "a.b."])
def test_the_weights_of_a_whole_repository_are_found(untrained, prefix, max_shard_size, tmp_path):
    whole = whole_model(untrained.config.vq_config)
    if prefix == "model.vqmodel.":
        whole.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    else:  # as other releases name it, or the VQ-VAE by itself
        state = {
            name.replace("model.vqmodel.", prefix): value.clone()
            for name, value in whole.state_dict().items()
            if prefix or ".vqmodel." in name
        }
        split = split_torch_state_dict_into_shards(state, max_shard_size=max_shard_size)
        for file, names in split.filename_to_tensors.items():
            save_file({name: state[name] for name in names}, tmp_path / file)
        if split.is_sharded:
            index = json.dumps({"weight_map": split.tensor_to_filename})
            (tmp_path / "model.safetensors.index.json").write_text(index)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "60KB")
    untrained.vq.load_pretrained(str(tmp_path))
    expected = whole.model.vqmodel.state_dict()
    assert expected.keys() == untrained.vq.model.state_dict().keys()
    for name, value in untrained.vq.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert not any(parameter.requires_grad for parameter in untrained.vq.parameters())
    assert untrained(**make_batch()).loss.isfinite()


def test_weights_that_are_missing_are_named(untrained, tmp_path):
    state = untrained.vq.model.state_dict()
    gone = "quantize.embedding.weight"
    left = {f"model.vqmodel.{name}": value for name, value in state.items() if name != gone}
    save_file(left, tmp_path / "model.safetensors")
    before = untrained.vq.codebook.clone()
    message = rf"lacks 1 of the {len(state)} weights .* such as model\.vqmodel\.{gone}: name"
    with pytest.raises(ValueError, match=message):
        untrained.vq.load_pretrained(str(tmp_path))
    assert torch.equal(untrained.vq.codebook, before) and not untrained.vq.is_loaded


def test_weights_of_another_shape_are_named(untrained, tmp_path):
    wider = {**untrained.config.vq_config, "embed_dim": 8}
    if wider["model_type"] == "emu3_vqgan":
        wider["codebook_size"] = 32
    whole_model(wider).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"another VQ-VAE than `vq_config`.* instead of \("):
        untrained.vq.load_pretrained(str(tmp_path))
    assert not untrained.vq.is_loaded


def test_places_without_such_weights_are_refused(untrained, tmp_path):
    with pytest.raises(ValueError, match=r"has neither model\.safetensors nor"):
        untrained.vq.load_pretrained(str(tmp_path))
    save_file({"lm_head.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks .* weights of the VQ-VAE"):
        untrained.vq.load_pretrained(str(tmp_path))
    with pytest.raises(OSError, match="no-such-folder"):
        untrained.vq.load_pretrained(str(tmp_path / "no-such-folder"))
    assert not untrained.vq.is_loaded


CALLS = {
    "train": lambda model: model.train()(**make_batch()),
    "forward": lambda model: model.eval()(**make_batch()),
    "words": lambda model: model(input_ids=make_batch()["input_ids"]),
    "generate": lambda model: model.generate(generation_mode="image", num_inference_steps=2),
    "score": lambda model: model.score(**make_batch(), num_evaluations=1),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_random_codes_are_refused_with_the_fix(untrained, call):
    fix = r"never loaded.*model\.vq\.load_pretrained\(NAME\).*--vq_model NAME.*allow_untrained"
    with pytest.raises(ValueError, match=fix):
        call(untrained)


TRAVELS = {
    "copy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "double": lambda model: model.double(),
    "state": lambda model: load_state(make_model(JANUS, trained=False), model.state_dict()),
    "meta": lambda model: load_state(on_meta(model), model.state_dict(), assign=True),
}


def on_meta(model):
    with torch.device("meta"):
        return MDMForJointGeneration(model.config)


def load_state(model, state, **options):
    model.load_state_dict(state, **options)
    return model


@pytest.mark.parametrize("travel", TRAVELS.values(), ids=TRAVELS)
@pytest.mark.parametrize("trained", [True, False])
def test_what_was_loaded_is_remembered(travel, trained):
    assert travel(make_model(JANUS, trained=trained)).vq.is_loaded == trained


@pytest.mark.parametrize("trained", [True, False])
def test_a_checkpoint_says_whether_it_was_loaded(trained, tmp_path):
    make_model(EMU3, trained=trained).save_pretrained(tmp_path)
    loaded, info = MDMForJointGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert loaded.vq.is_loaded == trained
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not MDMForJointGeneration(loaded.config).vq.is_loaded  # a new one, of the same config


def fitting_processor():
    """A processor that cuts pictures as the VQ-VAE does."""
    processor = make_processor()
    processor.patch_size, processor.image_processor.num_channels = 2, 3
    return processor


def make_trained(folder, vq_config, **arguments):
    """What the training script makes of a configuration."""
    processor = fitting_processor()
    sizes = {"vocab_size": len(processor.tokenizer), "patch_size": 2, "num_channels": 3}
    config = make_config(sizes["vocab_size"]).to_dict() | sizes | {"vq_config": vq_config}
    MDMConfig(**config).save_pretrained(folder)
    return make_trainable(ModelArguments(config=str(folder), **arguments), processor)


def test_the_training_script_loads_what_vq_model_names(tmp_path):
    whole = whole_model(JANUS)
    whole.save_pretrained(tmp_path / "janus")
    model = make_trained(tmp_path / "new", JANUS, vq_model=str(tmp_path / "janus"))
    assert torch.equal(model.vq.codebook, whole.model.vqmodel.quantize.embedding.weight)
    model.save_pretrained(tmp_path / "old")
    again = ModelArguments(config=str(tmp_path / "old"))
    assert make_trainable(again, fitting_processor()).vq.is_loaded
    again.vq_model = str(tmp_path / "janus")
    with pytest.raises(ValueError, match="has a trained VQ-VAE already"):
        make_trainable(again, fitting_processor())
    assert make_trained(tmp_path / "new", JANUS, vq_model="untrained").vq.is_loaded


def test_the_training_script_refuses_before_it_trains(tmp_path):
    with pytest.raises(ValueError, match="--vq_model NAME"):
        make_trained(tmp_path, JANUS)
    with pytest.raises(ValueError, match=r"reads pixels\. Leave it out"):
        make_trained(tmp_path, None, vq_model="deepseek-community/Janus-Pro-1B")


def test_the_large_presets_fit_what_the_pages_load():
    """The pages name Janus-Pro-1B, whose VQ-VAE has transformers' default sizes."""
    for name in ("mdm-1b", "mdm-7b"):
        fields = json.loads((ROOT / "configuration" / name / "config.json").read_text())
        assert fields["vq_config"]["model_type"] == "janus_vqgan"
        with torch.device("meta"):
            ours = VQFrontEnd(fields["vq_config"], fields["patch_size"]).model.state_dict()
            theirs = JanusVQVAE(JanusVQVAEConfig()).state_dict()
        assert {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in theirs.items()}
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    trained = [line for line in page.splitlines() if "mdm plan" not in line]
    commands = [line for line in trained if "configuration/mdm-1b " in line]
    assert commands and all("--vq_model " in line for line in commands)
