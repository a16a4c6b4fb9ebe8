# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run of `generate()` is set to: keywords before the configuration before the defaults."""

import inspect
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.generation.configuration_utils import GenerationConfig
from transformers.generation.utils import GenerationMixin

from .checks import choice, flag, integer, number, plain
from .configuration_mdm import MDMConfig
from .content import MODALITIES
from .past_turns import PastTurns
from .solvers import SOLVERS

DEFAULTS: dict[str, Any] = {
    "num_inference_steps": 30,
    "guidance_scale": {"image": 2.0, "text": 1.0},
    "joint_guidance_scale": 1.0,
    "joint_overlap": 1.0,
    "joint_lead": None,
    "guidance_window": None,
    "num_restarts": 0,
    "restart_log_snr": {"image": -4.0, "text": 0.0},
    "solver": {"image": "dpm_solver_2m", "text": "ddpm"},
    "keep": 1.0,
    "use_cache": True,
    "compile": False,
    "cuda_graph": True,
    "num_return_sequences": 1,
    "show_progress": True,
}
BY_MODALITY = (
    *("num_inference_steps", "guidance_scale", "joint_guidance_scale", "guidance_window"),
    *("restart_log_snr", "solver"),
)
# Log-SNR in nats from which to which the steps of a run by a clock go; the last of them goes
# to what is clean.
CLOCK_START, CLOCK_END = -9.0, 8.0
MAX_LEAD = CLOCK_END - CLOCK_START
_READ = ("max_new_tokens", "return_dict_in_generate")  # beside `DEFAULTS`
FLAGS = ("use_cache", "compile", "cuda_graph", "show_progress")

