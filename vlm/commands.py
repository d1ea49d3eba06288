"""How a command line of ours ends: an exit code, and one line where something is wrong with the request."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress


def exit_code(
    work: Callable[[], int | None], refusals: tuple[type[Exception], ...], interrupted: str = ""
) -> int:  # fmt: skip
    """Does the work; what it returns (None is 0), 2 where it was refused, 130 where it was interrupted.

    Args:
        refusals: errors whose message is one line for the person who asked; it goes to the standard error.
        interrupted: said after Ctrl-C.
    """
    try:
        return work() or 0
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except refusals as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
