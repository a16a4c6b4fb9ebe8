# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""One evaluation of the network for both modalities: guidance, prompt cache, CUDA graph.

Axes: b batch, r branches of guidance, n positions of one modality, m those of them that are
evaluated, d latent_dim, v vocabulary.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cache import PromptCache
from .content import ModalityContent, written
from .decoder import DecoderInputs, recorded_selections
from .generation_settings import Settings
from .inputs import EncodedInputs
from .network import Denoised, MDMNetwork
from .past_turns import PastTurns, read_given, weights_fingerprint
from .sequence import JointSequence, SequencePart, drop_prompt, take_part, whole


def guide(outputs: dict[str, Tensor], scales: dict[str, float]) -> Tensor:
    """Extrapolate from weaker branches towards the conditional one, each by its own scale.

    conditional + sum of (scale - 1) (conditional - weaker): 1 is off, and a branch that was not
    evaluated is left out.

    Args:
        outputs: of the same shape, by branch. scales: of the weaker branches.
    """
    conditional = guided = outputs["conditional"]
    for branch, scale in scales.items():
        if branch in outputs and scale != 1:
            guided = guided + (scale - 1) * (conditional - outputs[branch])
    return guided


@dataclass
class Branches:
    """The branches of guidance of a batch, stacked (r * b): the conditional one first.

    One has the prompt replaced by the null tokens, `"unconditional"` (classifier-free guidance);
    for joint guidance one is named for each modality, with the other at t = 1.
    """

    names: list[str]
    sequence: JointSequence
    content: dict[str, ModalityContent]
    class_labels: Tensor

    @classmethod
    def of(
        cls,
        network: MDMNetwork,
        encoded: EncodedInputs,
        modalities: Collection[str],
        settings: Settings,
    ) -> "Branches":
        """Lay out the branches that the guidance of some modalities reads."""
        content, prompted = encoded.content, _prompted(encoded)
        names = ["conditional"]
        is_guided = any(settings.guidance_scale[modality] != 1 for modality in modalities)
        if is_guided and bool(prompted.any()):
            names.append("unconditional")
        if len(modalities) == 2:
            scales = settings.joint_guidance_scale
            names += [modality for modality in ("image", "text") if scales[modality] != 1]
        dropped = torch.cat([prompted & (name == "unconditional") for name in names])
        r = len(names)
        stacked = {modality: positions.repeat(r) for modality, positions in content.items()}
        stacked, has_class = drop_prompt(stacked, encoded.has_class.repeat(r), dropped)
        labels = torch.where(has_class, encoded.class_labels.repeat(r), -1)
        sequence = network.decoder.lay_out(stacked, has_class, dropped, encoded.grid)
        return cls(names, sequence, stacked, labels)

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Values (r * b, ...) by branch, (b, ...) each."""
        each = values.split(len(values) // len(self.names))
        return dict(zip(self.names, each, strict=True))

    def hidden(self, modality: str) -> list[bool]:
        """Which branches show a modality at t = 1."""
        return [name in ("image", "text") and name != modality for name in self.names]


def _prompted(encoded: EncodedInputs) -> Tensor:
    """Items with anything that guidance takes away: (b,) bool."""
    prompts = [positions.prompt().any(-1) for positions in encoded.content.values()]
    return encoded.has_class | torch.stack(prompts).any(0)


@dataclass
class PromptReader:
    """Reads what is given, in all branches of guidance and once for samples that share it.

    settings: as they say, from `past` on, and turn by turn.
    past: what was read of conversations; after `read`, what later calls may go on from.
    samples: of each item, which follow each other. weights: from `weights_fingerprint`.
    """

    network: MDMNetwork
    settings: Settings
    past: PastTurns | None
    samples: int
    weights: bytes

    @classmethod
    def of(cls, network: MDMNetwork, settings: Settings, past: PastTurns | None) -> "PromptReader":
        """Make the reader of a run."""
        weights = weights_fingerprint(network) if settings.reads_turns else b""
        return cls(network, settings, past, settings.num_return_sequences, weights)

    def of_samples(self) -> "PromptReader":
        """The same with a past of every sample, once what is given differs from one to another."""
        past = None if self.past is None else self.past.batch_repeat_interleave(self.samples)
        return replace(self, past=past, samples=1)

    def read(self, encoded: EncodedInputs, branches: Branches) -> PromptCache:
        """Evaluate what is given of a batch (b): the frozen cache of all branches (r * b)."""
        batch, device = len(encoded.class_labels), branches.class_labels.device
        first = torch.arange(0, batch, self.samples, device=device)
        if self.settings.reads_turns:
            items = encoded if self.samples == 1 else encoded.rows(first)
            layout = branches.sequence.rows(first)
            self.past, shared = read_given(self.network, items, layout, self.weights, self.past)
        else:
            self.past, shared = None, self._read_whole(branches, first)
        # Joint guidance takes nothing from what is given.
        caches = [
            self._read_whole(branches, first + batch) if name == "unconditional" else shared
            for name in branches.names
        ]
        cache = PromptCache.join(caches)
        cache.freeze()
        if self.samples > 1:
            rows = torch.arange(len(first) * len(caches), device=device)
            cache = cache.rows(rows.repeat_interleave(self.samples))
        return cache

    def _read_whole(self, branches: Branches, rows: Tensor) -> PromptCache:
        """Read some rows (m,) of all branches at once."""
        cache = PromptCache(len(self.network.decoder.layers))
        content = {
            modality: positions.rows(rows) for modality, positions in branches.content.items()
        }
        part = take_part(branches.sequence.rows(rows), content, given=True)
        labels = branches.class_labels[rows]
        self.network.read(part, labels, cache, self.settings.keep)
        return cache


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

    Args:
        network: the model. encoded: its encoded inputs (b).
        noise: initial noise by modality; what joint guidance shows at t = 1.
        settings: of the run. reader: reads what is given, where it is cached.
        keeps_selection: whether to note what every scan reads.

    Attributes:
        evaluations: of the network.
        last: by modality, what its last evaluation gave.
        selections: of every evaluation, by modality: (b, n, blocks * k) bool.
    """

    def __init__(
        self,
        network: MDMNetwork,
        encoded: EncodedInputs,
        noise: dict[str, Tensor],
        settings: Settings,
        reader: PromptReader,
        keeps_selection: bool = False,
    ) -> None:
        self.network, self.settings, self.reader, self.noise = network, settings, reader, noise
        self.keeps_selection = keeps_selection
        self.selections: list[dict[str, Tensor]] = []
        self.content = encoded.content
        self.given = {
            modality: positions.latents for modality, positions in encoded.content.items()
        }
        self.known: dict[str, Tensor] = {}  # noisy positions (b, n, 1) whose content is known
        branches = self.branches = Branches.of(network, encoded, noise, settings)
        # The noisy part, or all of the sequence where nothing is cached.
        self.part, self.cache = whole(branches.sequence, branches.content), None
        if settings.use_cache:
            self.part = take_part(branches.sequence, branches.content, given=False)
            self.cache = reader.read(encoded, branches)
        batch = len(encoded.class_labels)
        self.conditional = self.part.rows(torch.arange(batch, device=branches.class_labels.device))
        self.candidates = network.candidate_latents(self.part.content)
        self._evaluate = self._choose_evaluation()
        self.evaluations = 0
        self.last: dict[str, LastOutput] = {}
        self._estimates: dict[str, Tensor] = {}  # of the part, in all branches
        self._fed_back: dict[str, Tensor] = {}

    def continued(self, encoded: EncodedInputs) -> "GuidedDenoiser":
        """Make the denoiser of the same batch with other positions given than so far.

        Args:
            encoded: the batch with a finished modality in the place of its noisy positions, or with
                pixels noisy that were given: their estimate stays what they are.
        """
        noisy = written(encoded.content)
        noise = {modality: self.noise[modality] for modality in noisy}
        reader = self.reader.of_samples()
        keeps = self.keeps_selection
        rest = GuidedDenoiser(self.network, encoded, noise, self.settings, reader, keeps)
        rest.evaluations, rest.last = self.evaluations, self.last
        rest.selections = self.selections
        for modality, mask in noisy.items():
            known = mask & self.content[modality].given
            if bool(known.any()):
                rest.known[modality] = known[..., None]
        rest._estimates = rest._kept(self, self._estimates)
        rest._fed_back = rest._kept(self, self._fed_back)
        return rest

    def _kept(self, before: "GuidedDenoiser", values: dict[str, Tensor]) -> dict[str, Tensor]:
        """What an earlier denoiser kept, branch by branch.

        Where a modality is finished, and branches differ, all have that of the conditional one.
        """
        same, kept = before.noise.keys() == self.noise.keys(), {}
        for modality in self.noise.keys() & values.keys():
            branches = before.branches.split(values[modality])
            states = [
                before.conditional.put(
                    modality, branches[name if same else "conditional"], before.given[modality]
                )
                for name in self.branches.names
            ]
            kept[modality] = self.part.take(modality, torch.cat(states))
        return kept

    def __call__(
        self, z: dict[str, Tensor], t: dict[str, Tensor], moved: Collection[str]
    ) -> dict[str, Tensor]:
        """Give clean estimates (b, n, d) of the modalities in z, at the 0-dimensional times t.

        Given positions keep what they are.

        Args:
            z, t: by modality. moved: modalities whose state is another than in the call before.
        """
        # Each branch is fed its own last estimate, as in training. A modality that waits is fed
        # what it was: how long others take must not show in an item that writes it alone.
        fresh = self._estimates.keys() & set(moved)
        self._fed_back = self._fed_back | {
            modality: self._estimates[modality] for modality in fresh
        }
        with recorded_selections(self.network.decoder.layers, self.keeps_selection) as selected:
            denoised = self._evaluate(self._inputs(z, t), self.candidates)
        if selected:
            self.selections.append(self._selection(selected))
        self.evaluations += 1
        self._estimates = {modality: denoised.clean[modality] for modality in self.noise}
        return {modality: self._guided(modality, denoised, t[modality]) for modality in self.noise}

    @property
    def length(self) -> int:
        """Positions of the joint sequence that an evaluation reads."""
        return self.part.sequence.valid.shape[1]

    def _inputs(self, z: dict[str, Tensor], t: dict[str, Tensor]) -> DecoderInputs:
        """What all branches show: states (r * b, m, d) and times (r,) by modality."""
        states, times = {}, {}
        for modality in self.part.content:
            state = z[modality] if modality in self.noise else self.given[modality]
            time = t.get(modality, torch.zeros((), device=state.device))
            hidden = self.branches.hidden(modality)
            stacked = torch.cat([self.noise[modality] if hides else state for hides in hidden])
            states[modality] = self.part.take(modality, stacked)
            times[modality] = torch.stack(
                [torch.ones_like(time) if hides else time for hides in hidden]
            )
        return DecoderInputs(
            self.part.sequence,
            self.part.content,
            states,
            times,
            self.branches.class_labels,
            self._fed_back,
            self.settings.keep,
            self.cache,
        )

    def _selection(self, selected: list[Tensor]) -> dict[str, Tensor]:
        """What scans read of each modality in the conditional branch: (b, n, blocks * k).

        Args:
            selected: of every block, (r * b, k, l) by position of the part.
        """
        sequence, found = self.part.sequence, {}
        read = torch.stack(selected, 1).flatten(1, 2).transpose(1, 2)  # (r * b, l, blocks * k)
        for modality, where in (("text", sequence.words), ("image", sequence.patches)):
            if modality in self.content:
                count = self.content[modality].given.shape
                blank = read.new_zeros((*count, read.shape[-1]))
                found[modality] = blank
                if modality in self.part.content:
                    own = read[: count[0], where]
                    found[modality] = self.conditional.put(modality, own, blank)
        return found

    def _scales(self, modality: str, t: Tensor) -> dict[str, float]:
        """Scales of the weaker branches that guide a modality at its time t; none act elsewhere."""
        settings = self.settings
        window = settings.guidance_window[modality]
        if window is not None:
            log_snr = float(self.network.schedules[modality].log_snr(t))
            if not window[0] <= log_snr <= window[1]:
                return {}
        return {
            "unconditional": settings.guidance_scale[modality],
            modality: settings.joint_guidance_scale[modality],
        }

    def _guided(self, modality: str, denoised: Denoised, t: Tensor) -> Tensor:
        """Guide the outputs of one modality at its time t: its clean estimate (b, n, d)."""
        given, scales = self.given[modality], self._scales(modality, t)
        # Guidance acts on the logits of what is discrete, and on the estimate of what is not.
        output, logits = denoised.logits.get(modality, denoised.clean[modality]), None
        guided = guide(self.branches.split(output), scales)
        if modality in denoised.logits:
            logits = guided
            guided = self.network.expected_latent(logits, self.candidates[modality])
        features = self.branches.split(denoised.features[modality])["conditional"]
        self.last[modality] = LastOutput(self.conditional, logits, features)
        estimate = self.conditional.put(modality, guided.to(given.dtype), given)
        known = self.known.get(modality)
        return estimate if known is None else torch.where(known, given, estimate)

    def _choose_evaluation(self) -> Callable[[DecoderInputs, dict[str, Tensor]], Denoised]:
        """One evaluation of the network: as it is, compiled, or replayed as a CUDA graph."""
        network, settings = self.network, self.settings
        if settings.compile:  # what was compiled of it before is found again
            return torch.compile(network.denoise)
        is_static = self.cache is not None and not self.keeps_selection
        # The grid of the linear schedule comes from the host, which a graph does not capture.
        is_static &= all(network.schedules[modality].name != "linear" for modality in self.noise)
        if settings.cuda_graph and is_static and network.device.type == "cuda":
            return GraphedStep(network.denoise)
        return network.denoise


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
        estimates = {
            modality: estimates.get(modality, torch.zeros_like(z))
            for modality, z in inputs.z_t.items()
        }
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
