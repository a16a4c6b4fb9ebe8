# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C: one line on standard error and exit status 130, whenever it comes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def say(name: str, problem: object) -> None:
    """Print one line to standard error; of several processes of a run, the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{name}: {' '.join(str(problem).split())}", file=sys.stderr, flush=True)


def say_interrupted(name: str, hint: str = "") -> None:
    """Say that it was, and what the user may do now."""
    if sys.stderr.isatty():
        print(file=sys.stderr)  # ^C, or a progress bar, stands on the line
    say(name, f"interrupted. {hint}")


@contextmanager
def leaving_at_once(name: str) -> Iterator[None]:
    """Inside, Ctrl-C ends the process on the spot.

    For imports, which may swallow a KeyboardInterrupt, and for all that has nothing to clear up.
    """

    def leave() -> None:
        say_interrupted(name)
        with suppress(Exception):  # it may have been interrupted in the middle of a write
            sys.stdout.flush()
        os._exit(INTERRUPTED)

    with _handling(leave):
        yield


@contextmanager
def unwinding(hint: Callable[[], str]) -> Iterator[None]:
    """Inside, the first Ctrl-C raises KeyboardInterrupt: workers, logs and files are closed.

    The next one has the effect that it has outside.

    Args:
        hint: makes what the interrupt says to the user.
    """
    outer = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        signal.signal(signal.SIGINT, outer)
        raise KeyboardInterrupt

    with _handling(interrupt):
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(hint()) from None


@contextmanager
def _handling(act: Callable[[], None]) -> Iterator[None]:
    """Act on SIGINT in this process; what it forks ignores it, and ends with its parent."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what is done about signals
        return
    process = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() == process:
            act()

    outer = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, outer)
