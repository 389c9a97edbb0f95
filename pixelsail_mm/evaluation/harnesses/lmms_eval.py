"""Adapter for lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval).

``PixelSAIL`` of this module is the class that the kit builds; it exists once the kit is installed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from PIL import Image

from pixelsail_mm.evaluation.harnesses.answering import (
    MAX_NEW_TOKENS,
    KitError,
    Question,
    UnsupportedItemError,
    VQAAnswerer,
    checked_limit,
    checked_prompts,
)
from pixelsail_mm.evaluation.harnesses.prompts import benchmark_prompt, find_rule

NAME = 'pixelsail'
# Tasks of the kit whose documents hold the bare question, so that it can be put as in the protocol:
# pattern of the task, kind and name of the benchmark in VLMEvalKit. The questions of all others
# arrive complete and stay as they are (SEED: they are the protocol's already).
TASKS = (
    ('mme', 'Y/N', 'MME'),
    ('mmbench_en_*', 'MCQ', 'MMBench'),
    ('mmbench_cn_*', 'MCQ', 'MMBench_CN'),
    ('hallusion_bench_image', 'Y/N', 'HallusionBench'),
)
_REMEDY = 'the adapter needs lmms-eval: pip install lmms-eval (see docs/vqa_evaluation.md)'


class LmmsEvalMethods:
    """The kit's model interface; :func:`adapter_class` joins it with the kit's base class.

    Args:
        config: Config or folder of the model; see :class:`~pixelsail_mm.apis.PixelSAILInferencer`.
        weights: Checkpoint; a folder's own weights by default.
        device: Device; by default the best available one, and with several processes the GPU of
            the process.
        batch_size: Questions answered together.
        max_new_tokens: Longest answer of every task. None: the task's own bound, and 512 for a
            task that has none.
        prompts: ``'pixel_sail'`` puts the questions of :data:`TASKS` as the protocol does (examples
            before the question, ``--num_fewshot``, are left out then); ``'kit'`` leaves all of
            them as the kit puts them.
        max_batch_size: Passed by the kit, unused.
    """

    is_simple = True

    def __init__(
        self,
        config: str | os.PathLike,
        weights: str | os.PathLike | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_new_tokens: int | None = None,
        prompts: str = 'pixel_sail',
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.max_new_tokens = None if max_new_tokens is None else checked_limit(max_new_tokens)
        self.prompts = checked_prompts(prompts)
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f'batch_size must be a whole number of at least 1, got {batch_size!r}')
        self.batch_size = int(batch_size)
        self._rank = int(os.environ.get('RANK', 0))
        self._world_size = int(os.environ.get('WORLD_SIZE', 1))
        self.answerer = VQAAnswerer(config, weights, device or self._own_device())
        self._warned = False

    def _own_device(self) -> str | None:
        import torch

        if self._world_size == 1 or not torch.cuda.is_available():
            return None
        return f'cuda:{os.environ.get("LOCAL_RANK", 0)}'

    @property
    def device(self):
        """Device of the model, on which the kit counts the items of all processes."""
        return next(self.answerer.model.parameters()).device

    def generate_until(self, requests: Sequence) -> list[str]:
        """Answer requests.

        Args:
            requests: The kit's instances with ``args`` = (question, settings, function to the
                images, number of the item, task, split).

        Raises:
            UnsupportedItemError: An item has more than one image, a video or sound.
        """
        from tqdm import tqdm

        answers: list[str] = []
        with tqdm(total=len(requests), desc='answers', disable=self._rank != 0) as bar:
            for start in range(0, len(requests), self.batch_size):
                part = [request.args for request in requests[start : start + self.batch_size]]
                answers += self.answerer([self._question(*args) for args in part], self.batch_size)
                for args, answer in zip(part, answers[start:]):
                    self.cache_hook.add_partial('generate_until', args[:2], answer)
                bar.update(len(part))
        return answers

    def generate_until_multi_round(self, requests: Sequence) -> list[list[str]]:
        """Answer requests of several rounds; each round is a question of its own.

        Args:
            requests: Instances with ``args`` = (question, settings, function to the images,
                function to the next round, number of the item, task, split).

        Returns:
            The answers of all rounds for each request.
        """
        return [self._rounds(*request.args) for request in requests]

    def loglikelihood(self, requests: Sequence) -> list[tuple[float, bool]]:
        """Score answers that are given.

        Args:
            requests: Instances with ``args`` = (question, answer or function to it, function to
                the images, number of the item, task, split).

        Returns:
            For each, the mean cross entropy of the answer - the kit's tasks of choice take the
            *smallest* number - and whether the model would give it.
        """
        scores = []
        for request in requests:
            if len(request.args) < 6:
                raise NotImplementedError(
                    'acc_mutual_info scores answers without a question; use '
                    'another metric of the task'
                )
            context, target, to_visual, doc_id, task, split = request.args
            answer = target(self._doc(task, split, doc_id)) if callable(target) else target
            question = self._question(context, {}, to_visual, doc_id, task, split)
            scores.append(self.answerer.score(question, str(answer)))
        return scores

    def _rounds(
        self,
        context: str,
        settings: Mapping,
        to_visual,
        to_text,
        doc_id: int,
        task: str,
        split: str,
    ) -> list[str]:
        doc = self._doc(task, split, doc_id)
        visuals, answers, info = to_visual(doc), [], None
        while True:
            question = self._put(context, settings, visuals, doc_id, task)
            answers.append(self.answerer([question])[0])
            visuals, context, finished, answers, info = to_text(
                doc, previous_output=answers, round_idx=len(answers), previous_round_info=info
            )
            answers = list(answers)
            if finished:
                return answers

    def _question(
        self, context: str, settings: Mapping, to_visual, doc_id: int, task: str, split: str
    ) -> Question:
        doc = self._doc(task, split, doc_id)
        if self.prompts != 'kit':
            context = protocol_prompt(task, doc, context)
        return self._put(context, settings, to_visual(doc) if to_visual else [], doc_id, task)

    def _put(self, text: str, settings: Mapping, visuals: Any, doc_id: int, task: str) -> Question:
        name = f'lmms-eval {task}[{doc_id}]'
        images = _images(visuals, name)
        if not self._warned and (
            settings.get('do_sample')
            or settings.get('temperature')
            or (settings.get('num_beams') or 1) > 1
        ):
            self._warned = True
            warnings.warn(
                f'{name}: the task asks for sampling or beams; answers are greedy', stacklevel=2
            )
        limit = self.max_new_tokens or settings.get('max_new_tokens') or MAX_NEW_TOKENS
        return Question(name, text, images, checked_limit(limit), _stops(settings))

    def _doc(self, task: str, split: str, doc_id: int) -> Any:
        return self.task_dict[task][split][doc_id]


def protocol_prompt(task: str, doc: Mapping[str, Any], context: str) -> str:
    """The question of an item as the protocol puts it, where its document allows that.

    Else ``context``, the question as the kit puts it.
    """
    for pattern, kind, benchmark in TASKS:
        if fnmatchcase(task, pattern):
            return benchmark_prompt(doc, find_rule(kind, benchmark))
    return context


def _images(visuals: Any, name: str) -> list[Image.Image]:
    """Images of an item; the kit spells videos as paths and sound as dicts."""
    if visuals is None:
        return []
    visuals = list(visuals) if isinstance(visuals, (list, tuple)) else [visuals]
    for visual in visuals:
        if not isinstance(visual, Image.Image):
            raise UnsupportedItemError(
                name,
                'visuals',
                f'expected images, got {type(visual).__name__} (a video or '
                'sound?), which the model does not read; leave out this task',
            )
    return visuals


def _stops(settings: Mapping) -> tuple[str, ...]:
    """Texts that end an answer.

    Blank ones are left out: they separate examples, and the kit fills in an empty line for every
    task that names nothing, which would cut long answers.
    """
    until = settings.get('until') or ()
    return tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop.strip())


@lru_cache(maxsize=1)
def adapter_class() -> type:
    """The model class for the kit, registered there as ``pixelsail``.

    Raises:
        KitError: The kit is not installed.
    """
    try:
        from lmms_eval.api.model import lmms
        from lmms_eval.api.registry import register_model
    except ImportError as error:
        raise KitError(f'{error}; {_REMEDY}') from error
    return register_model(NAME)(
        type(
            'PixelSAIL',
            (LmmsEvalMethods, lmms),
            dict(__doc__=LmmsEvalMethods.__doc__, __module__=__name__),
        )
    )


def register() -> str:
    """Register the adapter as the kit's ``--model pixelsail``, in all known versions of the kit.

    Returns:
        The name.

    Raises:
        KitError: The kit is not installed.
    """
    path = f'{__name__}.{adapter_class().__name__}'
    from lmms_eval import models

    registry = getattr(models, 'MODEL_REGISTRY_V2', None)
    if registry is not None:
        registry.register_manifest(manifest(), overwrite=True)
    # Versions without that registry look the class up in these tables.
    for table in ('AVAILABLE_SIMPLE_MODELS', 'AVAILABLE_MODELS'):
        getattr(models, table, {})[NAME] = path
    return NAME


def manifest():
    """The adapter for the kit's registry and its entry-point group ``lmms_eval.models``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, simple_class_path=f'{__name__}.PixelSAIL')


def __getattr__(name: str) -> Any:
    if name == 'PixelSAIL':
        return adapter_class()
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
