# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`score()`: a lower bound on the log-likelihood of content under the model, to compare candidates.

What is noisy (`text_given` / `image_given` False) is scored, the rest is its condition.
`likelihood.py` derives the bound. Here z_1 is the state whose noise the decoder is trained on,
SNR_1 = 1 / latent_noise^2. Latents are standardised, so the variance of q(z_0 | x) is the encoder's
over that of the statistics: x is words or pixels, and no other trace of this change of variables
is left in log p(x).

Axes: b batch, n positions of one modality, d latent_dim, v vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from .cache import PromptCache
from .checks import choice, flag, integer, number
from .configuration_mdm import MDMConfig
from .content import GENERATION_MODES, ModalityContent, written
from .decoder import DecoderInputs
from .diffusion import MAX_LOG_SNR
from .generation_regions import open_content
from .inputs import EncodedInputs, check_inputs
from .likelihood import LAST_LOG_SNR, NoiseLevels, Posterior, standard_error, time_of
from .network import Denoised
from .precision import warn_if_computes_emulated
from .score_entropy import denoising_weight, gaussian_score_entropy, vocabulary_score_entropy
from .sequence import SequencePart, take_part

LEVELS = ("random", "grid")
Belief = tuple[Tensor, Tensor]  # mean and variance of z_0, (b, n, d) each


@dataclass
class MDMScoreOutput(ModelOutput):
    """
    Output of `score()`, in nats.

    Args:
        log_likelihood: the lower bound of each item (b,), less than or equal to log p in
            expectation: `-(reconstruction + diffusion + prior)`. For words p is a probability, for
            pixels a density over values in [-1, 1].
        standard_error: how far `log_likelihood` lies from its expectation over noise and levels,
            one standard deviation (b,), estimated from how the evaluations of this call scatter
            about their neighbours in log-SNR (`likelihood.standard_error`); nan with fewer than 3
            evaluations, which have nothing to be told from. It is of each item alone: with
            `shared_noise` the difference of two items is known better than either.
        reconstruction, diffusion, prior: its parts (b,).
        score_entropy: Eq. 4 at the noise levels that were evaluated, summed over positions, a mean
            over levels (b,). Lower is better. No bound, but it ranks candidates with fewer
            evaluations.
        position_log_likelihood: each position's share of the bound (b, n), by modality; 0 where
            nothing is scored.
        position_score_entropy: the same of the score entropy.
        num_evaluations: how often the network was evaluated.
    """

    log_likelihood: Tensor | None = None
    standard_error: Tensor | None = None
    reconstruction: Tensor | None = None
    diffusion: Tensor | None = None
    prior: Tensor | None = None
    score_entropy: Tensor | None = None
    position_log_likelihood: dict[str, Tensor] | None = None
    position_score_entropy: dict[str, Tensor] | None = None
    num_evaluations: int | None = None


