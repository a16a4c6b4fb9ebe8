# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Command lines made of dataclasses, whose values may stand in a YAML file."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import ArgumentDefaultsHelpFormatter


def bf16_argument() -> Any:
    """Make the field of an argument `bf16`: auto, true or false, as `use_bfloat16` reads it."""
    return dataclasses.field(
        default="auto",
        metadata={
            "help": "Compute in bfloat16: where the processor has instructions for it (auto), or "
            "always (true; on a CPU that emulates it tens of times slower) or never (false). "
            "Under auto, what `accelerate launch` was told stands.",
            "metavar": "{auto,true,false}",
            "nargs": "?",  # `--bf16` alone is true
            "const": "true",
        },
    )


class HelpFormatter(ArgumentDefaultsHelpFormatter):
    """Shows defaults, and the commands of a description as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return f"{action.help} (required)" if action.required else super()._get_help_string(action)


def read_command_line(
    kinds: Sequence[type],
    argv: Sequence[str],
    description: str | None,
    prog: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Read the YAML file that a command line may begin with, then the command line, which wins.

    Args:
        kinds: dataclasses that hold the arguments.
        argv: words of the command line, the program's name left out.
        description: what `--help` says first.
        prog: the program's name; that of the running script if None.
        defaults: values that neither the file nor the command line need to name.

    Returns:
        one object of each dataclass.

    Raises:
        ValueError: an unknown key or argument, a value that a dataclass refuses, or a file that is
            no YAML.
        FileNotFoundError: there is no such file.
        SystemExit: help was asked for, or an argument is missing or malformed.
    """
    parser = HfArgumentParser(
        tuple(kinds),
        description=description,
        formatter_class=HelpFormatter,
        usage="%(prog)s [FILE.yaml] [--argument value ...]",
        allow_abbrev=False,
        prog=prog,
    )
    values, argv = dict(defaults or {}), list(argv)
    if argv and argv[0].endswith((".yaml", ".yml")):
        path = Path(argv.pop(0))
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file: name an existing YAML file, or none.")
        named = read_values(path)
        known = {f.name for kind in kinds for f in dataclasses.fields(kind)}
        if unknown := sorted(set(named) - known):
            raise ValueError(f"{path} has the unknown keys {unknown}; --help lists all arguments.")
        values |= named
    parser.set_defaults(**values)
    for action in parser._actions:
        action.required = action.required and action.dest not in values
    return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)


def pairs(argument: str, values: list[str] | dict[str, Any] | None) -> dict[str, Any]:
    """Turn name=value strings (command line) or a mapping (YAML) into a dictionary.

    Raises:
        ValueError: if a string has no `=`.
    """
    if values is None or isinstance(values, dict):
        return dict(values or {})
    if malformed := [value for value in values if "=" not in value]:
        raise ValueError(f"{argument} holds {malformed}: write name=value.")
    return {name: yaml.safe_load(value) for name, value in (pair.split("=", 1) for pair in values)}


def read_values(path: Path) -> dict[str, Any]:
    """Read a YAML file of arguments.

    Raises:
        ValueError: it is no YAML, or no lines of `argument: value`.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, dict | NoneType):
        raise ValueError(f"{path} holds {values!r:.40}: write lines of `argument: value`.")
    return values or {}
