"""``config.json`` of a Pixel-SAIL."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import Registry
from transformers import AutoConfig, PretrainedConfig

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import MODELS, TRANSFORMS
from pixelsail_mm.type_names import parts_of


class PixelSAILConfig(PretrainedConfig):
    """Settings of a Pixel-SAIL, with nothing in them that another file of the folder says.

    Args:
        text_config: Config of the decoder, or a dict of it with ``model_type``.
        model: ``model`` of the config file it was trained with, less the decoder
            (``text_config``), the tokenizer, ``generation`` (``generation_config.json``) and what
            only training uses. Any registered parts are possible.
        special_tokens: Token -> id of all tokens that the model itself looks for.
        custom_imports: Modules that register parts of the model, as the config it was trained with
            names them. They are named in errors and not imported: a data file runs no code.
        **kwargs: See ``PretrainedConfig``; ``eos_token_id`` and ``pad_token_id`` are needed.

    Raises:
        ConfigError: One of the first three is missing or cannot be what it should be.
    """

    model_type = 'pixelsail'
    sub_configs = {'text_config': AutoConfig}
    # There is no model without a decoder, hence no default to compare with when saving.
    has_no_defaults_at_init = True

    def __init__(
        self,
        text_config: PretrainedConfig | Mapping | None = None,
        model: Mapping[str, Any] | None = None,
        special_tokens: Mapping[str, int] | None = None,
        custom_imports: Sequence[str] = (),
        **kwargs,
    ) -> None:
        parts = dict(text_config=text_config, model=model, special_tokens=special_tokens)
        for key, value in parts.items():
            _require(value, key, (Mapping, PretrainedConfig))
        _require(model.get('type'), 'model.type', str)
        _require(model.get('backbone'), 'model.backbone', Mapping)
        _require(model['backbone'].get('type'), 'model.backbone.type', str)
        if isinstance(text_config, Mapping):
            _require(text_config.get('model_type'), 'text_config.model_type', str)
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.model = dict(model)
        self.special_tokens = dict(special_tokens)
        self.custom_imports = list(custom_imports)
        kwargs['tie_word_embeddings'] = text_config.tie_word_embeddings
        super().__init__(**kwargs)

    def model_settings(self, tokenizer: Any) -> dict[str, Any]:
        """``model`` of a config file, complete again.

        Args:
            tokenizer: Tokenizer config or object to put into it.

        Raises:
            ConfigError: See :func:`check_types`.
        """
        source = f'config.json of {self.name_or_path or "the model"}'
        settings = copy.deepcopy(self.model)
        check_types(settings, MODELS, source, self.custom_imports)
        settings['backbone'].update(
            llm=self.text_config.to_diff_dict(), vocab_size=self.text_config.vocab_size
        )
        return dict(settings, tokenizer=tokenizer, distill=[])


AutoConfig.register(PixelSAILConfig.model_type, PixelSAILConfig)


def _require(value: Any, key: str, kinds: type | tuple[type, ...]) -> None:
    if not value or not isinstance(value, kinds):
        raise ConfigError(
            f'config.json: key {key!r} is missing or of the wrong type; write the '
            'folder with tools/model_converters/export_hf.py'
        )


def check_stages(stages: Any, source: str, modules: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Configs of transforms from a data file, after a check that they can be built.

    Args:
        stages: What the file holds as ``transforms``.
        source: The file, for messages.
        modules: See :func:`check_types`.

    Raises:
        ConfigError: They are no configs of transforms; also see :func:`check_types`.
    """
    if (
        not isinstance(stages, (list, tuple))
        or not stages
        or not all(isinstance(stage, Mapping) and 'type' in stage for stage in stages)
    ):
        raise ConfigError(
            f"{source}: key 'transforms' is missing or no list of objects with a "
            "'type'; write the folder with tools/model_converters/export_hf.py"
        )
    check_types(stages, TRANSFORMS, source, modules)
    return [dict(stage) for stage in stages]


def check_types(node: Any, registry: Registry, source: str, modules: Sequence[str] = ()) -> None:
    """Refuse settings from a data file that could run code.

    MMEngine builds a ``type`` that is no registered name by importing it, ``'os.system'`` included,
    which is fine for a config that is Python itself and not for JSON from somewhere else.

    Args:
        node: Settings, dicts and lists in each other.
        registry: Registry that builds them.
        source: File they are from, for messages.
        modules: Modules that the folder says register such types, for messages.

    Raises:
        ConfigError: A ``type`` is no registered name, or ``trust_remote_code`` is on.
    """
    for part in parts_of(node):
        if 'type' in part and not _is_registered(part['type'], registry):
            raise ConfigError(
                f'{source}: type {part["type"]!r} is not a registered {registry.name}'
                f'; {_remedy(modules)}, or check the file'
            )
        if part.get('trust_remote_code'):
            raise ConfigError(
                f'{source}: trust_remote_code cannot be switched on by a file; remove it there'
            )


def _remedy(modules: Sequence[str]) -> str:
    if not modules:
        return 'import the module that registers it first'
    return (
        f'import {", ".join(map(str, modules))} first (custom_imports of the config that the '
        'folder was exported from), with the folder that holds it on PYTHONPATH'
    )


def _is_registered(name: Any, registry: Registry | None) -> bool:
    """Whether ``name``, maybe with a scope before it, is in a registry or one above it."""
    while isinstance(name, str) and registry is not None:
        registry.import_from_location()
        if name.removeprefix(f'{registry.scope}.') in registry.module_dict:
            return True
        registry = registry.parent
    return False
