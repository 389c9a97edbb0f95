"""Stub: kinds of benchmarks."""

_KINDS = dict(
    MME='Y/N',
    MMBench_DEV_EN='MCQ',
    MMStar='MCQ',
    TextVQA_VAL='VQA',
    MMDU='MT',
    COCO_VAL='Caption',
    MVBench='Video-MCQ',
)


def DATASET_TYPE(dataset, *, default='MCQ'):
    """Kind of a benchmark."""
    return _KINDS.get(dataset, default)


def DATASET_MODALITY(dataset, *, default='IMAGE'):
    """What a benchmark asks about."""
    return 'VIDEO' if dataset == 'MVBench' else default
