# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a data set holds, item by item, before captions are drawn; and a share of it kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers.utils import logging

logger = logging.get_logger(__name__)


class Source(NamedTuple):
    """What a data set holds, before captions are drawn.

    `images` gives arrays (height, width[, 3]) or PIL pictures by index; `texts` and `labels` may be
    None, as may single values of them; a text is a string, or a list of several of which one is
    drawn; `class_names` is known for some labelled sets. An item whose picture or text raises an
    error when it is asked for is damaged; `names` says what it is called.
    """

    images: Sequence[Any] | np.ndarray
    texts: Sequence[str | list[str] | None] | None = None
    labels: Sequence[int | None] | np.ndarray | None = None
    class_names: Sequence[str] | None = None
    names: Sequence[str] | None = None


class Chosen(Sequence[Any]):
    """Some of the values of a sequence that reads them one by one."""

    def __init__(self, values: Sequence[Any], indices: np.ndarray) -> None:
        self.values, self.indices = values, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.values[int(self.indices[index])]


def split_off(source: Source, held_out: float, takes_held_out: bool) -> Source:
    """Leave out a share of the items, the same at every call; or keep these alone.

    Raises:
        ValueError: if that leaves nothing on either side.
    """
    count = len(source.images)
    apart = round(count * held_out)
    if not 0 < apart < count:
        raise ValueError(
            f"held_out={held_out} of {count} items leaves nothing to train on or nothing to hold "
            "out: give a share in (0, 1) that is at least one item of each."
        )
    # Drawn, because files often lie in the order of their classes; by no seed of a run.
    order = np.random.default_rng(0).permutation(count)
    indices = np.sort(order[:apart] if takes_held_out else order[apart:])
    images, texts, labels, names = (
        None if values is None else Chosen(values, indices)
        for values in (source.images, source.texts, source.labels, source.names)
    )
    return Source(images, texts, labels, source.class_names, names)


def warn_of_what_is_lacking(source: Source) -> None:
    """Warn of items without a text or a picture where others of the set have one."""
    for role, values in (("picture", source.images), ("text", source.texts)):
        lacking = getattr(values, "lacking", list)()
        if lacking and len(lacking) < len(source.images):
            name = source.names[lacking[0]] if source.names is not None else ""
            logger.warning(
                f"{len(lacking)} of {len(source.images)} items have no {role} and are used "
                f"without. The first is item {lacking[0]}, {name}. A role may name several "
                "columns, as in columns={'image': 'jpg;png'}."
            )
