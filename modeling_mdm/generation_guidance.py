# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""One evaluation of the network for both modalities: guidance, prompt cache, adaptive stopping.

Axes: b batch, r branches of guidance, n positions of one modality, m those of them that are
evaluated, d latent_dim, v vocabulary.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .cache import PromptCache
from .content import ModalityContent, written
from .decoder import DecoderInputs
from .inputs import EncodedInputs
from .network import Denoised, MDMNetwork
from .past_turns import PastTurns, read_given, weights_fingerprint
from .sequence import JointSequence, SequencePart, drop_prompt, take_part, whole


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

    def rows(self, items: Tensor) -> "Branches":
        """Some items (m,), in all branches."""
        index = self.index(items)
        return Branches(
            self.names,
            self.part.rows(index),
            self.conditional.rows(items),
            None if self.cache is None else self.cache.rows(index),
            self.class_labels[index],
        )

    def index(self, items: Tensor) -> Tensor:
        """Rows (r * m,) of some items (m,) in all branches."""
        batch = len(self.class_labels) // len(self.names)
        return torch.cat([items + i * batch for i in range(len(self.names))])


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
        noise: initial noise by modality; what joint guidance shows at t = 1.
        settings: from `read_settings`. With several samples of an item, its given part is read
            once for all.

    Attributes:
        evaluations: of the network. item_evaluations: (b,), those that an item took part in.
        stopped: (b,) bool by modality, items that are finished ahead of time.
        last: by modality, what its last evaluation gave.
    """

    def __init__(
        self,
        model: MDMNetwork,
        encoded: EncodedInputs,
        noise: dict[str, Tensor],
        settings: dict[str, Any],
        past: PastTurns | None = None,
    ) -> None:
        self.model, self.settings = model, settings
        self.evaluations = 0
        self.item_evaluations = torch.zeros_like(encoded.class_labels)
        self.stopped = {g: torch.zeros_like(encoded.has_class) for g in noise}
        self.results: dict[str, Tensor] = {}
        self.shown: dict[str, Tensor] = {}
        self.estimates: dict[str, Tensor] = {}  # of the part, in all branches
        self.fed_back: dict[str, Tensor] = {}
        self.last: dict[str, LastOutput] = {}
        self.copies = settings["num_return_sequences"]
        reads_turns = settings["use_cache"] and settings["keep"] == 1
        self.weights = weights_fingerprint(model) if reads_turns else b""
        self.past = self._lay_out(encoded, noise, past)

    @property
    def is_done(self) -> bool:
        """Whether every modality of every item is finished ahead of time."""
        stops = any(g in self.settings["stopping_entropy"] for g in self.noise)
        return stops and all(bool(self.stopped[g].all()) for g in self.noise)

    def give(self, encoded: EncodedInputs) -> None:
        """Go on with what one modality has finished as given content.

        Args:
            encoded: the batch with the finished modality in the place of its noisy positions.
        """
        before, batch = self.branches.conditional, self.batch
        noisy = written(encoded.content)
        still = {g: noise for g, noise in self.noise.items() if g in noisy}
        conditional = {
            name: {g: before.put(g, values[g][:batch], self.fixed[g]) for g in still if g in values}
            for name, values in (("estimates", self.estimates), ("fed_back", self.fed_back))
        }
        past = None if self.past is None else self.past.batch_repeat_interleave(self.copies)
        self.copies = 1
        self._lay_out(encoded, still, past)
        part, r = self.branches.part, len(self.branches.names)
        for name, values in conditional.items():
            setattr(self, name, {g: part.take(g, v.repeat(r, 1, 1)) for g, v in values.items()})

    def _lay_out(
        self, encoded: EncodedInputs, noise: dict[str, Tensor], past: PastTurns | None
    ) -> PastTurns | None:
        """Choose the branches, lay them out in one batch, and read what is given."""
        self.noise, self.batch = noise, len(encoded.class_labels)
        content, prompted = encoded.content, self._prompted(encoded)
        names = ["conditional"]
        if any(self.settings["guidance_scale"][g] != 1 for g in noise) and bool(prompted.any()):
            names.append("unconditional")
        if len(noise) == 2:
            names += [g for g in ("image", "text") if self.settings["joint_guidance_scale"][g] != 1]
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
        if self.settings["use_cache"]:
            part = take_part(sequence, repeated, given=False)
            past, cache = self._read(encoded, past, names, sequence, repeated, labels)
        self.candidates = self.model.candidate_latents(part.content)
        conditional = part.rows(torch.arange(self.batch, device=labels.device))
        self.branches = Branches(names, part, conditional, cache, labels)
        self._view: tuple[Tensor | None, Branches] = (None, self.branches)
        self._step = self._choose_step()
        return past

    @staticmethod
    def _prompted(encoded: EncodedInputs) -> Tensor:
        """Items with anything that guidance takes away: (b,) bool."""
        prompts = [part.prompt().any(-1) for part in encoded.content.values()]
        return encoded.has_class | torch.stack(prompts).any(0)

    def _read(
        self,
        encoded: EncodedInputs,
        past: PastTurns | None,
        names: list[str],
        sequence: JointSequence,
        content: dict[str, ModalityContent],
        class_labels: Tensor,
    ) -> tuple[PastTurns | None, PromptCache]:
        """Read the given part of all branches, once for samples that share it.

        Args:
            encoded: the batch (b). past: what was read of it before. names: of the branches.
            sequence, content, class_labels: of all branches (r * b).
        """
        first = torch.arange(0, self.batch, self.copies, device=class_labels.device)

        def read_whole(rows: Tensor) -> PromptCache:
            cache = PromptCache(len(self.model.decoder.layers))
            own = {g: part.rows(rows) for g, part in content.items()}
            given = take_part(sequence.rows(rows), own, given=True)
            self.model.read(given, class_labels[rows], cache, self.settings["keep"])
            return cache

        if self.settings["keep"] < 1:  # of the whole given part: it cannot be read turn by turn
            past, shared = None, read_whole(first)
        else:
            items = encoded if self.copies == 1 else encoded.rows(first)
            rows = sequence.rows(first)
            past, shared = read_given(self.model, items, rows, self.weights, past)
        # Joint guidance takes nothing from what is given.
        caches = [
            read_whole(first + self.batch) if name == "unconditional" else shared for name in names
        ]
        cache = PromptCache.join(caches)
        cache.freeze()
        if self.copies > 1:
            rows = torch.arange(len(first) * len(names), device=first.device)
            cache = cache.rows(rows.repeat_interleave(self.copies))
        return past, cache

    def _choose_step(self) -> Callable[..., Denoised]:
        """One evaluation of the network: as it is, compiled, or replayed as a CUDA graph."""
        denoise = self.model.denoise
        if self.settings["compile"]:  # what was compiled of it before is found again
            return torch.compile(denoise)
        is_static = self.branches.cache is not None and not self.settings["stopping_entropy"]
        # The grid of the linear schedule comes from the host, which a graph does not capture.
        is_static &= all(self.model.schedules[g].name != "linear" for g in self.noise)
        if self.settings["cuda_graph"] and is_static and self.model.device.type == "cuda":
            return GraphedStep(denoise)
        return denoise

    def _branch_inputs(
        self, branches: Branches, items: Tensor | None, z: dict[str, Tensor], t: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """States (r * b, m, d) and times (r,) of all branches, by modality."""
        states, times = {}, {}
        for g in branches.part.content:
            state = z[g] if g in self.noise else self.fixed[g]
            time = t.get(g, torch.zeros((), device=state.device))
            at_one = [g != name and name in ("image", "text") for name in branches.names]
            parts = [self.noise[g] if hidden else state for hidden in at_one]
            stacked = torch.cat(parts if items is None else [part[items] for part in parts])
            states[g] = branches.part.take(g, stacked)
            times[g] = torch.stack([torch.ones_like(time) if hidden else time for hidden in at_one])
        return states, times

    def _guide(self, g: str, outputs: dict[str, Tensor]) -> Tensor:
        """Extrapolate from the weaker branches towards the conditional one."""
        guidance = self.settings["guidance_scale"][g]
        conditional = outputs["conditional"]
        guided = conditional
        if "unconditional" in outputs and guidance != 1:
            guided = guided + (guidance - 1) * (conditional - outputs["unconditional"])
        if g in outputs:
            joint = self.settings["joint_guidance_scale"][g]
            guided = guided + (joint - 1) * (conditional - outputs[g])
        return guided

    def _choose_items(self, moving: Collection[str] | None) -> tuple[Tensor | None, Branches]:
        """Items that still need an evaluation (None for all), and their branches."""
        if not self.settings["stopping_entropy"]:
            return None, self.branches
        needed = torch.stack(
            [~self.stopped[g] for g in self.noise if moving is None or g in moving]
            or [torch.zeros_like(self.item_evaluations, dtype=torch.bool)]
        ).any(0)
        items = needed.nonzero()[:, 0]
        before = self._view[0]
        if len(items) == self.batch:
            self._view = (None, self.branches)
        elif before is None or not torch.equal(items, before):
            self._view = (items, self.branches.rows(items))
        return self._view

    def __call__(
        self,
        z: dict[str, Tensor],
        t: dict[str, Tensor],
        moving: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Give clean estimates (b, n, d) of the modalities in z, at the 0-dimensional times t.

        Given positions keep what they are, and items that are finished what they were.

        Args:
            z, t: by modality. moving: modalities whose estimates are asked for; None for all.
        """
        # Each branch is fed its own last estimate, as in training. A modality that waits is fed
        # what it was: how long others take must not show in an item that writes it alone.
        moved = [g for g in self.estimates if z[g] is not self.shown[g]]
        self.fed_back |= {g: self.estimates[g] for g in moved}
        self.shown = z
        items, branches = self._choose_items(moving)
        if items is not None and not len(items):
            return dict(self.results)
        rows = None if items is None else self.branches.index(items)
        fed_back = {g: part if rows is None else part[rows] for g, part in self.fed_back.items()}
        inputs = DecoderInputs(
            branches.part.sequence,
            branches.part.content,
            *self._branch_inputs(branches, items, z, t),
            branches.class_labels,
            fed_back,
            self.settings["keep"],
            branches.cache,
        )
        denoised = self._step(inputs, self.candidates)
        self.evaluations += 1
        self.item_evaluations[slice(None) if items is None else items] += 1
        for g in self.noise:
            clean = denoised.clean[g]
            self.estimates[g] = fill(self.estimates.get(g), rows, clean)
            self._take_result(g, denoised, branches, items)
        return dict(self.results)

    def _take_result(
        self, g: str, denoised: Denoised, branches: Branches, items: Tensor | None
    ) -> None:
        """Guide one modality, keep what came out, and see which items are finished with it."""
        # Guidance acts on the logits of what is discrete, and on the estimate of what is not.
        output = denoised.logits.get(g, denoised.clean[g])
        outputs = output.split(len(output) // len(branches.names))
        guided = self._guide(g, dict(zip(branches.names, outputs, strict=True)))
        features, logits = denoised.features[g][: len(guided)], None
        if g in denoised.logits:
            logits, guided = guided, self.model.expected_latent(guided, self.candidates[g])
        fixed = self.fixed[g] if items is None else self.fixed[g][items]
        result = branches.conditional.put(g, guided.to(fixed.dtype), fixed)
        last = self.last.get(g)
        self.last[g] = LastOutput(
            self.branches.conditional,
            None if logits is None else fill(last and last.logits, items, logits),
            fill(last and last.features, items, features),
        )
        result = fill(self.results.get(g), items, result)
        if g in self.settings["stopping_entropy"]:
            # What is finished stays; before the first result nothing is.
            kept = self.results.get(g, result)
            result = torch.where(self.stopped[g][:, None, None], kept, result)
            self._stop(g, features, branches, items)
        self.results[g] = result

    def _stop(self, g: str, features: Tensor, branches: Branches, items: Tensor | None) -> None:
        """Finish items whose predicted score entropy is low at every position."""
        entropy = torch.expm1(self.model.score_entropy_head(features))
        real = branches.conditional.real[g]
        highest = entropy.masked_fill(~real, float("-inf")).amax(-1)
        finished = highest < self.settings["stopping_entropy"][g]
        self.stopped[g] |= fill(torch.zeros_like(self.stopped[g]), items, finished)


def fill(values: Tensor | None, index: Tensor | None, new: Tensor) -> Tensor:
    """Replace some rows of what there is; without an index, all of it."""
    if index is None:
        return new
    return values.index_copy(0, index, new.to(values.dtype))


WARM_UP = 2  # evaluations before one is captured


class GraphedStep:
    """Calls `MDMNetwork.denoise`; from the third call on it is a captured CUDA graph.

    So no launch of a kernel waits for Python. The first calls run as they are, which also lets
    kernels choose their configurations. Of the inputs only states, times and fed-back estimates
    may change from call to call: all else is captured.
    """

    def __init__(self, denoise: Callable[[DecoderInputs, dict[str, Tensor]], Denoised]) -> None:
        self.denoise, self.calls = denoise, 0
        self.graph: torch.cuda.CUDAGraph | None = None

    @torch.no_grad()
    def __call__(self, inputs: DecoderInputs, candidates: dict[str, Tensor]) -> Denoised:
        """Evaluate the network; arguments as for `MDMNetwork.denoise`."""
        # Nothing fed back is the same as zeros, and a graph needs all of its inputs.
        estimates = inputs.estimates or {}
        estimates = {m: estimates.get(m, torch.zeros_like(z)) for m, z in inputs.z_t.items()}
        inputs = replace(inputs, estimates=estimates)
        self.calls += 1
        if self.calls <= WARM_UP:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                denoised = self.denoise(inputs, candidates)
            torch.cuda.current_stream().wait_stream(stream)
            return denoised
        if self.graph is None:
            self.inputs = replace(
                inputs,
                z_t=_cloned(inputs.z_t),
                times=_cloned(inputs.times),
                estimates=_cloned(estimates),
            )
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.denoised = self.denoise(self.inputs, candidates)
        pairs = (
            (self.inputs.z_t, inputs.z_t),
            (self.inputs.times, inputs.times),
            (self.inputs.estimates, estimates),
        )
        for static, values in pairs:
            for modality, value in values.items():
                static[modality].copy_(value)
        self.graph.replay()
        out = self.denoised
        return Denoised(_cloned(out.clean), _cloned(out.logits), _cloned(out.features))


def _cloned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
