"""Record picture sizes and words of the training data in the pipelines for prediction.

``max_size`` of ``ResizeToGrid`` becomes the longest side of the pictures that the model was trained
on, ``trained_tokens`` of ``BuildConversation`` the ids of the tokens that it met. So whatever opens
the pipeline scales a user's picture to what the model knows, and can tell which words it does not.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope

from pixelsail_mm.checkpoints.folders.reading import read_model_config
from pixelsail_mm.errors import ConfigError, first_line
from pixelsail_mm.registry import DATASETS, SCOPE
from pixelsail_mm.tokenization import build_tokenizer, read_id_ranges, write_id_ranges
from pixelsail_mm.type_names import name_types, type_name

#: Samples that are read by default; all words of ShapesWorld occur within the first hundred. A rare
#: word of a large data set may not be among them.
SAMPLES = 2000
_RESIZE, _CONVERSATION = 'ResizeToGrid', 'BuildConversation'
_PIPELINES = ('test_pipeline', 'inference_pipeline')


@dataclass(frozen=True)
class TrainingRecord:
    """Picture sizes and token ids found in samples of a training.

    Attributes:
        samples: Number of samples that were read.
        longest_side: Longest side of their pictures as the model reads them, in pixels; 0 without
            pictures.
        token_ids: Ids in their token sequences.
    """

    samples: int
    longest_side: int
    token_ids: frozenset[int]


def read_training(cfg: Config, samples: int = SAMPLES) -> TrainingRecord:
    """Draw samples of a training, spread evenly over one epoch.

    Small data sets are drawn from several times: each draw has other turns and templates.

    Args:
        cfg: Config with ``train_dataloader``.
        samples: Number of draws, at least 1.

    Raises:
        OSError, ValueError, RuntimeError, KeyError: The data is not there or cannot be read.
    """
    init_default_scope(cfg.get('default_scope', SCOPE))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    indices = np.linspace(0, max(len(dataset), samples) - 1, samples).astype(int)
    longest, ids = 0, set()
    for index in indices.tolist():
        inputs = dataset[index]['inputs']
        ids.update(inputs['input_ids'].tolist())
        if inputs['image'] is not None:
            longest = max(longest, *inputs['image'].shape[1:])
    return TrainingRecord(len(indices), longest, frozenset(ids))


def recorded_pipelines(cfg: Config, samples: int = SAMPLES) -> dict[str, list[dict[str, Any]]]:
    """Pipelines for prediction of a config, with what training showed the model.

    Tokens are written only for a decoder that started from nothing (``backbone.llm`` is no path):
    a language model has read far more than the data of this training; but it has seen no pictures.
    If the training started from other weights (``load_from``), what is recorded beside those
    counts too: their tokens, and their ``max_size`` if it is larger. Where that is not known, or
    ``init_cfg`` loads weights, the setting stays as it is.

    Args:
        cfg: Config the model was trained with. Without ``train_dataloader``, as in an
            exported folder, the pipelines stay as they are.
        samples: Number of samples to read; 0 leaves the pipelines as they are.

    Returns:
        ``test_pipeline``, and ``inference_pipeline`` if the config has one.
    """
    pipelines = {key: [stage.to_dict() for stage in cfg[key]] for key in _PIPELINES if cfg.get(key)}
    name_types(list(pipelines.values()))
    if cfg.get('train_dataloader') is None or not samples:
        return pipelines
    try:
        record = read_training(cfg, samples)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        print_log(
            'sizes of pictures and words of the training are not written down: its data '
            f'cannot be read ({first_line(error)}); export where the data is',
            'current',
            logging.WARNING,
        )
        return pipelines
    known = _since_random(cfg, record)
    for stage in (stage for stages in pipelines.values() for stage in stages):
        kind = type_name(stage['type'])
        if kind == _RESIZE and stage.get('rule', 'long_side') == 'long_side':
            if known.longest_side:
                stage['max_size'] = min(stage.get('max_size', 1024), known.longest_side)
        elif kind == _CONVERSATION and known.token_ids is not None:
            stage['trained_tokens'] = write_id_ranges(known.token_ids)
    print_log(
        f'{record.samples} training samples: pictures of up to {record.longest_side} pixels, '
        f'{len(record.token_ids)} tokens',
        'current',
    )
    return pipelines


@dataclass(frozen=True)
class _Known:
    """What a model met since its weights were random; None where that is not known."""

    longest_side: int | None = None
    token_ids: frozenset[int] | None = None


def _since_random(cfg: Config, record: TrainingRecord) -> _Known:
    """What the training that was read and those before it showed the model."""
    words = isinstance(cfg.model.backbone.get('llm'), Mapping)
    now = _Known(record.longest_side, record.token_ids if words else None)
    if any(part.get('init_cfg') for part in (cfg.model, cfg.model.backbone)):
        start, earlier = 'init_cfg', _Known()
    elif cfg.get('load_from') is None:
        return now
    else:
        start = f'load_from {cfg.load_from}'
        earlier = _beside(cfg.load_from, build_tokenizer(cfg.model.tokenizer))
    missing = ['sizes of pictures'] if earlier.longest_side is None else []
    if words and earlier.token_ids is None:
        missing.append('words')
    if missing:
        print_log(
            f'{" and ".join(missing)} of the training are not written down: {start} has no '
            'config with max_size and trained_tokens beside it; export those weights first, '
            'and name the exported ones in load_from',
            'current',
            logging.WARNING,
        )
    return _Known(
        None if earlier.longest_side is None else max(now.longest_side, earlier.longest_side),
        now.token_ids | earlier.token_ids if words and earlier.token_ids is not None else None,
    )


def _beside(checkpoint: str | os.PathLike, tokenizer: Any) -> _Known:
    """What the folder of a checkpoint records; tokens as ids in ``tokenizer``."""
    path = Path(checkpoint).expanduser()
    try:
        cfg, _ = read_model_config(path if path.is_dir() else path.parent)
    except ConfigError:
        return _Known()
    longest, ids = None, None
    for stage in cfg.get('test_pipeline') or ():
        if type_name(stage['type']) == _RESIZE and stage.get('rule', 'long_side') == 'long_side':
            longest = stage.get('max_size', 1024)
        elif stage.get('trained_tokens') is not None:
            theirs = build_tokenizer(stage['tokenizer'])
            vocabulary = tokenizer.get_vocab()
            names = theirs.convert_ids_to_tokens(sorted(read_id_ranges(stage['trained_tokens'])))
            ids = frozenset(vocabulary[name] for name in names if name in vocabulary)
    return _Known(longest, ids)
