"""Which row of a vocabulary table belongs to which token, when checkpoint and model differ.

Embedding and output head have one row per token id. Two checkpoints of one base can give the same
id to different tokens, because a user's tokens were added before or after Pixel-SAIL's own; and
tables can be longer than the tokenizer (Qwen2.5: 151,936 rows for 151,665 tokens). So rows are
moved by the names of the tokens, where the checkpoint's are known:

1. from the header of a safetensors file (:func:`vocabulary_metadata`, written by every export);
2. from ``tokenizer/tokenizer.json`` or ``tokenizer.json``: of a file in the folder it lies in, of a
   folder in itself or one folder up.

Ordinary tokens (those of the tokenizer's own model) must be the same on both sides. Where nothing
is known, tables of equal length are taken as they are, tables that are padded are cut or filled up,
and everything else is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pixelsail_mm.errors import CheckpointError, UserError, shortened

METADATA_KEY = 'vocabulary'
# What tables are padded to a multiple of (Qwen 128, Llama and SmolLM 64).
_PADDING_UNIT = 64
_NAMED = 6
_PROBES = 512


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of a checkpoint or a model.

    Attributes:
        size: Number of ids, ``len(tokenizer)``; rows behind them mean nothing.
        added: Token -> id of the tokens added to the tokenizer's own.
        ordinary: Fingerprint of all others and their ids.
    """

    size: int
    added: dict[str, int]
    ordinary: str

    @classmethod
    def of(
        cls, added: Mapping[str, int], ordinary: int, token_at: Callable[[int], str | None]
    ) -> Vocabulary:
        """Describe a vocabulary.

        Listing Qwen's whole vocabulary takes longer than reading a model of 0.5B, so the
        fingerprint is one of tokens spread evenly.

        Args:
            added: Added token -> id.
            ordinary: Number of the others, which have the first ids.
            token_at: Id -> token.
        """
        spread = range(0, ordinary, max(1, ordinary // _PROBES))
        probes = [token for token in map(token_at, spread) if token not in added]
        text = json.dumps([ordinary, probes]).encode()
        return cls(
            max([ordinary, *(index + 1 for index in added.values())]),
            dict(added),
            hashlib.sha256(text).hexdigest()[:16],
        )

    @classmethod
    def of_tokenizer(cls, tokenizer: Any) -> Vocabulary:
        """Describe a Hugging Face tokenizer."""
        return cls.of(
            tokenizer.get_added_vocab(), tokenizer.vocab_size, tokenizer.convert_ids_to_tokens
        )

    def metadata(self) -> dict[str, str]:
        """Header entry for safetensors files."""
        return {METADATA_KEY: json.dumps(asdict(self))}


def vocabulary_metadata(tokenizer: Any) -> dict[str, str]:
    """Header entry for safetensors files: added tokens with their ids, a fingerprint of the rest.

    Args:
        tokenizer: Tokenizer of the model whose weights are saved.
    """
    return Vocabulary.of_tokenizer(tokenizer).metadata()


def stored_vocabulary(path: Path, metadata: Any) -> Vocabulary | None:
    """Find out which tokens a checkpoint was trained with.

    Args:
        path: File or folder of weights.
        metadata: Header of a safetensors file, or whatever else a checkpoint keeps as ``meta``.

    Returns:
        None where neither header nor folder tells.

    Raises:
        CheckpointError: Header or ``tokenizer.json`` are there and unreadable.
    """
    recorded = metadata.get(METADATA_KEY) if isinstance(metadata, Mapping) else None
    if isinstance(recorded, str):
        return _from_header(path, recorded)
    for folder in ([path] if path.is_dir() else []) + [path.parent]:
        for file in (folder / 'tokenizer' / 'tokenizer.json', folder / 'tokenizer.json'):
            if file.is_file():
                return _read_tokenizer(file)
    return None


def _from_header(path: Path, recorded: str) -> Vocabulary:
    try:
        entry = json.loads(recorded)
        return Vocabulary(
            int(entry['size']),
            {token: int(index) for token, index in entry['added'].items()},
            str(entry['ordinary']),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            path,
            f'its list of tokens, the entry {METADATA_KEY!r} of the header,'
            f' is damaged ({type(error).__name__}: {error})',
            'copy or download it again',
        ) from error


def _read_tokenizer(file: Path) -> Vocabulary:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(
            file, f'not a readable tokenizer ({error})', 'copy it again, or remove it'
        ) from error
    added = {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items()}
    return Vocabulary.of(
        added, tokenizer.get_vocab_size(with_added_tokens=False), tokenizer.id_to_token
    )


def vocabulary_tables(model: nn.Module) -> set[int]:
    """``id()`` of those weights of a model that have one row per token.

    Args:
        model: A meta-architecture with ``tokenizer`` and ``backbone.llm``; any other has none.
    """
    llm = getattr(getattr(model, 'backbone', None), 'llm', None)
    if llm is None or getattr(model, 'tokenizer', None) is None:
        return set()
    modules = (llm.get_input_embeddings(), llm.get_output_embeddings())
    weights = [getattr(module, name, None) for module in modules for name in ('weight', 'bias')]
    return {id(weight) for weight in weights if weight is not None}


@dataclass(frozen=True)
class RowPlan:
    """Which rows of a stored table go where.

    Attributes:
        target: Row numbers in the model.
        source: Row numbers in the checkpoint, as many.
        summary: What happens, for the report.
    """

    target: list[int]
    source: list[int]
    summary: str

    @classmethod
    def of(cls, pairs: Mapping[int, int], said: Sequence[str]) -> RowPlan:
        """Plan of row in the model -> row in the checkpoint, and what else happens."""
        return cls(
            list(pairs), list(pairs.values()), ', '.join([f'{len(pairs):,} rows copied', *said])
        )


class VocabularyError(UserError, ValueError):
    """Rows and tokens cannot be brought together."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def plan_rows(
    stored: Vocabulary | None, stored_rows: int, own: Vocabulary, own_rows: int
) -> RowPlan | None:
    """Decide which rows to take.

    Args:
        stored: The checkpoint's tokens, None if unknown.
        stored_rows: Rows of its table.
        own: The model's tokens.
        own_rows: Rows of its table.

    Returns:
        None: the whole table can be taken as it is.

    Raises:
        VocabularyError: It cannot be told which row belongs to which token.
    """
    if stored == own and stored_rows == own_rows:
        return None
    if stored is None:
        return _plan_unknown(stored_rows, own, own_rows)
    if stored.ordinary != own.ordinary:
        raise VocabularyError(
            'was trained with another tokenizer: the ordinary tokens are not the same or have '
            'other ids',
            "use this checkpoint's tokenizer in the config (model.tokenizer)",
        )
    names = {index: token for token, index in own.added.items()}
    wanted = {
        index: stored.added.get(names[index]) if index in names else index
        for index in range(min(own.size, own_rows))
    }
    pairs = {
        index: source
        for index, source in wanted.items()
        if source is not None and source < stored_rows
    }
    new = [names.get(index, str(index)) for index in wanted if index not in pairs]
    cut = [
        token
        for token, index in stored.added.items()
        if token not in own.added and index < stored_rows
    ]
    moved = [names[index] for index, source in pairs.items() if index != source]
    if not (new or moved) and stored_rows == own_rows:
        return None
    said = [
        f'{len(tokens):,} {kind} ({shortened(tokens, _NAMED)})'
        for kind, tokens in dict(new=new, moved=moved, cut=cut).items()
        if tokens
    ]
    return RowPlan.of(pairs, said)


def _plan_unknown(stored_rows: int, own: Vocabulary, own_rows: int) -> RowPlan | None:
    if stored_rows == own_rows:
        return None
    sizes = (stored_rows, own_rows)
    if all(rows == own.size or rows > own.size and rows % _PADDING_UNIT == 0 for rows in sizes):
        padding = stored_rows - own.size
        return RowPlan.of(
            {index: index for index in range(own.size)},
            [f'{padding:,} cut as padding'] if padding else [],
        )
    raise VocabularyError(
        f'has {stored_rows:,} rows in its vocabulary where the model has {own_rows:,} for '
        f'{own.size:,} tokens, and does not say which tokens they are',
        'put the tokenizer it was trained with beside it, as a folder tokenizer/; or use the '
        'tokenizer of its config',
    )
