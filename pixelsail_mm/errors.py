"""What a user can mend; the command line shows these errors without a traceback."""

from pathlib import Path
from typing import Union


class ConfigError(ValueError):
    """The config asks for something impossible; the message names the key and the remedy."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used.

    Args:
        path: The file or folder.
        reason: What is wrong with it.
        remedy: What the user can do.
    """

    def __init__(self, path: Union[str, Path], reason: str, remedy: str):
        super().__init__(f'{path}: {reason}; {remedy}')
        self.path, self.reason, self.remedy = str(path), reason, remedy

    def __reduce__(self):
        """Rebuild from the three fields, so that it crosses worker process borders."""
        return type(self), (self.path, self.reason, self.remedy)


class DivergedError(RuntimeError):
    """Training stopped because losses, gradients or weights are NaN or infinite.

    Command lines end with the status :data:`pixelsail_mm.engine.cli.DIVERGED`.
    """


def first_line(error: BaseException) -> str:
    """Cut another library's message to the line that says what is wrong.

    Args:
        error: Any error.
    """
    return str(error).strip().split('\n')[0][:300]
