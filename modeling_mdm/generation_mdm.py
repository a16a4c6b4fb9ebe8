# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`generate()`: text, images, or both at once, through one diffusion process.

Axes: b batch (items x num_return_sequences), t words, n patches, d latent_dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationConfig
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from .inputs import EncodedInputs, encode_text
from .sampling import (
    GuidedDenoiser,
    NoiseStreams,
    StepInfo,
    joint_windows,
    make_solvers,
    run_solvers,
    written,
)
from .solvers import SOLVERS
from .ssd import resolve_backend
from .vae import unpatchify

GENERATION_MODES = ("text", "image", "joint")
MODEL_INPUTS = (
    "input_ids",
    "attention_mask",
    "text_given",
    "turn_ids",
    "pixel_values",
    "pixel_attention_mask",
    "image_given",
    "image_turn_ids",
    "class_labels",
)
DEFAULTS: dict[str, Any] = {
    "num_inference_steps": 30,
    "guidance_scale": {"image": 2.0, "text": 1.0},
    "joint_guidance_scale": 1.0,
    "joint_overlap": 1.0,
    "solver": {"image": "dpm_solver_2m", "text": "ddpm"},
    "keep": 1.0,
    "num_return_sequences": 1,
    "show_progress": True,
}


class MDMGenerationConfig(GenerationConfig):
    """
    Defaults of `generate()`.

    A value for both modalities or a dictionary `{"image": ..., "text": ...}` is allowed for the
    first four.

    Args:
        num_inference_steps (`int` or `dict`): sampler steps. Default 30.
        guidance_scale (`float` or `dict`): classifier-free guidance, 1 is off. Default 2 for
            images, 1 for text.
        joint_guidance_scale (`float` or `dict`): guidance of each modality by the other while both
            are written.
        joint_overlap (`float`): while text and image are both written, how much of their time they
            share. 1 (default): both from the first step to the last. Less: words go ahead, and are
            given to the picture once they are finished, with `guidance_scale`; at 0 before it even
            begins. Each modality then has fewer of the steps.
        solver (`str` or `dict`): `"heun"`, `"dpm_solver_2m"` (default for images), `"ddim"` or
            `"ddpm"` (default for text).
        keep (`float`): share of items that each scan reads (hard selection). Default 1.
        num_return_sequences (`int`): samples of each item.
        show_progress (`bool`): show a progress bar.
    """

    def __init__(self, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name, None) for name in DEFAULTS}
        super().__init__(**kwargs)
        for name, value in own.items():
            setattr(self, name, value)

    @classmethod
    def from_model_config(cls, model_config: Any) -> "MDMGenerationConfig":
        """Take the special words from a model's configuration; the rest are defaults."""
        values = model_config if isinstance(model_config, dict) else model_config.to_dict()
        return cls(pad_token_id=values.get("pad_token_id"), eos_token_id=values.get("eos_token_id"))


@dataclass
class MDMGenerateOutput(ModelOutput):
    """
    Output of `generate()`.

    Args:
        sequences: words (b, t) of the whole text region, given ones included; None if no text was
            written.
        images: (b, channels, height, width) in [-1, 1], known pixels unchanged; None if no image
            was written.
        confidence: by modality, (b, positions) in [0, 1]: 1 where given, 0 at padding. For a word
            the probability that the model gives it; for a patch exp(-predicted score entropy /
            latent_dim).
        num_evaluations: how often the network was evaluated (branches of guidance count once).
        kernel_backend: name of the scan kernel that ran.
        trajectory: on request, the decoded clean estimate of every step: `"image"`
            (b, steps, channels, height, width), `"text"` (b, steps, t).
    """

    sequences: Tensor | None = None
    images: Tensor | None = None
    confidence: dict[str, Tensor] | None = None
    num_evaluations: int | None = None
    kernel_backend: str | None = None
    trajectory: dict[str, Tensor] | None = None


