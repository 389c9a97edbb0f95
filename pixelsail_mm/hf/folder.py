"""An exported folder as the config that ``init_model`` builds from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.config import Config
from transformers import GenerationConfig

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.hf.configuration import PixelSAILConfig, check_types
from pixelsail_mm.registry import SCOPE, TRANSFORMS

_NOT_SETTINGS = ('bos_token_id', 'eos_token_id', 'pad_token_id', 'transformers_version')
_PROCESSOR_FILES = ('preprocessor_config.json', 'processor_config.json')


def read_folder(folder: Path) -> Config:
    """Put the config together that the folder was exported from.

    Args:
        folder: Folder with ``config.json``.

    Returns:
        Config with ``model`` and ``test_pipeline``, the tokenizer being that of the folder.

    Raises:
        ConfigError: The folder holds another model, lacks a file, or one cannot be read.
    """
    path = folder / 'config.json'
    kind = _read_json(path).get('model_type')
    if kind != PixelSAILConfig.model_type:
        raise ConfigError(f'{path}: model_type is {kind!r}, not {PixelSAILConfig.model_type!r}; '
                          'this is no Pixel-SAIL (a base for one goes into model.backbone.llm)')
    try:
        config = PixelSAILConfig.from_pretrained(folder)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f'{path}: {str(error).splitlines()[0]}') from error
    model = config.model_settings(str(folder))
    if (folder / 'generation_config.json').is_file():
        generation = GenerationConfig.from_pretrained(folder).to_diff_dict()
        model['generation'] = dict(do_sample=False) | {
            key: value for key, value in generation.items()
            if key not in _NOT_SETTINGS and not key.startswith('_')}
    pipeline = []
    for name in _PROCESSOR_FILES:
        stages = _read_json(folder / name).get('transforms')
        if not stages:
            raise ConfigError(f'{folder / name}: key \'transforms\' is missing; write the folder '
                              'with tools/model_converters/export_hf.py')
        check_types(stages, TRANSFORMS, str(folder / name))
        pipeline += [_with_tokenizer(stage, folder) for stage in stages]
    return Config(dict(default_scope=SCOPE, model=model, test_pipeline=pipeline),
                  filename=str(path))


def _with_tokenizer(stage: dict[str, Any], folder: Path) -> dict[str, Any]:
    return stage | dict(tokenizer=str(folder)) if stage['type'] == 'BuildConversation' else stage


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise ConfigError(f'{path}: no such file; the folder is incomplete') from None
    except ValueError as error:
        raise ConfigError(f'{path}: not valid JSON ({error}); copy or download it again') from error
    if not isinstance(content, dict):
        raise ConfigError(f'{path}: holds a {type(content).__name__}, not an object')
    return content
