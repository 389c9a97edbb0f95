"""From text turns to token ids and labels."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from pixelsail_mm.datasets.templates import clean_question, resolve_prompt_template
from pixelsail_mm.datasets.transforms.loading import Results, source_of, target_arrays
from pixelsail_mm.errors import BadSampleError, ConfigError
from pixelsail_mm.registry import TRANSFORMS
from pixelsail_mm.tokenization import (
    IGNORE_INDEX,
    IMAGE_LAYOUTS,
    NUM_PROMPTS,
    PROMPT_PATTERN,
    SEG_TOKEN,
    SpecialTokens,
    build_tokenizer,
    read_id_ranges,
)

# What is a word to a reader: a token in brackets, letters and digits, other signs, white space.
_WORD = re.compile(r'<[^<>\s]+>|\[\w+\]|\w+|[^\w\s]+|\s+')


@TRANSFORMS.register_module()
class BuildConversation(BaseTransform):
    """Build the token sequence of a sample.

    ``<vision> <vpatch>*(h*w) </vision>`` first (nothing without an image), then for every turn
    the template's ``INSTRUCTION`` with the question (label -100) and the answer with ``SUFFIX``
    (labelled), with ``SEP`` between turns (label -100). Image, question and answer are tokenised
    separately, as in the authors' release.

    A sample longer than ``max_length`` loses whole turns together with their masks and never the
    image: the last turns in training, the oldest history in generation. (The release cuts the
    sequence on the right and leaves the masks; its EVEv2 variant cuts before it puts in the image,
    whose tokens then exceed the limit.)

    Required keys: ``conversation`` (list of ``dict(human=str, gpt=str)``), ``grid``,
    ``gt_masks`` (training), optional ``meta`` and ``answer_prefix`` (generation: text the answer
    must start with).

    Added keys: ``input_ids``, ``labels`` (int64 (L,)), ``question`` and ``gt_text`` (last turn
    used), ``dropped_turns`` (int). Changed: ``gt_masks`` when turns were dropped in training.

    Args:
        tokenizer: See :func:`~pixelsail_mm.tokenization.build_tokenizer`.
        template: See :func:`~pixelsail_mm.datasets.templates.resolve_prompt_template`.
        max_length: Upper bound of L, image included.
        generation: Stop after the last question (plus ``answer_prefix``); ``gpt`` of the last
            turn is only kept as ``gt_text``, and masks are not counted.
        strip: Strip questions and answers. False reproduces the release's inference prompts,
            which keep blanks around the question ("paper" protocol).
        independent_turns: Training only: the turns do not see each other, each follows the image
            directly - as many single-turn samples as there are turns, sharing the work on the
            image. Adds ``turn_ids`` (int64 (L,), 0 on the image block, n on turn n).
        image_layout: Tokens of an image, ``'block'`` or ``'rows'``, see
            :meth:`~pixelsail_mm.tokenization.SpecialTokens.image_ids`; that of the backbone.
        image_in_question: Put the image and a line break at the beginning of the first question,
            behind the opening of its template (EVEv2), instead of in front of everything.
        cache_size: Number of tokenised texts kept in memory.
        trained_tokens: Ids of the tokens in the training samples that were read, in the form of
            :func:`~pixelsail_mm.tokenization.write_id_ranges`; None where that is not known. It
            changes no token; :meth:`unseen_words` tells from it what the model hardly knows.

    Raises:
        BadSampleError: A question, an answer (training) or ``meta['expression']`` is empty; the
            number of ``[SEG]`` in the answers differs from the number of masks, or of another
            target ``gt_*`` (training); a text holds an image token, ``<PromptK>`` with K > 14, or
            a question holds ``[SEG]``; not even one turn fits into ``max_length``.
        ConfigError: Unknown ``image_layout``; ``image_in_question`` with independent turns,
            which share an image that belongs to none of them; ``trained_tokens`` is malformed.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | dict = 'pixel_sail',
        max_length: int = 8192,
        generation: bool = False,
        strip: bool = True,
        independent_turns: bool = False,
        image_layout: str = 'block',
        image_in_question: bool = False,
        cache_size: int = 65536,
        trained_tokens: str | None = None,
    ) -> None:
        if image_in_question and independent_turns:
            raise ConfigError(
                'BuildConversation: independent_turns share the image, which must '
                'stand in front of them; set image_in_question=False'
            )
        self.tokenizer = build_tokenizer(tokenizer)
        self.template = resolve_prompt_template(template)
        self.max_length = max_length
        self.generation = generation
        self.strip = strip
        self.independent_turns = independent_turns and not generation
        self.cache_size = cache_size
        self.image_layout = image_layout
        self.image_in_question = image_in_question
        self.tokens = SpecialTokens.from_tokenizer(self.tokenizer)
        self.tokens.image_ids((0, 0), image_layout)
        self._trained = None if trained_tokens is None else read_id_ranges(trained_tokens)
        self._suffix = self.template['SUFFIX'] or self.tokenizer.eos_token or ''
        self._start_cache()

    def _start_cache(self) -> None:
        self._backend = self.tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._encode = lru_cache(maxsize=self.cache_size)(self._tokenise)

    def __getstate__(self) -> dict:
        """State without the token cache, which spawned workers start anew."""
        return {k: v for k, v in self.__dict__.items() if k not in ('_encode', '_backend')}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._start_cache()

    def transform(self, results: Results) -> Results:
        """Add ``input_ids``, ``labels`` and the texts."""
        turns = self._clean(results)
        image = self._image_ids(results['grid'])
        segments = [self._turn(turn, i, results) for i, turn in enumerate(turns)]
        kept = self._fit(segments, len(image), results)
        if self.image_in_question:
            # The oldest turns are dropped in generation, the last ones in training.
            first = len(segments) - len(kept) if self.generation else 0
            opening = len(self._encode(self._opening(first)))
            question, answer = kept[0]
            kept[0] = ((*question[:opening], *image, *question[opening:]), answer)
            image = []
        ids, labels = list(image), [IGNORE_INDEX] * len(image)
        turn_ids = [0] * len(image)
        for i, (question, answer) in enumerate(kept):
            if i and self.template['SEP']:
                question = self._encode(self.template['SEP']) + question
            ids += question + answer
            labels += [IGNORE_INDEX] * len(question)
            # While generating only the forced beginning of the open answer is marked: the model
            # makes masks of the [SEG] in it, not of those in the history.
            trained = not self.generation or i == len(kept) - 1
            labels += answer if trained else [IGNORE_INDEX] * len(answer)
            turn_ids += [i + 1] * (len(question) + len(answer))
        used = turns[-1] if self.generation else turns[len(kept) - 1]
        results.update(
            input_ids=np.array(ids, np.int64),
            labels=np.array(labels, np.int64),
            question=used['human'],
            gt_text=used['gpt'],
            dropped_turns=len(segments) - len(kept),
        )
        if self.independent_turns:
            results['turn_ids'] = np.array(turn_ids, np.int64)
        if not self.generation:
            self._match_targets(turns, len(kept), results)
        return results

    def count_tokens(self, results: Results) -> int:
        """Length of the ``input_ids`` that :meth:`transform` makes of ``results``.

        Required keys: ``conversation``, ``grid``; masks are not looked at.
        """
        image = len(self._image_ids(results['grid']))
        segments = [self._turn(turn, i, results) for i, turn in enumerate(self._clean(results))]
        kept = self._fit(segments, image, results)
        separators = (len(kept) - 1) * len(self._encode(self.template['SEP']))
        return image + separators + sum(len(part) for segment in kept for part in segment)

    def image_room(self, results: Results) -> int:
        """Number of tokens that ``max_length`` leaves for an image beside the last turn.

        Required key: ``conversation``; optional ``answer_prefix``.
        """
        turns = self._clean(results)
        return self.max_length - sum(map(len, self._turn(turns[-1], len(turns) - 1, results)))

    def image_length(self, grid: tuple[int, int]) -> int:
        """Number of tokens of an image with a grid of (h, w) patches."""
        return len(self._image_ids(grid))

    def answer_ids(self, results: Results, answer: str) -> tuple[int, ...]:
        """Token ids of a text behind the last question, as of ``answer_prefix``.

        Required key: ``conversation``.

        Raises:
            BadSampleError: The text holds a token that only the pipeline may write.
        """
        turns = self._clean(results)
        return self._turn(turns[-1], len(turns) - 1, results | dict(answer_prefix=answer))[1]

    def unseen_words(self, results: Results) -> list[str]:
        """Words of the last question and ``answer_prefix`` with a token not in ``trained_tokens``.

        A token that no training sample holds has the vector it was initialised with: it says
        nothing to the model. But a sample of them was read, so a rare word may be here that the
        model knows. Empty where ``trained_tokens`` is not set.

        Required key: ``conversation``; optional ``answer_prefix``.
        """
        if self._trained is None:
            return []
        turns = self._clean(results)
        question, answer = self._texts(turns[-1], len(turns) - 1, results)
        words = [word for text in (*question, answer) for word in self._unseen(text)]
        return list(dict.fromkeys(words))

    def _unseen(self, text: str) -> list[str]:
        encoded = self._backend.encode(text, add_special_tokens=False)
        unseen = np.zeros(len(text), bool)
        for token, (start, end) in zip(encoded.ids, encoded.offsets):
            if token not in self._trained:
                piece = text[start:end]
                # The blank in front of a word belongs to its token, and to no word.
                unseen[start + len(piece) - len(piece.lstrip() or piece) : end] = True
        return [
            word.group() for word in _WORD.finditer(text) if unseen[word.start() : word.end()].any()
        ]

    def _clean(self, results: Results) -> list[dict]:
        """Turns without image marker; empty text is rejected."""
        source, conversation = source_of(results), results['conversation']
        expression = results.get('meta', {}).get('expression')
        if expression is not None and not str(expression).strip():
            raise BadSampleError(
                source,
                'meta.expression',
                'the expression is empty; remove the sample or give it a phrase',
            )
        if not isinstance(conversation, (list, tuple)):
            raise BadSampleError(
                source, 'conversation', f'must be a list, got {conversation!r:.60}'
            )
        turns = []
        for i, turn in enumerate(conversation):
            match turn:
                case {'human': str(question)} if isinstance(turn.get('gpt'), str | None):
                    answer = turn.get('gpt') or ''
                case _:
                    raise BadSampleError(
                        source,
                        f'conversation[{i}]',
                        f'must be dict(human=text, gpt=text), got {turn!r:.80}',
                    )
            turns.append(
                dict(
                    human=clean_question(question, self.strip),
                    gpt=answer.strip() if self.strip else answer,
                )
            )
            open_turn = self.generation and i == len(conversation) - 1
            for side in ('human',) if open_turn else ('human', 'gpt'):
                if not turns[-1][side].strip():
                    raise BadSampleError(
                        source,
                        f'conversation[{i}].{side}',
                        'the text is empty; every turn needs a question and an answer',
                    )
        if not turns:
            raise BadSampleError(
                source, 'conversation', 'there is no turn; give at least one question'
            )
        return turns

    def _turn(self, turn: dict, i: int, results: Results) -> tuple[tuple, tuple]:
        """Token ids of one turn's question part and answer part."""
        question, answer = self._texts(turn, i, results)
        try:
            parts = [self._encode(text) for text in question]
            return sum(parts, ()), self._encode(answer)
        except _ForbiddenTextError as error:
            raise BadSampleError(source_of(results), f'conversation[{i}]', str(error)) from error

    def _texts(self, turn: dict, i: int, results: Results) -> tuple[tuple[str, ...], str]:
        """Texts of one turn's question part, tokenised one by one, and of its answer part."""
        question = turn['human']
        if SEG_TOKEN in question:
            raise BadSampleError(
                source_of(results),
                f'conversation[{i}].human',
                f'a question must not contain {SEG_TOKEN}, it would ask for a mask; reword it',
            )
        if self.generation and i == len(results['conversation']) - 1:
            answer = results.get('answer_prefix') or ''
        else:
            answer = turn['gpt'] + self._suffix
        text = self.template['INSTRUCTION'].format(
            input=question, round=i + 1, bot_name='assistant'
        )
        if not self.image_in_question:
            return (text,), answer
        # Whether or not the image comes between them, opening and question are two texts.
        opening = self._opening(i)
        return (opening, text.removeprefix(opening)), answer

    def _tokenise(self, text: str) -> tuple[int, ...]:
        """Token ids of a text, without anything the tokenizer would add around it."""
        for token in IMAGE_LAYOUTS[self.image_layout]:
            if token in text:
                raise _ForbiddenTextError(
                    f'the text contains the image token {token}, which only '
                    'the pipeline may write; remove it'
                )
        for number in PROMPT_PATTERN.findall(text):
            if int(number) >= NUM_PROMPTS:
                raise _ForbiddenTextError(
                    f'prompt id {number} is out of range 0..{NUM_PROMPTS - 1}; renumber the prompts'
                )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _ForbiddenTextError(
                f'the text holds half of a character ({error}); write it in UTF-8 again'
            ) from error
        # The backend gives the ids of `tokenizer.encode` at a fraction of its overhead.
        return tuple(self._backend.encode(text, add_special_tokens=False).ids) if text else ()

    def _image_ids(self, grid: tuple[int, int]) -> list[int]:
        ids = self.tokens.image_ids(grid, self.image_layout)
        return ids + list(self._encode('\n')) if ids and self.image_in_question else ids

    def _opening(self, i: int) -> str:
        """What the template writes in front of the question of turn ``i``."""
        return (
            self.template['INSTRUCTION']
            .partition('{input}')[0]
            .format(round=i + 1, bot_name='assistant')
        )

    def _fit(self, segments: list, used: int, results: Results) -> list:
        """Keep as many whole turns as ``max_length`` allows, at least one."""
        order = segments[::-1] if self.generation else segments
        separator = len(self._encode(self.template['SEP']))
        kept = 0
        for question, answer in order:
            used += len(question) + len(answer) + (separator if kept else 0)
            if used > self.max_length:
                break
            kept += 1
        if not kept:
            raise BadSampleError(
                source_of(results),
                'conversation',
                f'one turn and its image need '
                f'{used} tokens, max_length is {self.max_length}; raise it, or '
                'lower max_size of ResizeToGrid',
            )
        return segments[-kept:] if self.generation else segments[:kept]

    def _match_targets(self, turns: list[dict], kept: int, results: Results) -> None:
        """Check one target per ``[SEG]`` and drop those of dropped turns.

        Masks are targets, and so is every other array ``gt_*`` (boxes, ...). A sample may have no
        entry at all of some of them, as long as another one has its own.
        """
        counts = [turn['gpt'].count(SEG_TOKEN) for turn in turns]
        targets = {'gt_masks': results['gt_masks'], **target_arrays(results)}
        wrong = [key for key, value in targets.items() if len(value) not in (0, sum(counts))]
        if sum(counts) and not any(map(len, targets.values())):
            wrong = ['gt_masks']
        if wrong:
            sample = results.get('meta', {}).get('sample_id', '?')
            raise BadSampleError(
                source_of(results),
                f'sample {sample}',
                f'{sum(counts)} {SEG_TOKEN} in the answers, '
                f'{len(targets[wrong[0]])} {wrong[0].removeprefix("gt_")}; '
                f'give one for each {SEG_TOKEN}, in the same order',
            )
        for key, value in targets.items():
            results[key] = value[: sum(counts[:kept])]

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(tokenizer={self.tokenizer.name_or_path!r}, '
            f'max_length={self.max_length}, generation={self.generation}, strip={self.strip})'
        )


class _ForbiddenTextError(ValueError):
    """A text contains a token that only the pipeline may write."""
