# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Functions that run in a child of the test, which has all that the test has imported."""

import os
import traceback
from collections.abc import Callable


def in_a_child(work: Callable[[], object]) -> tuple[int, str]:
    """Run a function in a process of its own, whose limits and patches are no one else's.

    Returns:
        its exit status, which is negative where a signal ended it, and what it printed.
    """
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
    with os.fdopen(reading, "rb") as pipe:
        printed = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed
