# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""MDM: one VAE, one diffusion process, one loss and one Mamba-2 decoder for images and text.

Axes: b batch, n positions of one modality (t words or patches).
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .decoder import recorded_states
from .draws import ItemKeys
from .generation_mdm import MDMGenerationConfig, MDMGenerationMixin, usual_length_unsaid
from .hub import name_code, write_model_card
from .network import MDMNetwork, MDMPreTrainedModel
from .scoring import MDMScoringMixin
from .training_step import Randomness, feed_back, gather_losses, noise_inputs, update_statistics


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


class MDMForJointGeneration(MDMNetwork, MDMGenerationMixin, MDMScoringMixin):
    """
    Multi-Modal Diffusion Mamba: reads and writes images and text through one diffusion process.

    Every position is given, noisy (to be written) or padding; which are given decides the task.

    `from_pretrained` warns of weights that a checkpoint lacks, which then start as in a new model,
    and of weights that the model does not know; a weight of another shape is an error. With
    `output_loading_info=True` it returns their names too.
    """

    output_modalities = ("image", "text")
    accepts_loss_kwargs = True
    generation_config_class = MDMGenerationConfig

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
        item_keys: ItemKeys | None = None,
        image_codes: Tensor | None = None,
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
            times: (b,) in [0, 1] by modality; NaN = to be drawn.
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
            item_keys: `draws.ItemKeys`: draw by seed, step and item, whatever the batches and
                processes are. None draws from torch's random state.
            image_codes: (b, [m,] rows, columns) integers: what the VQ-VAE makes of the pictures, in
                the place of `pixel_values`; their masks stay by pixel.

        What is random, from `drop_prompt` to `self_condition`, is drawn where None: in training as
        `MDMConfig` says, else with uniform times, nothing dropped and nothing fed back.

        Returns:
            [`MDMOutput`], or its entries as a tuple with `return_dict=False`.

        Raises:
            ValueError: neither text nor image, or shapes that do not fit; names the argument and
                the fix.
        """
        # 1. Every position of words and patches is given, noisy or padding.
        encoded = self.encode_inputs(
            input_ids, attention_mask, text_given, turn_ids,
            pixel_values, pixel_attention_mask, image_given, image_turn_ids, class_labels,
            image_codes,
        )  # fmt: skip
        # 2. Times, noise, which prompts are dropped: what was not passed is drawn.
        drawn = Randomness(
            drop_prompt, times, noise, posterior_noise,
            decoder_noise, candidate_noise, keep, self_condition,
        ).drawn(encoded, self, item_keys)  # fmt: skip
        # 3. z_0 from the VAE, z_t by the schedules (Eq. 1), the joint sequence and its orders.
        step = noise_inputs(self, encoded, drawn)
        # 4. Half of the steps estimate twice, the second time from the first estimate.
        step.inputs.estimates = feed_back(self, step)
        # 5. One evaluation of the decoder: clean estimates, logits, features.
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        with recorded_states(self.decoder.layers, output_hidden_states) as hidden_states:
            denoised = self.denoise(step.inputs, step.candidates)
        predicted = {m: self.score_entropy_head(own) for m, own in denoised.features.items()}
        # 6. Eq. 18.
        if self.training:
            update_statistics(self, encoded, num_items_in_batch)
        losses = {}
        if return_loss:
            losses = gather_losses(self, step, denoised, predicted, num_items_in_batch)
        return MDMOutput(
            **losses,
            logits=denoised.logits.get("text"),
            clean_estimates=denoised.clean,
            score_entropy={m: torch.expm1(value).clamp(min=0) for m, value in predicted.items()},
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Save as transformers does, with code for every Auto class and pipeline and a card."""
        if self.should_save_on_this_rank(is_main_process) and not os.path.isfile(save_directory):
            name_code(self.config, type(self))
            write_model_card(save_directory)
        with usual_length_unsaid(self):
            super().save_pretrained(save_directory, is_main_process, **kwargs)


# So that `save_pretrained` copies this file and its siblings beside the weights.
MDMForJointGeneration.register_for_auto_class("AutoModel")

__all__ = ["MDMForJointGeneration", "MDMOutput", "MDMPreTrainedModel"]
