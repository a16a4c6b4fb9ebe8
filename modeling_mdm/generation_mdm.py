# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""`generate()`: text, images, or both at once, through one diffusion process.

Axes: b batch (items x num_return_sequences), t words, m pictures an item, n patches, d latent_dim.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationConfig
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging
from transformers.utils.deprecation import deprecate_kwarg

from .checks import flag
from .content import GENERATION_MODES, ModalityContent, written
from .generation_guidance import GuidedDenoiser
from .generation_outputs import MDMGenerateOutput, StreamFeed
from .generation_regions import (
    Inputs,
    Region,
    leaves_something_to_write,
    open_region,
    with_masks,
)
from .generation_sampling import (
    NoiseStreams,
    StepInfo,
    joint_windows,
    make_solvers,
    run_solvers,
)
from .generation_settings import MDMGenerationConfig, read_settings
from .inputs import MODEL_INPUTS, EncodedInputs, check_inputs, encode_text
from .mode_head import choose_modes
from .past_turns import PastTurns
from .precision import at_least_float32, warn_if_computes_emulated
from .ssd import resolve_backend
from .vae import unpatchify


class MDMGenerationMixin:
    """Gives a model `generate()`, which runs the diffusion loop.

    (transformers looks for this name's ending.)
    """

    _own_generation_config: GenerationConfig | None = None
    _usual_length: int | None = None
    _leaves_length_unsaid = False

    @property
    def generation_config(self) -> GenerationConfig | None:
        """Defaults of `generate`, which name the usual length of a text.

        Where nothing names one, transformers' pipelines ask for 256 words.
        """
        own, says_length = self._own_generation_config, not self._leaves_length_unsaid
        if own is not None and says_length and own.max_new_tokens in (None, self._usual_length):
            own.max_new_tokens = self._usual_length = self.config.max_text_length
        return own

    @generation_config.setter
    def generation_config(self, value: GenerationConfig | None) -> None:
        self._own_generation_config = value

    @deprecate_kwarg("past_key_values", "6.0.0", "cache", True, raise_if_both_names=True)
    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        generation_mode: str | None = None,
        max_new_tokens: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: Callable[[StepInfo], bool | None] | None = None,
        output_trajectory: bool = False,
        streamer: BaseStreamer | None = None,
        cache: PastTurns | None = None,
        **kwargs: Any,
    ) -> MDMGenerateOutput | Tensor:
        """
        Write every position that is not given.

        What is passed here is done or refused. Fields of [`MDMGenerationConfig`] act where what
        they set occurs. The size of a region is refused where none of its kind is opened. What
        transformers' `generate` takes beside is accepted where no result depends on it
        (`tokenizer`, `synced_gpus`, `do_sample`, which cache is used, what guesses words ahead), or
        at a value that asks for nothing: None, its default, `temperature=1.0`, the model's own
        `pad_token_id` and `eos_token_id`.

        Args:
            input_ids: words (b, t); with the other inputs of [`MDMForJointGeneration.forward`] as
                keywords. Without `text_given` all words but `<mask>` are given, without
                `image_given` all pixels.
            generation_config: fields of [`MDMGenerationConfig`]; keywords come first, and what
                neither sets is as in the model's own `generation_config`.
            generation_mode: where the inputs leave nothing to write, open a region: `"text"`
                (default), `"image"`, `"joint"`, or `"auto"`: what each item's last turn asks for,
                by the model's own choice (`config.use_mode_head`). If words go ahead
                (`joint_overlap` < 1) and some items hold both, all keep the times of those.
            max_new_tokens: words of that region; as the configurations say, and at first
                `config.max_text_length`, if None.
            image_size: its pixels, a side or (height, width); if None those of the given pictures,
                or `config.image_size`.
            generator: one that seeds a stream for each item, or one for each item. Same seed, same
                result.
            callback_on_step_end: sees a [`StepInfo`] after every step; True ends the run there.
            output_trajectory: also return the clean estimate of every step.
            streamer: shows the only item of a call at every step: an [`MDMStreamer`], or one of
                transformers' for text.
            cache: that of an earlier output, for as many items in the same order. Where
                the inputs, the whole conversation again, begin with what it has read, only the rest
                is read: the same result to rounding. Where they do not (an earlier turn has
                changed, the first picture joins words, another class), all is read as without it.
                It is of items, not of samples; see [`PastTurns`].

        Returns:
            [`MDMGenerateOutput`]; with `return_dict_in_generate=False` the words alone (b, t), with
            padding behind the `<end>` of what was written, or the pictures where no words are.

        Raises:
            ValueError: steps < 1, unknown solver or mode, guidance on a model without a null
                prompt, what is unknown or would have no effect, inputs that `forward` would reject,
                or a `cache` of other items or of another kind of model.
        """
        inputs = {"input_ids": input_ids}
        inputs |= {name: kwargs.pop(name, None) for name in MODEL_INPUTS[1:]}
        check_inputs(inputs, self.config)
        inputs = with_masks(inputs, self.config)
        keywords = {**kwargs, "max_new_tokens": max_new_tokens}
        settings = read_settings(self.config, self.generation_config, generation_config, keywords)
        _check_arguments(generator, callback_on_step_end, output_trajectory, streamer)
        _check_past(cache, settings)
        warn_if_computes_emulated(self.dtype, self.device)
        region = Region(generation_mode, settings["max_new_tokens"], image_size)
        region.check(inputs, self.config, max_new_tokens is not None)
        past = cache
        if generation_mode == "auto":
            past = self._choose_modes(inputs, region, settings, past)
        inputs = {
            name: value.repeat_interleave(settings["num_return_sequences"], dim=0)
            for name, value in open_region(inputs, region, self.config, self.device).items()
            if value is not None
        }
        encoded = self.encode_inputs(**inputs)
        if past is not None:
            past.check(self, len(encoded.class_labels) // settings["num_return_sequences"])
        noisy = written(encoded.content)
        if not noisy:
            raise ValueError("Nothing to generate: the inputs hold 0 items, pass at least one.")
        is_bare = not settings["return_dict_in_generate"]
        if len(noisy) > 1 and is_bare and kwargs.get("return_dict_in_generate") is not None:
            raise ValueError(
                "`return_dict_in_generate` is False, but this call writes words and pictures, "
                "which no single tensor holds: leave it out, or write one of them."
            )
        estimates: list[dict[str, Tensor]] = []
        feed = None if streamer is None else StreamFeed(streamer, self, encoded, inputs)

        def on_step(info: StepInfo) -> bool:
            if feed is not None:
                feed.step(info)
            if output_trajectory:
                estimates.append(info.clean_estimates)
            return bool(callback_on_step_end and callback_on_step_end(info))

        is_mixed = generation_mode == "auto"
        denoiser, final = self._sample(encoded, noisy, settings, generator, on_step, past, is_mixed)
        sequences = self.write_text(final["text"], encoded) if "text" in final else None
        trajectory = self._decode_trajectory(estimates, encoded, inputs)
        output = MDMGenerateOutput(
            sequences=sequences,
            images=self.write_images(final["image"], encoded, inputs) if "image" in final else None,
            turn_ids=None if sequences is None else _turns(encoded),
            confidence=self._confidence(denoiser, encoded, sequences),
            samples_per_item=settings["num_return_sequences"],
            num_evaluations=denoiser.evaluations,
            item_evaluations=denoiser.item_evaluations,
            kernel_backend=self._kernel_backend(
                denoiser.branches.part.sequence.valid.shape[1], settings["compile"]
            ),
            trajectory=trajectory if output_trajectory else None,
            generation_modes=region.of_samples(settings["num_return_sequences"]),
            cache=denoiser.past,
        )
        if feed is not None:
            feed.end(output)
        if not is_bare or len(noisy) > 1:  # no single tensor holds words and pictures
            return output
        if sequences is None:
            return output.images
        behind = self._behind_end(sequences, encoded.content["text"])
        return sequences.masked_fill(behind, self.config.pad_token_id or 0)

    def _choose_modes(
        self, inputs: Inputs, region: Region, settings: dict[str, Any], past: PastTurns | None
    ) -> PastTurns | None:
        """Let the model choose what each item's region holds; what it read to that end."""
        if not self.config.use_mode_head:
            raise ValueError(
                "`generation_mode` is 'auto', but this model has no mode head to choose by: name "
                f"one of {', '.join(GENERATION_MODES)}, or train one (`use_mode_head`)."
            )
        if leaves_something_to_write(inputs):
            region.mode = None
            return past
        turns = choose_modes(self, inputs, past)
        region.mode = turns.modes
        return turns if settings["use_cache"] and settings["keep"] == 1 else None

    def _sample(
        self,
        encoded: EncodedInputs,
        noisy: dict[str, Tensor],
        settings: dict[str, Any],
        generator: torch.Generator | Sequence[torch.Generator] | None,
        on_step: Callable[[StepInfo], bool],
        past: PastTurns | None = None,
        is_mixed: bool = False,
    ) -> tuple[GuidedDenoiser, dict[str, Tensor]]:
        """Run the diffusion loop: the denoiser as it ends, and final latents by modality.

        With `is_mixed`, items that write one modality keep the times of those that write both.
        """
        steps = {g: settings["num_inference_steps"][g] for g in noisy}
        total = max(steps.values())
        windows = joint_windows(steps, _overlap(noisy, settings["joint_overlap"], is_mixed))
        steps = {g: min(steps[g], stop - first) for g, (first, stop) in windows.items()}
        dtype = next(iter(encoded.content.values())).latents.dtype
        streams = NoiseStreams(noisy, self.config.latent_dim, dtype, generator)
        noise = {g: streams.draw(g) for g in noisy}
        denoiser = GuidedDenoiser(self, encoded, noise, settings, past)
        solvers = make_solvers(self, noise, settings["solver"], steps, streams)

        def on_finish(g: str, latents: Tensor) -> None:
            if g == "text":
                denoiser.give(self._with_text_given(latents, encoded))

        with logging.tqdm(total=total, disable=not settings["show_progress"]) as progress:

            def count(info: StepInfo) -> bool:
                progress.update()
                return on_step(info) or denoiser.is_done

            final = run_solvers(solvers, steps, denoiser, count, windows, on_finish)
        return denoiser, final

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
        given = encode_text(
            self.vae,
            words,
            content.valid & ~self._behind_end(words, content),
            torch.ones_like(content.given),
            content.turn,
        )
        modalities = {**encoded.modalities, "text": given}
        return EncodedInputs(modalities, encoded.class_labels, encoded.grid)

    def _behind_end(self, words: Tensor, content: ModalityContent) -> Tensor:
        """Which words (b, t) were written behind the first written `<end>` of their row: (b, t)."""
        ends = (words == self.config.eos_token_id) & content.noisy
        return content.noisy & ((ends.cumsum(-1) - ends.long()) > 0)

    def write_images(
        self, latents: Tensor, encoded: EncodedInputs, inputs: dict[str, Tensor]
    ) -> Tensor:
        """Decode clean latents (b, n, d) to one picture an item; known pixels stay.

        That is its last picture with anything to write, or its last one.
        """
        pictures, rows, columns = encoded.grid
        noisy = encoded.content["image"].noisy.unflatten(1, (pictures, -1)).any(-1)  # (b, m)
        last = (noisy * torch.arange(1, pictures + 1, device=noisy.device)).amax(-1) - 1
        chosen = torch.arange(len(last), device=last.device), last % pictures
        patches = latents.to(self.dtype).unflatten(1, (pictures, -1))[chosen]
        patches = self.vae.decode(patches, "image")
        if self.vq is None:
            images = unpatchify(patches, self.config.patch_size, (rows, columns))
        else:
            dtype = at_least_float32(patches.dtype)
            codes = torch.cdist(patches.to(dtype), self.vq.codebook.to(dtype)).argmin(-1)
            images = self.vq.decode(codes, (rows, columns))
        # In float32, so that known pixels are those that were given.
        images = images.to(torch.promote_types(images.dtype, torch.float32)).clamp(-1, 1)
        known, pixels = inputs.get("image_given"), inputs["pixel_values"]
        if known is None:
            return images
        if pixels.dim() == 5:
            known, pixels = known[chosen], pixels[chosen]
        return torch.where(known[:, None].bool(), pixels.to(images.dtype), images)

    def _confidence(
        self,
        denoiser: GuidedDenoiser,
        encoded: EncodedInputs,
        sequences: Tensor | None,
    ) -> dict[str, Tensor]:
        result = {}
        for g, last in denoiser.last.items():
            if g == "text":
                words = last.part.take(g, sequences[..., None])
                value = last.logits.softmax(-1).gather(-1, words)
            else:
                entropy = torch.expm1(self.score_entropy_head(last.features)).clamp(min=0)
                value = torch.exp(-entropy / self.config.latent_dim)[..., None]
            known = encoded.content[g].valid.float()[..., None]
            result[g] = last.part.put(g, value.float(), known)[..., 0]
        return result

    def _decode_trajectory(
        self,
        estimates: list[dict[str, Tensor]],
        encoded: EncodedInputs,
        inputs: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Decode the clean estimates of every step, stacked at axis 1, by modality."""
        decoded: dict[str, list[Tensor]] = {}
        for step in estimates:
            if "text" in step:
                decoded.setdefault("text", []).append(self.write_text(step["text"], encoded))
            if "image" in step:
                images = self.write_images(step["image"], encoded, inputs)
                decoded.setdefault("image", []).append(images)
        return {g: torch.stack(steps, 1) for g, steps in decoded.items()}

    def _kernel_backend(self, length: int, compiled: bool = False) -> str:
        """Name what scans sequences of this length here."""
        if self.config.mixer == "attention":
            return "sdpa"
        sizes = (self.config.state_size, self.config.head_dim)
        return resolve_backend(
            self.config.kernel_backend, self.device, length, self.dtype, sizes, compiled
        )

    def adjust_generation_fn(
        self,
        generation_config: GenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: str | None,
        pretrained_model_name_or_path: str | None,
        *,
        trust_remote_code: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the generation configuration that lies beside the weights.

        `from_pretrained` calls this; without such a file the defaults stay.
        """
        if generation_config is not None:
            values = generation_config.to_dict()
            self.generation_config = self.generation_config_class.from_dict(values)
        elif pretrained_model_name_or_path is not None:
            with contextlib.suppress(OSError):
                self.generation_config = self.generation_config_class.from_pretrained(
                    pretrained_model_name_or_path,
                    _from_auto=from_auto_class,
                    _from_pipeline=from_pipeline,
                    **kwargs,
                )


@contextlib.contextmanager
def usual_length_unsaid(model: MDMGenerationMixin) -> Iterator[None]:
    """Leave a model's usual length out of its generation configuration while that is saved.

    So that a length that a file names is one that somebody chose, whatever length the model that is
    made from it has.
    """
    own = model.generation_config
    is_usual = own is not None and own.max_new_tokens == model.config.max_text_length
    model._leaves_length_unsaid = is_usual
    if is_usual:
        own.max_new_tokens = None
    try:
        yield
    finally:
        model._leaves_length_unsaid = False


def _check_arguments(generator: Any, callback: Any, with_trajectory: Any, streamer: Any) -> None:
    """Refuse arguments of another type than `generate` can use."""
    several = list(generator) if isinstance(generator, list | tuple) else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in several):
        raise ValueError(
            f"`generator` is {generator!r:.80}: pass torch.Generator().manual_seed(7), or a list "
            "of one for each item."
        )
    if callback is not None and not callable(callback):
        raise ValueError(
            f"`callback_on_step_end` is {callback!r:.80}: pass a function of a StepInfo."
        )
    flag("output_trajectory", with_trajectory)
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise ValueError(
            f"`streamer` is {streamer!r:.80}: pass an MDMStreamer, or one of transformers'."
        )


def _check_past(past: PastTurns | None, settings: dict[str, Any]) -> None:
    if past is None:
        return
    if not isinstance(past, PastTurns):
        raise ValueError(
            f"`cache` is a {type(past).__name__}: pass that of an earlier output, `output.cache`."
        )
    if not settings["use_cache"]:
        raise ValueError("`cache` was passed with `use_cache=False`: leave one out.")
    if settings["keep"] < 1:
        raise ValueError(
            f"`cache` was passed with `keep` = {settings['keep']}: hard selection ranks "
            "all that is given, which cannot be read turn by turn; use 1, or leave one out."
        )


def _turns(encoded: EncodedInputs) -> Tensor:
    """Turn of every word (b, t), -1 at alignment padding of rows that have any words."""
    content = encoded.content["text"]
    padding = ~content.valid & content.valid.any(-1, keepdim=True)
    return content.turn.masked_fill(padding, -1)


def _overlap(noisy: dict[str, Tensor], overlap: float, is_mixed: bool) -> float:
    """Share of their time that words and pictures have in common, where both are written.

    Raises:
        ValueError: words go ahead in some items, and others write one modality, in all of the time,
            but for `is_mixed`.
    """
    if len(noisy) < 2 or overlap == 1:
        return 1.0
    both = noisy["text"].any(-1) & noisy["image"].any(-1)
    if both.any() and not both.all() and not is_mixed:
        raise ValueError(
            f"`joint_overlap` is {overlap}, but {int((~both).sum())} of {len(both)} items do not "
            "write both text and image: generate them in a call of their own, or use 1."
        )
    return overlap if both.any() else 1.0


__all__ = ["MDMGenerateOutput", "MDMGenerationConfig", "MDMGenerationMixin"]