# What transformers' callers pass along and no result depends on: who decodes, where a cache lies,
# how words are guessed ahead, whether to sample (diffusion always does).
HARMLESS = {
    *("tokenizer", "assistant_tokenizer", "assistant_model", "synced_gpus", "use_model_defaults"),
    *("do_sample", "bos_token_id", "transformers_version", "trust_remote_code", "low_memory"),
    *("cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size"),
    *("compile_config", "disable_compile", "continuous_batching_config", "is_assistant"),
    *("use_mtp", "num_assistant_tokens", "num_assistant_tokens_schedule", "speculation_type"),
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind"),
    *("target_lookbehind", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
}
# Where an option of transformers asks for nothing, beside its default, None, False and empty lists.
NEUTRAL = {"top_k": 0, "top_h": 1.0, "min_p": 0.0, "min_new_tokens": 0}
FIXES = {
    "max_length": "it counts the prompt too; give the length of what is written by max_new_tokens",
    "stop_strings": "a text ends at its <end>; cut it afterwards",
    "max_time": "give fewer num_inference_steps, or end the run by callback_on_step_end",
    "temperature": "there is none here; the pipeline 'text-generation' always sends one, use "
    "'any-to-any' or 'image-text-to-text'",
    "num_beams": "draw several samples by num_return_sequences",
    "output_scores": "read `confidence` of the output, or pass output_trajectory=True",
    "output_logits": "read `confidence` of the output, or pass output_trajectory=True",
    "output_hidden_states": "call `forward` with it",
}


class MDMGenerationConfig(GenerationConfig):
    """
    Defaults of `generate()`.

    A value for both modalities or a dictionary `{"image": ..., "text": ...}` is allowed for the
    steps, both guidance scales and their window, the log-SNR of restarts and the solver. A
    dictionary may name one modality: the other keeps what it had.

    Args:
        num_inference_steps (`int` or `dict`): sampler steps of the run, those of restarts included.
            Default 30.
        guidance_scale (`float` or `dict`): classifier-free guidance, 1 is off. Default 2 for
            images, 1 for text; 1 for a model that was trained without a null prompt.
        joint_guidance_scale (`float` or `dict`): guidance of each modality by the other while both
            are written. Default 1, off.
        joint_overlap (`float`): while text and image are both written, how much of their time they
            share. 1 (default): both from the first step to the last. Less: words go ahead, and are
            given to the picture once they are finished, with `guidance_scale`; at 0 before it even
            begins. Each modality then has fewer of the steps.
        joint_lead (`float`): in the place of `joint_overlap`, nats of log-SNR by which the words
            lead while text and image are both written. Both are noisy until the last step: one
            clock goes from a log-SNR of -9 to 8, most of its steps about -2.5, where both are
            decided; the words are at it plus half of the lead, the picture at it minus that half.
            Both take the same number of steps. At most 17; default None, off. Of the two, what a
            nearer layer names counts.
        guidance_window (pair of `float`, or `dict`): lowest and highest log-SNR of a modality, in
            nats, between which both kinds of its guidance act; outside they are off. Default None,
            everywhere; (-20, 20) is everywhere too.
        num_restarts (`int`): how often what is clean is made noisy again, up to `restart_log_snr`,
            and denoised once more. Passes share the steps by the log-SNR that they cover, from -9
            to 8 at first. Known pixels of a picture become noisy with those around them and come
            back as they were, which mends seams (RePaint). Not while words go ahead by
            `joint_overlap`. Default 0. Those of a model's own configuration are left out, where a
            call has too few steps for them or lets words go ahead so.
        restart_log_snr (`float` or `dict`): log-SNR that a restart begins at, in nats, from -9 to
            below 8. Default -4 for images, 0 for text.
        solver (`str` or `dict`): `"heun"`, `"dpm_solver_2m"` (default for images), `"ddim"` or
            `"ddpm"` (default for text).
        keep (`float`): share of items that each scan reads (hard selection). Default 1.
        use_cache (`bool`): read what is given once, and evaluate only what is written at every
            step. Default True; the results are the same to rounding.
        compile (`bool`): evaluate the network by `torch.compile`. Default False.
        cuda_graph (`bool`): on a CUDA device, replay evaluations as a CUDA graph. Default True;
            it needs `use_cache`, and not `compile`.
        num_return_sequences (`int`): samples of each item. Default 1.
        show_progress (`bool`): show a progress bar. Default True.
        max_new_tokens (`int`): words of a text region that `generate` opens. Default
            `max_text_length` of the model.
        return_dict_in_generate (`bool`): False returns the words alone, a tensor, or the pictures
            where no words are written. Default True.
    """

    def __init__(self, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name, None) for name in DEFAULTS}
        super().__init__(**kwargs)
        for name, value in own.items():
            setattr(self, name, _as_in_json(value))

    @classmethod
    def from_model_config(cls, model_config: Any) -> "MDMGenerationConfig":
        """Take the special words from a model's configuration; the rest are defaults."""
        values = model_config if isinstance(model_config, dict) else model_config.to_dict()
        return cls(pad_token_id=values.get("pad_token_id"), eos_token_id=values.get("eos_token_id"))

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Check as transformers does, save that several samples need no `do_sample` here."""
        samples, self.num_return_sequences = self.num_return_sequences, None
        try:
            super().validate(*args, **kwargs)
        finally:
            self.num_return_sequences = samples


@dataclass(frozen=True)
class Settings:
    """What a run is set to: the fields of [`MDMGenerationConfig`], by modality where they may be.

    joint_lead is None where `joint_overlap` counts, which is 1 where the lead does.
    names_form: whether this call asked for `return_dict_in_generate`. asks_for_lead,
    asks_for_restarts: whether it, and not the model's own configuration, asked for `joint_lead`,
    for `num_restarts`.
    """

    num_inference_steps: dict[str, int]
    guidance_scale: dict[str, float]
    joint_guidance_scale: dict[str, float]
    joint_overlap: float
    joint_lead: float | None
    guidance_window: dict[str, tuple[float, float] | None]
    num_restarts: int
    restart_log_snr: dict[str, float]
    solver: dict[str, str]
    keep: float
    use_cache: bool
    compile: bool
    cuda_graph: bool
    num_return_sequences: int
    show_progress: bool
    max_new_tokens: int
    return_dict_in_generate: bool
    names_form: bool
    asks_for_lead: bool
    asks_for_restarts: bool

    @property
    def reads_turns(self) -> bool:
        """Whether what is given is read turn by turn; hard selection ranks all of it."""
        return self.use_cache and self.keep == 1


def read_settings(
    config: MDMConfig,
    own: GenerationConfig | None,
    passed: GenerationConfig | None,
    keywords: dict[str, Any],
) -> Settings:
    """Lay keywords over a passed configuration over the model's own over the defaults.

    Args:
        config: of the model. own, passed: any of their fields may be absent or None, which leaves
            what is below.
        keywords: what `generate` was passed beside its inputs.

    Raises:
        ValueError: an unknown keyword or modality, a value that this model cannot run with, or one
            that asks for what `generate` does not do.
    """
    if not isinstance(passed, GenerationConfig | None):
        raise ValueError(
            f"`generation_config` is {passed!r:.80}: pass an MDMGenerationConfig, or its fields as "
            "keywords."
        )
    layers = [*({} if layer is None else vars(layer) for layer in (own, passed)), keywords]
    _refuse_without_effect(config, *layers)
    asks = {name: _is_asked(name, *layers) for name in ("joint_lead", "num_restarts")}
    layers = _lead_or_overlap(layers)
    settings: dict[str, Any] = {}
    for name, default in DEFAULTS.items():
        if name == "guidance_scale" and not _has_null_prompt(config):
            default = 1.0
        values = [default, *_given(name, layers)]
        settings[name] = _by_modality(name, values) if name in BY_MODALITY else values[-1]
    length, form = (_given(n, layers) for n in ("max_new_tokens", "return_dict_in_generate"))
    settings["max_new_tokens"] = length[-1] if length else config.max_text_length
    settings["return_dict_in_generate"] = flag("return_dict_in_generate", (form or [True])[-1])
    settings["names_form"] = keywords.get("return_dict_in_generate") is not None
    _check_by_modality(config, settings)
    _check_run(config, settings)
    _check_clock(settings)
    if keywords.get("restart_log_snr") is not None and not settings["num_restarts"]:
        raise ValueError(
            f"`restart_log_snr` is {keywords['restart_log_snr']!r:.80}, but `num_restarts` is 0: "
            "it would have no effect, leave it out or use `num_restarts` = 1."
        )
    settings["asks_for_lead"] = asks["joint_lead"]
    settings["asks_for_restarts"] = asks["num_restarts"]
    return Settings(**settings)


def _is_asked(
    name: str, own: dict[str, Any], passed: dict[str, Any], keywords: dict[str, Any]
) -> bool:
    """Whether a call names a field, or passes a configuration with another value of it."""
    return keywords.get(name) is not None or passed.get(name) not in (None, own.get(name))


def _lead_or_overlap(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take out of layers what a nearer one overrides by the other name of how words go ahead.

    Args:
        layers: the lowest first.

    Raises:
        ValueError: the nearest layer that names `joint_lead` or `joint_overlap` names both.
    """
    names = ("joint_lead", "joint_overlap")
    for index in reversed(range(len(layers))):
        lead, overlap = (layers[index].get(name) for name in names)
        if lead is None and overlap is None:
            continue
        if lead is not None and overlap is not None and _overlap(overlap) != 1:
            raise ValueError(
                f"`joint_lead` is {lead!r:.80} and `joint_overlap` {overlap!r:.80}, two ways in "
                "which words go ahead of a picture: leave one of them out."
            )
        hidden = [
            {name: value for name, value in layer.items() if name not in names}
            for layer in layers[:index]
        ]
        return [*hidden, *layers[index:]]
    return layers


