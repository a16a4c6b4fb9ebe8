# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether a processor and a model belong together: the fields that both of them have."""

from typing import Any

from .configuration_mdm import MDMConfig


def check_processor(processor: Any, config: MDMConfig, learns: bool = False) -> None:
    """Refuse a processor that cuts pictures or texts otherwise than a model reads them.

    Args:
        processor: an `MDMProcessor`. config: of the model.
        learns: whether the model is to learn from what the processor makes, so that it will write
            texts of its usual length.

    Raises:
        ValueError: another patch, other channels, other special words, more words or classes than
            the model has, or texts of another usual length.
    """
    tokenizer = processor.tokenizer
    pairs = {
        "patch_size": (processor.patch_size, config.patch_size),
        "num_channels": (
            processor.image_processor.num_channels,
            3 if config.vq_config else config.num_channels,
        ),
        "pad_token_id": (tokenizer.pad_token_id, config.pad_token_id),
        "mask_token_id": (tokenizer.mask_token_id, config.mask_token_id),
        "eos_token_id": (tokenizer.eos_token_id, config.eos_token_id),
        "image_token_id": (
            tokenizer.convert_tokens_to_ids(tokenizer.image_token),
            config.image_token_id,
        ),
    }
    if learns:
        pairs["max_text_length"] = (processor.max_text_length, config.max_text_length)
    wrong = {
        name: (own, models)
        for name, (own, models) in pairs.items()
        if models is not None and own not in (models if isinstance(models, list) else [models])
    }
    at_most = {"vocab_size": (len(tokenizer), config.vocab_size)}
    at_most["num_classes"] = (processor.num_classes or 0, config.num_classes)
    wrong |= {name: (own, models) for name, (own, models) in at_most.items() if own > models}
    if wrong:
        said = "; ".join(f"{name} is {own} and {models}" for name, (own, models) in wrong.items())
        raise ValueError(
            f"Processor and model differ: {said}. Use the processor that was saved with the model, "
            "or for a new model a config with the processor's values."
        )
