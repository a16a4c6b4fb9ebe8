# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Processes that share a sequence, beside one that has it whole: the same gradients."""

import json
import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from children import in_children
from tiny_block import make_config, randomise

from modeling_mdm.content import ModalityContent
from modeling_mdm.context_parallel import UNDIVIDED, SequenceShare
from modeling_mdm.decoder import DecoderInputs, MDMDecoder
from modeling_mdm.training.sharing import batches_of_group, check_context

GRID = (1, 2, 3)
PATIENCE = timedelta(seconds=120)


def in_processes(count, path, work):
    """What `work` returns in each of so many processes that know of each other."""

    def be(rank):
        torch.set_num_threads(1)
        store = dist.FileStore(str(path / "meeting"), count)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE)
        (path / f"{rank}.json").write_text(json.dumps(work(rank)))
        dist.barrier()
        os._exit(0)  # without waiting for each other's ends

    in_children(count, be)
    return [json.loads((path / f"{rank}.json").read_text()) for rank in range(count)]


def content_of(count, config, place):
    """Three items, some of their positions given, the last one of the second padding."""
    given = torch.rand(3, count) < 0.4
    valid = torch.ones(3, count, dtype=torch.bool)
    valid[1, -1] = False
    return ModalityContent(
        latents=torch.randn(3, count, config.latent_dim).double(),
        given=given & valid,
        valid=valid,
        turn=torch.zeros(3, count, dtype=torch.long),
        place=place.expand(3, *place.shape),
    )


def evaluate(changes, keep, words, group):
    """Features of a decoder at real positions, and the gradients of a loss of them."""
    torch.manual_seed(7)
    config = make_config(**changes)
    decoder = randomise(MDMDecoder(config).double(), 0.3).train()
    rows = torch.cartesian_prod(torch.arange(GRID[1]), torch.arange(GRID[2]))
    content = {
        "text": content_of(words, config, torch.arange(words)),
        "image": content_of(len(rows), config, rows),
    }
    has_class, has_null = torch.tensor([True, False, True]), torch.tensor([False, False, True])
    z_t = {m: torch.randn_like(own.latents).requires_grad_() for m, own in content.items()}
    inputs = DecoderInputs(
        decoder.lay_out(content, has_class, has_null, GRID),
        content,
        z_t,
        {m: torch.rand(3).double() for m in content},
        torch.tensor([1, -1, 3]),
        keep=keep,
    )
    wanted = {m: torch.randn(*own.given.shape, config.hidden_size) for m, own in content.items()}
    decoder.context_group = group
    features = {m: f * content[m].valid[..., None] for m, f in decoder(inputs).items()}
    sum((f * wanted[m]).sin().sum() for m, f in features.items()).backward()
    gradients = {n: p.grad for n, p in decoder.named_parameters() if p.grad is not None}
    gradients |= {f"z_t of {m}": z.grad for m, z in z_t.items()}
    return {m: f.detach() for m, f in features.items()}, gradients


