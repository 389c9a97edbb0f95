"""Rows of the tokens that a language model has never seen: their start and their training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from pixelsail_mm.errors import ConfigError

_SPREAD = 0.5


def untrained_ids(
    base: str, tokens: Mapping[str, int], base_rows: int, vocab_size: int
) -> list[int]:
    """Ids whose rows no training of the base has touched.

    These are all rows behind the base's table, and inside it the rows of tokens that the base's
    own tokenizer does not know under the same id: Qwen2.5 has 151,936 rows for 151,665 tokens, so
    ours fall on rows that exist and mean nothing.

    Args:
        base: Hub name or folder the base was loaded from.
        tokens: Names and ids of the tokens of Pixel-SAIL.
        base_rows: Rows of the base's table.
        vocab_size: Rows the model needs.

    Returns:
        Sorted ids. Where no tokenizer lies beside the base's weights, its table counts as trained.
    """
    inside = {name: token for name, token in tokens.items() if token < base_rows}
    if inside:
        known = _vocabulary(base)
        if known is None:
            print_log(
                f'no tokenizer beside {base}: the embeddings of {", ".join(inside)} count as '
                'trained, because its table has rows for them',
                logger='current',
                level=30,
            )
        else:
            inside = {name: token for name, token in inside.items() if known.get(name) != token}
            return sorted({*inside.values(), *range(base_rows, vocab_size)})
    return list(range(base_rows, vocab_size))


def _vocabulary(base: str) -> dict[str, int] | None:
    # Not AutoTokenizer: where there is none, Transformers 5 makes an empty one of the family.
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(base).get_vocab()
    except (OSError, ValueError, TypeError, AttributeError):  # what it raises where there is none
        return None


@torch.no_grad()
def initialise_rows(llm: nn.Module, ids: Sequence[int]) -> None:
    """Draw rows of embedding and head anew, see :func:`rows_around_others`.

    Args:
        llm: Decoder with tied or untied head; both tables have the final number of rows.
        ids: Rows to draw; empty for none.
    """
    if len(ids) == 0:
        return
    embedding, head = llm.get_input_embeddings().weight, llm.get_output_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    for table in (embedding,) if head is embedding else (embedding, head):
        table[list(ids)] = rows_around_others(table, ids, generator)


def rows_around_others(table: Tensor, ids: Sequence[int], generator: torch.Generator) -> Tensor:
    """Rows for tokens that no training has touched: the others' mean plus half their spread.

    The mean keeps the odds of old text: nothing is likelier than an average token. The noise makes
    the rows differ, and nearly as long as the others. With half the spread, 25 new rows took
    0.001 % of the probability of English text from SmolLM2-135M, with the whole spread 0.5 %.
    (Transformers' own resizing samples from the full covariance, but scales it by 1e-9: its rows
    are all the mean.)

    Args:
        table: Embedding or head ``(V,C)``; what stands in the rows ``ids`` does not matter.
        ids: The rows.
        generator: Of the CPU, with a fixed seed: every process must draw the same.

    Returns:
        ``(len(ids),C)`` in the precision of ``table``.
    """
    others = torch.ones(len(table), dtype=torch.bool)
    others[list(ids)] = False
    std, mean = torch.std_mean(table[others.to(table.device)].float(), dim=0)
    noise = torch.randn(len(ids), table.shape[1], generator=generator).to(mean.device)
    return (mean + _SPREAD * std * noise).to(table.dtype)


class NewRowEmbedding(nn.Embedding):
    """An embedding in which the rows of some tokens are a parameter of their own.

    The table can be frozen, or shared with a frozen head, while ``new_rows`` trains. Weight names
    of the table stay as they were.

    PEFT's ``trainable_token_indices`` does the same by copying the whole table in every pass, and
    reads it past the hooks with which ZeRO-3 gathers it.

    Args:
        embedding: The embedding to replace; its weight is taken over, not copied.
        ids: Token ids ``(n,)`` int64, sorted.
    """

    def __init__(self, embedding: nn.Embedding, ids: Tensor) -> None:
        super().__init__(
            embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx, device='meta'
        )
        self.weight = embedding.weight
        ids = ids.to(self.weight.device)
        # float32 as PEFT's adapters: steps of a small learning rate vanish in bfloat16.
        self.new_rows = nn.Parameter(self.weight.detach()[ids].float())
        self.register_buffer('new_ids', ids, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings ``(..., C)`` of ids ``(...)``."""
        old = super().forward(input_ids)
        slot = torch.searchsorted(self.new_ids, input_ids).clamp_(max=len(self.new_ids) - 1)
        is_new = self.new_ids[slot] == input_ids
        return torch.where(is_new[..., None], self.new_rows[slot].to(old.dtype), old)


