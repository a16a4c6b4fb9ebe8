# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The denoising loop: one solver for each modality, one evaluation for both (Eq. 9, Fig. 2b).

Axes: b batch, r branches of guidance, n positions of one modality, d latent_dim, v vocabulary.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .inputs import EncodedInputs
from .sequence import ModalityContent, drop_prompt
from .solvers import SOLVERS, Evaluation, sampling_times

if TYPE_CHECKING:
    from .modeling_mdm import MDMForJointGeneration


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


class GuidedDenoiser:
    """Clean estimates of both modalities from one network evaluation, guidance included.

    Branches of guidance stand in one batch: the conditional one; one with the prompt replaced by
    the null tokens (classifier-free guidance); and for joint guidance one for each modality, with
    the other at t = 1.

    Args:
        model: an `MDMForJointGeneration`. encoded: its encoded inputs.
        guidance, joint_guidance: scales by modality, 1 = off.
        noise: initial noise by modality; what joint guidance shows at t = 1.
        keep: share of items that each scan reads.
    """

    def __init__(
        self,
        model: "MDMForJointGeneration",
        encoded: EncodedInputs,
        guidance: dict[str, float],
        joint_guidance: dict[str, float],
        noise: dict[str, Tensor],
        keep: float = 1.0,
    ) -> None:
        self.model, self.keep = model, keep
        self.guidance, self.joint_guidance = guidance, joint_guidance
        self.evaluations = 0
        self.shown: dict[str, Tensor] = {}
        self.estimates: dict[str, Tensor] = {}
        self.fed_back: dict[str, Tensor] = {}
        self.features: dict[str, Tensor] = {}
        self.logits: dict[str, Tensor] = {}
        self._lay_out(encoded, noise)

    def give(self, encoded: EncodedInputs) -> None:
        """Go on with what one modality has finished as given content.

        Args:
            encoded: the batch with the finished modality in the place of its noisy positions.
        """
        batch, still = self.batch, written(encoded.content)
        self._lay_out(encoded, {g: noise for g, noise in self.noise.items() if g in still})
        for estimates in (self.estimates, self.fed_back):
            for g, estimate in estimates.items():
                estimates[g] = estimate[:batch].repeat(len(self.branches), 1, 1)

    def _lay_out(self, encoded: EncodedInputs, noise: dict[str, Tensor]) -> None:
        """Choose the branches, and lay out their joint sequences in one batch."""
        self.noise, guidance, joint_guidance = noise, self.guidance, self.joint_guidance
        model, content, has_class = self.model, encoded.content, encoded.has_class
        batch = has_class.shape[0]
        prompted = has_class | torch.stack(
            [part.prompt().any(-1) for part in content.values()]
        ).any(0)
        self.branches = ["conditional"]
        if any(guidance[g] != 1 for g in noise) and bool(prompted.any()):
            self.branches.append("unconditional")
        if len(noise) == 2:
            self.branches += [g for g in ("image", "text") if joint_guidance[g] != 1]
        dropped = torch.cat(
            [
                prompted if branch == "unconditional" else torch.zeros_like(prompted)
                for branch in self.branches
            ]
        )
        times = len(self.branches)
        repeated = {g: part.repeat(times) for g, part in content.items()}
        self.content, has_class = drop_prompt(repeated, has_class.repeat(times), dropped)
        self.class_labels = torch.where(has_class, encoded.class_labels.repeat(times), -1)
        self.sequence = model.decoder.lay_out(self.content, has_class, dropped, encoded.grid)
        self.candidates = model.candidate_latents(content)
        self.fixed = {g: part.latents for g, part in content.items() if g not in noise}
        self.batch = batch

    def _branch_inputs(
        self, z: dict[str, Tensor], t: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """States and times of all branches: (r * b, n, d) and (r * b,) by modality."""
        states, times = {}, {}
        for g in self.content:
            state = z[g] if g in self.noise else self.fixed[g]
            time = t.get(g, torch.zeros((), device=state.device)).expand(self.batch)
            at_one = [g != branch and branch in ("image", "text") for branch in self.branches]
            states[g] = torch.cat([self.noise[g] if hidden else state for hidden in at_one])
            times[g] = torch.cat([torch.ones_like(time) if hidden else time for hidden in at_one])
        return states, times

    def _guide(self, g: str, outputs: dict[str, Tensor]) -> Tensor:
        """Extrapolate from the weaker branches towards the conditional one."""
        conditional = outputs["conditional"]
        guided = conditional
        if "unconditional" in outputs and self.guidance[g] != 1:
            guided = guided + (self.guidance[g] - 1) * (conditional - outputs["unconditional"])
        if g in outputs:
            guided = guided + (self.joint_guidance[g] - 1) * (conditional - outputs[g])
        return guided

    def __call__(self, z: dict[str, Tensor], t: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give clean estimates (b, n, d) of the modalities in z, at the 0-dimensional times t."""
        # Each branch is fed its own last estimate, as in training. A modality that waits is fed
        # what it was: how long others take must not show in an item that writes it alone.
        moved = [g for g in self.estimates if z[g] is not self.shown[g]]
        self.fed_back |= {g: self.estimates[g] for g in moved}
        self.shown = z
        states, times = self._branch_inputs(z, t)
        denoised = self.model.denoise(
            self.sequence,
            self.content,
            states,
            times,
            self.class_labels,
            self.candidates,
            self.fed_back,
            self.keep,
        )
        self.evaluations += 1
        self.estimates = {g: denoised.clean[g] for g in z}
        self.features = denoised.features
        result = {}
        for g in self.noise:
            # Guidance acts on the logits of what is discrete, and on the estimate of what is not.
            output = denoised.logits.get(g, denoised.clean[g])
            guided = self._guide(g, dict(zip(self.branches, output.split(self.batch), strict=True)))
            if g in denoised.logits:
                self.logits[g] = guided
                guided = self.model.expected_latent(guided, self.candidates[g])
            result[g] = guided
        return result


def run_solvers(
    solvers: dict[str, Generator[Evaluation, Tensor, Tensor]],
    num_steps: dict[str, int],
    denoise: Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]],
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
        denoise: from states and times to clean estimates, by modality.
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
        estimates = denoise({g: shown[g].z for g in shown}, {g: shown[g].t for g in shown})
        estimates = {**estimates, **finished}
        finished_before = set(finished)
        for g in moving:
            advance(g, estimates[g])
        correcting = [g for g in moving if g not in finished and pending[g].is_correction]
        if correcting:
            view = {g: pending[g] if g in correcting else shown[g] for g in shown}
            corrections = denoise({g: view[g].z for g in view}, {g: view[g].t for g in view})
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
    model: "MDMForJointGeneration",
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


def written(content: dict[str, ModalityContent]) -> dict[str, Tensor]:
    """Positions to be written (b, n), of the modalities that have any."""
    return {g: part.noisy for g, part in content.items() if bool(part.noisy.any())}
