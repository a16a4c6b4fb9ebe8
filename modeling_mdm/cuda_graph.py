# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""One evaluation of the network replayed as a CUDA graph: no launch of a kernel waits for Python.

Of a step only states, times and fed-back estimates change; all else is captured with it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .prompt_cache import PromptCache
from .sequence import JointSequence, ModalityContent

if TYPE_CHECKING:
    from .modeling_mdm import Denoised

WARM_UP = 2


class GraphedStep:
    """Calls `MDMForJointGeneration.denoise`; from the third call on it is a captured graph.

    The first calls run as they are, which also lets kernels choose their configurations. Sequence,
    content, cache and the rest must be the same objects in all calls.
    """

    def __init__(self, denoise: Callable[..., "Denoised"]) -> None:
        self.denoise, self.calls = denoise, 0
        self.graph: torch.cuda.CUDAGraph | None = None

    @torch.no_grad()
    def __call__(
        self,
        sequence: JointSequence,
        content: dict[str, ModalityContent],
        z_t: dict[str, Tensor],
        times: dict[str, Tensor],
        class_labels: Tensor,
        candidates: dict[str, Tensor],
        estimates: dict[str, Tensor],
        keep: float,
        cache: PromptCache,
    ) -> "Denoised":
        """Evaluate the network; arguments as for `MDMForJointGeneration.denoise`."""
        fixed = (class_labels, candidates)
        # Nothing fed back is the same as zeros, and a graph needs all of its inputs.
        fed_back = {g: estimates.get(g, torch.zeros_like(z)) for g, z in z_t.items()}
        self.calls += 1
        if self.calls <= WARM_UP:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                out = self.denoise(sequence, content, z_t, times, *fixed, fed_back, keep, cache)
            torch.cuda.current_stream().wait_stream(stream)
            return out
        inputs = {"z": z_t, "t": times, "fed_back": fed_back}
        if self.graph is None:
            self.inputs = {
                name: {g: value.clone() for g, value in values.items()}
                for name, values in inputs.items()
            }
            static = self.inputs
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.output = self.denoise(
                    sequence,
                    content,
                    static["z"],
                    static["t"],
                    *fixed,
                    static["fed_back"],
                    keep,
                    cache,
                )
        for name, values in inputs.items():
            for g, value in values.items():
                self.inputs[name][g].copy_(value)
        self.graph.replay()
        return type(self.output)(
            *(
                {g: value.clone() for g, value in getattr(self.output, name).items()}
                for name in ("clean", "logits", "features")
            )
        )
