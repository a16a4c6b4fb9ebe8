# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing of a share of the blocks."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import make_model, mixed_batch

from modeling_mdm.planning.spread import evenly_spread
from modeling_mdm.training.arguments import MDMTrainingArguments
from modeling_mdm.training.recomputing import checkpoint_share


@given(st.integers(1, 60), st.floats(0, 1))
def test_the_share_is_kept_and_evenly_spread(count, share):
    chosen = evenly_spread(count, share)
    assert len(chosen) == count and abs(sum(chosen) - share * count) <= 0.5 + 1e-9
    for start in range(count):  # any stretch has its part of them, give or take one
        for end in range(start + 1, count + 1):
            part = (end - start) * sum(chosen) / count
            assert abs(sum(chosen[start:end]) - part) < 1


def test_every_other_block():
    assert evenly_spread(4, 0.5) == [False, True, False, True]
    assert evenly_spread(3, 0.0) == [False] * 3 and evenly_spread(3, 1.0) == [True] * 3


@pytest.mark.parametrize("mixer", ["mamba2", "attention"])
def test_only_these_blocks_compute_again_and_gradients_are_equal(mixer):
    model = make_model(num_hidden_layers=4, mixer=mixer).train()
    checkpointed = copy.deepcopy(model)
    enable = getattr(checkpointed, "activation_checkpointing_enable", None)
    (enable or checkpointed.gradient_checkpointing_enable)()  # renamed in transformers 5.2x
    checkpoint_share(checkpointed, 0.5)
    calls = [0] * 4
    for index, block in enumerate(checkpointed.decoder.layers):

        def count(*_, index=index):
            calls[index] += 1

        block.mixer.register_forward_hook(count)
    grads = []
    for one in (model, checkpointed):
        torch.manual_seed(0)
        one(**mixed_batch(torch.float64), self_condition=False).loss.backward()
        grads.append({n: p.grad for n, p in one.named_parameters() if p.grad is not None})
    assert calls == [1, 2, 1, 2]
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert torch.allclose(grads[1][name], grad, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_between_nothing_and_all(tmp_path, share):
    with pytest.raises(ValueError, match=rf"checkpointed_blocks={share} must be in \[0, 1\]"):
        MDMTrainingArguments(str(tmp_path), use_cpu=True, checkpointed_blocks=share)


def test_a_share_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"checkpointed_blocks=0\.5 .* activation_checkpointing"):
        MDMTrainingArguments(str(tmp_path), use_cpu=True, checkpointed_blocks=0.5)