def _given(name: str, layers: list[dict[str, Any]]) -> list[Any]:
    """What layers say of a name, the lowest first; None says nothing."""
    return [layer[name] for layer in layers if layer.get(name) is not None]


def _refuse_without_effect(
    config: MDMConfig, own: dict[str, Any], passed: dict[str, Any], keywords: dict[str, Any]
) -> None:
    """Refuse what asks for something that is not done here.

    Raises:
        ValueError: such options, transformers' or of unknown names.
    """
    usual = GenerationConfig._get_default_generation_params()
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    known |= inspect.signature(GenerationMixin.generate).parameters.keys()
    refused = []
    for layer in (own, passed, keywords):
        for name, value in layer.items():
            if name in DEFAULTS or name in HARMLESS or name in _READ or name.startswith("_"):
                continue
            of_model = [own.get(name), getattr(config, name, None)]
            if name in known:
                neutral = [usual.get(name), NEUTRAL.get(name)]
                # A length that somebody names is meant, be it transformers' default.
                neutral = [] if name == "max_length" and layer is keywords else neutral
                if name in ("pad_token_id", "eos_token_id") or layer is passed:
                    neutral += of_model
                if not _asks_for_nothing(plain(value), neutral):
                    fix = f" ({FIXES[name]})" if name in FIXES else ""
                    refused.append(f"{name}={value!r:.80}{fix}")
            elif layer is not own and value is not None and value not in of_model:
                refused.append(f"{name}={value!r:.80}")
    if refused:
        raise ValueError(
            f"`generate` got {', '.join(refused)}: unknown keywords, or what has no effect on a "
            "diffusion model. Leave them out; inputs apart, it takes what MDMGenerationConfig "
            f"does: {', '.join((*DEFAULTS, *_READ))}."
        )


