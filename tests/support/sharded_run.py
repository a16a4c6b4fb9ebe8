# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains the tiny digits model under FSDP2 in two processes, beside a whole one, and compares."""

import torch
import torch.distributed as dist
from distributed_run import LATENT, PATCHES
from tiny_digits import MAX_TEXT_LENGTH, make_config
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.data.tasks import MDMDataCollator, TaskMixture
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.processor.processing_mdm import MDMProcessor
from modeling_mdm.training.ema import (
    EMA_FILE,
    ExponentialMovingAverage,
    is_split,
    load_averaged_weights,
)

BATCH = 4


def make_model(vocabulary, seed):
    torch.manual_seed(seed)
    return MDMForJointGeneration(make_config(vocabulary))


def shard(model):
    """Split a model as accelerate does: each block, then the rest, which stays gathered."""
    for layer in model.decoder.layers:
        fully_shard(layer)
    fully_shard(model)
    register_fsdp_forward_method(model, "generate")
    return model


def batches(processor):
    """Three batches with all noise; which parts an item has differs from item to item."""
    data = load_training_data("digits", limit=3 * BATCH)
    collator = MDMDataCollator(processor, TaskMixture({"joint": 1, "captioning": 1, "infill": 1}))
    draw = torch.Generator().manual_seed(7)

    def normal():
        lengths = {"text": MAX_TEXT_LENGTH, "image": PATCHES}
        return {g: torch.randn(BATCH, n, LATENT, generator=draw) for g, n in lengths.items()}

    for start in range(0, len(data), BATCH):
        batch = collator([{**data[start + i], "seed": start + i} for i in range(BATCH)])
        batch |= {name: normal() for name in ("noise", "posterior_noise", "decoder_noise")}
        batch["times"] = {g: torch.rand(BATCH, generator=draw) for g in ("text", "image")}
        batch["drop_prompt"] = torch.zeros(BATCH, dtype=torch.bool)
        yield batch | {"keep": 1.0, "self_condition": False}


def rows(batch, part):
    """Cut a batch's items."""
    if isinstance(batch, dict):
        return {name: rows(value, part) for name, value in batch.items()}
    return batch[part] if isinstance(batch, torch.Tensor) else batch


def train(model, data):
    """Take one step for each batch."""
    average = ExponentialMovingAverage(model, 0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)  # rounding errors stay that small
    model.train()
    for batch in data:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()
    model.eval()
    return average


def assert_same(found, expected, what, tolerance=1e-5):
    assert found.keys() == expected.keys(), what
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=f"{what}: {name}"
        )


def check_fsdp(folder):
    """Train, average, evaluate, generate, save and load."""
    rank, size = dist.get_rank(), dist.get_world_size()
    processor = MDMProcessor.from_pretrained(folder / "processor")
    vocabulary = len(processor.tokenizer)
    data = list(batches(processor))
    own = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    split = shard(make_model(vocabulary, 0))
    assert is_split(split) and isinstance(split, FSDPModule)
    assert all(isinstance(p, DTensor) for p in split.parameters())
    split_average = train(split, [rows(batch, own) for batch in data])
    held = sum(average.numel() for average in split_average.averages.values())

    # The same on the whole batch, in each process by itself.
    whole = make_model(vocabulary, 0)
    whole_average = train_alone(whole, data)
    assert held < 0.6 * sum(p.numel() for p in whole.parameters())
    expected = whole_average.averages
    assert_same(split_average.state(), expected, "averages")
    options = StateDictOptions(full_state_dict=True)
    assert_same(get_model_state_dict(split, options=options), whole.state_dict(), "weights")

    # Evaluation leaves the root gathered: the average must be used all the same.
    batch = {**data[0], "return_loss": False}

    def logits(model):
        with torch.no_grad():
            return model(**batch).logits

    before = logits(split)
    with split_average.swapped_in(), whole_average.swapped_in():
        averaged = logits(split)
        torch.testing.assert_close(averaged, logits(whole), rtol=1e-4, atol=1e-4)
        assert (averaged - before).abs().max() > 1e-3
        inputs = processor(text=["a zero"], generate="joint", return_tensors="pt")
        samples = [
            model.generate(
                **inputs,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(0),
                show_progress=False,
            )
            for model in (split, whole)
        ]
        assert torch.equal(samples[0].sequences, samples[1].sequences)
        torch.testing.assert_close(samples[0].images, samples[1].images, rtol=1e-3, atol=1e-3)
        weights = get_model_state_dict(split, options=options)
    assert torch.equal(logits(split), before)

    split_average.save(folder / EMA_FILE, writes=rank == 0)
    if rank == 0:
        whole.save_pretrained(folder / "model", state_dict=weights)
    dist.barrier()
    loaded = MDMForJointGeneration.from_pretrained(folder / "model")
    assert_same(dict(loaded.named_parameters()), expected, "saved model")
    other = make_model(vocabulary, 1)
    load_averaged_weights(other, folder)
    assert_same(dict(other.named_parameters()), expected, "averages in a whole model")
    resumed = ExponentialMovingAverage(shard(make_model(vocabulary, 2)), 0.9)
    resumed.load(folder / EMA_FILE)
    assert resumed.num_updates == 3
    assert_same(resumed.state(), split_average.state(), "averages in a split model", 0)


