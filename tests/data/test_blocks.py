# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Batches of one kind out of several sets."""

from collections import Counter
from itertools import chain

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from tiny_processor import make_processor, picture
from tiny_talks import assistant, say, show, user

from modeling_mdm.data.blocks import BlockSampler, MixedCollator, MixedItems
from modeling_mdm.data.conversations import ConversationCollator
from modeling_mdm.data.tasks import MDMDataCollator, SeededItems, TaskMixture


class Part(torch.utils.data.Dataset):
    def __init__(self, name, length):
        self.name, self.length, self.epoch = name, length, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"name": self.name, "number": index, "epoch": self.epoch}


def mix(lengths=(50, 9, 40), shares=(5, 2, 3)):
    return MixedItems([Part("abc"[n], k) for n, k in enumerate(lengths)], shares)


def batches(items, size=5, **kwargs):
    order = list(BlockSampler(items, size, **kwargs))
    assert len(order) == len(BlockSampler(items, size))
    return [[items[n] for n in order[k : k + size]] for k in range(0, len(order), size)]


def test_each_batch_is_of_one_part_in_the_shares_asked_for():
    found = batches(mix())
    kinds = [{item["name"] for item in batch} for batch in found]
    assert all(len(kind) == 1 and len(batch) == 5 for kind, batch in zip(kinds, found, strict=True))
    assert Counter("".join(*kind) for kind in kinds) == {"a": 10, "b": 4, "c": 6}
    # An epoch is one pass over the first part; a short part begins again.
    numbers = {name: Counter() for name in "abc"}
    for item in chain(*found):
        numbers[item["name"]][item["number"]] += 1
    assert numbers["a"] == dict.fromkeys(range(50), 1)
    assert set(numbers["b"].values()) == {2, 3} and len(numbers["b"]) == 9
    assert set(numbers["c"].values()) == {1}


def test_the_parts_take_turns():
    kinds = [batch[0]["name"] for batch in batches(mix((500, 500), (7, 3)))]
    for start in range(len(kinds) - 20):
        assert 3 <= kinds[start : start + 20].count("b") <= 9


def test_the_order_depends_on_seed_and_epoch_alone():
    assert batches(mix(), seed=1) == batches(mix(), seed=1)
    assert batches(mix(), seed=1) != batches(mix(), seed=2)
    items = mix()
    first = batches(items)
    items.set_epoch(1)
    second = batches(items)
    assert {item["epoch"] for batch in second for item in batch} == {1}
    numbers = [[[item["number"] for item in b] for b in found] for found in (first, second)]
    assert numbers[0] != numbers[1]
    items.set_epoch(0)
    assert batches(items) == first


def test_parts_that_do_not_fill_a_batch_are_filled_up():
    found = batches(mix((3, 2), (1, 1)))
    assert sorted(batch[0]["name"] for batch in found) == ["a", "b"]
    (numbers,) = ([i["number"] for i in batch] for batch in found if batch[0]["name"] == "a")
    assert sorted(Counter(numbers).values()) == [1, 2, 2]


@pytest.mark.parametrize("processes", [2, 3])
def test_of_several_processes_each_has_batches_of_one_part(processes):
    items = mix()
    sampler = torch.utils.data.BatchSampler(BlockSampler(items, 5), 5, drop_last=False)
    shards = [list(BatchSamplerShard(sampler, processes, rank)) for rank in range(processes)]
    for batch in chain(*shards):
        assert len({items[n]["name"] for n in batch}) == 1
    assert len({len(shard) for shard in shards}) == 1


def test_items_have_seeds_of_their_own():
    items = SeededItems(mix(), seed=3)
    seeds = [items[n]["seed"] for n in range(len(items))]
    assert len(set(seeds)) == 99 and seeds == [SeededItems(mix(), 3)[n]["seed"] for n in range(99)]


def test_skipped_items_are_counted_by_part():
    items = mix()
    assert not items.skipped
    items.parts[0].skipped, items.parts[2].skipped = 0, 3
    assert items.skipped == {"2": 3}


def test_wrong_shares_and_empty_parts_are_refused():
    for shares in ((1,), (1, 0, 1), (1, -1, 1), (1, float("nan"), 1), (1, float("inf"), 1)):
        with pytest.raises(ValueError, match="shares="):
            mix(shares=shares)
    with pytest.raises(ValueError, match=r"\[50, 0, 40\] items"):
        mix((50, 0, 40))


def test_the_collator_makes_batches_of_either_kind():
    processor = make_processor()
    talks = ConversationCollator(processor, 4)
    pictures = MDMDataCollator(processor, TaskMixture({"joint": 1.0}))
    collate = MixedCollator(pictures, talks)
    talk = {"messages": [user(show(picture(1)), say("a")), assistant(say("a gown"))], "seed": 1}
    item = {"image": picture(2), "text": "a dress", "label": 1, "seed": 1}
    for items, own in (([talk, talk], talks), ([item], pictures)):
        batch, expected = collate(items), own(items)
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], value) for name, value in expected.items())
    with pytest.raises(ValueError, match="conversations and other items"):
        collate([talk, item])