CASES = [
    (2, {}, 1.0, 5),
    (2, {"scan_mode": "cyclic", "num_hidden_layers": 3}, 1.0, 1),
    (2, {"use_selection": True}, 0.5, 8),
    (2, {"scan_projections": "separate", "text_scans": [1]}, 1.0, 2),
    pytest.param(
        *(4, {"use_selection": True, "scan_projections": "separate"}, 0.5, 5),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("processes", "changes", "keep", "words"), CASES)
def test_the_mean_of_what_they_find_is_what_one_finds(tmp_path, processes, changes, keep, words):
    features, gradients = evaluate(changes, keep, words, None)
    # Where the gradient of a weight is rounding, there is nothing to compare.
    assert sum(bool(g.abs().max() > 1e-6) for g in gradients.values()) > 0.9 * len(gradients)

    def compare(rank):
        shared, parts = evaluate(changes, keep, words, dist.group.WORLD)
        assert parts.keys() == gradients.keys()
        errors = {"features": max(float((shared[m] - features[m]).abs().max()) for m in features)}
        for name, part in parts.items():
            dist.all_reduce(part)
            error = (part / processes - gradients[name]).abs().max()
            errors[name] = float(error / gradients[name].abs().max().clamp(min=1e-3))
        return errors

    # The scores of a selection are float32.
    bound = 1e-5 if changes.get("use_selection") else 1e-10
    for errors in in_processes(processes, tmp_path, compare):
        assert errors.pop("features") < 1e-12
        assert max(errors.values()) < bound, max(errors.items(), key=lambda pair: pair[1])


def test_exchanges_are_each_others_inverse(tmp_path):
    heads, width = 6, 2

    def exchange(length):
        whole = torch.arange(2.0 * length * heads * width).view(2, length, heads * width)
        share = SequenceShare(dist.group.WORLD, length)
        own = share.own(whole)
        own_heads = whole[..., share.heads(heads * width)]
        start = min(share.rank * share.most, length)
        real = whole[:, start : start + share.most]
        assert torch.equal(own[:, : real.shape[1]], real) and not own[:, real.shape[1] :].any()
        assert share.before(length) == real.shape[1] and share.before(0) == 0
        assert torch.equal(share.gather(own), whole)
        assert torch.equal(share.join(own), whole)
        assert torch.equal(share.to_heads(own), own_heads)
        assert torch.equal(share.to_positions(own_heads), own)
        stacked = own[:, None].expand(-1, 3, -1, -1)  # of several scans
        assert torch.equal(share.to_heads(stacked)[:, 2], own_heads)
        return own_heads.shape[-1]

    lengths = (1, 3, 4, 7)
    found = in_processes(3, tmp_path, lambda _: [exchange(length) for length in lengths])
    assert found == [[4] * len(lengths)] * 3


def test_one_process_has_everything():
    values = torch.randn(2, 5, 4)
    for method in ("own", "split", "join", "spread", "gather", "to_heads", "to_positions"):
        assert getattr(UNDIVIDED, method)(values) is values
    assert UNDIVIDED.heads(6) == slice(0, 6) and UNDIVIDED.before(4) == 4


def test_a_group_sees_the_batches_of_all_in_turn(tmp_path):
    def batch(rank):
        return {
            "ids": torch.full((1, rank + 2), rank),
            "mask": torch.ones(1, rank + 2, dtype=torch.bool),
            "names": [f"item {rank}"],
            **({"picture": torch.rand(1, 2).double() + rank} if rank else {}),
        }

    def see(rank):
        seen = list(batches_of_group(batch(rank), dist.group.WORLD, torch.device("cpu")))
        assert torch.equal(seen[rank]["ids"], batch(rank)["ids"])
        return [
            {n: v.tolist() if isinstance(v, torch.Tensor) else v for n, v in one.items()}
            for one in seen
        ]

    seen = in_processes(2, tmp_path, see)
    assert seen[0] == seen[1]
    assert [one["ids"] for one in seen[0]] == [[[0, 0]], [[1, 1, 1]]]
    assert [one["mask"] for one in seen[0]] == [[[True] * 2], [[True] * 3]]
    assert [one["names"] for one in seen[0]] == [["item 0"], ["item 1"]]
    assert "picture" not in seen[0][0] and 1 <= seen[0][1]["picture"][0][0] < 2


@pytest.mark.parametrize(
    ("size", "processes", "changes", "words"),
    [
        (0, 4, {}, "context_parallel_size=0 must be >= 1"),
        (3, 4, {}, "number of processes, 4: launch a multiple of 3"),
        (3, 6, {}, "does not divide the 4 heads"),
        (2, 4, {"mixer": "attention"}, "mixer='mamba2'"),
    ],
)
def test_groups_that_cannot_share(size, processes, changes, words):
    with pytest.raises(ValueError, match=words):
        check_context(size, processes, make_config(**changes))
    check_context(1, processes, make_config(**changes))
    check_context(4, 8, make_config())
