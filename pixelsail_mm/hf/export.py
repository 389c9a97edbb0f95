"""A trained model as a folder that Transformers and ``init_model`` open."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import Tensor
from transformers import AutoConfig, GenerationConfig

from pixelsail_mm.checkpoints.checkpoint import apply_weights
from pixelsail_mm.checkpoints.conversion.portable import (
    beyond_json,
    check_exportable,
    portable_imports,
    portable_model,
    prediction_weights,
)
from pixelsail_mm.checkpoints.conversion.training_record import SAMPLES, recorded_pipelines
from pixelsail_mm.checkpoints.folders.configuration import PixelSAILConfig
from pixelsail_mm.checkpoints.folders.exported import check_model_type
from pixelsail_mm.checkpoints.formats.checkpoint_files import (
    BASE_FILES,
    check_replaceable,
    replace_when_complete,
)
from pixelsail_mm.checkpoints.formats.safetensors_files import write_folder
from pixelsail_mm.checkpoints.loading.vocabulary import (
    Vocabulary,
    VocabularyError,
    plan_rows,
    vocabulary_metadata,
)
from pixelsail_mm.datasets.templates import resolve_prompt_template
from pixelsail_mm.errors import CheckpointError, ConfigError, first_line
from pixelsail_mm.hf.model_card import CARD, write_model_card
from pixelsail_mm.hf.modeling import PixelSAILForCausalLM
from pixelsail_mm.hf.processing import PixelSAILImageProcessor, PixelSAILProcessor
from pixelsail_mm.tokenization import (
    END_OF_TEXT,
    TASK_TOKENS,
    VISION_TOKENS,
    SpecialTokens,
    build_tokenizer,
)

_CHAT_TOKENS = ('<|im_start|>', '<|im_end|>')
_CONVERSATION = 'BuildConversation'
_FILES = (*BASE_FILES, 'preprocessor_config.json', 'processor_config.json', CARD)
_BEYOND = 'config.py'
_NOTE = '# What config.json has no place for; init_model reads both, and what stands here counts.\n'


def export_hf(
    cfg: Config,
    checkpoint: str | os.PathLike,
    folder: str | os.PathLike,
    dtype: str | None = None,
    max_shard_size: str | int = '5GB',
    training_samples: int = SAMPLES,
) -> Path:
    """Write config, weights, tokenizer, processor, generation config and model card.

    What the training showed the model goes into the processor, see
    :func:`~pixelsail_mm.checkpoints.conversion.training_record.recorded_pipelines`; modules to
    import, a visualizer of answers and an ``inference_pipeline`` into a ``config.py``.
    An existing folder stays as it is until the new one is complete; then it is replaced as a whole,
    except for the words of its card, see :func:`~pixelsail_mm.hf.model_card.write_model_card`.

    Args:
        cfg: Config the model was trained with.
        checkpoint: Anything :func:`~pixelsail_mm.checkpoints.checkpoint.load_state` reads.
        folder: Folder to write.
        dtype: ``'float32'``, ``'float16'`` or ``'bfloat16'``; None keeps what the checkpoint has.
        max_shard_size: Largest size of a file of weights, e.g. ``'500MB'``; a number counts bytes.
        training_samples: Samples of the training data to read; 0 reads none.

    Returns:
        The folder.

    Raises:
        ConfigError: The config lacks ``model`` or a pipeline for prediction, has a part that is
            not registered, ``dtype`` or ``max_shard_size`` is unknown, or the folder has other
            things in it.
        CheckpointError: The checkpoint cannot be read, is not merged, or does not fit the config.
    """
    check_exportable(cfg, dtype)
    shard_size = _bytes(max_shard_size)
    target = Path(folder).absolute()
    _check_target(target)
    pipelines = recorded_pipelines(cfg, training_samples)
    processor = _processor(cfg, pipelines['test_pipeline'])
    settings = portable_model(cfg)
    config = _config(settings, processor.tokenizer, portable_imports(cfg))
    state, stored = prediction_weights(checkpoint, dtype)
    _check_tokens(checkpoint, stored, processor.tokenizer, config.text_config.vocab_size)
    model = _with_weights(config, state, checkpoint)
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id, **settings['generation']
    )
    beyond = beyond_json(cfg, pipelines)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(target) as unfinished:
        _write_model(model, unfinished, shard_size, vocabulary_metadata(processor.tokenizer))
        processor.save_pretrained(unfinished)
        if beyond:
            Path(unfinished, _BEYOND).write_text(_NOTE + Config(beyond).pretty_text)
        write_model_card(model, Path(unfinished), target)
    return Path(folder)


def _check_target(target: Path) -> None:
    """Refuse a folder that holds anything but an earlier export."""
    exported = (target / 'config.json').is_file()
    # A config.py alone is a user's own.
    check_replaceable(target, (*_FILES, _BEYOND) if exported else _FILES)
    if exported:
        check_model_type(target / 'config.json')


def _write_model(
    model: PixelSAILForCausalLM, folder: str, shard_size: int, metadata: dict[str, str]
) -> None:
    """What ``save_pretrained`` writes; it takes no ``metadata`` for the headers of the weights."""
    model.config.dtype = str(model.dtype).removeprefix('torch.')
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    write_folder(model.state_dict(), folder, shard_size, metadata)


def _bytes(size: str | int) -> int:
    """A size such as ``'500MB'`` as a number."""
    from accelerate.utils import convert_file_size_to_int

    try:
        return convert_file_size_to_int(size)
    except ValueError as error:
        raise ConfigError(f'max_shard_size: {first_line(error)}') from error


def _config(settings: dict[str, Any], tokenizer, modules: list[str]) -> PixelSAILConfig:
    """``config.json`` of a portable model."""
    model = {
        key: value
        for key, value in copy.deepcopy(settings).items()
        if key not in ('tokenizer', 'generation')
    }
    llm = model['backbone'].pop('llm', None)
    model['backbone'].pop('vocab_size', None)  # that of text_config counts
    if llm is None:
        raise ConfigError(
            'model.backbone has no `llm`; only backbones around a decoder of '
            'Transformers can be exported'
        )
    tokens = SpecialTokens.from_tokenizer(tokenizer)
    text_config = AutoConfig.for_model(**llm)
    text_config.vocab_size = tokens.vocab_size
    names = (*VISION_TOKENS, *TASK_TOKENS, END_OF_TEXT, *_CHAT_TOKENS)
    special = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
    special[tokenizer.convert_ids_to_tokens(tokens.pad)] = tokens.pad
    return PixelSAILConfig(
        text_config=text_config,
        model=model,
        special_tokens=special,
        custom_imports=modules,
        pad_token_id=tokens.pad,
        eos_token_id=sorted({tokens.eos, special['<|im_end|>']}),
    )


def _processor(cfg: Config, stages: list[dict[str, Any]]) -> PixelSAILProcessor:
    """Processor of a config's test pipeline, whose stages are given."""
    types = [stage['type'] for stage in stages]
    if _CONVERSATION not in types or not stages[types.index(_CONVERSATION)].get('generation'):
        raise ConfigError(
            f'{cfg.filename or "the config"}: test_pipeline needs a {_CONVERSATION} '
            'with generation=True, as inference does'
        )
    position = types.index(_CONVERSATION)
    conversation = stages[position]
    conversation.pop('tokenizer', None)
    # Templates have names in our files and XTuner's, which may change.
    conversation['template'] = resolve_prompt_template(conversation.get('template', 'pixel_sail'))
    # The tokenizer of a path is shared in this process; ours gets a chat template.
    tokenizer = copy.deepcopy(build_tokenizer(cfg.model.tokenizer))
    processor = PixelSAILProcessor(
        PixelSAILImageProcessor(stages[:position]), tokenizer, stages[position:]
    )
    tokenizer.chat_template = processor.chat_template = processor.chat_format.jinja()
    return processor


