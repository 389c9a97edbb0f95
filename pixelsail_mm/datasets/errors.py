"""The one exception by which a reader or a transform rejects a sample."""

from __future__ import annotations


class BadSampleError(ValueError):
    """A sample that cannot be used; names the culprit.

    During training the dataset skips and counts it, in test mode it propagates to the user.

    Args:
        file: File that holds the fault (image or annotation), or ``'<memory>'``.
        key: Record key or entry at fault, e.g. ``'masks[2]'``.
        reason: What is wrong and what to do about it.
    """

    def __init__(self, file: str | None, key: str, reason: str) -> None:
        self.file = str(file) if file else '<memory>'
        self.key = key
        self.reason = reason
        super().__init__(f'{self.file}: {key}: {reason}')

    def __reduce__(self):
        """Rebuild from the three fields, so that it crosses worker process borders."""
        return type(self), (self.file, self.key, self.reason)


class AnnotationError(BadSampleError):
    """An annotation file as a whole cannot be used; raised when a dataset is built.

    Args:
        file: The annotation file.
        key: Config key or entry at fault, e.g. ``'ann_file'``.
        reason: What is wrong and what to do about it.
    """
