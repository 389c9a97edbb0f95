"""An exported folder as the config that ``init_model`` builds from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config
from transformers import GenerationConfig

from pixelsail_mm.checkpoints.folders.configuration import PixelSAILConfig, check_stages
from pixelsail_mm.errors import ConfigError, first_line
from pixelsail_mm.models.backbones.generation_settings import check_generation
from pixelsail_mm.registry import SCOPE

# Not for each call (there is one answer to each question), or given by the model.
_NOT_SETTINGS = (
    'bos_token_id',
    'eos_token_id',
    'pad_token_id',
    'num_return_sequences',
    'return_dict_in_generate',
    'transformers_version',
)
_PROCESSOR_FILES = ('preprocessor_config.json', 'processor_config.json')


def read_folder(folder: Path) -> Config:
    """Put the config together that the folder was exported from.

    Returns:
        Config with ``model`` and ``test_pipeline``, the tokenizer being that of the folder.

    Raises:
        ConfigError: The folder holds another model, lacks a file, or one cannot be read.
    """
    path = folder / 'config.json'
    check_model_type(path)
    try:
        config = PixelSAILConfig.from_pretrained(folder)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f'{path}: {first_line(error)}') from error
    model = config.model_settings(str(folder))
    model['generation'] = _read_generation(folder / 'generation_config.json')
    pipeline = []
    for name in _PROCESSOR_FILES:
        stages = check_stages(
            _read_json(folder / name).get('transforms'), str(folder / name), config.custom_imports
        )
        pipeline += [_with_tokenizer(stage, folder) for stage in stages]
    content = dict(default_scope=SCOPE, model=model, test_pipeline=pipeline)
    # Only what the user has imported: a config.py exported from here would import the rest.
    modules = [name for name in config.custom_imports if name in sys.modules]
    if modules:
        content['custom_imports'] = dict(imports=modules)
    return Config(content, filename=str(path))


def check_model_type(path: Path) -> None:
    """Check that a ``config.json`` is one of a Pixel-SAIL.

    Raises:
        ConfigError: It is of another model or cannot be read.
    """
    kind = _read_json(path).get('model_type')
    if kind != PixelSAILConfig.model_type:
        raise ConfigError(
            f'{path}: model_type is {kind!r}, not {PixelSAILConfig.model_type!r}; '
            'this is no Pixel-SAIL (a base for one goes into model.backbone.llm)'
        )


def _read_generation(path: Path) -> dict[str, Any]:
    """``model.generation`` of ``generation_config.json``, which may be absent.

    Only settings that Transformers knows: it ignores others in this file, but ``generate`` takes
    ``custom_generate`` and ``trust_remote_code`` as arguments and would run code.
    """
    if not path.is_file():
        return {}
    try:
        settings = GenerationConfig.from_dict(_read_json(path))
        check_generation(settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f'{path}: {first_line(error)}') from error
    known = vars(GenerationConfig())
    return dict(do_sample=False) | {
        key: value
        for key, value in settings.to_diff_dict().items()
        if key in known and key not in _NOT_SETTINGS and not key.startswith('_')
    }


def _with_tokenizer(stage: dict[str, Any], folder: Path) -> dict[str, Any]:
    return stage | dict(tokenizer=str(folder)) if stage['type'] == 'BuildConversation' else stage


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise ConfigError(f'{path}: no such file; the folder is incomplete') from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f'{path}: not valid JSON ({error}); copy or download it again') from error
    if not isinstance(content, dict):
        raise ConfigError(f'{path}: holds a {type(content).__name__}, not an object')
    return content
