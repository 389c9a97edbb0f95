"""A language model in a GGUF file (llama.cpp's format) as a Hugging Face folder.

transformers reads the weights (it turns the quantised blocks back into numbers). The tokenizer is
built here from the file's own tables: transformers' reader gives a model of the Llama family the
habits of SentencePiece (a begin token before every text, another end token, no splitting of
digits), which the models that package registries carry do not have.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import torch

from pixelsail_mm.checkpoints.conversion.tokenizers import byte_level_tokenizer
from pixelsail_mm.checkpoints.formats.checkpoint_files import (
    BASE_FILES,
    check_replaceable,
    replace_when_complete,
)
from pixelsail_mm.errors import CheckpointError, first_line

_MAGIC = b'GGUF'
# Of GGUF's kinds of tokens, those that are never cut: control tokens, which text for readers leaves
# out, and tokens that users defined, which it keeps.
_CONTROL, _USER_DEFINED = 3, 4
_TABLES = ('tokens', 'token_type', 'merges')
# What transformers and torch end in when a file does not hold what its architecture needs.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, RuntimeError, AssertionError)


def gguf_to_hf(
    source: str | os.PathLike, folder: str | os.PathLike, dtype: str = 'float32'
) -> dict[str, Any]:
    """Write config, safetensors and tokenizer of a GGUF model.

    An earlier result in the folder stays as it is until the new one is complete.

    Args:
        source: The ``.gguf`` file.
        folder: Folder to write, good for ``backbone.llm`` and ``tokenizer`` of our configs.
        dtype: Precision of the weights written.

    Returns:
        ``name``, ``model_type``, ``parameters``, ``vocabulary``, ``licence`` of the model.

    Raises:
        FileNotFoundError: There is no such file.
        ModuleNotFoundError: The package ``gguf`` is not installed.
        ConfigError: The folder has other things in it.
        CheckpointError: The file is damaged or only a part of a model, its architecture is not one
            that transformers reads, or its tokenizer is of a kind not known here.
    """
    path = Path(source).expanduser().absolute()
    check_replaceable(folder, BASE_FILES)
    facts = _read_facts(path)
    tokenizer = _tokenizer(path, facts)
    model = _model(path, getattr(torch, dtype))
    # GGUF's reader sets what it finds; token ids belong to the tokenizer built here.
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    Path(folder).absolute().parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return dict(
        name=facts.get('general.name', path.stem),
        model_type=model.config.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=len(tokenizer),
        licence=facts.get('general.license', 'not stated'),
    )


def _read_facts(path: Path) -> dict[str, Any]:
    """Key-value pairs in the file's head."""
    if not path.is_file():
        raise FileNotFoundError(
            f'{path}: no such file; python tools/misc/download.py --list names '
            'the models that can be fetched'
        )
    with open(path, 'rb') as file:
        if file.read(4) != _MAGIC:
            raise CheckpointError(path, 'not a GGUF file', 'give one that ends in .gguf')
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading GGUF needs the package 'gguf'; pip install 'pixelsail_mm[bases]'", name='gguf'
        ) from error
    try:
        return {name: field.contents() for name, field in GGUFReader(path).fields.items()}
    except (ValueError, IndexError, KeyError, OSError, struct.error) as error:
        raise CheckpointError(
            path, f'damaged GGUF file ({first_line(error)})', 'get it again'
        ) from error


def _tokenizer(path: Path, facts: dict[str, Any]):
    from transformers import AddedToken

    kind = facts.get('tokenizer.ggml.model')
    if kind != 'gpt2':
        raise CheckpointError(
            path,
            f'its tokenizer is of the kind {kind!r}',
            "only byte-level BPE ('gpt2') can be rebuilt, give the model's tokenizer.json instead",
        )
    missing = [table for table in _TABLES if f'tokenizer.ggml.{table}' not in facts]
    if missing:
        raise CheckpointError(
            path,
            f'its tokenizer has no {" and no ".join(missing)}',
            'get the tokenizer of this model as tokenizer.json',
        )
    tokens, kinds, merges = (facts[f'tokenizer.ggml.{table}'] for table in _TABLES)

    def named(key: str) -> str | None:
        number = facts.get(f'tokenizer.ggml.{key}_token_id')
        if number is not None and number >= len(tokens):
            raise CheckpointError(
                path,
                f'its {key} token has the id {number}, but there are {len(tokens):,} tokens',
                'get it again',
            )
        return None if number is None else tokens[number]

    names = {
        f'{ours}_token': named(theirs)
        for ours, theirs in (('bos', 'bos'), ('eos', 'eos'), ('pad', 'padding'), ('unk', 'unknown'))
    }
    try:
        tokenizer = byte_level_tokenizer(
            {token: number for number, token in enumerate(tokens)},
            [tuple(pair.split(' ')) for pair in merges],
            facts.get('tokenizer.ggml.pre', 'gpt-2'),
            [token for token, kind in zip(tokens, kinds) if kind == _CONTROL],
            chat_template=facts.get('tokenizer.chat_template'),
            **names,
        )
    except Exception as error:  # what the package tokenizers raises has no narrower type
        raise CheckpointError(
            path,
            f'its tokenizer cannot be rebuilt ({first_line(error)})',
            'get the tokenizer of this model as tokenizer.json',
        ) from error
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False)
            for token, kind in zip(tokens, kinds)
            if kind == _USER_DEFINED
        ]
    )
    return tokenizer


def _model(path: Path, dtype: torch.dtype) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=dtype, output_loading_info=True
        )
    except _UNREADABLE as error:
        raise CheckpointError(
            path,
            f'its weights cannot be read ({first_line(error)})',
            'get it again, or a model of another architecture',
        ) from error
    missing = sorted(report['missing_keys'])
    if missing:
        # transformers would draw them at random.
        raise CheckpointError(
            path,
            f'it lacks {len(missing)} weights of {model.config.model_type} '
            f'({", ".join(missing[:3])}, ...)',
            'get the whole model in one '
            'file: parts (-00001-of-0000N) are joined by `llama-gguf-split '
            '--merge`',
        )
    # Transformers 5 refuses to write what it read from GGUF; the weights are plain numbers by now.
    model.hf_quantizer = None
    if hasattr(model.config, 'quantization_config'):
        del model.config.quantization_config
    return model
