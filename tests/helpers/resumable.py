"""Which checkpoint of a folder a single process resumes from."""

from pathlib import Path

from pixelsail_mm.checkpoints.formats.resumable import newest_sound, resumable_candidates


def find_resumable(work_dir: str | Path) -> str | None:
    """Path of the newest sound checkpoint of a run; None if there is none at all."""
    return newest_sound(resumable_candidates(work_dir))
