# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A training step of the large presets on a card, held against what `mdm plan` says of it.

Memory beside the plan's, time as a share of the card's peak, the most items of a block that fit.
"""

from collections.abc import Callable, Iterator

import torch

from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.planning.flops import Batch, grid_of, step_flops
from modeling_mdm.planning.optimizers import make_optimizer
from modeling_mdm.planning.rehearsal import Setting, enable_checkpointing, rehearse
from modeling_mdm.planning.states import count_states, model_sizes

from .machine import Peaks
from .plans import Plan
from .results import Contender, Row
from .roofline import load_config
from .steps import make_config
from .timing import peak_memory, time_alternately

WORDS, PATCHES, ITEMS = 64, 256, 2
DRY_WORDS, DRY_PATCHES = 4, 4
OPTIMIZER = "adamw_torch_fused"
SHARE = 0.8  # of the memory that is free: how much the plan may fill with a step
DRY_BYTES = 4 << 20  # that a dry run pretends to be free
DRY_ITEMS = 8  # at most, in a dry run


def make_step(
    config: MDMConfig, batch: Batch, device: torch.device, checkpointing: bool
) -> Callable[[], object]:
    """A call that runs forward, backward and optimizer; weights float32, products bfloat16."""
    torch.manual_seed(0)
    with torch.device(device):
        model = MDMForJointGeneration._from_config(config, dtype=torch.float32).train()
        ids = torch.randint(4, config.vocab_size, (batch.items, batch.words))
        sides = grid_of(batch.patches, config.patch_size)
        pixels = 2 * torch.rand(batch.items, config.num_channels, *sides) - 1
        dropped = torch.ones(batch.items, dtype=torch.bool)
    if checkpointing:
        enable_checkpointing(model)
    optimizer = make_optimizer(OPTIMIZER, [*model.parameters()], device.type == "cuda")

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(
                input_ids=ids,
                pixel_values=pixels,
                drop_prompt=dropped,
                self_condition=True,
                keep=1.0,
            ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the optimizer's states
    return step


def planned_bytes(
    config: MDMConfig, batch: Batch, device: torch.device, checkpointing: bool
) -> float:
    """What a step is planned to hold beside weights and optimizer."""
    setting = Setting(
        device=device.type, checkpointing=checkpointing, keep=1.0, optimizer=OPTIMIZER
    )
    return rehearse(config, batch, setting).peak()


def free_bytes(device: torch.device) -> float:
    """Memory that is free; a dry run pretends."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else DRY_BYTES


def _sizes(plan: Plan, name: str) -> tuple[MDMConfig, int, int]:
    """The preset without its VQ-VAE, words and patches of an item; a tiny model in a dry run."""
    if plan.is_dry:
        return make_config(plan), DRY_WORDS, DRY_PATCHES
    return MDMConfig(**{**load_config(name).to_dict(), "vq_config": None}), WORDS, PATCHES


def step_row(plan: Plan, device: torch.device, peaks: Peaks) -> Row:
    """A step of `mdm-1b`, as it is and with its blocks computed again."""
    config, words, patches = _sizes(plan, "mdm-1b")
    batch = Batch(ITEMS, words, patches)
    parameters = {"preset": "dry" if plan.is_dry else "mdm-1b", "items": ITEMS, "words": words}
    row = Row("training", "step of mdm-1b", parameters | {"patches": patches})
    for name, checkpointing in (("mdm", False), ("mdm_checkpointed", True)):
        call = make_step(config, batch, device, checkpointing)
        seconds = time_alternately({name: call}, device, plan.effort)[name]
        flops = step_flops(config, batch, self_conditioned=1.0, checkpointing=checkpointing)
        taken = sorted(seconds)[len(seconds) // 2]
        details = {
            "planned_bytes": planned_bytes(config, batch, device, checkpointing),
            "model_flops": flops.model,
            "total_flops": flops.total,
            "mfu": flops.model / taken / peaks.products("bfloat16"),
        }
        row.contenders[name] = Contender(seconds, peak_memory(call, device), None, details)
        del call
        _empty(device)
    return row


def most_that_fit(fits: Callable[[int], bool], first: int) -> int:
    """The largest number that fits, to a sixteenth; a number fits if every smaller one does."""
    low, high = 0, max(first, 1)
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def batch_row(plan: Plan, device: torch.device) -> Row:
    """The most items of one block of `mdm-7b` that fit, found by trying, and by the plan."""
    config, words, patches = _sizes(plan, "mdm-7b")
    config = MDMConfig(**{**config.to_dict(), "num_hidden_layers": 1})
    parameters = {"preset": "dry" if plan.is_dry else "mdm-7b", "words": words, "patches": patches}
    row = Row("training", "most items of a block of mdm-7b", parameters)
    free = free_bytes(device)

    def fits(items: int) -> bool:
        if device.type != "cuda":
            if items > DRY_ITEMS:
                return False
            call = make_step(config, Batch(items, words, patches), device, False)
            return peak_memory(call, device) <= free
        try:
            make_step(config, Batch(items, words, patches), device, False)()
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            _empty(device)
        return True

    held = {n: planned_bytes(config, Batch(n, words, patches), device, False) for n in (1, 2)}
    # On a CPU only the step is counted, here and in `fits`.
    own = _states_bytes(config) if device.type == "cuda" else 0
    planned = max(1, int((free - own - held[1]) / max(held[2] - held[1], 1)) + 1)
    largest = most_that_fit(fits, max(1, int(SHARE * planned)))
    if not largest:
        row.missing["mdm"] = "not even one item fits"
        return row
    call = make_step(config, Batch(largest, words, patches), device, False)
    seconds = time_alternately({"mdm": call}, device, plan.effort)["mdm"]
    details = {"items": largest, "planned_items": planned}
    row.contenders["mdm"] = Contender(seconds, peak_memory(call, device), None, details)
    del call
    _empty(device)
    return row


def _states_bytes(config: MDMConfig) -> int:
    """Weights and optimizer; gradients count within the step."""
    states = count_states(model_sizes(config), config, optimizer=OPTIMIZER, average=False)
    return states.weights + states.optimizer


def training_rows(plan: Plan, device: torch.device, peaks: Peaks) -> Iterator[Row]:
    """Both."""
    yield step_row(plan, device, peaks)
    yield batch_row(plan, device)


def _empty(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
