"""Which checkpoint a training resumes from; all processes decide the same."""

from __future__ import annotations

from pathlib import Path

from mmengine.dist import all_gather_object, barrier, get_rank, get_world_size, is_main_process
from mmengine.logging import print_log

from pixelsail_mm.checkpoints.formats.checkpoint_files import tidy_leftovers
from pixelsail_mm.checkpoints.formats.resumable import fault_of, newest_sound, resumable_candidates
from pixelsail_mm.errors import CheckpointError


def choose_checkpoint(resume: bool | str | None, work_dir: str) -> str | None:
    """Find the checkpoint to resume from, and clean up what a killed run left behind.

    All processes must call this; they share the reading of large folders.

    Args:
        resume: The checkpoint, True for the newest complete one of the run, False for none.
        work_dir: The run's folder, which no other training may be using.

    Returns:
        str | None: Path of the checkpoint; None to start from the beginning.

    Raises:
        CheckpointError: The checkpoint, or every one of the run, is missing or damaged.
    """
    if is_main_process():
        _tidy(work_dir)
    barrier()
    if isinstance(resume, str):
        problem = _agreed_fault(Path(resume))
        if problem is not None:
            raise problem
        return resume
    if not resume:
        return None
    candidates = resumable_candidates(work_dir) if is_main_process() else None
    found = newest_sound(all_gather_object(candidates)[0], _agreed_fault)
    if found is None:
        print_log(
            f'--resume: no checkpoint in {work_dir}; starting from the beginning',
            logger='current',
            level=30,
        )
    return found


def _tidy(work_dir: str) -> None:
    try:
        said = tidy_leftovers(work_dir)
    except OSError as error:
        said = f'left over by a killed run in {work_dir}, and cannot be removed: {error}'
    if said:
        print_log(said, logger='current', level=30)


def _agreed_fault(path: Path) -> CheckpointError | None:
    """Let each process read a part; give the first fault that any found."""
    fault = fault_of(path, (get_rank(), get_world_size()))
    return next((problem for problem in all_gather_object(fault) if problem), None)
