"""Exit codes and messages of the command-line tools."""

import sys
from typing import Callable

from pixelsail_mm.engine.errors import debugging, explain
from pixelsail_mm.errors import DivergedError

#: Exit status of a training that stopped because its numbers are no longer finite.
DIVERGED = 3


def run_command(command: Callable[[], object], debug: bool = False) -> int:
    """Run a command; answer a user's mistake with one message instead of a traceback.

    Args:
        command: What to do; heavy imports belong inside it. May return an exit status.
        debug: Show the traceback of every error; so does ``PIXELSAIL_DEBUG=1``.

    Returns:
        int: 0 (or what the command says) on success, 2 after a mistake that the user can mend
        (missing file, unknown type, broken checkpoint), :data:`DIVERGED` when a training
        stopped for NaN or infinity, 130 after Ctrl-C. A bug in the code keeps its traceback.
    """
    try:
        status = command()
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except DivergedError as error:
        print(f'error: {error}', file=sys.stderr)
        return DIVERGED
    except Exception as error:
        message = None if debug or debugging() else explain(error)
        if message is None:
            raise
        print(f'error: {message}\n(--debug or PIXELSAIL_DEBUG=1 shows where it was raised)',
              file=sys.stderr)
        return 2
    return status if isinstance(status, int) else 0
