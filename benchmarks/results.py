# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The record of a run: rows of contenders that were timed together, as JSON."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from .timing import paired_ratio, spread

SCHEMA = 1


class NotAvailable(Exception):
    """Something cannot run here; the message says why, and what would help."""


@dataclass
class Contender:
    """One thing that was measured.

    seconds: of every round; of a call, or of what the row says. peak_bytes: beyond what was held
    before the call. backend: the scan kernel that ran. details: what it really did, such as
    evaluations, scans, branches of guidance, parameters.
    """

    seconds: list[float]
    peak_bytes: int | None = None
    backend: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median of the rounds in seconds."""
        return median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Quartiles of the rounds in seconds."""
        return spread(self.seconds)


@dataclass
class Row:
    """Contenders that were timed alternately on one task.

    topic: the file that measures it. name: unique within the topic. parameters: sizes of the task.
    missing: by contender, why it has no measurement.
    """

    topic: str
    name: str
    parameters: dict[str, Any]
    contenders: dict[str, Contender] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def ratio(self, slow: str, fast: str) -> float | None:
        """How many times longer one contender took than another; None if either is missing."""
        if slow not in self.contenders or fast not in self.contenders:
            return None
        return paired_ratio(self.contenders[slow].seconds, self.contenders[fast].seconds)

    def memory_ratio(self, large: str, small: str) -> float | None:
        """How many times more memory one contender needed than another."""
        pair = [self.contenders.get(name) for name in (large, small)]
        if any(one is None or not one.peak_bytes for one in pair):
            return None
        return pair[0].peak_bytes / pair[1].peak_bytes


@dataclass
class Record:
    """All rows of a run, with the machine, the versions and the settings that they hold for."""

    machine: dict[str, Any]
    versions: dict[str, str | None]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    tests: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def find(self, topic: str, name: str) -> Row | None:
        """Find a row by its key."""
        return next((row for row in self.rows if (row.topic, row.name) == (topic, name)), None)

    def of(self, topic: str, prefix: str = "") -> Iterator[Row]:
        """Go through a topic's rows whose names begin with a prefix, in the order of the run."""
        return (row for row in self.rows if row.topic == topic and row.name.startswith(prefix))

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Read JSON that `save` wrote.

        Raises:
            ValueError: another file, or one of another schema.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            if document.pop("schema") != SCHEMA:
                raise KeyError("schema")
            rows = [
                Row(
                    **{
                        **row,
                        "contenders": {
                            name: Contender(**one) for name, one in row["contenders"].items()
                        },
                    }
                )
                for row in document.pop("rows")
            ]
            return cls(**document, rows=rows)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"`{path}` is no record of schema {SCHEMA}: make one with `make bench`."
            ) from error


def available(row: Row, name: str, make: Callable[[], Any]) -> Any:
    """Make a contender, or note in the row why it cannot run and return None."""
    try:
        return make()
    except NotAvailable as reason:
        row.missing[name] = str(reason)
        return None
