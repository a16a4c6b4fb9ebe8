# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which keyword arguments a processor may be passed beside those that it names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .request import TextOptions

# Of what any processor may be asked for of text: what is so whatever a caller says.
_SO_ANYWAY = {"add_special_tokens", "return_attention_mask", "sanitize_control_tokens", "verbose"}
# What transformers' own processors make, whether or not its version names it for all of them.
_MADE_BY_NONE = {"return_mm_token_type_ids", "return_text_replacement_offsets"}


@dataclass
class Keywords:
    """What the keyword arguments of a call say.

    Attributes:
        text: how rows of words are cut and aligned.
        images: for the image processor.
        return_tensors: "pt", "np", or None for lists.
    """

    text: TextOptions
    images: dict[str, Any]
    return_tensors: str | None


def check_names(kwargs: Mapping[str, Any], processor_kwargs: type, image_kwargs: type) -> None:
    """Refuse keyword arguments that would have no effect; None and False ask for none.

    Args:
        kwargs: what a caller passed beside the named arguments.
        processor_kwargs: `ProcessingKwargs`, which says what any processor may be passed; arguments
            for videos and audio are among them, and have nothing to act on.
        image_kwargs: the image processor's.

    Raises:
        ValueError: for an unknown name, alone or in a dictionary such as `text_kwargs`, and for an
            output or a reading of text that MDM lacks.
    """
    for group, values in kwargs.items():
        if group.endswith("_kwargs") and not isinstance(values, Mapping):
            raise ValueError(f"{group} is {values!r:.60}; pass a dictionary of arguments.")
    if unknown := sorted(set(kwargs) - names_of(processor_kwargs, image_kwargs)):
        raise ValueError(f"{unknown} are no arguments of this processor; remove them.")
    groups = _names_by_group(processor_kwargs, image_kwargs)
    for group, names in groups.items():
        unknown = {n: value for n, value in kwargs.get(group, {}).items() if n not in names}
        if unknown:
            raise ValueError(
                f"{group} has {unknown!r:.80}, which are no arguments of {group}; correct or "
                "remove them."
            )
    passed = {**kwargs, **kwargs.get("text_kwargs", {})}
    ends = passed.get("add_special_tokens")
    if ends is not None and not ends:
        raise ValueError("add_special_tokens=False is not possible: every text ends with <end>.")
    has_effect = {*TextOptions.__dataclass_fields__, "return_tensors", *_SO_ANYWAY}
    if refused := sorted(n for n in groups["text_kwargs"] - has_effect if passed.get(n)):
        raise ValueError(f"{refused} are not possible with MDM's processor; remove them.")


def names_of(processor_kwargs: type, image_kwargs: type) -> set[str]:
    """All names under which a processor may be passed something beside its named arguments."""
    groups = _names_by_group(processor_kwargs, image_kwargs)
    return {*groups, *processor_kwargs.__annotations__}.union(*groups.values())


def _names_by_group(processor_kwargs: type, image_kwargs: type) -> dict[str, set[str]]:
    """What may stand in `text_kwargs`, in `images_kwargs` and in each other such dictionary."""
    groups = {
        group: set(kind.__annotations__)
        for group, kind in processor_kwargs.__annotations__.items()
        if group.endswith("_kwargs")
    }
    groups["text_kwargs"] |= _MADE_BY_NONE
    groups["images_kwargs"] |= set(image_kwargs.__annotations__)
    return groups | {"common_kwargs": groups["text_kwargs"] & groups["images_kwargs"]}
