# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run of `generate()` is set to: keywords before the configuration before the defaults."""

from typing import Any

from transformers.generation.configuration_utils import GenerationConfig

from .configuration_mdm import MDMConfig
from .solvers import SOLVERS

DEFAULTS: dict[str, Any] = {
    "num_inference_steps": 30,
    "guidance_scale": {"image": 2.0, "text": 1.0},
    "joint_guidance_scale": 1.0,
    "joint_overlap": 1.0,
    "solver": {"image": "dpm_solver_2m", "text": "ddpm"},
    "keep": 1.0,
    "use_cache": True,
    "stopping_entropy": None,
    "compile": False,
    "cuda_graph": True,
    "num_return_sequences": 1,
    "show_progress": True,
}
BY_MODALITY = ("num_inference_steps", "guidance_scale", "joint_guidance_scale", "solver")
BY_MODALITY += ("stopping_entropy",)
MODALITIES = ("image", "text")
# Pipelines pass these along; a diffusion region has no use for them.
IGNORED = (
    "pad_token_id",
    "eos_token_id",
    "bos_token_id",
    "do_sample",
    "return_dict_in_generate",
)


class MDMGenerationConfig(GenerationConfig):
    """
    Defaults of `generate()`.

    A value for both modalities or a dictionary `{"image": ..., "text": ...}` is allowed for the
    steps, both guidance scales and the solver. A dictionary may name one modality: the other keeps
    what it had.

    Args:
        num_inference_steps (`int` or `dict`): sampler steps. Default 30.
        guidance_scale (`float` or `dict`): classifier-free guidance, 1 is off. Default 2 for
            images, 1 for text; 1 for a model that was trained without a null prompt.
        joint_guidance_scale (`float` or `dict`): guidance of each modality by the other while both
            are written. Default 1, off.
        joint_overlap (`float`): while text and image are both written, how much of their time they
            share. 1 (default): both from the first step to the last. Less: words go ahead, and are
            given to the picture once they are finished, with `guidance_scale`; at 0 before it even
            begins. Each modality then has fewer of the steps.
        solver (`str` or `dict`): `"heun"`, `"dpm_solver_2m"` (default for images), `"ddim"` or
            `"ddpm"` (default for text).
        keep (`float`): share of items that each scan reads (hard selection). Default 1.
        use_cache (`bool`): read what is given once, and evaluate only what is written at every
            step. Default True; the results are the same to rounding.
        stopping_entropy (`float` or `dict`): finish an item's words or picture as soon as the score
            entropy that the model predicts is below this at every position; items that are
            finished leave the batch. Default None, off.
        compile (`bool`): evaluate the network by `torch.compile`. Default False.
        cuda_graph (`bool`): on a CUDA device, replay evaluations as a CUDA graph. Default True;
            it needs `use_cache`, and neither `compile` nor `stopping_entropy`.
        num_return_sequences (`int`): samples of each item. Default 1.
        show_progress (`bool`): show a progress bar. Default True.
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

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Check as transformers does, save that several samples need no `do_sample` here."""
        samples, self.num_return_sequences = self.num_return_sequences, None
        try:
            super().validate(*args, **kwargs)
        finally:
            self.num_return_sequences = samples


def read_settings(
    config: MDMConfig, generation_config: GenerationConfig, keywords: dict[str, Any]
) -> dict[str, Any]:
    """Lay keywords over a configuration over the defaults, and check what comes out.

    Args:
        config: of the model. generation_config: any of its fields may be absent or None.
        keywords: what `generate` was passed beside its inputs.

    Returns:
        a value for every name in `DEFAULTS`, a dictionary by modality for those in `BY_MODALITY`.

    Raises:
        ValueError: an unknown keyword or modality, or a value that this model cannot run with.
    """
    unknown = [
        f"{name}={value!r}"
        for name, value in keywords.items()
        if value is not None and name not in DEFAULTS and name not in IGNORED
    ]
    if unknown:
        raise ValueError(
            f"`generate` got unknown keywords: {', '.join(unknown)}. Leave them out; inputs apart, "
            f"it takes what MDMGenerationConfig does: {', '.join(DEFAULTS)}."
        )
    settings = {}
    for name, default in DEFAULTS.items():
        if name == "guidance_scale" and not _has_null_prompt(config):
            default = 1.0
        layers = [default, getattr(generation_config, name, None), keywords.get(name)]
        layers = [layer for layer in layers if layer is not None]
        settings[name] = _by_modality(name, layers) if name in BY_MODALITY else layers[-1]
    _check_by_modality(config, settings)
    _check_run(config, settings)
    return settings


def _by_modality(name: str, layers: list[Any]) -> dict[str, Any]:
    """One value for each modality, the last that was named."""
    values: dict[str, Any] = {}
    for layer in layers:
        named = layer if isinstance(layer, dict) else dict.fromkeys(MODALITIES, layer)
        unknown = sorted(set(named) - set(MODALITIES))
        if unknown:
            raise ValueError(f"`{name}` has a value for {unknown}: name 'image' and / or 'text'.")
        values |= {g: value for g, value in named.items() if value is not None}
    return values


def _has_null_prompt(config: MDMConfig) -> bool:
    return config.num_null_tokens > 0 and config.null_prompt_probability > 0


def _check_by_modality(config: MDMConfig, settings: dict[str, Any]) -> None:
    for g, entropy in settings["stopping_entropy"].items():
        if not entropy > 0:
            raise ValueError(
                f"`stopping_entropy` is {entropy} for {g}: use a number above 0, in nats, or None."
            )
    for g in MODALITIES:
        steps, solver = settings["num_inference_steps"][g], settings["solver"][g]
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(
                f"`num_inference_steps` is {steps} for {g}: use an integer of at least 1, such as "
                "30."
            )
        if solver not in SOLVERS:
            raise ValueError(f"`solver` is {solver!r} for {g}: choose one of {', '.join(SOLVERS)}.")
        scale = settings["guidance_scale"][g]
        if scale != 1 and not _has_null_prompt(config):
            raise ValueError(
                f"`guidance_scale` is {scale} for {g}, but this model was trained without a null "
                f"prompt (`num_null_tokens` = {config.num_null_tokens}, `null_prompt_probability` "
                f"= {config.null_prompt_probability}): use 1."
            )


def _check_run(config: MDMConfig, settings: dict[str, Any]) -> None:
    samples, keep = settings["num_return_sequences"], settings["keep"]
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"`num_return_sequences` is {samples}: use an integer of at least 1.")
    if not 0 <= settings["joint_overlap"] <= 1:
        raise ValueError(f"`joint_overlap` is {settings['joint_overlap']}: use a share in [0, 1].")
    selects = config.mixer == "mamba2" and config.use_selection
    if not 0 < keep <= 1 or (keep < 1 and not selects):
        raise ValueError(
            f"`keep` is {keep}: use a share in (0, 1], and 1 for a model trained without selection."
        )