def _asks_for_nothing(value: Any, neutral: list[Any]) -> bool:
    """Whether a value is None, False, empty, or one of those that do nothing."""
    if value is None or value is False or (isinstance(value, list | tuple | dict) and not value):
        return True
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return not isinstance(value, bool) and value in neutral


def _by_modality(name: str, layers: list[Any]) -> dict[str, Any]:
    """One value for each modality, the last that was named."""
    values: dict[str, Any] = {}
    for layer in layers:
        named = layer if isinstance(layer, dict) else dict.fromkeys(MODALITIES, layer)
        unknown = sorted(map(str, set(named) - set(MODALITIES)))
        if unknown:
            raise ValueError(f"`{name}` has a value for {unknown}: name 'image' and / or 'text'.")
        values |= {modality: value for modality, value in named.items() if value is not None}
    return {modality: values.get(modality) for modality in MODALITIES}


def _has_null_prompt(config: MDMConfig) -> bool:
    return config.num_null_tokens > 0 and config.null_prompt_probability > 0


def _check_by_modality(config: MDMConfig, settings: dict[str, Any]) -> None:
    for modality in MODALITIES:
        where = f" for {modality}"
        settings["num_inference_steps"][modality] = integer(
            "num_inference_steps",
            settings["num_inference_steps"][modality],
            "use an integer of at least 1, such as 30.",
            where=where,
        )
        choice("solver", settings["solver"][modality], SOLVERS, where=where)
        for name in ("guidance_scale", "joint_guidance_scale"):
            fix = "use a number, such as 2.0; 1 is off."
            settings[name][modality] = number(name, settings[name][modality], fix, where=where)
        scale = settings["guidance_scale"][modality]
        if scale != 1 and not _has_null_prompt(config):
            raise ValueError(
                f"`guidance_scale` is {scale} for {modality}, but this model was trained without a "
                f"null prompt (`num_null_tokens` = {config.num_null_tokens}, "
                f"`null_prompt_probability` = {config.null_prompt_probability}): use 1."
            )


def _check_run(config: MDMConfig, settings: dict[str, Any]) -> None:
    for name, fix in (
        ("num_return_sequences", "use an integer of at least 1."),
        ("max_new_tokens", "nothing to generate, use an integer of at least 1."),
    ):
        settings[name] = integer(name, settings[name], fix)
    settings["joint_overlap"] = _overlap(settings["joint_overlap"])
    fix = "use a share in (0, 1], and 1 for a model trained without selection."
    selects = config.mixer == "mamba2" and config.use_selection
    least = math.ulp(0.0) if selects else 1
    settings["keep"] = number("keep", settings["keep"], fix, least, 1)
    for name in FLAGS:
        settings[name] = flag(name, settings[name])


