"""The adapter for VLMEvalKit, against a stub of the kit's interface."""

import numpy as np
import pytest
from PIL import Image

from pixelsail_mm.evaluation.harnesses import KitError, UnsupportedItemError, vlmevalkit

LETTER = "Answer with the option's letter from the given choices directly."


@pytest.fixture
def paths(tmp_path):
    files = []
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (30, 45, 3), dtype=np.uint8)
        files.append(str(tmp_path / f'{seed}.png'))
        Image.fromarray(pixels).save(files[-1])
    return files


@pytest.fixture
def model(kit_stubs, talker):
    return vlmevalkit.PixelSAIL(str(talker), device='cpu', max_new_tokens=6)


def test_it_is_a_model_of_the_kit(model):
    from vlmeval.vlm.base import BaseModel

    assert isinstance(model, BaseModel) and vlmevalkit.PixelSAIL is type(model)
    assert model.INTERLEAVE is False and type(model).__name__ == 'PixelSAIL'
    with pytest.raises(AttributeError, match='nothing'):
        vlmevalkit.nothing  # noqa: B018


def test_answer_equals_the_inferencer(model, greedy_ask, paths):
    message = [
        dict(type='text', value='What?'),
        dict(type='image', value=paths[0]),
        dict(type='text', value='One word.'),
    ]
    answer = model.generate(message, dataset='MME')
    assert answer == greedy_ask(paths[0], 'What?\nOne word.', max_new_tokens=6)['text'] != ''
    assert answer != model.generate([dict(type='text', value='What?\nOne word.')], dataset='MME')


def test_text_only(model, greedy_ask):
    assert model.generate('Just text?') == greedy_ask(None, 'Just text?', max_new_tokens=6)['text']


def test_512_tokens_by_default(kit_stubs, talker, monkeypatch):
    model = vlmevalkit.PixelSAIL(str(talker), device='cpu')
    asked = []
    monkeypatch.setattr(
        model.answerer,
        'ask',
        lambda images, texts, max_new_tokens, batch_size: (
            asked.append(max_new_tokens) or [dict(text='x')]
        ),
    )
    model.generate('Q')
    assert asked == [512]


@pytest.mark.parametrize(
    'dataset, own',
    [
        ('MME', True),
        ('MMBench_DEV_EN', True),
        ('TextVQA_VAL', True),
        ('MMDU', False),
        ('COCO_VAL', False),
        ('MVBench', False),
        (None, False),
    ],
)
def test_which_benchmarks_get_the_protocol(kit_stubs, model, talker, dataset, own):
    assert model.use_custom_prompt(dataset) is own
    kit = vlmevalkit.PixelSAIL(str(talker), device='cpu', prompts='kit')
    assert kit.use_custom_prompt(dataset) is False


def test_build_prompt_puts_the_image_first(model, paths):
    model.set_dump_image(lambda line: [paths[0]])
    line = dict(index=1, image='base64', question='Which?', A='cat', B='dog', hint=float('nan'))
    assert model.build_prompt(line, 'MMBench_DEV_EN') == [
        dict(type='image', value=paths[0]),
        dict(type='text', value=f'Which?\nA. cat\nB. dog\n{LETTER}'),
    ]
    assert model.build_prompt(dict(line, question='Dog?'), 'MME')[1]['value'] == 'Dog?'
    model.set_dump_image(lambda line: paths[1])
    assert model.build_prompt(dict(question='Q', image_path=paths[1]), 'MME')[0] == dict(
        type='image', value=paths[1]
    )


@pytest.mark.parametrize(
    'cells', [{}, dict(image=float('nan')), dict(image=None, image_path=[]), dict(image='')]
)
def test_items_without_an_image(model, cells):
    model.set_dump_image(lambda line: pytest.fail('there is nothing to write'))
    message = model.build_prompt(dict(question='2 + 2?', **cells), 'MME')
    assert message == [dict(type='text', value='2 + 2?')]
    assert isinstance(model.generate(message, dataset='MME'), str)


def test_several_images_and_videos_are_refused(model, paths):
    images = [dict(type='image', value=path) for path in paths]
    with pytest.raises(UnsupportedItemError, match='VLMEvalKit MMStar: images: 2 images'):
        model.generate([*images, dict(type='text', value='Q')], dataset='MMStar')
    with pytest.raises(UnsupportedItemError, match=r"MVBench: message: it holds \['video'\]"):
        model.generate([dict(type='video', value='a.mp4')], dataset='MVBench')


@pytest.mark.parametrize('settings', [dict(max_new_tokens=0), dict(prompts='other')])
def test_wrong_settings(kit_stubs, talker, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        vlmevalkit.PixelSAIL(str(talker), device='cpu', **settings)


def test_register_builds_nothing_yet(kit_stubs, talker):
    assert vlmevalkit.register('mine', config='gone', max_new_tokens=6, device='cpu') == 'mine'
    from vlmeval.config import supported_VLM

    assert supported_VLM['mine'].keywords['config'] == 'gone'
    assert supported_VLM['mine'](config=str(talker)).max_new_tokens == 6


def test_without_the_kit(no_kits):
    with pytest.raises(KitError, match='pip install -e VLMEvalKit'):
        vlmevalkit.register(config='x')
