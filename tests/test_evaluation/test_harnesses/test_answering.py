"""Answers: one image, text only, greedy, bounded, ended."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image

from pixelsail_mm import notices
from pixelsail_mm.errors import BadSampleError
from pixelsail_mm.evaluation.harnesses import (
    Question,
    UnsupportedItemError,
    VQAAnswerer,
    lmms_eval,
    vlmevalkit,
)
from pixelsail_mm.evaluation.harnesses.answering import checked_limit, checked_prompts


def picture(seed=0):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (30, 45, 3), dtype=np.uint8)
    )


@pytest.fixture
def answerer(talker):
    return VQAAnswerer(talker, device='cpu')


def test_answers_equal_the_greedy_inferencer(answerer, greedy_ask):
    """Also for text-only items, in batches, and though the config samples."""
    questions = [
        Question('a', 'What?', [picture()], 8),
        Question('b', 'What?', [picture(1)], 8),
        Question('c', 'What?', (), 8),
        Question('d', 'Is it a cat?', [picture()], 5),
    ]
    expected = [
        greedy_ask(q.images[0] if q.images else None, q.text, max_new_tokens=q.max_new_tokens)[
            'text'
        ]
        for q in questions
    ]
    assert len(set(expected)) == 4
    for batch_size in (1, 3):
        assert answerer(questions, batch_size) == expected
    assert answerer([]) == []


def test_the_bound_is_applied_to_every_question(answerer):
    lengths = []
    generate = answerer.model.backbone.llm.generate
    answerer.model.backbone.llm.generate = lambda **kw: (
        lengths.append(kw['max_new_tokens']) or generate(**kw)
    )
    answerer([Question('a', 'Q', (), 2), Question('b', 'Q', (), 2), Question('c', 'Q', (), 3)], 2)
    answerer([Question('d', 'Q', (), 2)])
    assert lengths == [2, 3, 2]
    assert Question('e', 'Q').max_new_tokens == 512


@pytest.mark.parametrize('end', ['<|endoftext|>', '<|im_end|>'])
def test_end_tokens_are_removed(answerer, end):
    two_tokens, six_tokens = answerer([Question('a', 'What?', (), n) for n in (2, 6)])
    calls = []

    def force_end(module, args, logits):
        calls.append(1)
        if len(calls) == 3:
            logits[..., answerer.model.tokenizer.convert_tokens_to_ids(end)] = 1e6
        return logits

    hook = answerer.model.backbone.llm.lm_head.register_forward_hook(force_end)
    (answer,) = answerer([Question('a', 'What?', (), 6)])
    hook.remove()
    assert len(calls) == 3
    assert answer == two_tokens != six_tokens and answer


def test_stops(answerer):
    (whole,) = answerer([Question('a', 'What?', (), 8)])
    stop = whole[3:5]
    assert stop.strip()
    (cut,) = answerer([Question('a', 'What?', (), 8, ('never this', stop))])
    assert cut == whole[: whole.find(stop)].strip() != whole


def test_several_images_are_refused(answerer):
    with pytest.raises(UnsupportedItemError, match='MMMU: images: 2 images in one question'):
        answerer([Question('MMMU', 'Q', [picture(), picture(1)])])
    assert issubclass(UnsupportedItemError, RuntimeError), 'VLMEvalKit skips only those'


def test_score_is_the_loss_of_the_answer(answerer):
    question, answer = Question('a', 'What?', [picture()]), 'yes'
    loss, greedy = answerer.score(question, f' {answer} ')
    record = dict(
        img_path=None,
        img=np.asarray(picture()),
        masks=[],
        prompts=[],
        conversation=[dict(human='What?', gpt='')],
        answer_prefix=answer,
        meta=dict(sample_id='a'),
    )
    batch = next(iter(answerer.ask.preprocess([record])))
    inputs = answerer.model.data_preprocessor(batch, False)['inputs']
    with torch.no_grad():
        logits = answerer.model(inputs)['logits'][0]
    ids = inputs['input_ids'][0]
    assert ids.shape[0] > len(answer) and not greedy
    assert loss == pytest.approx(F.cross_entropy(logits[-4:-1], ids[-3:]).item(), abs=1e-4)


def test_what_scoring_changes_is_logged(answerer, monkeypatch):
    said = []
    monkeypatch.setattr(notices, 'print_log', lambda text, **kwargs: said.append(text))
    answerer.ask.pipeline.stages[3].max_size = 16
    answerer.score(Question('a', 'What?', [picture()]), 'yes')
    assert len(said) == 1 and 'of 45x30 pixels is scaled to 16x' in said[0]


def test_warnings_of_many_questions_are_counted(answerer, monkeypatch):
    said = []
    monkeypatch.setattr(notices, 'print_log', lambda text, **kwargs: said.append(text))
    answerer.ask.pipeline.stages[3].max_size = 16
    answerer([Question('a', 'What?', [picture().resize((20 + i, 20))], 1) for i in range(12)], 4)
    said = [text for text in said if text.startswith('the picture of')]
    assert [text.split()[3] for text in said] == ['20x20', '29x20']
    assert said[1].endswith('(number 10 of this kind)')


def test_both_kits_ask_about_the_stored_pixels(kit_stubs, talker, tmp_path):
    """VLMEvalKit passes the file, lmms-eval the opened picture."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = str(tmp_path / 'photo.png')
    picture().save(path, exif=exif)
    vlm = vlmevalkit.PixelSAIL(str(talker), device='cpu', max_new_tokens=6)
    lmms = lmms_eval.PixelSAIL(str(talker), device='cpu', max_new_tokens=6)
    lmms.task_dict['t'] = dict(test=[dict(image=Image.open(path))])
    request = SimpleNamespace(args=('What?', {}, lambda doc: [doc['image']], 0, 't', 'test'))
    by_file = vlm.generate([dict(type='image', value=path), dict(type='text', value='What?')])
    (by_picture,) = lmms.generate_until([request])
    (stored,) = lmms.answerer([Question('a', 'What?', [picture()], 6)])
    (turned,) = lmms.answerer([Question('a', 'What?', [picture().rotate(-90, expand=True)], 6)])
    assert by_file == by_picture == stored != turned


def test_the_greedy_answer_is_known_as_such(answerer):
    """Forced token by token, so that no decoding of bytes is in between."""
    tokenizer = answerer.model.tokenizer
    best = []

    def only_letters(module, args, logits):
        letters = [tokenizer.convert_tokens_to_ids(letter) for letter in 'abc']
        best.append(letters)
        mask = torch.full_like(logits, -1e6)
        mask[..., letters] = 0
        return logits + mask

    hook = answerer.model.backbone.llm.lm_head.register_forward_hook(only_letters)
    question = Question('a', 'What?', [picture()], 4)
    (answer,) = answerer([question])
    other = ('b' if answer[0] == 'a' else 'a') + answer[1:]
    assert set(answer) <= set('abc') and best
    scores = [answerer.score(question, text) for text in (answer, other)]
    hook.remove()
    assert scores[0][1] and not scores[1][1] and scores[0][0] < scores[1][0]


def test_an_empty_answer_cannot_be_scored(answerer):
    with pytest.raises(BadSampleError, match='a: answer'):
        answerer.score(Question('a', 'What?'), ' ')


@pytest.mark.parametrize('value', [0, -1, 'many', None, '0'])
def test_settings(value):
    with pytest.raises(ValueError, match='at least 1, got'):
        checked_limit(value)
    assert checked_limit('7') == 7
    with pytest.raises(ValueError, match="prompts='x'"):
        checked_prompts('x')
