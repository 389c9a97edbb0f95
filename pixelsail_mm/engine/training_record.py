"""What a training showed a model, read again from its data and written into its test pipeline.

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

from pixelsail_mm.errors import ConfigError, first_line
from pixelsail_mm.registry import DATASETS, SCOPE
from pixelsail_mm.tokenization import build_tokenizer, read_id_ranges, write_id_ranges

#: Samples that are read by default; all words of ShapesWorld occur within the first hundred.
SAMPLES = 2000
_RESIZE, _CONVERSATION = 'ResizeToGrid', 'BuildConversation'


@dataclass(frozen=True)
class TrainingRecord:
    """What samples of a training hold.

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


def recorded_pipeline(cfg: Config, samples: int = SAMPLES) -> list[dict[str, Any]]:
    """``test_pipeline`` of a config with what training showed the model.

    Tokens are written only for a decoder that started from nothing (``backbone.llm`` is no path):
    a language model has read far more than the data of this training. If the training started
    from other weights (``load_from``), the tokens recorded beside those count too.

    Args:
        cfg: Config the model was trained with. Without ``train_dataloader``, as in a published
            folder, the pipeline stays as it is.
        samples: Number of samples to read; 0 leaves the pipeline as it is.
    """
    stages = [stage.to_dict() for stage in cfg.test_pipeline]
    if cfg.get('train_dataloader') is None or not samples:
        return stages
    try:
        record = read_training(cfg, samples)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        print_log('sizes of pictures and words of the training are not written down: its data '
                  f'cannot be read ({first_line(error)}); publish where the data is',
                  'current', logging.WARNING)
        return stages
    ids = _known_tokens(cfg, record)
    for stage in stages:
        kind = stage['type'].removeprefix(f'{SCOPE}.')
        if kind == _RESIZE and stage.get('rule', 'long_side') == 'long_side':
            if record.longest_side:
                stage['max_size'] = min(stage.get('max_size', 1024), record.longest_side)
        elif kind == _CONVERSATION and ids is not None:
            stage['trained_tokens'] = write_id_ranges(ids)
    print_log(f'{record.samples} training samples: pictures of up to {record.longest_side} pixels'
              + (f', {len(ids)} tokens' if ids is not None else ''), 'current')
    return stages


def _known_tokens(cfg: Config, record: TrainingRecord) -> frozenset[int] | None:
    """Tokens that the model met since its weights were random; None where that is not known."""
    parts = (cfg.model, cfg.model.backbone)
    if not isinstance(cfg.model.backbone.get('llm'), Mapping) or any(
            part.get('init_cfg') for part in parts):
        return None
    start = cfg.get('load_from')
    if start is None:
        return record.token_ids
    earlier = _tokens_beside(start, build_tokenizer(cfg.model.tokenizer))
    if earlier is None:
        print_log(f'words of the training are not written down: load_from {start} has no config '
                  'with trained_tokens beside it; publish those weights first',
                  'current', logging.WARNING)
        return None
    return record.token_ids | earlier


def _tokens_beside(checkpoint: str | os.PathLike, tokenizer: Any) -> frozenset[int] | None:
    """Ids, in ``tokenizer``, of the tokens that the folder of a checkpoint records."""
    from pixelsail_mm.apis.init_model import read_model_config
    path = Path(checkpoint).expanduser()
    try:
        cfg, _ = read_model_config(path if path.is_dir() else path.parent)
    except ConfigError:
        return None
    for stage in cfg.get('test_pipeline') or ():
        if stage.get('trained_tokens') is not None:
            theirs = build_tokenizer(stage['tokenizer'])
            vocabulary = tokenizer.get_vocab()
            names = theirs.convert_ids_to_tokens(sorted(read_id_ranges(stage['trained_tokens'])))
            return frozenset(vocabulary[name] for name in names if name in vocabulary)
    return None
