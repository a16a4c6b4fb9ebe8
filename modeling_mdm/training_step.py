# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""A training step: what is drawn, how content is noised, and the losses of what is made of it.

`MDMForJointGeneration.forward` calls these one after the other. Each source of randomness is an
argument there, and drawn where it is None, as `draws.py` says.

Axes: b batch, n positions of one modality, d latent_dim, K candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .configuration_mdm import MDMConfig
from .decoder import DecoderInputs
from .diffusion import add_noise
from .distributed import num_processes
from .draws import NOISES, Draws, ItemKeys
from .inputs import EncodedInputs
from .loss import (
    Prediction,
    Tallies,
    asking,
    diffusion_losses,
    loss_counts,
    reconstruction_losses,
    total_loss,
)
from .network import Denoised, MDMNetwork
from .past_turns import last_given
from .precision import at_least_float32
from .sequence import drop_prompt, take_part


@dataclass
class Randomness:
    """Every random source of a training step; see [`MDMForJointGeneration.forward`].

    drop_prompt: (b,) bool. times: (b,) by modality. candidate_noise: (b, n, K, d) by modality.
    noise, posterior_noise, decoder_noise: (b, n, d) by modality. keep: share of items that a scan
    reads. self_condition: whether a first estimate is fed back.
    """

    drop_prompt: Tensor | None = None
    times: dict[str, Tensor] | None = None
    noise: dict[str, Tensor] | None = None
    posterior_noise: dict[str, Tensor] | None = None
    decoder_noise: dict[str, Tensor] | None = None
    candidate_noise: dict[str, Tensor] | None = None
    keep: float | None = None
    self_condition: bool | None = None

    def drawn(
        self, encoded: EncodedInputs, network: MDMNetwork, keys: ItemKeys | None = None
    ) -> "Randomness":
        """Draw what is None: in training as the configuration says, else times alone, and noise."""
        config, training, drop_prompt = network.config, network.training, self.drop_prompt
        draws, content = Draws(encoded.class_labels, keys), encoded.content
        if drop_prompt is None:
            learns_null = training and config.num_null_tokens
            rate = config.null_prompt_probability if learns_null else 0.0
            drop_prompt = draws.of_items("drop_prompt") < rate
        times = draw_times(encoded, network, draws, self.times or {})
        candidates = dict(self.candidate_noise or {})
        if config.se_candidates == "trajectory":
            missing = {m: own for m, own in content.items() if m not in candidates}
            shape = (config.num_trajectory_candidates, config.latent_dim)
            candidates |= draws.gaussians(["candidate_noise"], missing, shape)["candidate_noise"]
        noises = draws.gaussians(NOISES[:3], content, (config.latent_dim,))
        for name, by_modality in noises.items():
            by_modality.update(getattr(self, name) or {})
        drawn = replace(
            self, drop_prompt=drop_prompt, times=times, candidate_noise=candidates, **noises
        )
        if drawn.keep is None:
            drawn.keep = draw_keep(config, training, draws)
        if drawn.self_condition is None or not config.self_conditioning:
            # A pass more in one process alone would break the order in which split weights gather.
            feeds_back = training and config.self_conditioning
            drawn.self_condition = feeds_back and draws.of_batch("self_condition") < 0.5
        return drawn


# The path of words and picture in a training on coupled times: words this far ahead, in nats of
# log-SNR, give or take.
COUPLED_LEAD, COUPLED_JITTER = 2.0, 1.5