class NewRowHead(nn.Linear):
    """An output head in which the rows of some tokens are a parameter of their own.

    Args:
        head: The head to replace; its weight (and bias) is taken over.
        embedding: The input embedding; a head tied to it uses its rows.
    """

    def __init__(self, head: nn.Linear, embedding: NewRowEmbedding) -> None:
        super().__init__(head.in_features, head.out_features, head.bias is not None, device='meta')
        self.weight, self.bias = head.weight, head.bias
        if head.weight is embedding.weight:
            self.new_rows = embedding.new_rows
        else:
            self.new_rows = nn.Parameter(head.weight.detach()[embedding.new_ids].float())
        self.register_buffer('new_ids', embedding.new_ids.clone(), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """Logits ``(..., V)`` of states ``(..., C)``."""
        logits = super().forward(states)
        bias = None if self.bias is None else self.bias[self.new_ids]
        new = F.linear(states, self.new_rows.to(states.dtype), bias)
        return logits.index_copy_(-1, self.new_ids, new.to(logits.dtype))


def separate_new_rows(llm: nn.Module, ids: Sequence[int]) -> None:
    """Make the rows of some tokens parameters of their own, in embedding and head, in place.

    Raises:
        ConfigError: The family's embedding does more than look rows up (Gemma 3 scales them).
    """
    if type(llm.get_input_embeddings()).forward is not nn.Embedding.forward:
        raise ConfigError(
            f'backbone.new_token_rows: {type(llm.get_input_embeddings()).__name__} is no plain '
            'embedding, of which rows could be parameters of their own (lora needs that too); '
            'train the whole model, or use another family'
        )
    head = llm.get_output_embeddings()
    embedding = NewRowEmbedding(llm.get_input_embeddings(), torch.tensor(sorted(ids)))
    llm.set_input_embeddings(embedding)
    llm.set_output_embeddings(NewRowHead(head, embedding))


@torch.no_grad()
def fold_new_rows(llm: nn.Module) -> None:
    """Undo :func:`separate_new_rows`, in place: write the rows back into their tables."""
    embedding, head = llm.get_input_embeddings(), llm.get_output_embeddings()
    if not isinstance(embedding, NewRowEmbedding):
        return
    plain = nn.Embedding(
        embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx, device='meta'
    )
    plain_head = nn.Linear(
        head.in_features, head.out_features, head.bias is not None, device='meta'
    )
    plain.weight, plain_head.weight, plain_head.bias = embedding.weight, head.weight, head.bias
    for module in (embedding, head):
        module.weight[module.new_ids] = module.new_rows.to(module.weight.dtype)
    llm.set_input_embeddings(plain)
    llm.set_output_embeddings(plain_head)


def frozen_ids(llm: nn.Module, ids: Sequence[int]) -> dict[str, list[int]]:
    """Which of some tokens do not train, by place.

    Returns:
        ``'embedding'`` and ``'output head'`` -> ids whose row does not train; places where all
        train are left out.
    """
    frozen = {}
    for place, module in (
        ('embedding', llm.get_input_embeddings()),
        ('output head', llm.get_output_embeddings()),
    ):
        rows = getattr(module, 'new_rows', None)
        separate = set() if rows is None else set(module.new_ids.tolist())
        still = [
            token
            for token in ids
            if not (rows.requires_grad if token in separate else module.weight.requires_grad)
        ]
        if still:
            frozen[place] = still
    return frozen
