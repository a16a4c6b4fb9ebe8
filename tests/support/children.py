# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Functions that run in a child of the test, which has all that the test has imported."""

import os
import traceback
from collections.abc import Callable
from functools import partial


def in_a_child(work: Callable[[], object]) -> tuple[int, str]:
    """Run a function in a process of its own, whose limits and patches are no one else's.

    Returns:
        its exit status, which is negative where a signal ended it, and what it printed.
    """
    return _ended(*_started(work))


def _started(work: Callable[[], object]) -> tuple[int, int]:
    """Start a child; its number, and the end of a pipe into which it prints."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            for stream in (1, 2):  # which may be files: they could not grow any more
                os.dup2(writing, stream)
            work()
            code = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(writing)
    return child, reading


def _ended(child: int, reading: int) -> tuple[int, str]:
    """Wait for a child: its exit status, and what it printed."""
    with os.fdopen(reading, "rb") as pipe:
        printed = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed


def in_children(count: int, work: Callable[[int], object]) -> None:
    """Run a function in so many processes side by side, each told its number from 0.

    Raises:
        AssertionError: one of them failed; it says what that one printed.
    """
    children = [_started(partial(work, number)) for number in range(count)]
    for status, printed in [_ended(*child) for child in children]:
        assert status == 0, printed