def draw_times(
    encoded: EncodedInputs, network: MDMNetwork, draws: Draws, passed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Times (b,) of every modality: uniform, where they were not passed or are NaN there.

    In training, where both modalities are noisy: some pairs lie along the path of the sampler's
    common clock, and sometimes t = 1 for one of them, which is what joint guidance asks of the
    network.
    """
    times = {modality: draws.of_items(f"time_{modality}") for modality in encoded.content}
    if len(times) == 2 and network.training:
        times = _joint_times(times, encoded, network, draws)
    for modality, time in passed.items():
        time = time.to(at_least_float32(time.dtype))
        drawn = times.get(modality, time).to(time.dtype)
        times[modality] = torch.where(time.isnan(), drawn, time)
    return times


def _joint_times(
    times: dict[str, Tensor], encoded: EncodedInputs, network: MDMNetwork, draws: Draws
) -> dict[str, Tensor]:
    """Couple the times (b,) of some items that write both modalities; hide one side of others."""
    config, text, image = network.config, network.schedules["text"], network.schedules["image"]
    both = encoded.content["image"].noisy.any(-1) & encoded.content["text"].noisy.any(-1)
    hidden = both & (draws.of_items("hidden") < config.null_modality_probability)
    image_side = draws.of_items("image_side") < 0.5
    if config.coupled_time_probability:
        coupled = both & (draws.of_items("coupled") < config.coupled_time_probability)
        lead = COUPLED_LEAD + COUPLED_JITTER * (2 * draws.of_items("lead") - 1)
        # So that each keeps half of its own distribution.
        from_image = draws.of_items("from_image") < 0.5
        of_text = text.time_of(image.log_snr(times["image"]) + lead)
        of_image = image.time_of(text.log_snr(times["text"]) - lead)
        times = {
            "text": torch.where(coupled & from_image, of_text, times["text"]),
            "image": torch.where(coupled & ~from_image, of_image, times["image"]),
        }
    return {
        "text": torch.where(hidden & ~image_side, 1.0, times["text"]),
        "image": torch.where(hidden & image_side, 1.0, times["image"]),
    }


def draw_keep(config: MDMConfig, training: bool, draws: Draws) -> float:
    """One of `selection_keep` in training with selection, else everything."""
    if not (training and config.use_selection and config.mixer == "mamba2"):
        return 1.0
    return float(config.selection_keep[int(draws.of_batch("keep") * len(config.selection_keep))])


@dataclass
class NoisyStep:
    """A batch on its way into the network.

    encoded: its content. drawn: what is random. z_0: standardised latents (b, n, d) by modality.
    diffused: the same, with the share of their gradient that diffusion may send to the VAE.
    inputs, candidates: of [`MDMNetwork.denoise`].
    """

    encoded: EncodedInputs
    drawn: Randomness
    z_0: dict[str, Tensor]
    diffused: dict[str, Tensor]
    inputs: DecoderInputs
    candidates: dict[str, Tensor]


def noise_inputs(network: MDMNetwork, encoded: EncodedInputs, drawn: Randomness) -> NoisyStep:
    """Sample z_0, drop prompts, noise what is to be written (Eq. 1), lay out the sequence."""
    scale = network.config.latent_gradient_scale
    z_0 = encoded.sample_posterior(drawn.posterior_noise, network.vae)
    diffused = {modality: scale_gradient(latents, scale) for modality, latents in z_0.items()}
    given = {
        modality: replace(positions, latents=scale_gradient(positions.latents, scale))
        for modality, positions in encoded.content.items()
    }
    content, has_class = drop_prompt(given, encoded.has_class, drawn.drop_prompt)
    z_t = {}
    for modality, latents in diffused.items():
        alpha_bar = network.schedules[modality].alpha_bar(drawn.times[modality])[:, None, None]
        z_t[modality] = add_noise(latents, drawn.noise[modality], alpha_bar)
    candidates = network.candidate_latents(content)
    inputs = DecoderInputs(
        network.decoder.lay_out(content, has_class, drawn.drop_prompt, encoded.grid),
        content,
        z_t,
        drawn.times,
        torch.where(has_class, encoded.class_labels, -1),
        keep=drawn.keep,
    )
    candidates = {modality: scale_gradient(y, scale) for modality, y in candidates.items()}
    return NoisyStep(encoded, drawn, z_0, diffused, inputs, candidates)


def feed_back(network: MDMNetwork, step: NoisyStep) -> dict[str, Tensor] | None:
    """Estimate once for self-conditioning, without a gradient."""
    if not step.drawn.self_condition:
        return None
    with torch.no_grad():
        return network.denoise(step.inputs, step.candidates).clean


def update_statistics(
    network: MDMNetwork, encoded: EncodedInputs, num_items_in_batch: dict[str, Tensor] | None
) -> None:
    """Let the running latent statistics see this batch, where latents learn.

    Under an adapter of peft they stand still: it is saved without them.
    """
    if getattr(network, "peft_config", None):
        return
    for modality, statistics in network.vae.statistics.items():
        if not network.vae.learns(modality):
            continue
        total = None if num_items_in_batch is None else num_items_in_batch[f"real_{modality}"]
        if encoding := encoded.modalities.get(modality):
            means = encoding.posterior_mean.detach()
            statistics.update(means, encoding.content.valid, total)
        elif num_processes() > 1:  # another process may have what this batch lacks
            statistics.update(None, None, total)


def gather_losses(
    network: MDMNetwork,
    step: NoisyStep,
    denoised: Denoised,
    predicted: dict[str, Tensor],
    num_items_in_batch: dict[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Eq. 18, its parts and what they are means of, by their names in [`MDMOutput`].

    Args:
        predicted: log(1 + se) of every position (b, n), by modality.
        num_items_in_batch: as for [`MDMForJointGeneration.forward`].
    """
    config, encoded, drawn, content = network.config, step.encoded, step.drawn, step.inputs.content
    counts = loss_counts(config, encoded, num_items_in_batch)
    predictions = {
        modality: Prediction(
            step.diffused[modality],
            step.inputs.z_t[modality],
            denoised.clean[modality],
            drawn.times[modality],
            network.schedules[modality],
            drawn.candidate_noise.get(modality),
            denoised.logits.get(modality),
            encoded.modalities[modality].symbols,
        )
        for modality in content
    }
    tallies = Tallies(encoded.class_labels)
    losses = diffusion_losses(config, content, predictions, predicted, counts, tallies)
    # Latent statistics are float32 in a model of any type, the weights of the VAE are not.
    z_0 = {modality: latents.to(network.dtype) for modality, latents in step.z_0.items()}
    noise = drawn.decoder_noise
    losses |= reconstruction_losses(
        network.vae, encoded, z_0, noise, config.latent_noise, counts, tallies
    )
    # CODEPATH: as where the head is made.
    if config.use_mode_head:
        losses["loss_mode"] = mode_loss(network, encoded, counts["asking"], tallies)
    return {**losses, "loss": total_loss(config, losses), "tallies": tallies.values}


def mode_loss(
    network: MDMNetwork, encoded: EncodedInputs, count: Tensor, tallies: Tallies | None = None
) -> Tensor:
    """Cross-entropy of what the masks leave to be written, given the last turn before it; 0-dim.

    The given part is evaluated once more, without what is to be written: its start tokens would
    tell. A sum over the asking items, by a count of such, which goes into `tallies`.
    """
    content = encoded.content
    absent = torch.zeros_like(encoded.has_class)
    noisy = {modality: positions.noisy.any(-1) for modality, positions in content.items()}
    has_text, has_image = noisy.get("text", absent), noisy.get("image", absent)
    mode = torch.where(has_image, 1 + has_text.long(), 0)  # as in GENERATION_MODES
    given = {m: positions.without(positions.noisy) for m, positions in content.items()}
    with torch.no_grad():
        sequence = network.decoder.lay_out(given, encoded.has_class, absent, encoded.grid)
        part = take_part(sequence, given, given=True)
        features = network.read(part, encoded.class_labels)
    turn = torch.stack([last_given(positions) for positions in given.values()]).amax(0)
    logits = network.mode_head(features, part.content, turn)
    taught = asking(content)
    error = F.cross_entropy(logits, mode, reduction="none")
    if tallies is not None:
        tallies.add("loss_mode", error, taught)
    return torch.where(taught, error, 0).sum() / count


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x, with its gradient multiplied by `scale`."""
    if scale == 1:
        return x
    return x.detach() if scale == 0 else x.detach() + scale * (x - x.detach())
