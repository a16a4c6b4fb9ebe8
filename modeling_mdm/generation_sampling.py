# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The denoising loop: one solver for each modality, one evaluation for both (Eq. 9, Fig. 2b).

Axes: b batch, r branches of guidance, n positions of one modality, d latent_dim, v vocabulary.
"""

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .diffusion import NoiseSchedule
from .generation_steps import StepPlan
from .solvers import SOLVERS, Evaluation, with_restarts


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
        self.positions = {
            modality: [row.nonzero()[:, 0] for row in mask] for modality, mask in noisy.items()
        }
        self.shapes = {modality: (*mask.shape, latent_dim) for modality, mask in noisy.items()}
        self.devices = {modality: mask.device for modality, mask in noisy.items()}
        self.dtype = dtype
        self.streams = {
            modality: [torch.Generator().manual_seed(pair[index]) for pair in seeds]
            for index, modality in enumerate(("text", "image"))
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


@dataclass
class StepWatcher:
    """Shows every step of a run to all who watch it, and lets the callback of `generate` end it.

    progress: a bar. show: gives a step to a streamer.
    estimates: clean estimates of every step by modality, where the trajectory is kept.
    """

    progress: Any
    show: Callable[[StepInfo], None] | None
    keeps_trajectory: bool
    callback: Callable[[StepInfo], bool | None] | None
    estimates: list[dict[str, Tensor]] = field(default_factory=list)

    def __call__(self, info: StepInfo) -> bool:
        """Pass a step on; whether the callback ends the run."""
        self.progress.update()
        if self.show is not None:
            self.show(info)
        if self.keeps_trajectory:
            self.estimates.append(info.clean_estimates)
        return bool(self.callback and self.callback(info))


class Denoiser(Protocol):
    """From states (b, n, d) and 0-dimensional times to clean estimates, by modality.

    `moved` names the modalities whose state is another than in the call before.
    """

    def __call__(
        self, z: dict[str, Tensor], t: dict[str, Tensor], moved: Collection[str]
    ) -> dict[str, Tensor]:
        """Estimate z_0 of each modality."""


def run_solvers(
    solvers: dict[str, Generator[Evaluation, Tensor, Tensor]],
    plan: StepPlan,
    denoise: Denoiser,
    on_step: Callable[[StepInfo], bool],
    on_finish: Callable[[str, Tensor], Denoiser] | None = None,
    on_restart: Callable[[], Denoiser] | None = None,
) -> dict[str, Tensor]:
    """Drive one solver for each modality in lockstep, with one evaluation of the network for both.

    A modality that does not move keeps its state and time. While one corrects a step (the second
    evaluation of Heun), the other shows its state from before the step.

    Args:
        solvers: freshly made generators by modality. plan: when each of them moves.
        denoise: evaluates the network for all modalities.
        on_step: called after every sampler step; True ends the run at the clean estimates.
        on_finish: told when one modality is finished before the other, with its final state; gives
            the denoiser to go on with.
        on_restart: called once, when what was clean has become noisy again; gives the denoiser to
            go on with.

    Returns:
        final states by modality.
    """
    pending = {modality: next(solver) for modality, solver in solvers.items()}
    finished: dict[str, Tensor] = {}
    moved: list[str] = []

    def advance(modality: str, estimate: Tensor) -> None:
        try:
            pending[modality] = solvers[modality].send(estimate)
        except StopIteration as stop:
            finished[modality] = stop.value
            pending[modality] = Evaluation(stop.value, torch.zeros_like(pending[modality].t))

    restarts_at = plan.restarts_at
    for step, moving in enumerate(plan.turns()):
        if on_restart and step == restarts_at:
            denoise = on_restart()
        # 1. One evaluation for all modalities; those whose turn it is take their step.
        before, shown = set(finished), dict(pending)
        estimates = {**_evaluate(denoise, shown, moved), **finished}
        for modality in moving:
            advance(modality, estimates[modality])
        # 2. A solver of second order evaluates its provisional state, and takes the step again.
        moved = [
            modality
            for modality in moving
            if modality not in finished and pending[modality].is_correction
        ]
        if moved:
            corrected = _evaluate(
                denoise, {**shown, **{modality: pending[modality] for modality in moved}}, moved
            )
            for modality in moved:
                advance(modality, corrected[modality])
        moved = moving
        # 3. What is finished before the rest is given to the rest.
        if on_finish and len(finished) < len(solvers):
            for modality in finished.keys() - before:
                denoise = on_finish(modality, finished[modality])
        # 4. Whoever watches may end the run here.
        times = {modality: float(at.t) for modality, at in shown.items()}
        if on_step(StepInfo(step, plan.total, times, estimates)):
            return estimates
    return finished


def _evaluate(
    denoise: Denoiser, shown: dict[str, Evaluation], moved: Collection[str]
) -> dict[str, Tensor]:
    states = {modality: at.z for modality, at in shown.items()}
    times = {modality: at.t for modality, at in shown.items()}
    return denoise(states, times, moved)


def make_solvers(
    schedules: dict[str, NoiseSchedule],
    noise: dict[str, Tensor],
    names: dict[str, str],
    plan: StepPlan,
    streams: NoiseStreams,
) -> dict[str, Generator[Evaluation, Tensor, Tensor]]:
    """Make the solver of every modality that is written, from its initial noise (b, n, d)."""

    def source(modality: str) -> Callable[[], Tensor]:
        return lambda: streams.draw(modality)

    solvers = {}
    for modality, z in noise.items():
        schedule, solver = schedules[modality], SOLVERS[names[modality]]
        passes = plan.times(modality, schedule, z)
        solvers[modality] = with_restarts(solver, schedule, z, passes, source(modality))
    return solvers
