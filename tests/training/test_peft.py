# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters of peft as anyone makes them: what is trained is what is saved and loaded."""

import copy

import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny_model import VOCABULARY, every_random_source, make_model, mixed_batch
from tiny_vq import EMU3, JANUS
from tiny_vq import make_batch as make_vq_batch
from tiny_vq import make_model as make_vq_model

from modeling_mdm import MDMForJointGeneration

# peft asks the model by transformers' old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

ADAPTERS = {
    "plain": {"target_modules": ["in_proj", "out_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "encoder": {"target_modules": ["patch_embedding", "posterior", "up_proj"]},
    "biases": {"target_modules": ["in_proj"], "bias": "all"},
    "whole-module": {"target_modules": ["in_proj"], "modules_to_save": ["posterior"]},
    "some-words": {
        "target_modules": ["in_proj"],
        "trainable_token_indices": {"vae.embed_tokens": [5, 7]},
    },
}


def losses(model):
    """Of one batch and fixed noise, in evaluation."""
    model.eval()
    with torch.no_grad():
        out = model(**mixed_batch(torch.float32), **every_random_source(8, torch.float32))
    return {name: float(out[name]) for name in out if name.startswith("loss")}


def train(model, steps=20, rate=3e-2):
    model.train()
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate)
    torch.manual_seed(0)
    for _ in range(steps):
        model(**mixed_batch(torch.float32)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def statistics(model):
    return {n: v.clone() for n, v in model.state_dict().items() if "statistics" in n}


@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS)
def test_a_trained_adapter_loads_with_the_losses_it_had(options, tmp_path):
    base = make_model(torch.float32)
    tuned = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, **options))
    before = losses(tuned)
    train(tuned)
    after = losses(tuned)
    assert after["loss"] != pytest.approx(before["loss"], rel=1e-3)  # it learned something
    tuned.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert losses(loaded) == pytest.approx(after, rel=1e-5)


def test_an_adapter_without_a_wrapper_moves_no_statistics():
    model = make_model(torch.float32)
    before = statistics(model)
    config = peft.LoraConfig(r=2, target_modules=["posterior", "in_proj"])
    peft.inject_adapter_in_model(config, model)
    train(model, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in statistics(model).items())


@pytest.mark.parametrize(
    ("learns", "moving"),
    [
        ([], set()),
        (["embed_tokens"], {"text"}),
        (["patch_embedding"], {"image"}),
        (["encoder"], {"text", "image"}),
        (["posterior"], {"text", "image"}),
        (["decoder", "word_head", "patch_head", "latent_embedding"], set()),
    ],
)
def test_statistics_move_with_what_gives_their_latents(learns, moving):
    model = make_model(torch.float32)
    model.vae.requires_grad_(False)
    for name in learns:
        model.vae.get_submodule(name).requires_grad_(True)
    before = statistics(model)
    train(model, steps=1)
    changed = {n.split(".")[2] for n, v in statistics(model).items() if not v.equal(before[n])}
    assert changed == moving


def test_after_an_adapter_is_merged_the_whole_model_learns_again():
    tuned = peft.get_peft_model(
        make_model(torch.float32), peft.LoraConfig(r=2, target_modules=["in_proj"])
    )
    model = tuned.merge_and_unload()
    model.requires_grad_(True)
    before = statistics(model)
    train(model, steps=1)
    assert not any(torch.equal(value, before[name]) for name, value in statistics(model).items())


@pytest.mark.parametrize("vq_config", [None, JANUS, EMU3], ids=["pixels", "janus", "emu3"])
def test_training_changes_nothing_but_what_learns(vq_config):
    """Every tensor of the state, and every tensor that a module holds besides."""

    def state(model):
        held = {
            f"{name}.{key}": value
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, torch.Tensor)
        }
        return {name: value.clone() for name, value in (model.state_dict() | held).items()}

    if vq_config is None:
        model, batch = make_model(torch.float32), mixed_batch(torch.float32)
    else:
        model, batch = make_vq_model(vq_config), make_vq_batch()
    model.vae.requires_grad_(False)
    model.train()
    before = state(model)
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(learning.values(), lr=1e-3)
    for _ in range(2):
        model(**batch).loss.backward()
        optimizer.step()
    after = state(model)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert after.keys() == before.keys() and changed and changed <= learning.keys()


# A vocabulary of another size


def resized(folder, words):
    """A model from disk with more words, drawn anew each time."""
    model = MDMForJointGeneration.from_pretrained(folder)
    model.resize_token_embeddings(words)
    return model.eval()


def decoded(model):
    """Logits of the words that the VAE decodes, of latents and from the network."""
    latents = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        core = model.get_base_model() if isinstance(model, peft.PeftModel) else model
        return core.vae.decode(latents, "text"), core.vae.word_latents()


PLAIN = {"target_modules": ["in_proj", "out_proj"]}
RESIZED = {
    "plain": PLAIN,
    "on-the-heads": {"target_modules": ["text_head", "word_head", "in_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "whole-head": {"target_modules": ["in_proj"], "modules_to_save": ["word_head"]},
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.parametrize(
    ("options", "words"),
    [*((options, VOCABULARY + 8) for options in RESIZED.values()), (PLAIN, VOCABULARY - 4)],
    ids=[*RESIZED, "fewer-words"],
)
def test_an_adapter_of_a_resized_model_brings_all_three_tables(options, words, tmp_path):
    make_model(torch.float32).save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    tuned = peft.get_peft_model(resized(tmp_path / "base", words), peft.LoraConfig(r=2, **options))
    batch = mixed_batch(torch.float32)
    batch["input_ids"] %= VOCABULARY - 4
    tuned.train()
    rows = ("embed_tokens", "text_head", "word_head")
    for name, parameter in tuned.named_parameters():
        if any(row in name for row in rows) and "lora" not in name:
            parameter.requires_grad_(True)  # the new rows learn, too
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    tuned(**batch).loss.backward()
    optimizer.step()
    tuned.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(2)
    base = resized(tmp_path / "base", words)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    for found, expected in zip(decoded(loaded), decoded(tuned), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    sources = every_random_source(8, torch.float32)
    with torch.no_grad():
        outputs = [model.eval()(**batch, **sources) for model in (tuned, loaded)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=1e-5, atol=1e-6)
    for name in ("loss", "loss_rec_text"):
        assert outputs[0][name].item() == pytest.approx(outputs[1][name].item(), rel=1e-6)
    # Once more, from what was loaded; and merged, as a model of its own.
    loaded.save_pretrained(tmp_path / "again")
    first = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert first.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    keys = load_file(tmp_path / "merged" / "model.safetensors").keys()
    assert keys == load_file(tmp_path / "base" / "model.safetensors").keys()


def test_an_adapter_of_the_old_size_holds_no_tables(tmp_path):
    make_model(torch.float32).save_pretrained(tmp_path / "base")
    model = MDMForJointGeneration.from_pretrained(tmp_path / "base")
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["in_proj"]))
    tuned.save_pretrained(tmp_path / "adapter")
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in key for key in keys)