def _check_tokens(
    checkpoint: str | os.PathLike, stored: Vocabulary | None, tokenizer: Any, rows: int
) -> None:
    """Refuse a table of as many rows whose tokens have another order, where the order is known."""
    if stored is None:
        return
    try:
        plan = plan_rows(stored, rows, Vocabulary.of_tokenizer(tokenizer), rows)
    except VocabularyError as error:
        raise CheckpointError(checkpoint, error.reason, error.remedy) from error
    if plan is not None:
        raise CheckpointError(
            checkpoint,
            f"was trained with other tokens than the config's tokenizer has: {plan.summary}",
            'give the config and the tokenizer it was trained with',
        )


def _with_weights(
    config: PixelSAILConfig, state: dict[str, Tensor], source: str | os.PathLike
) -> PixelSAILForCausalLM:
    """The model, its parameters being the tensors of ``state`` themselves."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = PixelSAILForCausalLM(config)
    with warnings.catch_warnings():
        # Nothing is copied into a model without memory; the check is what counts.
        warnings.filterwarnings('ignore', message='.*copying from a non-meta parameter')
        apply_weights(model.model, state, str(source))
    own = model.model.state_dict()
    model.model.load_state_dict(
        {key: value.reshape(own[key].shape) for key, value in state.items() if key in own},
        strict=False,
        assign=True,
    )
    model.tie_weights()
    return model.eval()