class MDMScoringMixin:
    """Gives a model `score()`."""

    @torch.no_grad()
    def score(
        self,
        input_ids: Tensor | None = None,
        content: str | None = None,
        num_evaluations: int = 32,
        levels: str = "random",
        generator: torch.Generator | None = None,
        shared_noise: bool = True,
        pixel_std: float = 0.1,
        **inputs: Tensor | None,
    ) -> MDMScoreOutput:
        """
        Bound log p(what is noisy | what is given) from below, in nats.

        Args:
            input_ids: words (b, t); with the other inputs of [`MDMForJointGeneration.forward`] as
                keywords.
            content: None scores what the masks leave noisy. `"text"` scores every item's words of
                its last turn, with the padding words that a caption is learned with; `"image"` its
                pictures of the last turn; `"joint"` both.
            num_evaluations: at how many noise levels the network is evaluated; three are needed to
                say how far off the bound may be (`standard_error`).
            levels: `"random"`: drawn from equal parts of the log-SNR, an unbiased estimate of the
                bound of infinitely many steps. `"grid"`: the bound of a sampler with as many steps,
                which is lower.
            generator: of noise and levels.
            shared_noise: all items see the same noise, so that their differences vary little. False
                draws it for each item.
            pixel_std: standard deviation of a pixel about the decoder's picture (Eq. 15), in units
                of [-1, 1]; with a VQ-VAE, of a value of its code vectors.

        Returns:
            [`MDMScoreOutput`].

        Raises:
            ValueError: nothing is noisy, an unknown `content` or `levels`, `num_evaluations` < 1,
                `pixel_std` <= 0, or inputs that `forward` would reject.
        """
        num_evaluations = _check(num_evaluations, levels, pixel_std, shared_noise, generator)
        fix = f"choose None or one of {', '.join(GENERATION_MODES)}."
        choice("content", content, (None, *GENERATION_MODES), fix)
        warn_if_computes_emulated(self.dtype, self.device)
        inputs = {"input_ids": input_ids, **inputs}
        check_inputs(inputs, self.config)
        inputs = open_content(inputs, content, self.config)
        encoded = self.encode_inputs(**inputs)
        posteriors = self._posteriors(encoded)
        walk = NoiseLevels.draw(
            first_log_snr(self.config), num_evaluations, levels == "grid", generator
        )
        times = {
            modality: time_of(self.schedules[modality], walk.log_snrs) for modality in posteriors
        }
        believe = self._believer(encoded, posteriors)
        found = {modality: _Nats.of(q.prior(walk.last)) for modality, q in posteriors.items()}
        scatter = []  # nats of every evaluation, (b,) each
        for index, log_snr in enumerate(walk.log_snrs):
            noise = _draw_noise(posteriors, shared_noise, generator)
            z_t = {
                modality: q.diffuse(noise[modality], log_snr) for modality, q in posteriors.items()
            }
            at = {modality: t[index] for modality, t in times.items()}
            beliefs, entropies = believe(z_t, at, log_snr)
            nats = []
            for modality, q in posteriors.items():
                true = q.given(z_t[modality], log_snr)
                divergence = walk.divergence(index, true, beliefs[modality])
                z_1 = q.diffuse(noise[modality], walk.first)
                surprise = (
                    self._surprise(modality, z_1, walk.first, encoded, pixel_std) / num_evaluations
                )
                found[modality].diffusion += divergence
                found[modality].reconstruction += surprise
                found[modality].score_entropy += entropies[modality] / num_evaluations
                nats.append(_over_noisy(divergence + surprise, encoded.content[modality]).sum(-1))
            scatter.append(sum(nats))
        return _gather(found, encoded, standard_error(torch.stack(scatter)), num_evaluations)

    def _posteriors(self, encoded: EncodedInputs) -> dict[str, Posterior]:
        """Give q(z_0 | x) (b, n, d) of every modality that is scored."""
        noisy = written(encoded.content)
        if not noisy:
            raise ValueError(
                "Nothing to score: every position is given or padding. Pass `content`, or masks "
                "(`text_given`, `image_given`) that leave something noisy."
            )
        encodings = {modality: encoded.modalities[modality] for modality in noisy}
        return {
            modality: self._posterior(modality, own.posterior_mean, own.posterior_logvar)
            for modality, own in encodings.items()
        }

    def _posterior(self, modality: str, mean: Tensor, logvar: Tensor) -> Posterior:
        """Standardise what the encoder gives of one modality."""
        statistics = self.vae.statistics[modality]
        mean = statistics.standardize(mean.to(torch.promote_types(mean.dtype, torch.float32)))
        return Posterior(mean, logvar.to(mean).exp() * statistics.scale.to(mean).square())

    def _candidate_posteriors(self, posteriors: dict[str, Posterior]) -> dict[str, Posterior]:
        """Give q(z_0 | v) (v, d) of all words, and of all codes of a VQ-VAE."""
        candidates = {}
        if "text" in posteriors:
            words = torch.arange(self.config.vocab_size, device=self.device)
            candidates["text"] = self._posterior("text", *self.vae.encode(words, "text"))
        if "image" in posteriors and self.vq is not None:
            codes = self.vq.codebook.to(self.dtype)
            candidates["image"] = self._posterior("image", *self.vae.encode(codes, "image"))
        return candidates

    def _believer(
        self, encoded: EncodedInputs, posteriors: dict[str, Posterior]
    ) -> Callable[
        [dict[str, Tensor], dict[str, Tensor], Tensor], tuple[dict[str, Belief], dict[str, Tensor]]
    ]:
        """Give a function from states (b, n, d), times and a log-SNR to what the model believes.

        That is mean and variance of z_0 (b, n, d), by modality, and the score entropy (b, n) of one
        evaluation of the network; 0 where nothing is scored. What is given is read once for all.
        """
        content, labels = encoded.content, encoded.class_labels
        none_dropped = torch.zeros_like(encoded.has_class)
        sequence = self.decoder.lay_out(content, encoded.has_class, none_dropped, encoded.grid)
        cache = PromptCache(len(self.decoder.layers))
        self.read(take_part(sequence, content, given=True), labels, cache)
        cache.freeze()
        part = take_part(sequence, content, given=False)
        latents = self.candidate_latents(part.content)
        candidates = self._candidate_posteriors(posteriors)

        def put(modality: str, values: Tensor) -> Tensor:
            others = values.new_zeros(*content[modality].given.shape, values.shape[-1])
            return part.put(modality, values, others)

        def believe(
            states: dict[str, Tensor], at: dict[str, Tensor], log_snr: Tensor
        ) -> tuple[dict[str, Belief], dict[str, Tensor]]:
            z_t = {
                modality: part.take(modality, state).to(content[modality].latents)
                for modality, state in states.items()
            }
            times = {modality: at[modality].to(state).expand(1) for modality, state in z_t.items()}
            inputs = DecoderInputs(part.sequence, part.content, z_t, times, labels, cache=cache)
            denoised = self.denoise(inputs, latents)
            beliefs, entropies = {}, {}
            for modality, state in states.items():
                taken = part.take(modality, state)
                if modality in candidates:
                    belief = candidates[modality].mixture(denoised.logits[modality], taken, log_snr)
                else:
                    # The network says nothing of its own error: Eq. 3's step as it is.
                    belief = denoised.clean[modality].to(state), torch.zeros_like(taken)
                beliefs[modality] = put(modality, belief[0]), put(modality, belief[1])
                entropy = self._score_entropy(
                    modality, denoised, posteriors[modality], log_snr, encoded, part
                )
                entropies[modality] = put(modality, entropy[..., None])[..., 0]
            return beliefs, entropies

        return believe

    def _surprise(
        self, modality: str, z_1: Tensor, log_snr: Tensor, encoded: EncodedInputs, pixel_std: float
    ) -> Tensor:
        """-log p(x | z_1) of every position, (b, n): Eq. 16, or a Gaussian about Eq. 15's patch."""
        # The decoder reads z_0 plus noise: z_1 without its factor of the signal.
        latents = z_1 / torch.sigmoid(log_snr).sqrt().to(z_1)
        encoding = encoded.modalities[modality]
        decoded = self.vae.decode(
            latents.to(self.dtype), modality, encoded.grid, encoding.content.valid
        ).to(z_1)
        if modality == "text":
            return vocabulary_score_entropy(decoded, encoding.target)
        if self.vq is not None:
            squares = torch.cdist(decoded, self.vq.codebook.to(decoded)).square()
            return vocabulary_score_entropy(-squares / (2 * pixel_std**2), encoding.symbols)
        squares = (decoded - encoding.target).square().sum(-1) / (2 * pixel_std**2)
        return squares + encoding.target.shape[-1] * math.log(pixel_std * math.sqrt(2 * math.pi))

    def _score_entropy(
        self,
        modality: str,
        denoised: Denoised,
        posterior: Posterior,
        log_snr: Tensor,
        encoded: EncodedInputs,
        part: SequencePart,
    ) -> Tensor:
        """Eq. 4 of every position of a part over training's exact candidates, (b, m)."""
        if modality in denoised.logits:
            symbols = part.take(modality, encoded.modalities[modality].symbols[..., None])[..., 0]
            return vocabulary_score_entropy(denoised.logits[modality], symbols)
        z_0 = part.take(modality, posterior.mean)
        weight = denoising_weight(torch.sigmoid(log_snr), self.config.denoising_weight_max)
        return gaussian_score_entropy(denoised.clean[modality].to(z_0), z_0, weight.to(z_0))


