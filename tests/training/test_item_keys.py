# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Items draw by their place in the step, whichever process and batch they come in.

With real processes: test_distributed.py.
"""

from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, IterableDatasetShard
from tiny_digits import CAPTIONS, make_config, make_processor

from modeling_mdm.data.blocks import MixedItems
from modeling_mdm.data.pictures import load_training_data
from modeling_mdm.data.tasks import MDMDataCollator, TaskMixture
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.training.item_keys import ITEMS, number_items
from modeling_mdm.training.trainer import MDMTrainer, MDMTrainingArguments


def shares(items, size, processes, streamed):
    """The batches of each process, as accelerate shares them out."""
    if streamed:
        shards = [
            IterableDatasetShard(items, batch_size=size, num_processes=processes, process_index=n)
            for n in range(processes)
        ]
        return [list(torch.stack(list(shard)).split(size)) for shard in shards]
    batches = torch.utils.data.BatchSampler(range(len(items)), size, drop_last=False)
    sharded = [BatchSamplerShard(batches, processes, n) for n in range(processes)]
    return [[items[batch] for batch in shard] for shard in sharded]


@pytest.mark.parametrize("streamed", [False, True], ids=["set", "stream"])
@pytest.mark.parametrize(
    ("processes", "accumulated"), [(1, 1), (1, 3), (2, 1), (1, 2), (2, 3), (4, 1), (3, 2)]
)
def test_an_item_has_its_place_in_the_step(processes, accumulated, streamed):
    """Steps of twelve items, each of which says which one it is; the last step may be short."""
    items, size = torch.arange(40), 12 // processes // accumulated
    for rank, batches in enumerate(shares(items, size, processes, streamed)):
        args = SimpleNamespace(
            items_per_step=12,
            gradient_accumulation_steps=accumulated,
            world_size=processes,
            process_index=rank,
            device="cpu",
        )
        seen = 0
        for start in range(0, len(batches), accumulated):
            step = [{"x": batch} for batch in batches[start : start + accumulated]]
            number_items(step, args)
            for batch in step:
                is_own = batch["x"] >= 12 * (start // accumulated)  # not there to fill up
                seen += int(is_own.sum())
                assert torch.equal(batch[ITEMS][is_own], batch["x"][is_own] % 12)
        assert seen >= 36 // processes


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def make_trainer(processor, folder, data, **arguments):
    torch.manual_seed(0)
    values = {"use_cpu": True, "max_steps": 2, "report_to": "none", "disable_tqdm": True}
    values |= {"save_strategy": "no", "logging_steps": 1, "ema_decay": 0, "seed": 5}
    return MDMTrainer(
        MDMForJointGeneration(make_config(len(processor.tokenizer))),
        MDMTrainingArguments(output_dir=str(folder), **values, **arguments),
        train_dataset=data,
        data_collator=MDMDataCollator(processor, TaskMixture({"joint": 1, "text": 1, "image": 1})),
        processing_class=processor,
    )


def digits():
    return load_training_data("digits", captions=CAPTIONS, limit=24)


@pytest.mark.parametrize("mixed", [False, True], ids=["one set", "parts"])
def test_a_step_is_the_same_whatever_was_drawn_before_and_however_it_is_shared(
    processor, tmp_path, mixed
):
    runs = []
    for size, accumulated in ((4, 1), (1, 4)):
        data = MixedItems([digits(), digits()], [2, 1]) if mixed else digits()
        trainer = make_trainer(
            processor,
            tmp_path,
            data,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
        )
        assert trainer.args.items_per_step == 4
        torch.manual_seed(size)  # of no use to anyone
        trainer.train()
        logs = [log for log in trainer.state.log_history if "grad_norm" in log]
        runs.append([(log["loss"], log["grad_norm"]) for log in logs])
    assert len(runs[0]) == 2
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=1e-5, atol=1e-5)