class MDMGenerationMixin:
    """Gives a model `generate()`, which runs the diffusion loop.

    (transformers looks for this name's ending.)
    """

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        generation_config: MDMGenerationConfig | None = None,
        generation_mode: str | None = None,
        max_new_tokens: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: Callable[[StepInfo], bool | None] | None = None,
        output_trajectory: bool = False,
        **kwargs: Any,
    ) -> MDMGenerateOutput:
        """
        Write every position that is not given.

        Args:
            input_ids: words (b, t); with the other inputs of [`MDMForJointGeneration.forward`] as
                keywords.
            generation_config: defaults; fields of [`MDMGenerationConfig`] passed as keywords come
                first.
            generation_mode: where the inputs leave nothing to write, open a region: `"text"`
                (default), `"image"` or `"joint"`.
            max_new_tokens: words of that region; `config.max_text_length` if None.
            image_size: its pixels, a side or (height, width); `config.image_size` if None.
            generator: one that seeds a stream for each item, or one for each item. Same seed, same
                result.
            callback_on_step_end: sees a [`StepInfo`] after every step; True ends the run there.
            output_trajectory: also return the clean estimate of every step.

        Returns:
            [`MDMGenerateOutput`].

        Raises:
            ValueError: steps < 1, unknown solver or mode, guidance on a model without null tokens,
                unknown keywords, or inputs that `forward` would reject.
        """
        inputs = {name: kwargs.pop(name, None) for name in MODEL_INPUTS if name != "input_ids"}
        inputs = {"input_ids": input_ids, **inputs}
        settings = self._settings(generation_config or self.generation_config, kwargs)
        inputs = self._open_region(inputs, generation_mode, max_new_tokens, image_size)
        copies = settings["num_return_sequences"]
        inputs = {
            name: value.repeat_interleave(copies, dim=0)
            for name, value in inputs.items()
            if value is not None
        }
        encoded = self.encode_inputs(**inputs)
        noisy = written(encoded.content)
        if not noisy:
            raise ValueError(
                "Nothing to generate: every position is given. Leave `<mask>` words or an "
                "`image_mask`, or pass inputs without `text_given` / `image_given` regions to be "
                "opened by `generation_mode`."
            )
        dtype = next(iter(encoded.content.values())).latents.dtype
        streams = NoiseStreams(noisy, self.config.latent_dim, dtype, generator)
        noise = {g: streams.draw(g) for g in noisy}
        denoiser = GuidedDenoiser(
            self,
            encoded,
            settings["guidance_scale"],
            settings["joint_guidance_scale"],
            noise,
            settings["keep"],
        )
        trajectory: dict[str, list[Tensor]] = {g: [] for g in noisy}
        steps = {g: settings["num_inference_steps"][g] for g in noisy}
        windows = joint_windows(steps, settings["joint_overlap"])
        total = max(steps.values())
        steps = {g: min(steps[g], stop - first) for g, (first, stop) in windows.items()}
        with logging.tqdm(total=total, disable=not settings["show_progress"]) as progress:

            def on_step(info: StepInfo) -> bool:
                progress.update()
                if output_trajectory:
                    for g, estimate in info.clean_estimates.items():
                        trajectory[g].append(estimate)
                return bool(callback_on_step_end and callback_on_step_end(info))

            def on_finish(g: str, latents: Tensor) -> None:
                if g == "text":
                    denoiser.give(self._with_text_given(latents, encoded))

            solvers = make_solvers(self, noise, settings["solver"], steps, streams)
            final = run_solvers(solvers, steps, denoiser, on_step, windows, on_finish)
        return MDMGenerateOutput(
            sequences=self.write_text(final["text"], encoded) if "text" in final else None,
            images=self.write_images(final["image"], encoded, inputs) if "image" in final else None,
            confidence=self._confidence(denoiser, encoded, noisy, final),
            num_evaluations=denoiser.evaluations,
            kernel_backend=self._kernel_backend(),
            trajectory=self._decode_trajectory(trajectory, encoded, inputs)
            if output_trajectory
            else None,
        )

    def _settings(
        self, generation_config: GenerationConfig, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Merge keywords, generation config and defaults; one value a modality; check them."""
        settings = {}
        for name, default in DEFAULTS.items():
            value = kwargs.pop(name, None)
            value = getattr(generation_config, name, None) if value is None else value
            settings[name] = default if value is None else value
        # Pipelines pass these along; a diffusion region has no use for them.
        ignored = {
            "pad_token_id",
            "eos_token_id",
            "bos_token_id",
            "do_sample",
            "return_dict_in_generate",
            "use_cache",
        }
        unknown = sorted(
            name for name, value in kwargs.items() if name not in ignored and value is not None
        )
        if unknown:
            raise ValueError(
                f"`generate` got unknown keywords {unknown}: see MDMGenerationConfig for what it "
                "takes."
            )
        for name in ("num_inference_steps", "guidance_scale", "joint_guidance_scale", "solver"):
            value, fallback = settings[name], DEFAULTS[name]
            by_default = (
                fallback if isinstance(fallback, dict) else {"image": fallback, "text": fallback}
            )
            settings[name] = (
                {**by_default, **value}
                if isinstance(value, dict)
                else {"image": value, "text": value}
            )
        self._check_settings(settings)
        return settings

    def _check_settings(self, settings: dict[str, Any]) -> None:
        for g in ("image", "text"):
            steps, solver = settings["num_inference_steps"][g], settings["solver"][g]
            if not isinstance(steps, int) or steps < 1:
                raise ValueError(
                    f"`num_inference_steps` is {steps} for {g}: use an integer of at least 1, such "
                    "as 30."
                )
            if solver not in SOLVERS:
                raise ValueError(
                    f"`solver` is {solver!r} for {g}: choose one of {', '.join(SOLVERS)}."
                )
            if settings["guidance_scale"][g] != 1 and not self.config.num_null_tokens:
                raise ValueError(
                    f"`guidance_scale` is {settings['guidance_scale'][g]} for {g}, but this model "
                    "was trained without a null prompt (`num_null_tokens` = 0): use 1."
                )
        for name, low in (("num_return_sequences", 1), ("keep", 0)):
            if settings[name] < low or settings[name] <= 0:
                raise ValueError(f"`{name}` is {settings[name]}: it must be positive.")
        if not 0 <= settings["joint_overlap"] <= 1:
            raise ValueError(
                f"`joint_overlap` is {settings['joint_overlap']}: use a share in [0, 1]."
            )
        if settings["keep"] > 1 or (settings["keep"] < 1 and not self._can_select()):
            raise ValueError(
                f"`keep` is {settings['keep']}: use a share in (0, 1], and 1 for a model trained "
                "without selection."
            )

    def _can_select(self) -> bool:
        return self.config.mixer == "mamba2" and self.config.use_selection

    def _open_region(
        self,
        inputs: dict[str, Tensor | None],
        mode: str | None,
        max_new_tokens: int | None,
        image_size: int | tuple[int, int] | None,
    ) -> dict[str, Tensor | None]:
        """Append a region to be written where the inputs have none."""
        if mode is not None and mode not in GENERATION_MODES:
            raise ValueError(
                f"`generation_mode` is {mode!r}: choose one of {', '.join(GENERATION_MODES)}."
            )
        text, pixels, labels = inputs["input_ids"], inputs["pixel_values"], inputs["class_labels"]
        has_region = (
            text is not None and not _all_given(inputs["text_given"], inputs["attention_mask"])
        ) or (
            pixels is not None
            and not _all_given(inputs["image_given"], inputs["pixel_attention_mask"])
        )
        if has_region:
            return inputs
        mode = mode or "text"
        batch = next((v.shape[0] for v in (text, pixels, labels) if v is not None), 1)
        prompted = text is not None or pixels is not None
        inputs = dict(inputs)
        if mode in ("text", "joint"):
            length = self.config.max_text_length if max_new_tokens is None else max_new_tokens
            if length < 1:
                raise ValueError(
                    f"`max_new_tokens` is {length}: nothing to generate, use at least 1."
                )
            turn = int(prompted) if mode == "joint" else int(text is not None)
            _append_text(inputs, batch, length, turn, self.config.mask_token_id, self.device)
        if mode in ("image", "joint"):
            size = self.config.image_size if image_size is None else image_size
            size = (size, size) if isinstance(size, int) else tuple(size)
            turn = int(prompted) if mode == "joint" else int(pixels is not None)
            shape = (batch, 1, self.config.num_channels, *size)
            _append_picture(inputs, shape, turn, self.device, self.dtype)
        return inputs

    def write_text(self, latents: Tensor, encoded: EncodedInputs) -> Tensor:
        """Decode clean latents (b, t, d) to words (b, t); given words stay."""
        logits = self.vae.decode(latents.to(self.dtype), "text")
        logits[..., [self.config.mask_token_id, self.config.image_token_id]] = float("-inf")
        part = encoded.modalities["text"]
        pad = torch.full_like(part.target, self.config.pad_token_id or 0)
        words = torch.where(part.content.noisy, logits.argmax(-1), part.target)
        return torch.where(part.content.valid, words, pad)

    def _with_text_given(self, latents: Tensor, encoded: EncodedInputs) -> EncodedInputs:
        """Take finished words as a given text, which carries no padding words after `<end>`."""
        words, content = self.write_text(latents, encoded), encoded.content["text"]
        ends = (words == self.config.eos_token_id) & content.noisy
        after_end = content.noisy & ((ends.cumsum(-1) - ends.long()) > 0)
        given = encode_text(
            self.vae,
            words,
            content.valid & ~after_end,
            torch.ones_like(content.given),
            content.turn,
        )
        modalities = {**encoded.modalities, "text": given}
        return EncodedInputs(modalities, encoded.class_labels, encoded.grid)

    def write_images(
        self, latents: Tensor, encoded: EncodedInputs, inputs: dict[str, Tensor]
    ) -> Tensor:
        """Decode clean latents (b, n, d) to the last picture of every item; known pixels stay."""
        _, rows, columns = encoded.grid
        patches = self.vae.decode(latents.to(self.dtype), "image")[:, -rows * columns :]
        if self.vq is None:
            images = unpatchify(patches, self.config.patch_size, (rows, columns))
        else:
            codes = torch.cdist(patches, self.vq.codebook.to(patches.dtype)).argmin(-1)
            images = self.vq.decode(codes, (rows, columns))
        images = images.to(latents.dtype).clamp(-1, 1)
        known, pixels = inputs.get("image_given"), inputs["pixel_values"]
        if known is None:
            return images
        if pixels.dim() == 5:
            known, pixels = known[:, -1], pixels[:, -1]
        return torch.where(known[:, None].bool(), pixels.to(images.dtype), images)

    def _confidence(
        self,
        denoiser: GuidedDenoiser,
        encoded: EncodedInputs,
        noisy: dict[str, Tensor],
        final: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        result = {}
        for g, mask in noisy.items():
            if g == "text":
                words = self.write_text(final["text"], encoded)
                value = denoiser.logits[g].softmax(-1).gather(-1, words[..., None])[..., 0]
            else:
                entropy = torch.expm1(
                    self.score_entropy_head(denoiser.features[g][: denoiser.batch])
                ).clamp(min=0)
                value = torch.exp(-entropy / self.config.latent_dim)
            result[g] = torch.where(mask, value.float(), encoded.content[g].valid.float())
        return result

    def _decode_trajectory(
        self, trajectory: dict[str, list[Tensor]], encoded: EncodedInputs, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        decoded = {}
        if "text" in trajectory:
            decoded["text"] = torch.stack(
                [self.write_text(z, encoded) for z in trajectory["text"]], 1
            )
        if "image" in trajectory:
            decoded["image"] = torch.stack(
                [self.write_images(z, encoded, inputs) for z in trajectory["image"]], 1
            )
        return decoded

    def _kernel_backend(self) -> str:
        if self.config.mixer == "attention":
            return "sdpa"
        return resolve_backend(self.config.kernel_backend, self.device)


def _all_given(given: Tensor | None, attention_mask: Tensor | None) -> bool:
    if given is None:
        return False
    known = given.bool() if attention_mask is None else given.bool() | ~attention_mask.bool()
    return bool(known.all())


def _append_text(
    inputs: dict[str, Tensor | None],
    batch: int,
    length: int,
    turn: int,
    mask_token_id: int,
    device: torch.device,
) -> None:
    """Append `length` words to be written to every row."""
    region = {
        "input_ids": torch.full((batch, length), mask_token_id, device=device),
        "attention_mask": torch.ones(batch, length, dtype=torch.long, device=device),
        "text_given": torch.zeros(batch, length, dtype=torch.bool, device=device),
        "turn_ids": torch.full((batch, length), turn, device=device),
    }
    words = inputs["input_ids"]
    if words is not None:
        absent = {"attention_mask": torch.ones_like(words), "turn_ids": torch.zeros_like(words)}
        for name, value in region.items():
            before = inputs[name] if inputs[name] is not None else absent[name]
            region[name] = torch.cat([before.to(value.dtype), value], dim=1)
    inputs.update(region)


def _append_picture(
    inputs: dict[str, Tensor | None],
    shape: tuple[int, ...],
    turn: int,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Append a picture to be written, (batch, 1, channels, height, width), to every item."""
    batch, _, _, height, width = shape
    region = {
        "pixel_values": torch.zeros(shape, device=device, dtype=dtype),
        "image_given": torch.zeros(batch, 1, height, width, dtype=torch.bool, device=device),
        "pixel_attention_mask": torch.ones(
            batch, 1, height, width, dtype=torch.long, device=device
        ),
        "image_turn_ids": torch.full((batch, 1), turn, device=device),
    }
    pixels = inputs["pixel_values"]
    if pixels is not None:
        single = pixels.dim() == 4
        pictures = 1 if single else pixels.shape[1]
        mask_shape = (batch, pictures, *pixels.shape[-2:])
        absent = {
            "pixel_attention_mask": torch.ones(mask_shape, dtype=torch.long, device=device),
            "image_turn_ids": torch.zeros(batch, pictures, dtype=torch.long, device=device),
        }
        for name, value in region.items():
            before = inputs[name] if inputs[name] is not None else absent[name]
            if single and name != "image_turn_ids" and inputs[name] is not None:
                before = before[:, None]
            region[name] = torch.cat([before.to(value.dtype), value], dim=1)
    inputs.update(region)


__all__ = ["MDMGenerateOutput", "MDMGenerationConfig", "MDMGenerationMixin"]
