# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""MDM: one VAE, one diffusion process, one loss and one Mamba-2 decoder for images and text.

Axes: b batch, n positions of one modality (t words or patches), d latent_dim, v vocabulary.
"""

import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple, logging

from .block import GatedRMSNorm, MDMBlock, SelectiveScan
from .cache import PromptCache
from .configuration_mdm import MDMConfig
from .content import ModalityContent
from .decoder import MDMDecoder, StartTokens, TimeEmbedding, ZeroLinear, recorded_states
from .diffusion import NoiseSchedule, add_noise
from .distributed import num_processes
from .generation_mdm import MDMGenerationConfig, MDMGenerationMixin, usual_length_unsaid
from .hub import MODEL_TAGS, name_code, write_model_card
from .inputs import (
    MODEL_INPUTS,
    NOTHING_PASSED,
    EncodedInputs,
    EncodedModality,
    check_kinds,
    check_sizes,
    encode_classes,
    encode_images,
    encode_text,
)
from .loss import (
    Prediction,
    Tallies,
    diffusion_losses,
    loss_counts,
    reconstruction_losses,
    total_loss,
)
from .matmul import project
from .mode_head import ModeHead, mode_loss
from .precision import at_least_float32
from .score_entropy import vocabulary_log_ratio
from .scoring import MDMScoringMixin
from .selection import ScoreEntropyHead
from .sequence import JointSequence, drop_prompt
from .training_step import Randomness
from .vae import MDMVAE, LatentStatistics, VQFrontEnd

logger = logging.get_logger(__name__)

PEFT_PREFIX = "base_model.model."  # of a model's names under an adapter
DECODING_HEAD = "text_head.word_head."  # where an adapter's file keeps `vae.word_head`


@dataclass
class MDMOutput(ModelOutput):
    """
    Output of [`MDMForJointGeneration.forward`].

    Args:
        loss: Eq. 18 and the (detached) fits of the score-entropy head and the mode head; 0-dim.
        loss_se, loss_rec_image, loss_rec_text, loss_kl: its parts, before their weights.
        loss_se_image, loss_se_text: L_se of each modality.
        loss_se_prediction: fit of the score-entropy head.
        loss_mode: fit of the mode head; None without one.
        logits: pair logits of every word (b, t, vocab).
        clean_estimates: by modality, standardised latents (b, n, latent_dim).
        score_entropy: predicted score entropy of every position (b, n), by modality.
        tallies: sum and count of every item for each of `tallies.MEANS`, (b, means, 2); of their
            sum over all items of several batches, `loss.combine_tallies` makes the losses.
        hidden_states: on request, what enters every block and what leaves the last one: features
            (b, l, hidden) of the joint sequence in storage order.
    """

    loss: Tensor | None = None
    loss_se: Tensor | None = None
    loss_rec_image: Tensor | None = None
    loss_rec_text: Tensor | None = None
    loss_kl: Tensor | None = None
    loss_se_image: Tensor | None = None
    loss_se_text: Tensor | None = None
    loss_se_prediction: Tensor | None = None
    loss_mode: Tensor | None = None
    logits: Tensor | None = None
    clean_estimates: dict[str, Tensor] | None = None
    score_entropy: dict[str, Tensor] | None = None
    tallies: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class MDMPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by MDM's models."""

    config_class = MDMConfig
    main_input_name = "input_ids"
    model_tags = list(MODEL_TAGS)
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["MDMBlock"]
    _keep_in_fp32_modules_strict = [
        "A_log",
        "delta_bias",
        "statistics.*.mean",
        "statistics.*.variance",
    ]

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Save as transformers does, with code for every Auto class and pipeline and a card."""
        if self.should_save_on_this_rank(is_main_process) and not os.path.isfile(save_directory):
            name_code(self.config, type(self))
            write_model_card(save_directory)
        with usual_length_unsaid(self):
            super().save_pretrained(save_directory, is_main_process, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # Scaled to the fan-in: widths run from 16 to 2048, which no one deviation fits.
            init.kaiming_uniform_(module.weight, a=5**0.5)
        # Each module fills its own weights alone: transformers leaves out a module whose own are
        # all loaded, or that has none, and with it what it would fill in its children.
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        elif isinstance(module, SelectiveScan):
            for name, value in module.initialize(self.config).items():
                init.copy_(getattr(module, name), value)
        elif isinstance(module, GatedRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, MDMBlock):
            init.zeros_(module.modulation_bias)
        elif isinstance(module, TimeEmbedding):
            init.normal_(module.kind, std=self.config.initializer_range)
        elif isinstance(module, MDMDecoder):
            init.normal_(module.null_tokens, std=self.config.initializer_range)
        elif isinstance(module, StartTokens):
            for token in module.parameters():
                init.normal_(token, std=self.config.initializer_range)
        elif isinstance(module, LatentStatistics):
            init.zeros_(module.mean)
            init.ones_(module.variance)
            init.zeros_(module.updates)
        elif isinstance(module, VQFrontEnd):
            init.zeros_(module.loaded)


class MDMForJointGeneration(MDMPreTrainedModel, MDMGenerationMixin, MDMScoringMixin):
    """
    Multi-Modal Diffusion Mamba: reads and writes images and text through one diffusion process.

    Every position is given, noisy (to be written) or padding; which are given decides the task.

    `from_pretrained` warns of weights that a checkpoint lacks, which then start as in a new model,
    and of weights that the model does not know; a weight of another shape is an error. With
    `output_loading_info=True` it returns their names too.
    """

    output_modalities = ("image", "text")
    accepts_loss_kwargs = True
    is_resized = False  # whether the number of words is another than that of the checkpoint
    generation_config_class = MDMGenerationConfig

    def __init__(self, config: MDMConfig) -> None:
        super().__init__(config)
        self.schedules = {
            "image": NoiseSchedule(config.image_schedule, config.tan_scale),
            "text": NoiseSchedule(config.text_schedule, config.tan_scale),
        }
        # CODEPATH: the shipped checkpoints read pixels; a config may name Janus's or Emu3's VQ-VAE.
        self.vq = VQFrontEnd(config.vq_config, config.patch_size) if config.vq_config else None
        self.vae = MDMVAE(config, self.vq.codebook.shape[1] if self.vq else None)
        self.decoder = MDMDecoder(config)
        image_outputs = self.vq.codebook.shape[0] if self.vq else config.latent_dim
        self.image_head = ZeroLinear(config.hidden_size, image_outputs)
        self.text_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.score_entropy_head = ScoreEntropyHead(config.hidden_size)
        # CODEPATH: an option of training from scratch, which no shipped checkpoint was given.
        if config.exact_ratio_gain:
            self.ratio_gain = ZeroLinear(config.hidden_size, 1, bias=False)
        # CODEPATH: models tuned on conversations; the shipped checkpoints answer as they are told.
        if config.use_mode_head:
            self.mode_head = ModeHead(config.hidden_size)
        self.post_init()

    @property
    def device(self) -> torch.device:
        """Where the model computes: of its statistics, which are not offloaded as weights are."""
        return self.vae.statistics["text"].mean.device

    def get_input_embeddings(self) -> nn.Module:
        """Embedding of the words."""
        return self.vae.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of the words."""
        self.vae.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """Head of the words; `vae.word_head` is another of the same size."""
        return self.text_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the head of the words."""
        self.text_head = value

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """Change the number of words, in all three modules that have a row for each."""
        embedding = super().resize_token_embeddings(
            new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        self.vae.word_head = self._get_resized_lm_head(
            self.vae.word_head, len(embedding.weight), mean_resizing=mean_resizing
        )
        self.is_resized = True
        return embedding

    def _decoding_head(self) -> tuple[str, nn.Module]:
        """Name `vae.word_head` and give it, without an adapter on it."""
        head = self.vae.word_head
        base = getattr(head, "base_layer", head)
        return "vae.word_head." if base is head else "vae.word_head.base_layer.", base

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Of a resized model peft saves what `get_output_embeddings` gives, by the start of its
        # name: so the other head of the words goes along under that name.
        if self.is_resized and prefix.endswith(PEFT_PREFIX):
            _, head = self._decoding_head()
            if hasattr(head.weight, "full_tensor"):  # FSDP2 gathers what stands under its own name
                logger.warning_once(
                    "vae.word_head of the resized vocabulary is split over processes and cannot go "
                    "into the adapter: pass modules_to_save=['word_head'] to its configuration."
                )
                return
            for name, value in head.named_parameters(recurse=False):
                destination[prefix + DECODING_HEAD + name] = value if keep_vars else value.detach()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        name, head = self._decoding_head()
        for key in [key for key, _ in head.named_parameters(recurse=False)]:
            if (value := state_dict.pop(prefix + DECODING_HEAD + key, None)) is not None:
                state_dict[prefix + name + key] = value
        super()._load_from_state_dict(state_dict, prefix, *args)

    def encode_inputs(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_given: Tensor | None = None,
        turn_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        image_given: Tensor | None = None,
        image_turn_ids: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> EncodedInputs:
        """Check the model's inputs and encode their content position by position."""
        if self.vq is not None:
            self.vq.require_loaded()
        given = (input_ids, attention_mask, text_given, turn_ids, pixel_values)
        given += (pixel_attention_mask, image_given, image_turn_ids, class_labels)
        check_kinds(dict(zip(MODEL_INPUTS, given, strict=True)))
        modalities: dict[str, EncodedModality] = {}
        grid = (0, 0, 0)
        if input_ids is not None:
            modalities["text"] = encode_text(
                self.vae, input_ids, attention_mask, text_given, turn_ids
            )
        if pixel_values is not None:
            modalities["image"], grid = encode_images(
                self.vae,
                self.config.patch_size,
                pixel_values,
                pixel_attention_mask,
                image_given,
                image_turn_ids,
                self.vq,
            )
        if not modalities:
            raise ValueError(NOTHING_PASSED)
        check_sizes(input_ids, pixel_values)
        first = next(iter(modalities.values())).target
        labels = encode_classes(class_labels, self.config.num_classes, first.shape[0], first.device)
        return EncodedInputs(modalities, labels, grid)

    def candidate_latents(self, modalities: Iterable[str]) -> dict[str, Tensor]:
        """Give y_v (v, d) of the candidates of what is discrete: words, codes of a VQ-VAE."""
        candidates = {}
        if "text" in modalities:
            candidates["text"] = self.vae.word_latents()
        if "image" in modalities and self.vq is not None:
            candidates["image"] = self.vae.code_latents(self.vq.codebook)
        return candidates

    def denoise(
        self,
        sequence: JointSequence,
        content: dict[str, ModalityContent],
        z_t: dict[str, Tensor],
        times: dict[str, Tensor],
        class_labels: Tensor,
        candidates: dict[str, Tensor],
        estimates: dict[str, Tensor] | None = None,
        keep: float = 1.0,
        cache: PromptCache | None = None,
    ) -> "Denoised":
        """Evaluate the network once.

        Args:
            sequence, content, z_t, times, class_labels, estimates, keep, cache: as for
                [`MDMDecoder`].
            candidates: from `candidate_latents`.
        """
        times = {g: time.to(at_least_float32(time.dtype)) for g, time in times.items()}
        features = self.decoder(sequence, content, z_t, times, class_labels, estimates, keep, cache)
        clean, logits = {}, {}
        for g, head in (("text", self.text_head), ("image", self.image_head)):
            if g not in features:
                continue
            output = project(head, features[g]).to(z_t[g].dtype)
            time = times[g].repeat_interleave(len(output) // max(1, len(times[g])))  # (b,)
            log_snr = self.schedules[g].log_snr(time)[:, None, None]
            if g in candidates:
                logits[g] = output
                # CODEPATH: as where the gain is made.
                if self.config.exact_ratio_gain:
                    time = self.decoder.time_embedding(time[:, None].expand(-1, 3))[:, 1:2]
                    ratio = vocabulary_log_ratio(z_t[g], candidates[g], torch.sigmoid(log_snr))
                    logits[g] = output + self.ratio_gain(time) * ratio
                clean[g] = self.expected_latent(logits[g], candidates[g])
            else:
                # The best linear estimate of a unit-variance latent, and what the network adds to
                # it (v-prediction).
                signal, noise = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
                clean[g] = signal * z_t[g] + noise * output
        return Denoised(clean, logits, features)

    def compiled_denoise(self) -> Callable[..., "Denoised"]:
        """`denoise` under torch.compile, made once for a model."""
        owner, compiled = self.__dict__.get("_compiled_denoise", (None, None))
        if owner is None or owner() is not self:  # a copy of a model brings the original's
            compiled = torch.compile(self.denoise)
            self.__dict__["_compiled_denoise"] = weakref.ref(self), compiled
        return compiled

    @staticmethod
    def expected_latent(logits: Tensor, candidates: Tensor) -> Tensor:
        """Mean of the candidates' latents (v, d) under s_theta (Eq. 7): (b, n, v) -> (b, n, d)."""
        return logits.softmax(-1) @ candidates.to(logits.dtype)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_given: Tensor | None = None,
        turn_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        image_given: Tensor | None = None,
        image_turn_ids: Tensor | None = None,
        class_labels: Tensor | None = None,
        drop_prompt: Tensor | None = None,
        times: dict[str, Tensor] | None = None,
        noise: dict[str, Tensor] | None = None,
        posterior_noise: dict[str, Tensor] | None = None,
        decoder_noise: dict[str, Tensor] | None = None,
        candidate_noise: dict[str, Tensor] | None = None,
        keep: float | None = None,
        self_condition: bool | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        num_items_in_batch: dict[str, Tensor] | None = None,
    ) -> MDMOutput:
        """
        One step of diffusion training (Eq. 18), or one evaluation of the network at given times.

        Args:
            input_ids: (b, t) long.
            attention_mask: (b, t), 0 = alignment padding.
            text_given: (b, t) bool, True = known; None = all to be written.
            turn_ids: (b, t) long.
            pixel_values: (b, channels, height, width) in [-1, 1], or (b, m, ...) for m pictures an
                item.
            pixel_attention_mask: (b, [m,] height, width), 0 = no picture there.
            image_given: the same shape, bool, by pixel; None = all to be written.
            image_turn_ids: (b, m) long.
            class_labels: (b,) long, -1 = none.
            drop_prompt: (b,) bool, replace the prompt by the null tokens.
            times: (b,) in [0, 1] by modality.
            noise, posterior_noise, decoder_noise: (b, n, latent_dim) by modality.
            candidate_noise: (b, n, K, latent_dim) by modality, for `se_candidates="trajectory"`.
            keep: share of items that each scan reads.
            self_condition: feed a first estimate back.
            return_loss: False leaves every loss None.
            output_hidden_states: also return the features between blocks; None asks the
                configuration.
            num_items_in_batch: what each mean of the loss is over where this batch is only part of
                a step, from `loss.count_items_in_batches`: the losses of all parts then sum to that
                of the step, and the statistics of the latents wait for the last part. None: this
                batch, of all processes, is the step.

        What is random, from `drop_prompt` to `self_condition`, is drawn where None: in training as
        `MDMConfig` says, else with uniform times, nothing dropped and nothing fed back.

        Returns:
            [`MDMOutput`], or its entries as a tuple with `return_dict=False`.

        Raises:
            ValueError: neither text nor image, or shapes that do not fit; names the argument and
                the fix.
        """
        encoded = self.encode_inputs(
            input_ids,
            attention_mask,
            text_given,
            turn_ids,
            pixel_values,
            pixel_attention_mask,
            image_given,
            image_turn_ids,
            class_labels,
        )
        random = Randomness(
            drop_prompt,
            times,
            noise,
            posterior_noise,
            decoder_noise,
            candidate_noise,
            keep,
            self_condition,
        ).drawn(encoded, self.config, self.training)
        step = self.noise_inputs(encoded, random)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        estimates = self._feed_back(step, random)
        with recorded_states(self.decoder.layers, output_hidden_states) as hidden_states:
            denoised = self.denoise(**step.arguments, estimates=estimates)
        predicted = {g: self.score_entropy_head(part) for g, part in denoised.features.items()}
        if self.training:
            self._update_statistics(encoded, num_items_in_batch)
        losses = {}
        if return_loss:
            counts = loss_counts(self.config, encoded, num_items_in_batch)
            losses = self._losses(encoded, random, step, denoised, predicted, counts)
        return MDMOutput(
            **losses,
            logits=denoised.logits.get("text"),
            clean_estimates=denoised.clean,
            score_entropy={g: torch.expm1(value).clamp(min=0) for g, value in predicted.items()},
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )

    def noise_inputs(self, encoded: EncodedInputs, random: Randomness) -> "NoisyInputs":
        """Sample z_0, drop prompts, noise what is to be written (Eq. 1), lay out the sequence."""
        scale = self.config.latent_gradient_scale
        z_0 = encoded.sample_posterior(random.posterior_noise, self.vae)
        diffused = {g: scale_gradient(latents, scale) for g, latents in z_0.items()}
        given = {
            g: replace(part, latents=scale_gradient(part.latents, scale))
            for g, part in encoded.content.items()
        }
        content, has_class = drop_prompt(given, encoded.has_class, random.drop_prompt)
        z_t = {}
        for g, latents in diffused.items():
            alpha_bar = self.schedules[g].alpha_bar(random.times[g])[:, None, None]
            z_t[g] = add_noise(latents, random.noise[g], alpha_bar)
        candidates = self.candidate_latents(content)
        arguments = {
            "sequence": self.decoder.lay_out(content, has_class, random.drop_prompt, encoded.grid),
            "content": content,
            "z_t": z_t,
            "times": random.times,
            "class_labels": torch.where(has_class, encoded.class_labels, -1),
            "candidates": {g: scale_gradient(y, scale) for g, y in candidates.items()},
            "keep": random.keep,
        }
        return NoisyInputs(z_0, diffused, arguments)

    def _feed_back(self, step: "NoisyInputs", random: Randomness) -> dict[str, Tensor] | None:
        """Estimate once for self-conditioning, without a gradient."""
        if not random.self_condition:
            return None
        with torch.no_grad():
            return self.denoise(**step.arguments).clean

    def _update_statistics(
        self, encoded: EncodedInputs, num_items_in_batch: dict[str, Tensor] | None
    ) -> None:
        """Let the running latent statistics see this batch, where latents learn.

        Under an adapter of peft they stand still: it is saved without them.
        """
        if getattr(self, "peft_config", None):
            return
        for g, statistics in self.vae.statistics.items():
            if not self.vae.learns(g):
                continue
            total = None if num_items_in_batch is None else num_items_in_batch[f"real_{g}"]
            if part := encoded.modalities.get(g):
                statistics.update(part.posterior_mean.detach(), part.content.valid, total)
            elif num_processes() > 1:  # another process may have what this batch lacks
                statistics.update(None, None, total)

    def _losses(
        self,
        encoded: EncodedInputs,
        random: Randomness,
        step: "NoisyInputs",
        denoised: "Denoised",
        predicted: dict[str, Tensor],
        counts: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Eq. 18, its parts and what they are means of, by their names in [`MDMOutput`]."""
        content = step.arguments["content"]
        predictions = {
            g: Prediction(
                step.diffused[g],
                step.arguments["z_t"][g],
                denoised.clean[g],
                random.times[g],
                self.schedules[g],
                random.candidate_noise.get(g),
                denoised.logits.get(g),
                encoded.modalities[g].symbols,
            )
            for g in content
        }
        tallies = Tallies(encoded.class_labels)
        losses = diffusion_losses(self.config, content, predictions, predicted, counts, tallies)
        # Latent statistics are float32 in a model of any type, the weights of the VAE are not.
        z_0 = {g: latents.to(self.dtype) for g, latents in step.z_0.items()}
        noise = random.decoder_noise
        losses |= reconstruction_losses(
            self.vae, encoded, z_0, noise, self.config.latent_noise, counts, tallies
        )
        # CODEPATH: as where the head is made.
        if self.config.use_mode_head:
            losses["loss_mode"] = mode_loss(self, encoded, counts["asking"], tallies)
        return {**losses, "loss": total_loss(self.config, losses), "tallies": tallies.values}


@dataclass
class Denoised:
    """What one evaluation of the network gives, by modality.

    clean: estimates of z_0 (b, n, d). logits: of every word or code (b, n, v), discrete modalities
    only. features: (b, n, hidden).
    """

    clean: dict[str, Tensor]
    logits: dict[str, Tensor]
    features: dict[str, Tensor]


@dataclass
class NoisyInputs:
    """A batch on its way into the network.

    z_0: standardised latents (b, n, d) by modality. diffused: the same, with the share of their
    gradient that diffusion may send to the VAE. arguments: of
    [`MDMForJointGeneration.denoise`].
    """

    z_0: dict[str, Tensor]
    diffused: dict[str, Tensor]
    arguments: dict[str, Any]


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x, with its gradient multiplied by `scale`."""
    if scale == 1:
        return x
    return x.detach() if scale == 0 else x.detach() + scale * (x - x.detach())


# So that `save_pretrained` copies this file and its siblings beside the weights.
MDMForJointGeneration.register_for_auto_class("AutoModel")

__all__ = ["MDMForJointGeneration", "MDMOutput", "MDMPreTrainedModel"]
