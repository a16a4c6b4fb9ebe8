# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The configuration of MDM: every size, schedule and weight of the model, with its default."""

import math
from functools import wraps
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassError,
    StrictDataclassFieldValidationError,
)
from transformers.configuration_utils import PreTrainedConfig

from .checks import plain
from .version import check_readable, warn_if_untested

warn_if_untested()

# A joint scan pairs an image order with a text order (paper, Fig. 2f-g): 1-1, 2-2, 3-1, 4-2.
# Image: 1 rows forward, 2 rows reverse, 3 columns forward, 4 columns reverse. Text: 1 forward, 2
# reverse.
JOINT_SCANS = ((1, 1), (2, 2), (3, 1), (4, 2))

CHOICES = {
    "mixer": ("mamba2", "attention"),
    "scan_mode": ("parallel", "cyclic"),
    "scan_projections": ("shared", "separate"),
    "discretization": ("zoh", "euler"),
    "image_schedule": ("linear", "cosine", "tan"),
    "text_schedule": ("linear", "cosine", "tan"),
    "se_candidates": ("exact", "trajectory"),
    "kernel_backend": (
        *("auto", "reference", "torch", "torch_factored", "quadratic", "triton", "mamba_ssm"),
    ),
}


# What is a size has at least one of it, what is a weight or a width of noise is not negative.
LEAST: dict[str, float] = dict.fromkeys(
    (
        *("vocab_size", "max_text_length", "image_size", "patch_size", "latent_dim"),
        *("vae_hidden_size", "hidden_size", "num_hidden_layers", "state_size", "head_dim"),
        *("expand", "conv_kernel", "chunk_size", "num_attention_heads", "intermediate_size"),
        "num_trajectory_candidates",
    ),
    1,
) | dict.fromkeys(
    (
        *("num_classes", "vae_num_layers", "latent_noise", "latent_momentum", "num_null_tokens"),
        "image_decoder_layers",
        *("se_weight", "se_weight_image", "se_weight_text", "kl_weight", "denoising_weight_max"),
        *("latent_gradient_scale", "initializer_range", "delta_floor", "layer_norm_epsilon"),
    ),
    0,
)


