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

from .content import GENERATION_MODES, written
from .generation_guidance import GuidedDenoiser, PromptReader
from .generation_outputs import MDMGenerateOutput, OutputWriter, StreamFeed
from .generation_regions import (
    Inputs,
    RegionRequest,
    leaves_something_to_write,
    open_region,
    repeat_inputs,
    with_masks,
)
from .generation_sampling import (
    Denoiser,
    NoiseStreams,
    StepInfo,
    StepWatcher,
    make_solvers,
    run_solvers,
)
from .generation_settings import (
    MDMGenerationConfig,
    Settings,
    check_arguments,
    check_form,
    check_past,
    check_selection,
    read_settings,
)
from .generation_steps import plan_steps
from .inputs import MODEL_INPUTS, EncodedInputs, check_inputs
from .network import MDMNetwork
from .past_turns import PastTurns, last_given, read_given, weights_fingerprint
from .precision import warn_if_computes_emulated
from .ssd import resolve_backend


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
        output_selection: bool = False,
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
                (`joint_lead`, `joint_overlap` < 1) and some items hold both, all keep the times of
                those.
            max_new_tokens: words of that region; as the configurations say, and at first
                `config.max_text_length`, if None.
            image_size: its pixels, a side or (height, width); if None those of the given pictures,
                or `config.image_size`.
            generator: one that seeds a stream for each item, or one for each item. Same seed, same
                result.
            callback_on_step_end: sees a [`StepInfo`] after every step; True ends the run there.
            output_trajectory: also return the clean estimate of every step.
            output_selection: also return what every scan reads; needs `keep` < 1.
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
        # 1. Read what is asked for, and refuse what would have no effect.
        inputs = self._take_inputs(input_ids, kwargs)
        keywords = {**kwargs, "max_new_tokens": max_new_tokens}
        settings = read_settings(self.config, self.generation_config, generation_config, keywords)
        check_arguments(generator, callback_on_step_end, output_trajectory, streamer)
        check_selection(output_selection, settings)
        check_past(cache, settings)
        region = RegionRequest(generation_mode, settings.max_new_tokens, image_size)
        region.check(inputs, self.config, max_new_tokens is not None)

        # 2. Open a region where nothing is left to write, and encode a row for every sample.
        is_mixed = generation_mode == "auto"
        if is_mixed:
            cache = self._choose_modes(inputs, region, settings, cache)
        opened = open_region(inputs, region, self.config, self.device)
        inputs = repeat_inputs(opened, settings.num_return_sequences)
        encoded = self._encode_samples(inputs, settings, cache)
        noisy = written(encoded.content)
        check_form(noisy, settings)

        # 3. Plan the steps of each modality, draw its noise, make its solver.
        writer = OutputWriter(self, encoded, inputs)
        feed = None if streamer is None else StreamFeed(streamer, writer)
        plan = plan_steps(noisy, self.schedules, settings, is_mixed)
        dtype = next(iter(encoded.content.values())).latents.dtype
        again = encoded if plan.restarts_at is None else encoded.with_whole_pictures_written()
        streams = NoiseStreams(written(again.content), self.config.latent_dim, dtype, generator)
        noise = {modality: streams.draw(modality) for modality in noisy}
        solvers = make_solvers(self.schedules, noise, settings.solver, plan, streams)

        # 4. Lay out the branches of guidance, and read what is given once for all steps.
        reader = PromptReader.of(self, settings, cache)
        denoiser = GuidedDenoiser(self, encoded, noise, settings, reader, output_selection)

        # 5. Denoise: a step evaluates the network for both modalities, and a solver moves each.
        def on_finish(modality: str, latents: Tensor) -> Denoiser:
            nonlocal denoiser  # words that went ahead are given to the picture
            denoiser = denoiser.continued(writer.with_words_given(latents))
            return denoiser

        def on_restart() -> Denoiser:
            nonlocal denoiser  # known pixels have become noisy with those around them
            if again is not encoded:
                denoiser = denoiser.continued(again)
            return denoiser

        with logging.tqdm(total=plan.total, disable=not settings.show_progress) as progress:
            show = None if feed is None else feed.step
            watcher = StepWatcher(progress, show, output_trajectory, callback_on_step_end)
            final = run_solvers(solvers, plan, denoiser, watcher, on_finish, on_restart)

        # 6. Write: latents become words and pictures.
        content = writer.decode(final)
        words = content.get("text")
        output = MDMGenerateOutput(
            sequences=words,
            images=content.get("image"),
            turn_ids=None if words is None else writer.turns(),
            confidence=writer.confidence(denoiser.last, words),
            samples_per_item=settings.num_return_sequences,
            num_evaluations=denoiser.evaluations,
            kernel_backend=self._kernel_backend(denoiser.length, settings.compile),
            trajectory=writer.trajectory(watcher.estimates) if output_trajectory else None,
            generation_modes=region.of_samples(settings.num_return_sequences),
            cache=reader.past,  # of before words that went ahead were given
            selection=self._stacked(denoiser.selections) if output_selection else None,
        )
        if feed is not None:
            feed.end(output)
        if settings.return_dict_in_generate or len(noisy) > 1:
            return output
        return output.images if words is None else writer.padded(words)

    def _stacked(self, selections: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """What scans read at every evaluation: (b, evaluations, blocks, k, n) by modality."""
        blocks = self.config.num_hidden_layers
        stacked = {
            modality: torch.stack([one[modality] for one in selections], 1)
            for modality in selections[0]
        }
        return {m: read.unflatten(-1, (blocks, -1)).movedim(2, -1) for m, read in stacked.items()}

    def _take_inputs(self, input_ids: Tensor | None, keywords: dict[str, Any]) -> Inputs:
        """Take the model's inputs out of the keywords of a call, with a mask for all of them."""
        inputs = {"input_ids": input_ids}
        inputs |= {name: keywords.pop(name, None) for name in MODEL_INPUTS[1:]}
        check_inputs(inputs, self.config)
        return with_masks(inputs, self.config)

    def _encode_samples(
        self, inputs: dict[str, Tensor], settings: Settings, past: PastTurns | None
    ) -> EncodedInputs:
        """Encode the inputs of all samples, of which each item's follow each other."""
        warn_if_computes_emulated(self.dtype, self.device)
        encoded = self.encode_inputs(**inputs)
        if past is not None:
            past.check(self, len(encoded.class_labels) // settings.num_return_sequences)
        return encoded

    def _choose_modes(
        self, inputs: Inputs, region: RegionRequest, settings: Settings, past: PastTurns | None
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
        return turns if settings.reads_turns else None

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
            # Fields of the model that this loading changes are none of how it generates.
            kwargs = {
                name: value for name, value in kwargs.items() if name not in vars(self.config)
            }
            with contextlib.suppress(OSError):
                self.generation_config = self.generation_config_class.from_pretrained(
                    pretrained_model_name_or_path,
                    _from_auto=from_auto_class,
                    _from_pipeline=from_pipeline,
                    **kwargs,
                )


def choose_modes(network: MDMNetwork, inputs: Inputs, past: PastTurns | None = None) -> PastTurns:
    """Read what is given, which leaves a mode for every item: see `PastTurns.modes`.

    Args:
        inputs: of `generate`, with nothing to be written. past: turns that they begin with.

    Raises:
        ValueError: an item gives nothing to decide by.
    """
    passed = {name: value for name, value in inputs.items() if value is not None}
    if not passed.keys() & {"input_ids", "pixel_values"}:
        raise ValueError(_NOTHING_GIVEN)
    encoded = network.encode_inputs(**passed)
    if past is not None:
        past.check(network, len(encoded.class_labels))
    last = torch.stack([last_given(positions) for positions in encoded.content.values()]).amax(0)
    if bool((last < 0).any()):
        raise ValueError(_NOTHING_GIVEN)
    absent = torch.zeros_like(encoded.has_class)
    sequence = network.decoder.lay_out(encoded.content, encoded.has_class, absent, encoded.grid)
    return read_given(network, encoded, sequence, weights_fingerprint(network), past)[0]


_NOTHING_GIVEN = (
    "`generation_mode` is 'auto', but an item gives neither words nor a picture to decide by: "
    f"name one of {', '.join(GENERATION_MODES)}."
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


__all__ = ["MDMGenerateOutput", "MDMGenerationConfig", "MDMGenerationMixin"]
