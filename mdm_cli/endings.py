# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""How every command and script ends: in one line on standard error, with an exit status.

0: all went well. 1: a failure that the line names. 2: the command line was not understood.
130: it was interrupted (Ctrl-C). Anything unexpected keeps its traceback.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from mdm_cli.interrupts import INTERRUPTED, leaving_at_once, say, say_interrupted

FAILURES = (ValueError, OSError, RuntimeError)
# Reads a command line, and does what was read.
Steps = tuple[Callable[[Sequence[str]], Sequence[Any]], Callable[..., Any]]


class MissingExtra(ImportError):
    """A library is missing that comes with another extra than a command's own.

    Args:
        what: needs which library. extra: of this package, that it comes with.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what}, which comes with the extra `{extra}`")
        self.extra = extra


def perform(
    name: str, load: Callable[[], Steps], argv: Sequence[str], extra: str | None = None
) -> int:
    """Load what a command needs, read its command line, do it.

    Args:
        name: what its lines on standard error begin with.
        load: imports, and returns the two steps: `parse(argv)`, and `run(*parsed)`.
        argv: words of the command line.
        extra: the extra of this package that its imports need.

    Returns:
        the exit status.

    Raises:
        SystemExit: the command line was not understood, or help was asked for; or its imports fail.
    """
    # Before tokenizers are loaded: the loaders of data fork after they are used.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with leaving_at_once(name):
        try:
            parse, run = load()
        except ImportError as error:
            _stop(name, _with_extra(error, extra), 1)
        try:
            parsed = parse(argv)
        except (ValueError, TypeError, OSError) as error:  # TypeError: a YAML value of another kind
            _stop(name, f"{error} See {name} --help.", 2)
        try:
            run(*parsed)
        except KeyboardInterrupt as interrupt:
            say_interrupted(name, str(interrupt))
            return INTERRUPTED
        except ImportError as error:
            say(name, _with_extra(error, extra))
            return 1
        except Exception as error:
            if not (isinstance(error, FAILURES) or _is_of_the_network(error)):
                raise
            say(name, error)
            return 1
    return 0


def _is_of_the_network(error: Exception) -> bool:
    # The Hub's client lets the errors of its own client pass, and that has changed its name.
    return any(kind.__module__.startswith("httpx") for kind in type(error).__mro__)


def _with_extra(error: ImportError, extra: str | None) -> str:
    extra = error.extra if isinstance(error, MissingExtra) else extra
    return f'{error}: pip install "modeling-mdm[{extra}]"' if extra else str(error)


def run_script(path: str, extra: str | None = None) -> NoReturn:
    """Run a script, and end the process as `perform` says.

    The script calls this before its own imports, which take seconds; its file is then read once
    more, as a module with `parse` and `run`.

    Args:
        path: the script's `__file__`.
        extra: see `perform`.

    Raises:
        SystemExit: always.
    """

    def load() -> Steps:
        module = load_file(Path(path))
        return module.parse, module.run

    sys.exit(perform(Path(path).name, load, sys.argv[1:], extra))


def load_file(path: Path) -> ModuleType:
    """Import a file that belongs to no package, under its own name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def _stop(name: str, problem: object, status: int) -> NoReturn:
    say(name, problem)
    raise SystemExit(status)
