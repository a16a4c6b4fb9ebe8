# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The denoising loop: one solver for each modality, one evaluation for both (Eq. 9, Fig. 2b).

Axes: b batch, r branches of guidance, n positions of one modality, d latent_dim, v vocabulary.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .network import MDMNetwork
from .solvers import SOLVERS, Evaluation, sampling_times


class NoiseStreams:
    """Gaussian noise from one stream for each item and modality, over the positions to be written.

    An item's noise depends neither on the batch around it nor on padding, nor on the other
    modality's solver.

    Args:
        noisy: positions to be written (b, n) by modality.
        latent_dim: width of the noise. dtype: of the noise; it is drawn in float32.
        generator: None, one generator that seeds a stream for each item, or a list of one for each
            item.

    Raises:
        ValueError: a list of generators of another length than the batch.
    """

    def __init__(
        self,
        noisy: dict[str, Tensor],
        latent_dim: int,
        dtype: torch.dtype,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> None:
        batch = next(iter(noisy.values())).shape[0]
        if isinstance(generator, Sequence):
            if len(generator) != batch:
                raise ValueError(
                    f"`generator` is a list of {len(generator)} for {batch} items: pass one for "
                    "each item, or a single one."
                )
            seeds = [self._seeds(1, one)[0] for one in generator]
        else:
            seeds = self._seeds(batch, generator)
        self.positions = {g: [row.nonzero()[:, 0] for row in mask] for g, mask in noisy.items()}
        self.shapes = {g: (*mask.shape, latent_dim) for g, mask in noisy.items()}
        self.devices = {g: mask.device for g, mask in noisy.items()}
        self.dtype = dtype
        self.streams = {
            g: [torch.Generator().manual_seed(pair[index]) for pair in seeds]
            for index, g in enumerate(("text", "image"))
        }

    @staticmethod
    def _seeds(count: int, generator: torch.Generator | None) -> list[list[int]]:
        device = "cpu" if generator is None else generator.device
        drawn: list[list[int]] = torch.randint(
            2**62, (count, 2), generator=generator, device=device
        ).tolist()
        return drawn

    def draw(self, modality: str) -> Tensor:
        """Fresh noise (b, n, d); 0 where nothing is to be written."""
        noise = torch.zeros(self.shapes[modality])
        for row, positions, stream in zip(
            noise, self.positions[modality], self.streams[modality], strict=True
        ):
            row[positions.cpu()] = torch.randn(len(positions), row.shape[-1], generator=stream)
        return noise.to(self.devices[modality], self.dtype)


@dataclass
class StepInfo:
    """What a callback sees after every sampler step.

    step: from 0. num_steps: of the run. times: the time of each modality before the step.
    clean_estimates: standardised latents (b, n, d) by modality; `decode` of the model's VAE turns
        them into content.
    """

    step: int
    num_steps: int
    times: dict[str, float]
    clean_estimates: dict[str, Tensor]


def run_solvers(
    solvers: dict[str, Generator[Evaluation, Tensor, Tensor]],
    num_steps: dict[str, int],
    denoise: Callable[[dict[str, Tensor], dict[str, Tensor], list[str]], dict[str, Tensor]],
    on_step: Callable[[StepInfo], bool],
    windows: dict[str, tuple[int, int]] | None = None,
    on_finish: Callable[[str, Tensor], None] | None = None,
) -> dict[str, Tensor]:
    """Drive one solver for each modality in lockstep, with one evaluation of the network for both.

    A modality with fewer steps, or outside its window, waits: it keeps its state and time. While
    one corrects a step (the second evaluation of Heun), the other shows its state from before the
    step.

    Args:
        solvers: freshly made generators by modality. num_steps: their steps by modality.
        denoise: from states, times and the modalities that move to clean estimates, by modality.
        on_step: called after every sampler step; True ends the run at the clean estimates.
        windows: first sampler step of each modality and the one after its last, from
            `joint_windows`; None spreads the steps of both over the whole run.
        on_finish: told when one modality is finished before the other, with its final state.

    Returns:
        final states by modality.
    """
    total = (
        max(num_steps.values()) if windows is None else max(stop for _, stop in windows.values())
    )
    windows = windows or dict.fromkeys(num_steps, (0, total))
    pending = {g: next(solver) for g, solver in solvers.items()}
    finished: dict[str, Tensor] = {}

    def advance(g: str, estimate: Tensor) -> None:
        try:
            pending[g] = solvers[g].send(estimate)
        except StopIteration as stop:
            finished[g] = stop.value
            pending[g] = Evaluation(stop.value, torch.zeros_like(pending[g].t))

    for step in range(total):
        moving = [g for g, n in num_steps.items() if _moves(step, n, windows[g])]
        shown = dict(pending)
        estimates = denoise({g: shown[g].z for g in shown}, {g: shown[g].t for g in shown}, moving)
        estimates = {**estimates, **finished}
        finished_before = set(finished)
        for g in moving:
            advance(g, estimates[g])
        correcting = [g for g in moving if g not in finished and pending[g].is_correction]
        if correcting:
            view = {g: pending[g] if g in correcting else shown[g] for g in shown}
            states, times = {g: view[g].z for g in view}, {g: view[g].t for g in view}
            corrections = denoise(states, times, correcting)
            for g in correcting:
                advance(g, corrections[g])
        if on_finish and len(finished) < len(solvers):
            for g in set(finished) - finished_before:
                on_finish(g, finished[g])
        if on_step(StepInfo(step, total, {g: float(shown[g].t) for g in shown}, estimates)):
            return estimates
    return finished


def _moves(step: int, num_steps: int, window: tuple[int, int]) -> bool:
    """Whether one of `num_steps` steps, spread evenly over a window, falls on this sampler step."""
    first, stop = window
    length = stop - first
    done = (step - first) * num_steps // length
    return first <= step < stop and (step - first + 1) * num_steps // length > done


def joint_windows(num_steps: dict[str, int], overlap: float) -> dict[str, tuple[int, int]]:
    """Let words go ahead of the picture: the sampler steps of each modality within one run.

    Args:
        num_steps: by modality; the longer is the length of the run.
        overlap: share of a modality's window in which the other is denoised too. At 1 both windows
            are the whole run; at 0 the words are finished before the picture starts.

    Returns:
        (first step, step after the last) by modality.
    """
    total = max(num_steps.values())
    if len(num_steps) < 2:
        return dict.fromkeys(num_steps, (0, total))
    length = max(1, round(total / (2 - overlap)))
    return {"text": (0, length), "image": (total - length, total)}


def make_solvers(
    model: MDMNetwork,
    noise: dict[str, Tensor],
    names: dict[str, str],
    num_steps: dict[str, int],
    streams: NoiseStreams,
) -> dict[str, Generator[Evaluation, Tensor, Tensor]]:
    """Make the solver of every modality that is written, from its initial noise (b, n, d)."""

    def source(g: str) -> Callable[[], Tensor]:
        return lambda: streams.draw(g)

    return {
        g: SOLVERS[names[g]](
            model.schedules[g], z, sampling_times(num_steps[g], z.device, z.dtype), source(g)
        )
        for g, z in noise.items()
    }
