"""Stub: base class of models."""

import abc


class CacheHook:
    """Keeps what it is given."""

    def __init__(self):
        self.kept = []

    def add_partial(self, kind, request, answer):
        self.kept.append((kind, request, answer))


class lmms(abc.ABC):
    """What the kit calls, and what it gives to a model."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.cache_hook = CacheHook()
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests):
        """Score answers."""

    @abc.abstractmethod
    def generate_until(self, requests):
        """Answer questions."""

    @abc.abstractmethod
    def generate_until_multi_round(self, requests):
        """Answer questions of several rounds."""

    @property
    def rank(self):
        """Number of this process."""
        return self._rank
