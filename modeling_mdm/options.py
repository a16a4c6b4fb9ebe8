# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The usual keyword arguments of a processor: which are read, and what they ask for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .checks import whole_number

# Rows of words have all that these name, or are read so whatever they say.
_TEXT_KEYS_WITHOUT_EFFECT = {"return_attention_mask", "sanitize_control_tokens", "verbose"}
_MADE_BY_NONE = ("return_mm_token_type_ids", "return_text_replacement_offsets")


@dataclass
class TextOptions:
    """How rows of words are cut and aligned.

    Attributes:
        padding: "longest", "max_length", or "do_not_pad" for rows that are equally long anyway.
        truncation: whether words beyond `max_length` are cut; without it, a longer text is refused.
        max_length: longest text in tokens, `<end>` included; None for the usual length.
        pad_to_multiple_of: what the length of the rows is a multiple of.
        padding_side: "right" or "left".
    """

    padding: str = "longest"
    truncation: bool = False
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    padding_side: str = "right"

    @classmethod
    def read(cls, text_kwargs: Mapping[str, Any]) -> "TextOptions":
        """Read what `_merge_kwargs` gives as `text_kwargs`.

        Raises:
            ValueError: if `padding` or `padding_side` is unknown, or a length is below 1.
        """
        padding, truncation = text_kwargs.get("padding"), text_kwargs.get("truncation")
        known = {None: "longest", True: "longest", False: "do_not_pad"}
        known |= {name: name for name in ("longest", "max_length", "do_not_pad")}
        if not isinstance(padding, str | bool | None) or padding not in known:
            raise ValueError(
                f"padding={padding!r} is unknown; use 'longest' or True, 'max_length', or "
                "'do_not_pad' or False."
            )
        side = text_kwargs.get("padding_side") or "right"
        if not isinstance(side, str) or side not in ("left", "right"):
            raise ValueError(f"padding_side={side!r} is unknown; use 'right' or 'left'.")
        cuts = (None, True, False, "do_not_truncate", "longest_first", "only_first")
        if not isinstance(truncation, str | bool | None) or truncation not in cuts:
            raise ValueError(f"truncation={truncation!r:.80} is unknown; use True or False.")
        lengths: dict[str, int | None] = {}
        for name in ("max_length", "pad_to_multiple_of"):
            length = text_kwargs.get(name)
            lengths[name] = None if length is None else whole_number(length)
            if length is not None and (lengths[name] is None or lengths[name] < 1):
                raise ValueError(f"{name}={length!r:.80} is no length; use 1 or more, or None.")
        return cls(
            padding=known[padding],
            truncation=truncation not in (None, False, "do_not_truncate"),
            padding_side=side,
            **lengths,
        )

    def cut(self, words: list[Any], side: str) -> list[Any]:
        """Cut the words of a conversation to `max_length`, at the left or the right.

        Raises:
            ValueError: if there are more, and `truncation` is False.
        """
        length = len(words) if self.max_length is None else self.max_length
        if len(words) > length and not self.truncation:
            raise ValueError(
                f"conversation has {len(words)} tokens, more than max_length={length}; shorten it, "
                "or pass truncation=True."
            )
        return words[:length] if side == "right" else words[-length:]

    def align(self, rows: list[list[Any]], filling: Any, usual: int | None) -> list[list[Any]]:
        """Give rows one length; `usual` is the longest text where `max_length` is None.

        Raises:
            ValueError: if rows that are not to be padded differ, or no length is known.
        """
        shortest, longest = min(map(len, rows)), max(map(len, rows))
        if self.padding == "do_not_pad" and shortest < longest:
            raise ValueError(
                f"padding={self.padding!r} leaves rows of {shortest} to {longest} words, of which "
                "no tensor can be made; use 'longest'."
            )
        if self.padding == "max_length":
            least = usual if self.max_length is None else self.max_length
            if least is None:
                raise ValueError(
                    f"padding={self.padding!r} needs max_length here, because conversations have "
                    "no usual length; pass it, or use 'longest'."
                )
            longest = max(longest, least)
        unit = 1 if self.pad_to_multiple_of is None else self.pad_to_multiple_of
        length = -(-longest // unit) * unit
        fillings = ([filling] * (length - len(row)) for row in rows)
        if self.padding_side == "left":
            return [padding + row for row, padding in zip(rows, fillings, strict=True)]
        return [row + padding for row, padding in zip(rows, fillings, strict=True)]


def check_names(kwargs: Mapping[str, Any], processor_kwargs: type, image_kwargs: type) -> None:
    """Refuse keyword arguments that would have no effect.

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
    for group, names in _names_by_group(processor_kwargs, image_kwargs).items():
        unknown = {n: value for n, value in kwargs.get(group, {}).items() if n not in names}
        if unknown:
            raise ValueError(
                f"{group} has {unknown!r:.80}, which are no arguments of {group}; correct or "
                "remove them."
            )
    of_text = set(processor_kwargs.__annotations__["text_kwargs"].__annotations__)
    read = set(TextOptions.__dataclass_fields__) | {"return_tensors"} | _TEXT_KEYS_WITHOUT_EFFECT
    passed = {**kwargs, **kwargs.get("text_kwargs", {})}
    ends = passed.get("add_special_tokens")
    if ends is not None and not ends:
        raise ValueError("add_special_tokens=False is not possible: every text ends with <end>.")
    lacking = (of_text | set(_MADE_BY_NONE)) - read - {"add_special_tokens"}
    if refused := sorted(name for name in lacking if passed.get(name)):
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
    groups["text_kwargs"].update(_MADE_BY_NONE)
    groups["images_kwargs"].update(image_kwargs.__annotations__)
    return groups | {"common_kwargs": groups["text_kwargs"] & groups["images_kwargs"]}
