# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in parts and split weights, in one process; several are in test_splitting.py."""

import copy
import json

import peft
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tiny_model import make_model, mixed_batch
from tiny_trainer import make_trainer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.training.ema import AVERAGE, ExponentialMovingAverage
from modeling_mdm.training.sharded import (
    SHARDED_FOLDER,
    begin_saving,
    is_sharded,
    load_optimizer,
    load_weights,
    training_state,
    write_weights,
)
from modeling_mdm.training.splitting import (
    SplitsWeights,
    UsedWeights,
    as_its_own_class,
    require_one_type,
    require_unused_weights,
    whole_outside_of_blocks,
)


@pytest.fixture
def group():
    """A group of one process, which needs no network."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


def step(model, optimizer):
    torch.manual_seed(0)
    model(**mixed_batch(torch.float32), self_condition=False, keep=1.0).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_checkpoint_of_parts_is_that_of_its_moment(tmp_path, group):
    model = make_model(torch.float32, use_selection=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    average = ExponentialMovingAverage(model, 0.9)
    step(model, optimizer)
    average.update()
    expected = copy.deepcopy((model.state_dict(), optimizer.state_dict(), average.averages))
    unused = sum(p.requires_grad for p in model.parameters()) - len(optimizer.state)
    assert unused > 0  # nothing was selected: these have no state
    state = training_state(model, optimizer) | {AVERAGE: average.parts()}
    writing = begin_saving(state, tmp_path / SHARDED_FOLDER, group)
    step(model, optimizer)  # while it is written
    average.update()
    writing.result()
    assert is_sharded(tmp_path)

    other = make_model(torch.float32, seed=1, use_selection=True).train()
    own = torch.optim.AdamW(other.parameters(), lr=1.0)
    of_other = ExponentialMovingAverage(other, 0.9)
    load_weights(other, tmp_path)
    load_optimizer(other, own, tmp_path)
    of_other.load_from(tmp_path)
    weights, states, averages = expected
    for name, value in weights.items():
        assert torch.equal(other.state_dict()[name], value), name
    assert own.state_dict()["state"].keys() == states["state"].keys()
    for number, values in states["state"].items():
        for name, value in values.items():
            assert torch.equal(own.state_dict()["state"][number][name], value), (number, name)
    assert own.param_groups[0]["lr"] == 1e-3
    assert of_other.num_updates == 1
    for name, value in averages.items():
        assert torch.equal(of_other.averages[name], value), name


def test_a_checkpoint_without_an_average_says_so(tmp_path, group):
    model = make_model(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    begin_saving(training_state(model, optimizer), tmp_path / SHARDED_FOLDER, group).result()
    with pytest.raises(FileNotFoundError, match="has no average of the weights"):
        ExponentialMovingAverage(model).load_from(tmp_path)


def adapted(model):
    """Adapters, and a head that is learned whole, on a frozen model."""
    config = peft.LoraConfig(r=2, target_modules=["in_proj"], modules_to_save=["word_head"])
    return peft.get_peft_model(model, config)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_checkpoint_of_adapters_leaves_out_what_is_frozen(tmp_path, group):
    base = make_model(torch.float32)
    model = adapted(copy.deepcopy(base)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    step(model, optimizer)
    state = training_state(model, optimizer)
    learned = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    buffers = dict(model.named_buffers())
    assert state["model"].keys() - buffers.keys() == learned.keys()
    begin_saving(state, tmp_path / SHARDED_FOLDER, group).result()
    other = adapted(copy.deepcopy(base))
    load_weights(other, tmp_path)
    own = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=1.0)
    load_optimizer(other, own, tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert len(own.state) == len(optimizer.state) > 0 and own.param_groups[0]["lr"] == 1e-2


def test_files_of_a_size_are_an_ordinary_model(tmp_path):
    model = make_model(torch.float32)
    model.config.save_pretrained(tmp_path)
    write_weights(model, tmp_path, shard_size=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert {path.name for path in files} == set(index["weight_map"].values())
    largest = max(p.nbytes for p in model.parameters())
    assert len(files) > 3
    for path in files:
        assert sum(x.nbytes for x in load_file(path).values()) <= max(20_000, largest)
    loaded = MDMForJointGeneration.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_what_nobody_used_has_no_gradient(group):
    model = make_model(torch.float32).train()
    whole = copy.deepcopy(model)
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.decoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.set_reduce_scatter_unused_params(True)
    used = UsedWeights(model)
    batch = mixed_batch(torch.float32)
    words = {name: batch[name] for name in ("input_ids", "attention_mask", "text_given")}
    for inputs in (batch, words, batch):  # a weight may be used again
        for one in (whole, model):
            one.zero_grad()
            torch.manual_seed(0)
            one(**inputs, self_condition=False, keep=1.0).loss.backward()
        used.drop_others(torch.device("cpu"))
        expected = {name for name, p in whole.named_parameters() if p.grad is not None}
        assert {name for name, p in model.named_parameters() if p.grad is not None} == expected
    with as_its_own_class(model):
        assert type(model) is MDMForJointGeneration
    assert isinstance(model, FSDPModule)


def test_words_have_no_piece_of_their_own_while_a_model_is_split():
    model = make_model(torch.float32)
    with whole_outside_of_blocks(model):
        assert model.get_input_embeddings() is None and model.get_output_embeddings() is None
    assert model.get_input_embeddings() is model.vae.embed_tokens
    assert model.get_output_embeddings() is model.text_head


def test_an_old_torch_is_refused(monkeypatch):
    require_unused_weights()
    monkeypatch.delattr(FSDPModule, "set_reduce_scatter_unused_params")
    with pytest.raises(ImportError, match=r"install torch 2\.14 or newer"):
        require_unused_weights()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_of_another_type_than_a_head_that_learns_are_refused(tmp_path, monkeypatch):
    """In float32 on weights in bfloat16, which FSDP2 itself refuses without saying what to do."""
    require_one_type(adapted(make_model(torch.float32)))
    trainer = make_trainer(tmp_path, bf16=False)
    trainer.model = trainer.model_wrapped = adapted(make_model(torch.bfloat16))
    monkeypatch.setattr(SplitsWeights, "_is_fsdp2", True)
    with pytest.raises(ValueError, match=r"bf16=False .* bfloat16 and float32.*set bf16=True"):
        trainer.train()


def test_a_whole_checkpoint_is_refused_by_a_split_run(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    monkeypatch.setattr(SplitsWeights, "_is_fsdp2", True)
    with pytest.raises(ValueError, match="go on without FSDP"):
        trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