def check_own_draws(folder):
    """Train with what each process draws itself: all gather weights equally often, or they hang."""
    processor = MDMProcessor.from_pretrained(folder / "processor")
    split = shard(make_model(len(processor.tokenizer), 0)).train()
    passes = []
    split.decoder.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))
    torch.manual_seed(dist.get_rank())
    batch = next(iter(batches(processor)))
    for name in ("noise", "posterior_noise", "decoder_noise", "times", "self_condition"):
        del batch[name]
    for _ in range(8):
        split(**batch).loss.backward()
    counts = [torch.zeros((), dtype=torch.long) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(len(passes)))
    assert counts[0] == counts[1] and 8 < counts[0] < 16, counts


def train_alone(model, data):
    """Train as if there were one process."""
    from modeling_mdm import distributed, loss, vae

    real = distributed.num_processes
    modules = (loss, distributed, vae)
    for module in modules:
        assert module.num_processes is real
        module.num_processes = lambda: 1
    try:
        return train(model, data)
    finally:
        for module in modules:
            module.num_processes = real


def check_zero(folder):
    """Average parameters that are split as DeepSpeed's ZeRO-3 splits them."""
    rank, size = dist.get_rank(), dist.get_world_size()
    full = torch.arange(15.0).view(3, 5)
    length = -(-full.numel() // size)
    padded = torch.cat([full.flatten(), torch.zeros(length * size - full.numel())])
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(0))
    model.weight.ds_shape = full.shape
    model.weight.ds_tensor = padded.view(size, length)[rank].clone()
    assert is_split(model)
    average = ExponentialMovingAverage(model, 0.0)
    assert average.averages["weight"].numel() == length
    torch.testing.assert_close(average.state()["weight"], full)
    model.weight.ds_tensor += 1
    average.update()
    torch.testing.assert_close(average.state()["weight"], full + 1)
    model.weight.ds_tensor += 1
    with average.swapped_in():
        assert model.weight.ds_tensor[0] == length * rank + 1
    assert model.weight.ds_tensor[0] == length * rank + 2
    average.save(folder / "zero.safetensors", writes=rank == 0)
    dist.barrier()
    average.averages["weight"].zero_()
    average.load(folder / "zero.safetensors")
    torch.testing.assert_close(average.state()["weight"], full + 1)


def check_all(folder):
    """Check everything in a process group that is there, and say which process agrees."""
    assert dist.get_world_size() == 2
    check_zero(folder)
    check_fsdp(folder)
    check_own_draws(folder)
    return f"process {dist.get_rank()} of {dist.get_world_size()} agrees"
