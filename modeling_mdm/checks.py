# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading what a caller passed: a number is a number, and what is not names itself and its fix.

NumPy's and torch's scalars are numbers like Python's; a bool is none.
"""

import math
import operator
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch


def integer(name: str, value: Any, fix: str, least: int = 1, where: str = "") -> int:
    """Read an integer of at least `least`.

    Args:
        name: of the argument. fix: what the message tells the caller to do.
        where: said after the value, such as " for text".

    Raises:
        ValueError: another type, or a smaller number.
    """
    number = whole_number(value)
    if number is None or number < least:
        raise ValueError(f"`{name}` is {value!r:.80}{where}: {fix}")
    return number


def number(
    name: str,
    value: Any,
    fix: str,
    low: float = -math.inf,
    high: float = math.inf,
    where: str = "",
) -> float:
    """Read a finite number in [low, high]; arguments and errors as for `integer`."""
    found = _as_number(value)
    if found is None or not (math.isfinite(found) and low <= found <= high):
        raise ValueError(f"`{name}` is {value!r:.80}{where}: {fix}")
    return found


def flag(name: str, value: Any) -> bool:
    """Read a bool, which no other type stands for: the string "false" would be true."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"`{name}` is {value!r:.80}: use True or False.")
    return bool(value)


def choice(name: str, value: Any, choices: Collection[Any], fix: str = "", where: str = "") -> Any:
    """Read one of some names."""
    if not isinstance(value, str | None) or value not in choices:
        known = ", ".join(str(one) for one in choices)
        raise ValueError(f"`{name}` is {value!r:.80}{where}: {fix or f'choose one of {known}.'}")
    return value


def sides(name: str, value: Any, unit: int, unit_name: str) -> tuple[int, int]:
    """Read the height and width of a picture: a side, or both, multiples of a patch's side."""
    if isinstance(value, Mapping):
        value = (value.get("height"), value.get("width"))
    both = list(value) if isinstance(value, list | tuple | np.ndarray) else [value, value]
    found = [whole_number(side) for side in both]
    if len(found) != 2 or any(side is None or side < 1 or side % unit for side in found):
        shown = tuple(both) if len(both) == 2 else value
        raise ValueError(
            f"`{name}` is {shown!r:.80}: give a side or (height, width), positive multiples of "
            f"`{unit_name}` = {unit}."
        )
    return found[0], found[1]


def plain(value: Any) -> Any:
    """Python's number for NumPy's or torch's, within lists, tuples and dictionaries too."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0:
        return value.item()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


def whole_number(value: Any) -> int | None:
    """Read an integer, or None where a value is none."""
    value = plain(value)
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _as_number(value: Any) -> float | None:
    value = plain(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
