# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run trains: a new model of a configuration and a processor, or one that has weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode, try_to_load_from_cache
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from modeling_mdm.configuration_mdm import MDMConfig
from modeling_mdm.data.conversations import draw_embeddings, unseen_words
from modeling_mdm.matching import check_processor
from modeling_mdm.modeling_mdm import MDMForJointGeneration
from modeling_mdm.training.command_line import pairs
from modeling_mdm.training.loading import load_pretrained

UNTRAINED = "untrained"
# Of a model that has weights these may change: fields that add weights, which begin as new ones do,
# or that only training reads.
ADDING = ("use_mode_head", "image_decoder_layers", "vocab_size")
OF_TRAINING = (
    *("coupled_time_probability", "null_modality_probability", "null_prompt_probability"),
    *("se_weight", "se_weight_image", "se_weight_text", "kl_weight", "denoising_weight_max"),
    *("latent_noise", "latent_momentum", "latent_gradient_scale", "selection_keep"),
)


@dataclass
class ModelArguments:
    """What is trained."""

    config: str = field(
        metadata={
            "help": "A folder or Hub id with config.json, such as configuration/mdm-fashion: a new "
            "model is made. If it also holds weights, training goes on from them."
        }
    )
    processor: str | None = field(
        default=None, metadata={"help": "The processor's folder or Hub id, if not that of config."}
    )
    config_overrides: list[str] | None = field(
        default=None,
        metadata={
            "help": "Fields of a new model's config, as name=value; values are YAML. `auto` takes "
            "what the processor says: vocab_size=auto. Of a model with weights, "
            f"{', '.join(ADDING)} add to it, and what training alone reads may change."
        },
    )
    vq_model: str | None = field(
        default=None,
        metadata={
            "help": "Where a config with vq_config gets its trained VQ-VAE: a folder or Hub id of "
            f"one, or of a whole model that has it; '{UNTRAINED}' takes random codes, for tests."
        },
    )


def holds_weights(place: str) -> bool:
    """Tell whether a folder or a repository of the Hub has weights beside its config.

    Raises:
        ValueError: if nothing is known of the repository's weights and the Hub cannot be asked.
    """
    if Path(place).is_dir():
        return any(Path(place).glob("*.safetensors*"))
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    if any(cached_file(place, n, _raise_exceptions_for_missing_entries=False) for n in names):
        return True
    # A config alone in the cache does not say that there is no more than that.
    if is_offline_mode() and any(try_to_load_from_cache(place, n) is None for n in names):
        raise ValueError(
            f"config={place!r} has no weights in the cache, and offline nobody can tell whether it "
            "has any: run once online, or name a local folder."
        )
    return False


def make_model(args: ModelArguments, processor: Any) -> MDMForJointGeneration:
    """Load the model whose weights `config` holds, or make a new one.

    Raises:
        ValueError: if the config does not fit the processor, overrides do not fit weights, or
            whether there are weights is not known.
    """
    overrides = pairs("config_overrides", args.config_overrides)
    overrides |= _of_processor(overrides, processor)
    if holds_weights(args.config):
        model = _go_on(args.config, overrides)
    else:
        config = load_pretrained(MDMConfig, "config", args.config)
        _check_names(overrides, config)
        model = MDMForJointGeneration(MDMConfig(**{**config.to_dict(), **overrides}))
    if (size := len(processor.tokenizer)) != model.config.vocab_size:
        raise ValueError(
            f"vocab_size={model.config.vocab_size} differs from the processor's {size} words: use "
            f"the processor of this config, or config_overrides vocab_size={size}."
        )
    check_processor(processor, model.config, learns=True)
    load_vq(model, args)
    return model


def _check_names(overrides: dict[str, Any], config: MDMConfig) -> None:
    if unknown := sorted(name for name in overrides if not hasattr(config, name)):
        raise ValueError(f"config_overrides names {unknown}, which MDMConfig does not have.")


def _go_on(place: str, overrides: dict[str, Any]) -> MDMForJointGeneration:
    """Load a trained model with what overrides add to it.

    Raises:
        ValueError: if overrides change what the weights mean, or leave some of them out.
    """
    config = load_pretrained(MDMConfig, "config", place)
    _check_names(overrides, config)
    changes = dict(overrides)
    if wrong := {n: value for n, value in changes.items() if n not in (*ADDING, *OF_TRAINING)}:
        raise ValueError(
            f"config_overrides={wrong} cannot change the trained model in {place!r}: drop them, or "
            f"name a config without weights. {', '.join((*ADDING, *OF_TRAINING))} may change."
        )
    size = changes.pop("vocab_size", config.vocab_size)
    if size < config.vocab_size:
        raise ValueError(
            f"config_overrides vocab_size={size} would take words from the trained model in "
            f"{place!r}, which has {config.vocab_size}: name its number of words, or more."
        )
    # Weights stored in half precision would be trained in it: small steps would be lost.
    kept = {"output_loading_info": True, "dtype": torch.float32}
    model, found = load_pretrained(MDMForJointGeneration, "config", place, **kept, **changes)
    if found["unexpected_keys"]:
        raise ValueError(
            f"config_overrides={changes} has no place for {sorted(found['unexpected_keys'])} of "
            f"the trained model in {place!r}: these fields may add weights, not take any away."
        )
    if "vocab_size" in overrides:
        _add_words(model, size)
    return model


def _add_words(model: MDMForJointGeneration, size: int) -> None:
    """Have `size` words, and embeddings like those of known ones for all that were never trained.

    Among them are letters that no caption had: they may occur in what comes.
    """
    unseen, known = unseen_words(model), model.config.vocab_size
    if len(unseen) == known:
        raise ValueError(
            f"config_overrides vocab_size={size} cannot add to the {known} words of a model that "
            "was never trained: name a config without weights."
        )
    if size > known:
        model.resize_token_embeddings(size, mean_resizing=False)
    if words := [*unseen, *range(known, size)]:
        draw_embeddings(model, words)


def load_vq(model: MDMForJointGeneration, args: ModelArguments) -> None:
    """Give a model with a VQ-VAE the trained weights that `vq_model` names.

    Raises:
        ValueError: if it needs them and none are named, or has no use for them.
    """
    if model.vq is None or (args.vq_model and model.vq.is_loaded):
        if args.vq_model:
            reason = "reads pixels" if model.vq is None else "has a trained VQ-VAE already"
            raise ValueError(
                f"vq_model={args.vq_model!r} has no use: the model of config={args.config!r} "
                f"{reason}. Leave it out."
            )
    elif args.vq_model == UNTRAINED:
        model.vq.allow_untrained()
    elif args.vq_model:
        model.vq.load_pretrained(args.vq_model)
    elif not model.vq.is_loaded:
        raise ValueError(
            f"config={args.config!r} names a VQ-VAE ({model.vq.model_type}), which never learns: "
            "say by --vq_model NAME where its trained weights are: a folder or Hub id of one, or "
            "of a whole model that has it, such as deepseek-community/Janus-Pro-1B."
        )


def _of_processor(overrides: dict[str, Any], processor: Any) -> dict[str, Any]:
    """Find the fields that are to be as the processor has them."""
    size = processor.image_processor.size
    known = {
        "vocab_size": len(processor.tokenizer),
        "max_text_length": processor.max_text_length,
        "num_classes": processor.num_classes or 0,
        "num_channels": processor.image_processor.num_channels,
        "image_size": size.height,
        "patch_size": processor.patch_size,
    }
    return {name: value for name, value in known.items() if overrides.get(name) == "auto"}
