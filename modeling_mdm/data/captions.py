# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Caption tables: a labelled set of pictures becomes a captioned one.

A table is a small JSON file that a user can replace::

    {"labels": [["a coat", "an overcoat"], ["a bag"]], "templates": ["a photo of {}", "this is {}"]}

Row n of `labels` holds the names of class n, with their articles, and every template has one `{}`.
No caption may be made by two classes, so that a caption names its class without doubt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

NAME_SLOT = "{}"
# They need no article, so they serve the bare class names of any data set.
PLAIN_TEMPLATES = ("a photo of {}", "a picture of {}", "this is {}", "{}")


def _normalised(caption: str) -> str:
    return caption.strip().casefold()


@dataclass(frozen=True)
class CaptionTable:
    """The names of every class and the phrasings around them.

    Args:
        labels: for each class, its names (at least one).
        templates: phrasings with one `{}` each (at least one).

    Raises:
        ValueError: if either is empty or malformed, or if one caption could come from two
            (class, template) pairs.
    """

    labels: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(_strings(n, "labels") for n in self.labels))
        object.__setattr__(self, "templates", _strings(self.templates, "templates"))
        if not self.labels:
            raise ValueError("labels is empty: give the list of names of each class.")
        for template in self.templates:
            if template.count(NAME_SLOT) != 1:
                raise ValueError(
                    f"templates holds {template!r}: every template needs exactly one {NAME_SLOT}."
                )
        _ = self._label_by_caption  # an ambiguous table fails here, not in the middle of a run

    @classmethod
    def from_json(cls, path: str | Path) -> CaptionTable:
        """Read a table from a JSON file with the keys `labels` and `templates`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not JSON or is no caption table.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"captions={str(path)!r} is not a file: give a JSON file such as "
                "examples/captions/fashion_mnist.json."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"captions={str(path)!r} is not valid JSON: {error}") from error
        if not isinstance(content, Mapping) or set(content) != {"labels", "templates"}:
            raise ValueError(
                f"captions={str(path)!r} must hold one JSON object with the keys 'labels' and "
                "'templates' and no others."
            )
        try:
            return cls(labels=content["labels"], templates=content["templates"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"captions={str(path)!r}: {error}") from error

    @classmethod
    def from_names(cls, names: Iterable[str]) -> CaptionTable:
        """Make a table from one bare name a class, in phrasings that need no article."""
        return cls(labels=tuple((name,) for name in names), templates=PLAIN_TEMPLATES)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file that `from_json` reads."""
        return {"labels": [list(n) for n in self.labels], "templates": list(self.templates)}

    @property
    def num_classes(self) -> int:
        """The number of classes that have names."""
        return len(self.labels)

    def captions_of(self, label: int) -> list[str]:
        """Return every caption of one class, names slowest.

        Raises:
            ValueError: if the table has no such class.
        """
        return [t.replace(NAME_SLOT, n) for n in self._names(label) for t in self.templates]

    def all_captions(self) -> list[str]:
        """Return every caption of every class, classes in order."""
        return [c for label in range(self.num_classes) for c in self.captions_of(label)]

    def draw(self, label: int, rng: np.random.Generator) -> str:
        """Draw one caption of a class: a name and a template, each uniformly.

        Raises:
            ValueError: if the table has no such class.
        """
        names = self._names(label)
        name = names[int(rng.integers(len(names)))]
        return self.templates[int(rng.integers(len(self.templates)))].replace(NAME_SLOT, name)

    def label_of(self, caption: str) -> int | None:
        """Return the class that a caption names, or None where it is not well formed.

        Well formed means: one of `all_captions()`, up to letter case and outer white space.
        """
        return self._label_by_caption.get(_normalised(caption))

    def _names(self, label: int) -> tuple[str, ...]:
        if not 0 <= label < self.num_classes:
            raise ValueError(
                f"label={label} is not a class of this caption table: it must be in "
                f"[0, {self.num_classes - 1}]. Add a row of names to the table's labels."
            )
        return self.labels[label]

    @cached_property
    def _label_by_caption(self) -> dict[str, int]:
        maker: dict[str, tuple[int, str, str]] = {}
        for label, names in enumerate(self.labels):
            for name in names:
                for template in self.templates:
                    caption = _normalised(template.replace(NAME_SLOT, name))
                    first = maker.setdefault(caption, (label, name, template))
                    if first != (label, name, template):
                        raise ValueError(
                            f"the caption {caption!r} has two sources: {first} and "
                            f"{(label, name, template)}. Rename one of them or drop it."
                        )
        return {caption: label for caption, (label, _, _) in maker.items()}


def _strings(values: Any, argument: str) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(v, str) and v.strip() for v in values):
        raise ValueError(f"{argument} holds {values!r}: expected a list of non-empty strings.")
    if not (result := tuple(v.strip() for v in values)):
        raise ValueError(f"{argument} holds an empty list: give at least one string.")
    if len(set(result)) != len(result):
        raise ValueError(f"{argument} holds {list(result)!r}: a string is there twice.")
    return result
