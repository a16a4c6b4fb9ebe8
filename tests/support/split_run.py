# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains the tiny digits model as `accelerate launch` does with FSDP2 or HSDP, on CPU processes."""

import os
from contextlib import contextmanager

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
HSDP = {
    **FSDP2,
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
}


@contextmanager
def launched_with(environment):
    """Be a process that `accelerate launch` started with such an environment.

    accelerate splits weights over GPUs alone, though torch does on any device: so it is told that
    these processes are of that kind, and their device stays the CPU.
    """
    before = dict(os.environ)
    os.environ |= environment
    own = PartialState._shared_state.get("distributed_type")
    real = AcceleratorState.__init__

    def begin(self, *args, **kwargs):
        if not self.__class__._shared_state and "ACCELERATE_USE_FSDP" in environment:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        real(self, *args, **kwargs)

    AcceleratorState.__init__ = begin
    try:
        yield
    finally:
        AcceleratorState.__init__ = real
        AcceleratorState._reset_state()
        if own is not None:
            PartialState._shared_state["distributed_type"] = own
        os.environ.clear()
        os.environ.update(before)
