"""Exit statuses and messages of the command-line tools."""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from pixelsail_mm import errors
from pixelsail_mm.errors import (
    DIVERGED,
    OUT_OF_MEMORY,
    STOPPED,
    DivergedError,
    StoppedError,
    UserError,
    is_out_of_memory,
)


def run_command(command: Callable[[], object], debug: bool = False) -> int:
    """Run a command; answer a user's mistake with one message instead of a traceback.

    Args:
        command: What to do; heavy imports belong inside it. May return an exit status.
        debug: Show the traceback of every error; so does ``PIXELSAIL_DEBUG=1``.

    Returns:
        int: 0 (or what the command says) on success, 2 after a mistake that the user can correct
        (missing file, unknown type, broken checkpoint), ``DIVERGED`` when a training stopped for
        NaN or infinity, ``STOPPED`` when it saved and stopped after a signal, ``OUT_OF_MEMORY``
        where there was too little memory (see :mod:`pixelsail_mm.errors`), 130 after Ctrl-C where
        nothing is saved. A bug in the code keeps its traceback.
    """
    try:
        status = command()
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except StoppedError as error:
        print(error, file=sys.stderr)
        return STOPPED
    except DivergedError as error:
        print(f'error: {error}', file=sys.stderr)
        return DIVERGED
    except Exception as error:
        message = None if debug or debugging() else explain(error)
        if message is None:
            raise
        print(
            f'error: {message}\n(--debug or PIXELSAIL_DEBUG=1 shows where it was raised)',
            file=sys.stderr,
        )
        return OUT_OF_MEMORY if is_out_of_memory(error) else 2
    return status if isinstance(status, int) else 0


def _explain_unknown_type(message: str) -> str | None:
    found = re.search(r'(\S+) is not in the (\S+?)::(.+?) registry', message)
    if not found:
        return None
    from pixelsail_mm.registry import REGISTRIES, known_parts

    name, _, registry = found.groups()
    name = name.strip('\'"').split('.')[-1]
    known = {name for one in REGISTRIES if one.name == registry for name in known_parts(one)}
    close = difflib.get_close_matches(name, sorted(known), n=3)
    hint = (
        f'did you mean {" or ".join(close)}?'
        if close
        else ('check the spelling, or list the module that registers it under custom_imports')
    )
    return f"type='{name}' is not a registered {registry}; {hint}"


def _is_wrong_argument(error: BaseException) -> bool:
    """Whether a component was built with an argument it does not take (or without one it needs).

    Python raises that in the caller's frame, here the registry's.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return (
        isinstance(error, TypeError)
        and bool(frames)
        and Path(frames[-1].filename).parts[-2:] == ('registry', 'build_functions.py')
    )


def _of_worker(error: BaseException, text: str) -> str | None:
    """Message of a user's error that a worker of a data loader raised.

    PyTorch raises it again with the worker's traceback as its message; as a RuntimeError, where the
    error takes several arguments.
    """
    found = re.match(r'Caught (\w+) in DataLoader worker process \d+\.\nOriginal Traceback', text)
    if not found:
        return None
    kind = getattr(errors, found[1], type(error))
    message = re.search(rf'^(?:\w+\.)*{found[1]}: (.*)\Z', text, re.MULTILINE | re.DOTALL)
    users = issubclass(kind, (UserError, OSError)) and not issubclass(kind, ConnectionError)
    return message[1].strip() if message and users else None


def explain(error: BaseException) -> str | None:
    """Turn an error that a user can correct into one message.

    Returns:
        str | None: The message; None for an error that is a bug, where the traceback is wanted.
    """
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    from_worker = _of_worker(error, text)
    if from_worker:
        return from_worker
    unknown = _explain_unknown_type(text)
    if unknown:
        return unknown
    if isinstance(error, UserError):
        return text
    if is_out_of_memory(error):
        return f'out of memory: {text or type(error).__name__}'
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return f'{error.strerror or text}: {error.filename}' if error.filename else text
    if isinstance(error, SyntaxError):
        return f'{error.filename}, line {error.lineno}: {error.msg}'
    if _is_wrong_argument(error):
        return f'{text}; compare the keys of this component in the config with its documentation'
    if isinstance(error, ModuleNotFoundError) and not (error.name or '').startswith('pixelsail_mm'):
        return f'{text}; install it, or correct custom_imports in the config'
    return None


def debugging() -> bool:
    """Whether ``PIXELSAIL_DEBUG=1`` asks for full tracebacks."""
    return os.environ.get('PIXELSAIL_DEBUG', '0') not in ('', '0')