@dataclass
class _Nats:
    """Nats of every position of one modality, (b, n) each."""

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    score_entropy: Tensor

    @classmethod
    def of(cls, prior: Tensor) -> "_Nats":
        """Start with what needs no evaluation of the network."""
        return cls(prior, *(torch.zeros_like(prior) for _ in range(3)))


def first_log_snr(config: MDMConfig) -> float:
    """Log-SNR of z_1, the state that is decoded."""
    if config.latent_noise == 0:
        return MAX_LOG_SNR
    return max(LAST_LOG_SNR + 1, min(MAX_LOG_SNR, -2 * math.log(config.latent_noise)))


def _check(
    num_evaluations: Any, levels: Any, pixel_std: Any, shared_noise: Any, generator: Any
) -> int:
    """Check the arguments of `score`; the number of evaluations."""
    choice("levels", levels, LEVELS)
    fix = "use a positive number, such as 0.1."
    number("pixel_std", pixel_std, fix, low=math.ulp(0.0))
    flag("shared_noise", shared_noise)
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(
            f"`generator` is {generator!r:.80}: pass torch.Generator().manual_seed(7), or None."
        )
    return integer("num_evaluations", num_evaluations, "use an integer of at least 1.")


def _draw_noise(
    posteriors: dict[str, Posterior], shared: bool, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Draw Gaussian noise by modality: (1, n, d) for all items, or (b, n, d)."""
    noise = {}
    for modality, q in posteriors.items():
        shape = (1, *q.mean.shape[1:]) if shared else q.mean.shape
        device = q.mean.device if generator is None else generator.device
        drawn = torch.randn(shape, generator=generator, device=device, dtype=q.mean.dtype)
        noise[modality] = drawn.to(q.mean.device)
    return noise


def _over_noisy(values: Tensor, positions: ModalityContent) -> Tensor:
    """Keep what is of positions that are scored, (b, n); 0 elsewhere."""
    return torch.where(positions.noisy, values, 0)


def _gather(
    found: dict[str, _Nats], encoded: EncodedInputs, error: Tensor, num_evaluations: int
) -> MDMScoreOutput:
    """Sum all nats over the positions that are scored."""
    names = ("reconstruction", "diffusion", "prior", "score_entropy")
    kept: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for modality, nats in found.items():
        for name in names:
            kept[name][modality] = _over_noisy(getattr(nats, name), encoded.content[modality])
    bounds = {modality: -sum(kept[name][modality] for name in names[:3]) for modality in found}

    def by_item(values: dict[str, Tensor]) -> Tensor:
        return sum(value.sum(-1) for value in values.values())

    return MDMScoreOutput(
        log_likelihood=by_item(bounds),
        standard_error=error,
        **{name: by_item(values) for name, values in kept.items()},
        position_log_likelihood=bounds,
        position_score_entropy=kept["score_entropy"],
        num_evaluations=num_evaluations,
    )


__all__ = ["MDMScoreOutput", "MDMScoringMixin"]
