# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Weight decay acts on matrices and convolutions; not on what has a meaning where it stands."""

import re

import peft
import pytest
import torch
from tiny_model import MIXERS, make_model, tiny_config
from tiny_trainer import make_trainer
from tiny_vq import JANUS

from modeling_mdm import MDMForJointGeneration
from modeling_mdm.training.trainer import MDMTrainer, MDMTrainingArguments

# peft asks the model by transformers' old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

PAIR = {"num_channels": 3, "patch_size": 2}
CONFIGURATIONS = {
    **MIXERS,
    "mode-head": {"use_mode_head": True},
    "classless": {"num_classes": 0, "num_null_tokens": 0},
    "vq": {"vq_config": JANUS, **PAIR},
}
G, KINDS = r"(?:image|text)", r"(?:image|text)_\d"

# Exactly what decays, as patterns of whole names; a block is `L`.
L = r"decoder\.layers\.\d+\."
DECAYING = [
    r"vae\.patch_embedding\.weight",
    r"vae\.(?:en|de)coder\.\d\.(?:up|down)_proj\.weight",
    r"vae\.(?:posterior|latent_embedding|patch_head|word_head)\.weight",
    rf"decoder\.(?:latent_proj|time_token)\.{G}\.weight",
    rf"decoder\.place_embedding\.{G}\.proj\.weight",
    rf"decoder\.pooled_conditioning\.proj\.{G}\.weight",
    r"decoder\.place_conditioning\.proj\.weight",
    r"decoder\.time_embedding\.(?:in|out)_proj\.weight",
    r"decoder\.(?:norm_)?modulation\.weight",
    L + r"mixer\.(?:in|out)_proj\.weight",
    L + rf"mixer\.(?:in|out)_proj\.{KINDS}\.weight",
    L + r"mixer\.scan\.conv_weight",
    L + r"selection\.score\.weight",
    L + r"feed_forward\.(?:in|out)_proj\.weight",
    r"(?:image|text)_head\.weight",
    r"score_entropy_head\.predict\.weight",
    r"mode_head\.(?:in|out)_proj\.weight",
]


def decaying(model, folder):
    args = MDMTrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")
    names = MDMTrainer(model, args).get_decay_parameter_names(model)
    assert len(set(names)) == len(names)
    return {name for name in names if model.get_parameter(name).requires_grad}


@pytest.mark.parametrize("changes", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_exactly_these_parameters_decay(changes, tmp_path):
    model = MDMForJointGeneration(tiny_config(**changes))
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {n for n in learning if any(re.fullmatch(one, n) for one in DECAYING)}
    assert decaying(model, tmp_path) == expected
    kept = {name.removeprefix("decoder.layers.0.") for name in learning - expected}
    if changes.get("mixer") != "attention":
        assert {f"mixer.scan.{name}" for name in ("A_log", "D", "delta_bias", "conv_bias")} <= kept
    assert {"vae.embed_tokens.weight", "decoder.class_embedding.weight"} <= kept
    assert {"decoder.null_tokens", "decoder.start_tokens.text"} <= kept
    assert {"decoder.time_embedding.kind", "modulation_bias", "norm.weight"} <= kept


def test_the_optimizer_leaves_the_others_where_they_are(tmp_path):
    """Without a gradient a step is decay alone: times 1 - rate * decay, or none."""
    model = make_model(torch.float32, use_mode_head=True)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    args = MDMTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, weight_decay=0.5, learning_rate=0.1
    )
    trainer = MDMTrainer(model, args)
    optimizer = trainer.create_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = decaying(model, tmp_path)
    for name, value in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if name in decayed else 1.0
        torch.testing.assert_close(value, factor * before[name], msg=name)


def test_under_an_adapter_the_same_names_do_not_decay(tmp_path):
    config = peft.LoraConfig(
        target_modules="all-linear",
        bias="all",
        trainable_token_indices={"vae.embed_tokens": [3]},
    )
    model = peft.get_peft_model(make_model(torch.float32), config)
    for name, parameter in model.named_parameters():
        if name.endswith(("A_log", ".D", "null_tokens", "kind")):
            parameter.requires_grad_(True)
    found = decaying(model, tmp_path)
    assert found and all(re.search(r"\.lora_[AB]\.default\.weight$", name) for name in found)


def test_a_model_that_is_no_mdm_decays_as_in_transformers(tmp_path):
    trainer = make_trainer(tmp_path)
    assert trainer.get_decay_parameter_names(trainer.model) == ["weight"]
