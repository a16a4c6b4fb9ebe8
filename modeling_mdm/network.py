# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The network: all weights of MDM, and what one evaluation of them does.

`encode_inputs` makes latents of words and pictures, `read` evaluates what is given, `denoise` what
is noisy. Training (`training_step.py`), sampling (`generation_mdm.py`) and likelihoods
(`scoring.py`) are told with these.

Axes: b batch, n positions of one modality (t words or patches), d latent_dim, v vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .attention import MDMAttentionBlock
from .block import GatedRMSNorm, MDMBlock, SelectiveScan
from .cache import PromptCache
from .configuration_mdm import MDMConfig
from .content import GENERATION_MODES, ModalityContent
from .decoder import DecoderInputs, MDMDecoder, StartTokens, TimeEmbedding, ZeroLinear
from .diffusion import NoiseSchedule
from .hub import MODEL_TAGS
from .inputs import (
    MODEL_INPUTS,
    NOTHING_PASSED,
    EncodedInputs,
    EncodedModality,
    check_codes,
    check_kinds,
    check_sizes,
    encode_classes,
    encode_images,
    encode_text,
    unread_pixels,
)
from .matmul import project
from .precision import at_least_float32
from .selection import ScoreEntropyHead
from .sequence import SequencePart
from .vae import MDMVAE, LatentStatistics, VQFrontEnd

logger = logging.get_logger(__name__)

PEFT_PREFIX = "base_model.model."  # of a model's names under an adapter
DECODING_HEAD = "text_head.word_head."  # where an adapter's file keeps `vae.word_head`
LOWEST = -1.0  # below every value of SiLU


@dataclass
class Denoised:
    """What one evaluation of the network gives, by modality.

    clean: estimates of z_0 (b, n, d). logits: of every word or code (b, n, v), discrete modalities
    only. features: (b, n, hidden).
    """

    clean: dict[str, Tensor]
    logits: dict[str, Tensor]
    features: dict[str, Tensor]


class MDMPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by MDM's models."""

    config_class = MDMConfig
    main_input_name = "input_ids"
    model_tags = list(MODEL_TAGS)
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: list[str] = []  # the decoder names its kind of block
    _keep_in_fp32_modules_strict = [
        "A_log",
        "delta_bias",
        "statistics.*.mean",
        "statistics.*.variance",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Conv2d):
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
        elif isinstance(module, MDMBlock | MDMAttentionBlock):
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


class ModeHead(nn.Module):
    """Logits of `GENERATION_MODES` from the features of one turn: two layers about their maximum.

    The maximum over positions, because one word may say it all. They train on features without a
    gradient, so the head can be added to any model and changes nothing else.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, len(GENERATION_MODES))

    def forward(
        self, features: dict[str, Tensor], content: dict[str, ModalityContent], turn: Tensor
    ) -> Tensor:
        """Read one turn (b,) of every item.

        Args:
            features: (b, n, hidden) by modality. content: of the same positions.

        Returns:
            (b, modes), float32 at least.
        """
        dtype = self.in_proj.bias.dtype
        # On the device of what is read, not that of a weight, which may be offloaded.
        nothing = (len(turn), 1, self.in_proj.out_features)
        found = [turn.new_full(nothing, LOWEST, dtype=dtype)]
        for modality, positions in content.items():
            read = positions.valid & positions.given & (positions.turn == turn[:, None])
            hidden_states = F.silu(self.in_proj(features[modality].to(dtype)))
            found.append(hidden_states.masked_fill(~read[..., None], LOWEST))
        logits: Tensor = self.out_proj(torch.cat(found, dim=1).amax(1))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class MDMNetwork(MDMPreTrainedModel):
    """VAE, decoder and heads: reads words and pictures, and estimates what is noisy of them."""

    is_resized = False  # whether the number of words is another than that of the checkpoint

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
        # CODEPATH: models tuned on conversations; the shipped checkpoints answer as they are told.
        if config.use_mode_head:
            self.mode_head = ModeHead(config.hidden_size)
        self.post_init()

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
        image_codes: Tensor | None = None,
    ) -> EncodedInputs:
        """Check the model's inputs and encode their content position by position."""
        if self.vq is not None:
            self.vq.require_loaded()
        if image_codes is not None:
            check_codes(image_codes, pixel_values, self.vq)
            pixel_values = unread_pixels(image_codes, self.config.patch_size)
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
                pixel_values,
                pixel_attention_mask,
                image_given,
                image_turn_ids,
                self.vq,
                image_codes,
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

    def read(
        self,
        part: SequencePart,
        class_labels: Tensor,
        cache: PromptCache | None = None,
        keep: float = 1.0,
    ) -> dict[str, Tensor]:
        """Evaluate given positions, which adds them to a cache that records.

        Args:
            part: of given positions. class_labels: (b,). keep: share of items that each scan reads.

        Returns:
            features (b, m, hidden) by modality.
        """
        latents = {modality: positions.latents for modality, positions in part.content.items()}
        times = {modality: values.new_zeros(1) for modality, values in latents.items()}
        return self.decoder(
            DecoderInputs(
                part.sequence, part.content, latents, times, class_labels, keep=keep, cache=cache
            )
        )

    def denoise(self, inputs: DecoderInputs, candidates: dict[str, Tensor]) -> Denoised:
        """Evaluate the network once; `candidates` are from `candidate_latents`."""
        times = {m: time.to(at_least_float32(time.dtype)) for m, time in inputs.times.items()}
        features = self.decoder(replace(inputs, times=times))
        clean, logits = {}, {}
        for modality, head in (("text", self.text_head), ("image", self.image_head)):
            if modality not in features:
                continue
            z_t = inputs.z_t[modality]
            output = project(head, features[modality]).to(z_t.dtype)
            if modality in candidates:
                logits[modality] = output
                clean[modality] = self.expected_latent(output, candidates[modality])
                continue
            # The best linear estimate of a unit-variance latent, and what the network adds to it
            # (v-prediction).
            time = times[modality]
            time = time.repeat_interleave(len(output) // max(1, len(time)))  # (b,)
            log_snr = self.schedules[modality].log_snr(time)[:, None, None]
            signal, noise = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
            clean[modality] = signal * z_t + noise * output
        return Denoised(clean, logits, features)

    @staticmethod
    def expected_latent(logits: Tensor, candidates: Tensor) -> Tensor:
        """Mean of the candidates' latents (v, d) under s_theta (Eq. 7): (b, n, v) -> (b, n, d)."""
        return logits.softmax(-1) @ candidates.to(logits.dtype)

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


__all__ = ["Denoised", "MDMNetwork", "MDMPreTrainedModel", "ModeHead"]