def _overlap(value: Any) -> float:
    return number("joint_overlap", value, "use a share in [0, 1].", 0, 1)


def _check_clock(settings: dict[str, Any]) -> None:
    if settings["joint_lead"] is not None:
        fix = f"use nats of log-SNR from 0 to {MAX_LEAD:g}, the length of the clock, such as 2.0."
        settings["joint_lead"] = number("joint_lead", settings["joint_lead"], fix, 0, MAX_LEAD)
    fix = "use an integer of at least 0; 0 is off."
    settings["num_restarts"] = integer("num_restarts", settings["num_restarts"], fix, least=0)
    below_end = math.nextafter(CLOCK_END, CLOCK_START)
    fix = f"use a log-SNR in nats from {CLOCK_START:g} to below {CLOCK_END:g}, such as -4.0."
    for modality in MODALITIES:
        where = f" for {modality}"
        settings["restart_log_snr"][modality] = number(
            *("restart_log_snr", settings["restart_log_snr"][modality], fix),
            *(CLOCK_START, below_end, where),
        )
        window = settings["guidance_window"][modality]
        if window is not None:
            settings["guidance_window"][modality] = _window(window, where)


def _window(value: Any, where: str) -> tuple[float, float]:
    """Read a pair of log-SNRs, the lower first."""
    name, fix = "guidance_window", "use a pair of log-SNR in nats, the lower first, as (-5, -1)."
    ends = value.tolist() if isinstance(value, np.ndarray | torch.Tensor) else value
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        raise ValueError(f"`{name}` is {value!r:.80}{where}: {fix}")
    low, high = (number(name, end, fix, where=where) for end in ends)
    if low >= high:
        raise ValueError(f"`{name}` is {value!r:.80}{where}: {fix}")
    return low, high


def _as_in_json(value: Any) -> Any:
    """Lists for tuples, within dictionaries too, so that a file holds the same."""
    if isinstance(value, dict):
        return {key: _as_in_json(one) for key, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def check_arguments(generator: Any, callback: Any, with_trajectory: Any, streamer: Any) -> None:
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


def check_selection(wanted: Any, settings: Settings) -> None:
    """Refuse to tell what scans read where they read everything, or hide it."""
    if not flag("output_selection", wanted):
        return
    if settings.keep >= 1:
        raise ValueError(
            "`output_selection` is True, but with `keep` = 1 every scan reads everything: pass a "
            "share below 1, as keep=0.5."
        )
    if settings.compile:
        raise ValueError(
            "`output_selection` is True, which a compiled step does not tell: pass compile=False."
        )


def check_past(past: PastTurns | None, settings: Settings) -> None:
    """Refuse what is no past, or would not be read with these settings."""
    if past is None:
        return
    if not isinstance(past, PastTurns):
        raise ValueError(
            f"`cache` is a {type(past).__name__}: pass that of an earlier output, `output.cache`."
        )
    if not settings.use_cache:
        raise ValueError("`cache` was passed with `use_cache=False`: leave one out.")
    if settings.keep < 1:
        raise ValueError(
            f"`cache` was passed with `keep` = {settings.keep}: hard selection ranks "
            "all that is given, which cannot be read turn by turn; use 1, or leave one out."
        )


def check_form(modalities: Any, settings: Settings) -> None:
    """Refuse a run that writes nothing, or words and pictures where this call wants one tensor."""
    if not modalities:
        raise ValueError("Nothing to generate: the inputs hold 0 items, pass at least one.")
    if len(modalities) > 1 and settings.names_form and not settings.return_dict_in_generate:
        raise ValueError(
            "`return_dict_in_generate` is False, but this call writes words and pictures, "
            "which no single tensor holds: leave it out, or write one of them."
        )
