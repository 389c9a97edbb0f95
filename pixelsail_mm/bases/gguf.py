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

from pixelsail_mm.bases.tokenizers import byte_level_tokenizer
from pixelsail_mm.engine.checkpoint_files import replace_when_complete

_MAGIC = b'GGUF'
# Of GGUF's kinds of tokens: 3 is a control token, 4 one that users defined.
_SPECIAL_KINDS = (3, 4)


def gguf_to_hf(source: str | os.PathLike, folder: str | os.PathLike,
               dtype: str = 'float32') -> dict[str, Any]:
    """Write config, safetensors and tokenizer of a GGUF model.

    An existing folder stays as it is until the new one is complete.

    Args:
        source: The ``.gguf`` file.
        folder: Folder to write, good for ``backbone.llm`` and ``tokenizer`` of our configs.
        dtype: Precision of the weights written.

    Returns:
        ``name``, ``model_type``, ``parameters``, ``vocabulary``, ``licence`` of the model.

    Raises:
        FileNotFoundError: There is no such file.
        ModuleNotFoundError: The package ``gguf`` is not installed.
        ValueError: The file is damaged, or its tokenizer is of a kind not known here.
    """
    path = Path(source).expanduser().absolute()
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
    return dict(name=facts.get('general.name', path.stem), model_type=model.config.model_type,
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                vocabulary=len(tokenizer), licence=facts.get('general.license', 'not stated'))


def _read_facts(path: Path) -> dict[str, Any]:
    """Key-value pairs in the file's head."""
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file; python tools/misc/download.py --list names '
                                'the models that can be fetched')
    with open(path, 'rb') as file:
        if file.read(4) != _MAGIC:
            raise ValueError(f'{path}: not a GGUF file; give one that ends in .gguf')
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading GGUF needs the package 'gguf'; pip install 'pixelsail_mm[bases]'",
            name='gguf') from error
    try:
        return {name: field.contents() for name, field in GGUFReader(path).fields.items()}
    except (ValueError, IndexError, KeyError, OSError, struct.error) as error:
        raise ValueError(f'{path}: damaged GGUF file ({error}); get it again') from error


def _tokenizer(path: Path, facts: dict[str, Any]):
    kind = facts.get('tokenizer.ggml.model')
    if kind != 'gpt2':
        raise ValueError(f'{path}: its tokenizer is of the kind {kind!r}; only byte-level BPE '
                         "('gpt2') can be rebuilt, give the model's tokenizer.json instead")
    tokens = facts['tokenizer.ggml.tokens']
    kinds = facts['tokenizer.ggml.token_type']
    special = [token for token, kind in zip(tokens, kinds) if kind in _SPECIAL_KINDS]

    def named(key: str) -> str | None:
        number = facts.get(f'tokenizer.ggml.{key}_token_id')
        return None if number is None else tokens[number]

    try:
        return byte_level_tokenizer(
            {token: number for number, token in enumerate(tokens)},
            [tuple(pair.split(' ')) for pair in facts['tokenizer.ggml.merges']],
            facts.get('tokenizer.ggml.pre', 'gpt-2'), special, bos_token=named('bos'),
            eos_token=named('eos'), pad_token=named('padding'), unk_token=named('unknown'),
            chat_template=facts.get('tokenizer.chat_template'))
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def _model(path: Path, dtype: torch.dtype) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM
    try:
        return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(f'{path}: its weights cannot be read ({str(error).splitlines()[0]}); get '
                         'it again, or a model of another architecture') from error
