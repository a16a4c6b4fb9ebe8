# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""One evaluation of the network for both modalities, with guidance and the prompt cache.

Axes: b batch, r branches of guidance, n positions of one modality, m those of them that are
evaluated, d latent_dim, v vocabulary.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .inputs import EncodedInputs
from .prompt_cache import PromptCache
from .sampling import written
from .sequence import SequencePart, drop_prompt, take_part, whole

if TYPE_CHECKING:
    from .modeling_mdm import MDMForJointGeneration


@dataclass
class Branches:
    """What no step changes: the branches of guidance stacked in one batch (r * b).

    names: of the branches. part: the noisy part, or all of the sequence where nothing is cached.
    conditional: the part in the first branch. cache: of the given part. class_labels: (r * b,).
    """

    names: list[str]
    part: SequencePart
    conditional: SequencePart
    cache: PromptCache | None
    class_labels: Tensor


@dataclass
class LastOutput:
    """What a modality's last evaluation gave, in the conditional branch.

    part: says which positions (b, m) these are. logits: (b, m, v), guided; None for pixels.
    features: (b, m, hidden).
    """

    part: SequencePart
    logits: Tensor | None
    features: Tensor


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
        use_cache: read the given part once, instead of at every step.
        copies: items that follow each other with the same given part, which is read once for all.
    """

    def __init__(
        self,
        model: "MDMForJointGeneration",
        encoded: EncodedInputs,
        guidance: dict[str, float],
        joint_guidance: dict[str, float],
        noise: dict[str, Tensor],
        keep: float = 1.0,
        use_cache: bool = True,
        copies: int = 1,
    ) -> None:
        self.model, self.keep, self.use_cache = model, keep, use_cache
        self.guidance, self.joint_guidance = guidance, joint_guidance
        self.evaluations = 0
        self.shown: dict[str, Tensor] = {}
        self.estimates: dict[str, Tensor] = {}  # of the part, in all branches
        self.fed_back: dict[str, Tensor] = {}
        self.last: dict[str, LastOutput] = {}
        self._lay_out(encoded, noise, copies)

    def give(self, encoded: EncodedInputs) -> None:
        """Go on with what one modality has finished as given content.

        Args:
            encoded: the batch with the finished modality in the place of its noisy positions.
        """
        batch, before = self.batch, self.branches.conditional
        still = {g: noise for g, noise in self.noise.items() if g in written(encoded.content)}
        conditional = {
            name: {g: before.put(g, values[g][:batch], self.fixed[g]) for g in still if g in values}
            for name, values in (("estimates", self.estimates), ("fed_back", self.fed_back))
        }
        self._lay_out(encoded, still, copies=1)
        for name, values in conditional.items():
            stacked = {g: self._stack(value) for g, value in values.items()}
            setattr(self, name, {g: self.branches.part.take(g, v) for g, v in stacked.items()})

    def _lay_out(self, encoded: EncodedInputs, noise: dict[str, Tensor], copies: int) -> None:
        """Choose the branches, lay them out in one batch, and read what is given."""
        self.noise, self.batch = noise, len(encoded.class_labels)
        content, prompted = encoded.content, self._prompted(encoded)
        names = ["conditional"]
        if any(self.guidance[g] != 1 for g in noise) and bool(prompted.any()):
            names.append("unconditional")
        if len(noise) == 2:
            names += [g for g in ("image", "text") if self.joint_guidance[g] != 1]
        dropped = torch.cat(
            [prompted if name == "unconditional" else torch.zeros_like(prompted) for name in names]
        )
        r = len(names)
        repeated = {g: part.repeat(r) for g, part in content.items()}
        repeated, has_class = drop_prompt(repeated, encoded.has_class.repeat(r), dropped)
        labels = torch.where(has_class, encoded.class_labels.repeat(r), -1)
        sequence = self.model.decoder.lay_out(repeated, has_class, dropped, encoded.grid)
        self.fixed = {g: part.latents for g, part in content.items()}
        part, cache = whole(sequence, repeated), None
        if self.use_cache:
            part = take_part(sequence, repeated, given=False)
            cache = self._read(take_part(sequence, repeated, given=True), labels, copies)
        self.candidates = self.model.candidate_latents(part.content)
        conditional = part.rows(torch.arange(self.batch, device=labels.device))
        self.branches = Branches(names, part, conditional, cache, labels)

    @staticmethod
    def _prompted(encoded: EncodedInputs) -> Tensor:
        """Items with anything that guidance takes away: (b,) bool."""
        prompts = [part.prompt().any(-1) for part in encoded.content.values()]
        return encoded.has_class | torch.stack(prompts).any(0)

    def _read(self, given: SequencePart, class_labels: Tensor, copies: int) -> PromptCache:
        """Read the given part, once for items that share it."""
        cache, rows = PromptCache(len(self.model.decoder.layers)), None
        if copies > 1:
            first = torch.arange(0, len(class_labels), copies, device=class_labels.device)
            given, class_labels = given.rows(first), class_labels[first]
            rows = torch.arange(len(first), device=first.device).repeat_interleave(copies)
        latents = {g: part.latents for g, part in given.content.items()}
        times = {g: values.new_zeros(1) for g, values in latents.items()}
        self.model.decoder(
            given.sequence, given.content, latents, times, class_labels, None, self.keep, cache
        )
        cache.freeze()
        return cache if rows is None else cache.rows(rows)

    def _stack(self, values: Tensor) -> Tensor:
        """The same values (b, ...) in every branch: (r * b, ...)."""
        return values.repeat(len(self.branches.names), *[1] * (values.dim() - 1))

    def _branch_inputs(
        self, z: dict[str, Tensor], t: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """States (r * b, m, d) and times (r,) of all branches, by modality."""
        states, times = {}, {}
        for g in self.branches.part.content:
            state = z[g] if g in self.noise else self.fixed[g]
            time = t.get(g, torch.zeros((), device=state.device))
            at_one = [g != name and name in ("image", "text") for name in self.branches.names]
            stacked = torch.cat([self.noise[g] if hidden else state for hidden in at_one])
            states[g] = self.branches.part.take(g, stacked)
            times[g] = torch.stack([torch.ones_like(time) if hidden else time for hidden in at_one])
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
        """Give clean estimates (b, n, d) of the modalities in z, at the 0-dimensional times t.

        Given positions keep what they are.
        """
        # Each branch is fed its own last estimate, as in training. A modality that waits is fed
        # what it was: how long others take must not show in an item that writes it alone.
        moved = [g for g in self.estimates if z[g] is not self.shown[g]]
        self.fed_back |= {g: self.estimates[g] for g in moved}
        self.shown = z
        branches = self.branches
        denoised = self.model.denoise(
            branches.part.sequence,
            branches.part.content,
            *self._branch_inputs(z, t),
            branches.class_labels,
            self.candidates,
            self.fed_back,
            self.keep,
            branches.cache,
        )
        self.evaluations += 1
        self.estimates = {g: denoised.clean[g] for g in self.noise}
        conditional, result = branches.conditional, {}
        for g in self.noise:
            # Guidance acts on the logits of what is discrete, and on the estimate of what is not.
            output = denoised.logits.get(g, denoised.clean[g])
            parts = output.split(self.batch)
            guided = self._guide(g, dict(zip(branches.names, parts, strict=True)))
            logits = guided if g in denoised.logits else None
            if logits is not None:
                guided = self.model.expected_latent(logits, self.candidates[g])
            features = denoised.features[g][: self.batch]
            self.last[g] = LastOutput(conditional, logits, features)
            result[g] = conditional.put(g, guided.to(self.fixed[g].dtype), self.fixed[g])
        return result
