# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The optimizers whose memory a plan knows, by the names that `--optim` has for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Adafactor

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw_torch": torch.optim.AdamW,
    "adamw_torch_fused": partial(torch.optim.AdamW, fused=True),
    # As transformers' trainer makes it.
    "adafactor": partial(Adafactor, scale_parameter=False, relative_step=False, lr=1e-4),
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
# These update all weights at once on a GPU, with new memory for them, where a CPU takes turns.
AT_ONCE = ("adamw_torch", "adagrad", "rmsprop", "sgd")


def check_optimizer(name: str) -> None:
    """Refuse an optimizer that the plan does not know.

    Raises:
        ValueError: it does not.
    """
    if name not in OPTIMIZERS:
        raise ValueError(
            f"optim={name!r} is no optimizer whose memory the plan knows: name one of "
            f"{', '.join(OPTIMIZERS)}, such as one with as many states."
        )


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    on_gpu: bool = False,
    without_numbers: bool = False,
) -> Any:
    """Make an optimizer by its name.

    Args:
        on_gpu: as it works on a GPU. without_numbers: for parameters on the meta device.

    Raises:
        ValueError: the plan does not know it.
    """
    check_optimizer(name)
    options = {}
    if on_gpu and name in AT_ONCE:
        options["foreach"] = True
    if without_numbers and name.endswith("_fused"):
        options["fused"] = False
    return OPTIMIZERS[name](list(parameters), **options)
