"""The adapter for lmms-eval, against a stub of the kit's interface."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pixelsail_mm.errors import BadSampleError
from pixelsail_mm.evaluation.harnesses import KitError, UnsupportedItemError, lmms_eval

TASK = 'some_task'


def picture(seed=0):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (30, 45, 3), dtype=np.uint8)
    )


def document(*seeds, **more):
    return dict(question='Cat?', visuals=[picture(seed) for seed in seeds], **more)


def request(context, doc_id, settings=None, task=TASK, to_visual=lambda doc: doc['visuals']):
    return SimpleNamespace(args=(context, settings or {}, to_visual, doc_id, task, 'test'))


@pytest.fixture
def build(kit_stubs, talker):

    def build(docs, task=TASK, **settings):
        model = lmms_eval.PixelSAIL(str(talker), device='cpu', **settings)
        model.task_dict[task] = dict(test=docs)
        return model

    return build


@pytest.fixture
def limits(monkeypatch):
    """Bounds of the answers that the model is asked for, in order."""
    from pixelsail_mm.apis import PixelSAILInferencer

    found = []
    forward = PixelSAILInferencer.forward
    monkeypatch.setattr(
        PixelSAILInferencer,
        'forward',
        lambda self, inputs, max_new_tokens: (
            found.append(max_new_tokens) or forward(self, inputs, min(max_new_tokens, 2))
        ),
    )
    return found


def test_it_is_a_model_of_the_kit(build):
    from lmms_eval.api.model import lmms
    from lmms_eval.api.registry import MODEL_REGISTRY

    model = build([])
    assert isinstance(model, lmms) and model.is_simple and str(model.device) == 'cpu'
    assert MODEL_REGISTRY['pixelsail'] is type(model) is lmms_eval.PixelSAIL
    with pytest.raises(AttributeError, match='nothing'):
        lmms_eval.nothing  # noqa: B018


@pytest.mark.parametrize('batch_size', [1, 2, '3'])
def test_answers_equal_the_inferencer(build, greedy_ask, batch_size):
    model = build([document(0), document(), document(1)], max_new_tokens=6, batch_size=batch_size)
    requests = [request('What?', 2), request('What?', 0), request('Text only?', 1)]
    answers = model.generate_until(requests)
    assert answers == [
        greedy_ask(image, text, max_new_tokens=6)['text']
        for image, text in ((picture(1), 'What?'), (picture(), 'What?'), (None, 'Text only?'))
    ]
    assert len(set(answers)) == 3
    assert model.cache_hook.kept == [
        ('generate_until', r.args[:2], answer) for r, answer in zip(requests, answers)
    ]


@pytest.mark.parametrize('visuals', [None, []])
def test_text_only_spellings(build, greedy_ask, visuals):
    model = build([dict(visuals=visuals)], max_new_tokens=6)
    expected = [greedy_ask(None, 'What?', max_new_tokens=6)['text']]
    assert model.generate_until([request('What?', 0)]) == expected
    assert model.generate_until([request('What?', 0, to_visual=None)]) == expected


def test_the_bound_is_the_users_then_the_tasks_then_512(build, limits):
    settings = [dict(max_new_tokens=16), {}]
    requests = [request('Q', 0, each) for each in settings]
    build([document()]).generate_until(requests)
    build([document()], max_new_tokens='7').generate_until(requests)
    assert limits == [16, 512, 7, 7]


def test_texts_that_end_an_answer(build):
    model = build([document()], max_new_tokens=8)
    (whole,) = model.generate_until([request('What?', 0)])
    stop = whole[3:5]
    for until in ([stop], stop, ['\n\n', stop]):
        assert model.generate_until([request('What?', 0, dict(until=until))]) == [
            whole[: whole.find(stop)].strip()
        ]
    # The kit fills in a blank line where a task names nothing.
    assert lmms_eval._stops(dict(until=['\n\n'])) == ()


def test_sampling_is_refused_with_one_warning(build):
    model = build([document()], max_new_tokens=4)
    greedy = model.generate_until([request('What?', 0, dict(temperature=0, do_sample=False))])
    with pytest.warns(UserWarning, match='answers are greedy') as caught:
        answers = model.generate_until([request('What?', 0, dict(temperature=0.9))] * 3)
    assert answers == greedy * 3 and len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        build([document()], max_new_tokens=1).generate_until(
            [request('What?', 0, dict(temperature=0, num_beams=None))]
        )


@pytest.mark.parametrize(
    'task, doc, expected',
    [
        ('mme', dict(question='Dog? Please answer yes or no.'), 'Dog? Please answer yes or no.'),
        (
            'hallusion_bench_image',
            dict(question='Dog?'),
            'Dog? Please answer yes or no. Answer the question using a single word or phrase.',
        ),
        (
            'mmbench_en_dev',
            dict(question='Which?', hint='nan', A='cat', B='dog', C='nan'),
            'Which?\nA. cat\nB. dog\n'
            "Answer with the option's letter from the given choices directly.",
        ),
        (
            'mmbench_cn_dev',
            dict(question='哪个?', hint=None, A='猫'),
            '哪个?\nA. 猫\n请直接回答选项字母。',
        ),
        ('mme_realworld', dict(question='Dog?'), 'as the kit puts it'),
        ('seedbench', dict(question='Dog?'), 'as the kit puts it'),
    ],
)
def test_questions_of_the_protocol(build, monkeypatch, task, doc, expected):
    asked = []
    for prompts in ('pixel_sail', 'kit'):
        model = build([dict(doc, visuals=[])], task=task, prompts=prompts)
        monkeypatch.setattr(
            model.answerer,
            'ask',
            lambda images, texts, **_: asked.extend(texts) or [dict(text='x')],
        )
        model.generate_until([request('as the kit puts it', 0, task=task)])
    assert asked == [expected, 'as the kit puts it']


@pytest.mark.parametrize(
    'visuals, message',
    [
        ([picture(), picture()], r'lmms-eval some_task\[0\]: images: 2 images'),
        (['film.mp4'], r'some_task\[0\]: visuals: expected images, got str'),
        ([dict(array=[0.0])], 'got dict'),
    ],
)
def test_what_the_model_cannot_read(build, visuals, message):
    model = build([dict(visuals=visuals)])
    with pytest.raises(UnsupportedItemError, match=message):
        model.generate_until([request('Q', 0)])


def test_several_rounds(build, greedy_ask):
    """Every round is asked with its own image and question until the task says stop."""
    seen = []

    def next_round(doc, previous_output, round_idx, previous_round_info):
        seen.append((list(previous_output), round_idx, previous_round_info))
        if round_idx == 2:
            return None, None, True, previous_output, None
        return [picture(5)], 'And now?', False, previous_output, dict(note=round_idx)

    model = build([document(0)], max_new_tokens=6)
    rounds = SimpleNamespace(
        args=('First?', {}, lambda doc: doc['visuals'], next_round, 0, TASK, 'test')
    )
    answers = model.generate_until_multi_round([rounds, rounds])
    first, second = (
        greedy_ask(picture(seed), text, max_new_tokens=6)['text']
        for seed, text in ((0, 'First?'), (5, 'And now?'))
    )
    assert answers == [[first, second]] * 2
    assert seen[:2] == [([first], 1, None), ([first, second], 2, dict(note=1))]


def test_scores_of_given_answers(build):
    model = build([document(0, answer=' dog')])
    args = ({}, lambda doc: doc['visuals'], 0, TASK, 'test')
    fixed, function = (
        SimpleNamespace(args=('What?', target, *args[1:]))
        for target in (' dog', lambda doc: doc['answer'])
    )
    other = SimpleNamespace(args=('What?', ' cat', *args[1:]))
    scores = model.loglikelihood([fixed, function, other])
    assert scores[0] == scores[1] != scores[2]
    assert all(loss > 0 and greedy is False for loss, greedy in scores)
    with pytest.raises(BadSampleError, match=r'some_task\[0\]: answer'):
        model.loglikelihood([SimpleNamespace(args=('What?', ' ', *args[1:]))])
    with pytest.raises(NotImplementedError, match='acc_mutual_info'):
        model.loglikelihood([SimpleNamespace(args=('', 'cat'))])


def test_processes(build, monkeypatch):
    monkeypatch.setenv('RANK', '3')
    monkeypatch.setenv('WORLD_SIZE', '4')
    model = build([])
    assert (model.rank, model._world_size) == (3, 4)


@pytest.mark.parametrize(
    'settings',
    [
        dict(max_new_tokens='many'),
        dict(prompts='other'),
        dict(batch_size='auto'),
        dict(batch_size=0),
    ],
)
def test_wrong_settings(build, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        build([], **settings)


def test_register(kit_stubs):
    assert lmms_eval.register() == 'pixelsail'
    from lmms_eval import models

    assert models.get_model('pixelsail') is lmms_eval.PixelSAIL
    assert models.AVAILABLE_MODELS['pixelsail'].endswith('harnesses.lmms_eval.PixelSAIL')
    assert lmms_eval.register() == 'pixelsail', 'a second time changes nothing'


def test_without_the_kit(no_kits):
    with pytest.raises(KitError, match='pip install lmms-eval'):
        lmms_eval.register()
