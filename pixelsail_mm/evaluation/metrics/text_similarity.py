"""Similarity of short texts in 0..1, by which grounded phrases are compared."""

from __future__ import annotations

import os.path as osp
import re
from collections import Counter
from functools import lru_cache

import numpy as np

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import FUNCTIONS


@FUNCTIONS.register_module(name='token_f1')
class TokenF1:
    """Overlap of words: 2 |A & B| / (|A| + |B|) of the multisets of lower-cased words.

    Needs nothing and rewards no synonyms. It is not the similarity of published GCG numbers.

    Example:
        >>> TokenF1()('a red dog', 'the red dog')
        0.6666666666666666
    """

    name = 'token_f1'

    def __call__(self, one: str, other: str) -> float:
        """Similarity of two texts; 1 if neither has a word."""
        a, b = (Counter(re.findall(r'\w+', text.lower())) for text in (one, other))
        total = a.total() + b.total()
        return 2 * (a & b).total() / total if total else 1.0


@FUNCTIONS.register_module(name='bert_cosine')
class BertSimilarity:
    """Cosine of the mean last hidden states of two texts, as in the GCG evaluation of GLaMM.

    The mean is over all tokens, with the special ones at both ends. Published numbers are made
    with ``bert-base-uncased``.

    Args:
        path: Folder of a Hugging Face model and its tokenizer.
        name: Part of the names of values; name the model here if it is another one.

    Raises:
        ConfigError: There is no such folder.
    """

    def __init__(self, path: str, name: str = 'bert_cosine') -> None:
        if not osp.isdir(path):
            raise ConfigError(
                f'similarity: there is no folder {path!r}; download a BERT with its '
                "tokenizer, or use similarity=dict(type='token_f1')"
            )
        self.path = path
        self.name = name
        self._embed = lru_cache(maxsize=100_000)(self._mean_state)
        self._model = None

    def __call__(self, one: str, other: str) -> float:
        """Similarity of two texts."""
        a, b = self._embed(one), self._embed(other)
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / norms) if norms else 0.0

    def _mean_state(self, text: str) -> np.ndarray:
        import torch

        if self._model is None:
            from transformers import AutoModel, AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
            self._model = AutoModel.from_pretrained(self.path, local_files_only=True).eval()
        inputs = self._tokenizer(text, return_tensors='pt', max_length=512, truncation=True)
        with torch.no_grad():
            states = self._model(**inputs).last_hidden_state
        return states[0].mean(dim=0).numpy()