@strict
class MDMConfig(PreTrainedConfig):
    r"""
    Configuration of [`MDMForJointGeneration`].

    Content:
        vocab_size (`int`): number of words of the tokenizer.
        max_text_length (`int`): words of a text region that is written without a given length.
        image_size (`int`): default side of a picture in pixels; any multiple of `patch_size` works
            at call time.
        patch_size, num_channels (`int`): side of a patch in pixels; 1 for grey, 3 for colour.
        num_classes (`int`): number of class labels, 0 for none.
        vq_config (`dict`, *optional*): configuration of a transformers VQ-VAE whose codes replace
            pixels. It does not learn: `model.vq.load_pretrained(NAME)` gives a new model its
            weights, by themselves or out of a whole Janus or Emu3 repository.

    Unified VAE (Sec. 4.1):
        latent_dim, vae_hidden_size, vae_num_layers (`int`): widths and depth of the per-position
            encoder and decoder.
        image_decoder_layers (`int`): convolutions by which the decoder of a picture sees the
            patches around each; 0 decodes every patch alone.
        latent_noise (`float`): standard deviation of the noise on (standardised) latents that the
            decoder is trained on.
        latent_momentum (`float`): momentum of the running latent statistics.

    Decoder (Sec. 4.2.1):
        hidden_size, num_hidden_layers, state_size, head_dim, expand, conv_kernel, chunk_size: as in
            Mamba-2.
        mixer (`str`): `"mamba2"`, or `"attention"` for the Transformer of Table 3.
        num_attention_heads, intermediate_size (`int`, *optional*): of the Transformer (default:
            width / 64, 8 / 3 width).
        discretization (`str`): `"zoh"` (Eq. 13) or `"euler"` (stock Mamba-2).
        scan_mode (`str`): `"parallel"`, all scans in every block, or `"cyclic"`, one scan a block
            in turn.
        scan_projections (`str`): `"shared"` by all scans, or `"separate"` for every order of every
            modality.
        image_scans, text_scans (`list[int]`): the orders in use (Table 3), out of 1-4 and 1-2.
        use_selection (`bool`): learn which items each scan reads (Theorem 3).
        selection_keep (`list[float]`): shares of items kept in training, one drawn a batch; repeat
            a value to weight it.
        delta_min, delta_max, delta_floor, delta_limit: initial range and bounds of Delta.

    Diffusion (Sec. 3.1):
        image_schedule, text_schedule (`str`): `"linear"`, `"cosine"` or `"tan"`.
        tan_scale (`float`): s of the `tan` schedule.
        self_conditioning (`bool`): feed the last clean estimate back.
        pooled_conditioning (`bool`): let what is given, pooled, modulate the blocks where they read
            what is noisy, beside their time.
        place_conditioning (`bool`): show a noisy patch what was given last at its place, such as
            the picture that is to be changed.
        num_null_tokens (`int`): learned tokens that stand for an absent prompt, 0 for a model
            without guidance.
        null_prompt_probability, null_modality_probability (`float`): how often training drops the
            prompt, or draws t = 1 for the other modality.
        coupled_time_probability (`float`): how often training draws the times of an item that
            writes words and a picture along the path of `joint_lead`, not independently.
        se_candidates (`str`): `"exact"` (vocabulary and closed form) or `"trajectory"` (Eq. 4's
            sampled former states).
        num_trajectory_candidates (`int`): K of the latter.
        use_mode_head (`bool`): learn to decide whether a reply holds words, a picture or both, for
            `generate(generation_mode="auto")`. A model without may get it at loading, by
            `from_pretrained(..., use_mode_head=True)`, to be trained.

    Origin:
        mdm_version (`str`, *optional*): version of this package that wrote the weights; set by
            `save_pretrained`, checked at loading.

    Loss (Eq. 18):
        se_weight (`float`): lambda. se_weight_image, se_weight_text (`float`): balance of the two
            modalities inside L_se.
        kl_weight (`float`): beta. denoising_weight_max (`float`): cap of the weight over time,
            min(1 / (1 - abar), cap).
        latent_gradient_scale (`float`): share of the gradient of L_se that reaches the encoder.
    """

    model_type = "mdm"

    vocab_size: int = 512
    max_text_length: int = 16
    image_size: int = 28
    patch_size: int = 4
    num_channels: int = 1
    num_classes: int = 0
    vq_config: dict[str, Any] | None = None

    latent_dim: int = 16
    vae_hidden_size: int = 128
    vae_num_layers: int = 2
    image_decoder_layers: int = 0
    latent_noise: float = 0.1
    latent_momentum: float = 0.01

    hidden_size: int = 256
    num_hidden_layers: int = 8
    mixer: str = "mamba2"
    state_size: int = 64
    head_dim: int = 64
    expand: int = 2
    conv_kernel: int = 4
    chunk_size: int = 64
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    discretization: str = "zoh"
    scan_mode: str = "parallel"
    scan_projections: str = "shared"
    image_scans: list[int] | tuple[int, ...] = (1, 2, 3, 4)
    text_scans: list[int] | tuple[int, ...] = (1, 2)
    use_selection: bool = True
    selection_keep: list[float] | tuple[float, ...] = (1.0, 1.0, 1.0, 0.75, 0.5, 0.25)
    delta_min: float = 0.001
    delta_max: float = 0.1
    delta_floor: float = 1e-4
    delta_limit: list[float] | tuple[float, ...] = (0.0, 100.0)
    layer_norm_epsilon: float = 1e-5
    kernel_backend: str = "auto"

    image_schedule: str = "cosine"
    text_schedule: str = "tan"
    tan_scale: float = 3.0
    self_conditioning: bool = True
    pooled_conditioning: bool = False
    place_conditioning: bool = False
    num_null_tokens: int = 2
    null_prompt_probability: float = 0.1
    null_modality_probability: float = 0.1
    coupled_time_probability: float = 0.5
    se_candidates: str = "exact"
    num_trajectory_candidates: int = 8
    use_mode_head: bool = False

    se_weight: float = 1.0
    se_weight_image: float = 1.0
    se_weight_text: float = 1.0
    kl_weight: float = 1e-3
    denoising_weight_max: float = 5.0
    latent_gradient_scale: float = 0.0

    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    mask_token_id: int = 1
    image_token_id: int = 2
    eos_token_id: int | list[int] | None = 3
    tie_word_embeddings: bool = False
    mdm_version: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if kwargs.pop("exact_ratio_gain", False):
            raise ValueError(
                "`exact_ratio_gain` is True, which modeling-mdm 0.1.0 was the last to have: load "
                "this checkpoint with modeling-mdm==0.1.0."
            )
        if self.num_attention_heads is None:
            self.num_attention_heads = max(1, self.hidden_size // 64)
        if self.intermediate_size is None:
            self.intermediate_size = -(-8 * self.hidden_size // 3 // 16) * 16
        super().__post_init__(**kwargs)

    @property
    def joint_scans(self) -> tuple[tuple[int, int], ...]:
        """The (image order, text order) pairs in use.

        One for every image order, then one for every text order that no pair has yet.
        """
        pairs = [pair for pair in JOINT_SCANS if pair[0] in self.image_scans]
        read = {text_order for _, text_order in pairs}
        pairs += [
            pair for pair in JOINT_SCANS[:2] if pair[1] in self.text_scans and pair[1] not in read
        ]
        return tuple(sorted(pairs))

    @property
    def inner_size(self) -> int:
        """Width inside a Mamba-2 mixer."""
        return self.hidden_size * self.expand

    @property
    def num_ssm_heads(self) -> int:
        """Heads of a Mamba-2 mixer."""
        return self.inner_size // self.head_dim

    def validate_architecture(self) -> None:
        """Raise ValueError for fields that contradict each other, at construction and loading."""
        if self.mdm_version is not None:
            check_readable(self.mdm_version)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}: choose one of {', '.join(allowed)}."
                )
        self._require_divisible("image_size", self.image_size, "patch_size", self.patch_size)
        if self.mixer == "mamba2":
            self._require_divisible(
                "hidden_size * expand", self.inner_size, "head_dim", self.head_dim
            )
        else:
            self._require_divisible(
                "hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads
            )
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not least <= value < math.inf:  # false for NaN too
                raise ValueError(f"`{name}` is {value}: use a number of at least {least:g}.")
        for name, allowed_orders in (("image_scans", (1, 2, 3, 4)), ("text_scans", (1, 2))):
            orders = getattr(self, name)
            unknown = [order for order in orders if order not in allowed_orders]
            if unknown or not orders or len(set(orders)) != len(orders):
                raise ValueError(
                    f"`{name}` is {list(orders)}: list distinct orders out of "
                    f"{list(allowed_orders)}, at least one."
                )
        if not self.selection_keep or any(not 0 < keep <= 1 for keep in self.selection_keep):
            raise ValueError(
                f"`selection_keep` is {list(self.selection_keep)}: shares in (0, 1], at least one."
            )
        for name in ("null_prompt_probability", "null_modality_probability"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: a probability in [0, 1).")
        if not 0 <= self.coupled_time_probability <= 1:
            raise ValueError(
                f"`coupled_time_probability` is {self.coupled_time_probability}: a probability in "
                "[0, 1]."
            )
        for name in ("pad_token_id", "mask_token_id", "image_token_id", "eos_token_id"):
            value = getattr(self, name)
            ids = value if isinstance(value, list) else [value]
            if any(word is not None and not 0 <= word < self.vocab_size for word in ids):
                raise ValueError(
                    f"`{name}` is {value}, outside the vocabulary of `vocab_size` = "
                    f"{self.vocab_size} words: use those of the tokenizer."
                )
        if not 0 < self.tan_scale < math.inf:
            raise ValueError(f"`tan_scale` is {self.tan_scale}: use a number above 0, such as 3.")
        if len(self.delta_limit) != 2 or not self.delta_limit[0] <= self.delta_limit[1]:
            raise ValueError(
                f"`delta_limit` is {list(self.delta_limit)}: give a lower and an upper bound."
            )
        if not 0 < self.delta_min <= self.delta_max < math.inf:
            raise ValueError(
                f"`delta_min` is {self.delta_min} and `delta_max` {self.delta_max}: use "
                "0 < delta_min <= delta_max."
            )
        if self.vq_config is not None and self.num_channels != 3:
            raise ValueError(
                f"`num_channels` is {self.num_channels}, but the VQ-VAE of `vq_config` reads "
                "colour: use 3."
            )
        if self.vq_config is not None and self.image_decoder_layers:
            raise ValueError(
                f"`image_decoder_layers` is {self.image_decoder_layers}, but the VQ-VAE of "
                "`vq_config` assembles the picture itself, from code vectors that are found one by "
                "one: use 0."
            )
        if self.num_channels not in (1, 3):
            raise ValueError(f"`num_channels` is {self.num_channels}: use 1 (grey) or 3 (colour).")

    @staticmethod
    def _require_divisible(name: str, value: int, divisor_name: str, divisor: int) -> None:
        if divisor < 1 or value % divisor:
            raise ValueError(
                f"`{name}` is {value}, which is not divisible by `{divisor_name}` = {divisor}: "
                "change one of them."
            )


# The strict base class knows Python's own numbers alone, takes no 1 for 1.0, and its errors are no
# ValueErrors.
_strict_setattr, _strict_init = MDMConfig.__setattr__, MDMConfig.__init__


class MDMConfigError(
    StrictDataclassFieldValidationError, StrictDataclassClassValidationError, ValueError
):
    """A field of another type, or fields that contradict each other."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)


def _setattr(self: MDMConfig, name: str, value: Any) -> None:
    kind = MDMConfig.__dataclass_fields__.get(name)
    value = value if kind is None else _as_field(value, kind.type)
    try:
        _strict_setattr(self, name, value)
    except StrictDataclassError as error:
        raise MDMConfigError(f"`{name}` is {value!r:.80}: give {_said(kind)}.") from error


def _init(self: MDMConfig, *args: Any, **kwargs: Any) -> None:
    try:
        _strict_init(self, *args, **kwargs)
    except MDMConfigError:
        raise
    except StrictDataclassError as error:
        raise MDMConfigError(str(error.__cause__ or error)) from error.__cause__


def _as_field(value: Any, kind: Any) -> Any:
    """Python's numbers for NumPy's and torch's, and floats for whole numbers where they belong."""
    value = plain(value.tolist() if isinstance(value, np.ndarray | torch.Tensor) else value)
    shown = str(kind)
    if isinstance(value, int) and not isinstance(value, bool) and kind is float:
        return float(value)
    if isinstance(value, list | tuple) and "float" in shown:
        return type(value)(
            float(one) if isinstance(one, int) and not isinstance(one, bool) else one
            for one in value
        )
    return value


def _said(kind: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "True or False", str: "a name"}
    return names.get(kind.type, str(kind.type).replace("typing.", ""))


MDMConfig.__setattr__, MDMConfig.__init__ = _setattr, wraps(_strict_init)(_init)

# So that `save_pretrained` copies this file beside what it saves.
MDMConfig.register_for_auto_class()

__all__ = ["JOINT_SCANS", "MDMConfig"]
