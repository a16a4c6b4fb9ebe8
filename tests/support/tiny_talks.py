# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conversations of few words and pictures, and a model that answers them."""

import torch
from tiny_processor import (
    picture,
)

from modeling_mdm import MDMConfig, MDMForJointGeneration


def show(image):
    return {"type": "image", "image": image}


def say(text):
    return {"type": "text", "text": text}


def user(*content):
    return {"role": "user", "content": list(content)}


def assistant(*content):
    return {"role": "assistant", "content": list(content)}


QUESTION = [user(show(picture(1)), say("a dress"))]
TALK = [
    {"role": "system", "content": "a"},
    user(show(picture(1)), say(" what is it")),
    assistant(say("a gown")),
    user(say("a photo"), show(picture(2)), show(picture(3))),
]


def read(processor, conversation, **kwargs):
    return processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt", **kwargs
    )


def short_run(model, inputs, **kwargs):
    return model.generate(
        **inputs,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        show_progress=False,
        **kwargs,
    )


def make_config(processor, **changes):
    return MDMConfig(
        vocab_size=len(processor.tokenizer),
        max_text_length=10,
        image_size=8,
        patch_size=4,
        latent_dim=4,
        vae_hidden_size=16,
        vae_num_layers=1,
        hidden_size=16,
        num_hidden_layers=1,
        state_size=8,
        head_dim=16,
        **changes,
    )


def make_model(processor):
    torch.manual_seed(0)
    return MDMForJointGeneration(make_config(processor)).eval()
