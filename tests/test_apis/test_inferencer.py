"""PixelSAILInferencer on a random model: same path as testing, every form of input."""

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.dataset import pseudo_collate
from mmengine.visualization import Visualizer
from PIL import Image

from pixelsail_mm.apis import PixelSAILInferencer, init_model
from pixelsail_mm.errors import BadSampleError, ConfigError
from pixelsail_mm.registry import TRANSFORMS, VISUALIZERS

TEXT = 'Please segment it in this image.'
PREFIX = 'It is [SEG].'


def picture(height=30, width=45, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def same(one, other):
    assert one['text'] == other['text'] and one['history'] == other['history']
    np.testing.assert_array_equal(one['masks'], other['masks'])
    np.testing.assert_allclose(one['mask_scores'], other['mask_scores'], atol=1e-5)


def test_result(ask):
    result = ask(picture(), TEXT, answer_prefix=PREFIX)
    assert set(result) == {'text', 'masks', 'mask_scores', 'visualization', 'history', 'warnings'}
    assert result['text'].startswith(PREFIX)
    assert result['masks'].dtype == bool and result['masks'].shape[1:] == (30, 45)
    assert len(result['masks']) == result['text'].count('[SEG]') == len(result['mask_scores'])
    assert result['mask_scores'].dtype == np.float32
    assert result['visualization'] is None
    assert result['history'] == [(TEXT, result['text'])]


def test_equals_the_testing_path(ask, shipped):
    """Pipeline of the config, ``pseudo_collate`` and ``test_step``, without the inferencer."""
    model = init_model(shipped, device='cpu')
    record = dict(
        img_path=None,
        img=picture(),
        masks=[],
        answer_prefix=PREFIX,
        conversation=[dict(human='a', gpt='b'), dict(human='<Prompt3>? ' + TEXT, gpt='')],
        prompts=[dict(id=3, box=[4, 4, 20, 20])],
        meta=dict(sample_id='s'),
    )
    pipeline = Compose([TRANSFORMS.build(stage) for stage in model.cfg.test_pipeline])
    (sample,) = model.test_step(pseudo_collate([pipeline(record)]))
    result = ask(
        picture(),
        '<Prompt3>? ' + TEXT,
        [dict(id=3, box=[4, 4, 20, 20])],
        history=[('a', 'b')],
        answer_prefix=PREFIX,
    )
    assert result['text'] == sample.pred_text
    np.testing.assert_array_equal(result['masks'], sample.pred_masks.numpy())
    np.testing.assert_array_equal(result['mask_scores'], sample.pred_scores.numpy())


@pytest.mark.parametrize('height, width', [(1, 1), (10_000, 2)])
def test_extreme_images(ask, height, width):
    result = ask(picture(height, width), TEXT, answer_prefix=PREFIX)
    assert result['masks'].shape[1:] == (height, width) and len(result['masks'])


def test_image_forms_give_the_same_answer(ask, tmp_path):
    Image.fromarray(picture()).save(tmp_path / 'a.png')
    expected = ask(picture(), TEXT, answer_prefix=PREFIX)
    for image in (tmp_path / 'a.png', str(tmp_path / 'a.png'), Image.fromarray(picture())):
        same(ask(image, TEXT, answer_prefix=PREFIX), expected)


def test_a_phone_photo_is_seen_as_a_viewer_shows_it(ask, tmp_path):
    """Prompts, masks and pictures are those of the turned photo; a PIL image keeps its size."""
    turned = picture(30, 45)
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation: turn by 90 degrees to the right
    Image.fromarray(np.rot90(turned)).save(tmp_path / 'a.png', exif=exif)
    question = dict(
        text='<Prompt0>? ' + TEXT,
        prompts=[[40, 2, 45, 9]],
        answer_prefix=PREFIX,
        return_visualization=True,
    )
    expected, result = ask(turned, **question), ask(tmp_path / 'a.png', **question)
    same(result, expected)
    assert result['masks'].shape[1:] == (30, 45)
    np.testing.assert_array_equal(result['visualization'], expected['visualization'])
    with Image.open(tmp_path / 'a.png') as image:
        assert ask(image, TEXT, answer_prefix=PREFIX)['masks'].shape[1:] == (45, 30)


@pytest.mark.parametrize('batch_size', [1, 2, 8])
def test_lists_equal_single_calls(ask, batch_size):
    images = [picture(seed=1), None, picture(20, 64, seed=2)]
    texts = ['first', 'second, a longer question without image', '<Prompt0>?']
    prompts = [None, None, [[2, 2, 30, 12]]]
    history = [None, [('q', 'a')], None]
    prefixes = [PREFIX, None, PREFIX]
    together = ask(images, texts, prompts, history, answer_prefix=prefixes, batch_size=batch_size)
    assert len(together) == 3
    for i, result in enumerate(together):
        same(result, ask(images[i], texts[i], prompts[i], history[i], answer_prefix=prefixes[i]))


def test_one_image_many_questions_and_one_question_many_images(ask):
    first, second = ask(picture(), ['one', 'two'])
    assert (first['history'][0][0], second['history'][0][0]) == ('one', 'two')
    assert len(ask([picture(), picture(seed=1)], TEXT)) == 2
    assert isinstance(ask([picture()], TEXT), list)
    assert ask([], TEXT) == []


def test_text_only(ask):
    result = ask(None, 'What is 2 + 2?', return_visualization=True, answer_prefix=PREFIX)
    assert result['masks'].shape == (0, 0, 0) and result['mask_scores'].shape == (0,)
    assert result['visualization'].ndim == 3


def test_max_new_tokens(ask, shipped):
    ask_raw = PixelSAILInferencer(shipped, device='cpu')
    lengths = []
    generate = ask_raw.model.backbone.llm.generate
    ask_raw.model.backbone.llm.generate = lambda **kw: (
        lengths.append(kw['max_new_tokens']) or generate(**kw)
    )
    ask_raw(picture(), TEXT)
    ask_raw(picture(), TEXT, max_new_tokens=2)
    ask_raw(picture(), TEXT)
    assert lengths == [4, 2, 4]
    for key in ('max_new_tokens', 'batch_size'):
        with pytest.raises(ValueError, match=f'{key} must be at least 1, got 0'):
            ask(picture(), TEXT, **{key: 0})


def test_turns_continue(ask):
    first = ask(picture(), TEXT, answer_prefix=PREFIX)
    second = ask(picture(), 'And now?', history=first['history'], answer_prefix=PREFIX)
    assert second['history'] == [*first['history'], ('And now?', second['text'])]
    # [SEG] of the first answer gives no mask again.
    assert len(second['masks']) == second['text'].count('[SEG]')


def test_prompts_reach_the_model(ask):
    plain = ask(
        picture(), '<Prompt0> and <Prompt1>', [[0, 0, 1, 1], [44, 29, 45, 30]], answer_prefix=PREFIX
    )
    boxed = ask(
        picture(),
        '<Prompt0> and <Prompt1>',
        [[0, 0, 30, 30], [31, 0, 45, 30]],
        answer_prefix=PREFIX,
    )
    assert not np.allclose(plain['mask_scores'], boxed['mask_scores'])
    mask = np.zeros((30, 45), dtype=bool)
    mask[:30, :30] = True
    same(
        boxed,
        ask(
            picture(),
            '<Prompt0> and <Prompt1>',
            [dict(id=1, box=[31, 0, 45, 30]), dict(id=0, mask=mask)],
            answer_prefix=PREFIX,
        ),
    )


def test_visualization(ask, tmp_path):
    Image.fromarray(picture()).save(tmp_path / 'a.png')
    results = ask(
        [tmp_path / 'a.png', picture()], TEXT, answer_prefix=[PREFIX] * 2, return_visualization=True
    )
    assert results[0]['visualization'].dtype == np.uint8
    np.testing.assert_array_equal(results[0]['visualization'], results[1]['visualization'])


@pytest.mark.parametrize(
    'call, message',
    [
        (dict(image='gone.png'), 'gone.png: image: no such file'),
        (dict(image=picture(), text=''), 'input 0: text'),
        (
            dict(image=picture(), prompts=[dict(id=15, box=[0, 0, 9, 9])]),
            r'input 0: prompts\[0\].id: prompt id 15 is out of range',
        ),
        (
            dict(image=picture(), prompts=np.ones((1, 8, 8), bool)),
            r'input 0: prompts\[0\].mask: mask size \(8, 8\).*\(30, 45\)',
        ),
        (
            dict(image=picture(), prompts=[[50, 50, 60, 60]]),
            r'prompts\[0\].box: .*outside the image',
        ),
        (
            dict(image=None, prompts=[[0, 0, 9, 9]]),
            'input 0: prompts: 1 visual prompts but no image',
        ),
        (dict(image=[picture(), picture()], prompts=[None, [[0, 0, 9]]]), r'input 1: prompts\[0\]'),
        (dict(image=picture(), text='what is <Prompt22>?'), 'prompt id 22 is out of range'),
        (
            dict(image=picture(), text='What is <Prompt0>?'),
            'input 0: text: it names <Prompt0>, but no',
        ),
        (
            dict(image=picture(), text='What is <prompt0>?', prompts=[[0, 0, 9, 9]]),
            'input 0: text: <prompt0> is not the name .* write <Prompt0>',
        ),
    ],
)
def test_the_culprit_is_named_before_the_model_runs(ask, monkeypatch, call, message):
    monkeypatch.setattr(ask.model, 'predict', None)
    with pytest.raises(BadSampleError, match=message):
        ask(**dict(text=TEXT) | call)


def test_lists_of_other_lengths(ask):
    with pytest.raises(ValueError, match='text: 2 samples need a list of 2 entries, got 3'):
        ask([None, None], ['a', 'b', 'c'])
    with pytest.raises(ValueError, match='prompts: 2 samples .* got one value'):
        ask([picture(), picture()], TEXT, prompts=np.ones((2, 30, 45), dtype=bool))


def test_a_finished_model_is_used_as_it_is(shipped):
    model = init_model(shipped, device='cpu').train()
    ask = PixelSAILInferencer(model)
    assert ask.model is model and not model.training
    with pytest.raises(ConfigError, match='finished model alone'):
        PixelSAILInferencer(model, weights='x.pth')
    del model.cfg
    with pytest.raises(ConfigError, match='PixelSAIL has no `cfg`'):
        PixelSAILInferencer(model)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda cfg: cfg.pop('test_pipeline'), 'neither `inference_pipeline` nor `test_pipeline`'),
        (lambda cfg: cfg.test_pipeline[4].update(generation=False), 'generation=True'),
    ],
)
def test_unusable_pipelines(shipped, change, message):
    model = init_model(shipped, device='cpu')
    change(model.cfg)
    with pytest.raises(ConfigError, match=message):
        PixelSAILInferencer(model)


def test_inference_pipeline_wins(shipped):
    model = init_model(shipped, device='cpu')
    model.cfg.inference_pipeline = [dict(stage) for stage in model.cfg.test_pipeline]
    model.cfg.inference_pipeline[3]['max_size'] = 16
    ask = PixelSAILInferencer(model)
    seen = []
    predict = model.predict
    model.predict = lambda inputs, **kwargs: (
        seen.append(inputs['grids']) or predict(inputs, **kwargs)
    )
    ask(picture(), TEXT)
    assert seen == [[(2, 2)]]


@pytest.mark.parametrize('batch_size', [1, 2])
def test_data_samples(ask, batch_size):
    plain = ask([picture(), None], TEXT, answer_prefix=[PREFIX] * 2, batch_size=batch_size)
    results = ask(
        [picture(), None],
        TEXT,
        answer_prefix=[PREFIX] * 2,
        batch_size=batch_size,
        return_datasamples=True,
    )
    for result, expected in zip(results, plain):
        assert 'data_sample' not in expected
        same(result, expected)
        assert result['data_sample'].pred_text == result['text']
        assert torch.equal(result['data_sample'].pred_masks, torch.from_numpy(result['masks']))
    assert ask(picture(), TEXT, return_datasamples=True)['data_sample'].ori_shape == (30, 45)


@VISUALIZERS.register_module(force=True)
class PlainVisualizer(Visualizer):
    """A user's own, with MMEngine's methods only."""

    def __init__(self, name='plain', value=7, **kwargs):
        super().__init__(name, **kwargs)
        self.value = value

    def add_datasample(self, name, image, data_sample=None, draw_gt=True, draw_pred=True, **kwargs):
        assert data_sample.pred_text and not draw_gt
        self.set_image(np.full_like(image, self.value))


@pytest.mark.parametrize('kind', ['PlainVisualizer', PlainVisualizer])
def test_the_configured_visualizer_draws(shipped, kind):
    model = init_model(shipped, device='cpu')
    model.cfg.visualizer = dict(type=kind, value=9, vis_backends=[dict(type='LocalVisBackend')])
    ask = PixelSAILInferencer(model)
    results = ask(
        [picture(), picture(seed=1)], TEXT, return_visualization=True, answer_prefix=[PREFIX] * 2
    )
    for result in results:
        np.testing.assert_array_equal(result['visualization'], np.full((30, 45, 3), 9))


@pytest.mark.parametrize(
    'settings, panel',
    [
        (None, 320),
        (dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]), 320),
        (dict(type='PixelVisualizer', panel_size=(400, 400)), 400),
        (dict(panel_size=(400, 400)), 400),
    ],
)
def test_answers_are_drawn_where_the_configured_visualizer_cannot(shipped, settings, panel):
    model = init_model(shipped, device='cpu')
    model.cfg.visualizer = settings
    ask = PixelSAILInferencer(model)
    assert type(ask.visualizer).__name__ == 'PixelVisualizer'
    result = ask(picture(30, 30), TEXT, return_visualization=True, answer_prefix=PREFIX)
    assert result['visualization'].shape[1] > 2 * panel


def test_an_unknown_visualizer_is_named(shipped):
    model = init_model(shipped, device='cpu')
    model.cfg.visualizer = dict(type='NoSuchVisualizer')
    with pytest.raises(KeyError, match='NoSuchVisualizer'):
        PixelSAILInferencer(model)


@pytest.mark.gpu
def test_on_gpu_equals_cpu(ask, shipped):
    gpu = PixelSAILInferencer(shipped, device='cuda')
    assert next(gpu.model.parameters()).device == torch.device('cuda:0')
    one, other = (a(picture(), TEXT, answer_prefix=PREFIX, max_new_tokens=1) for a in (ask, gpu))
    np.testing.assert_allclose(one['mask_scores'][:1], other['mask_scores'][:1], atol=1e-3)
    assert (one['masks'][0] != other['masks'][0]).mean() < 0.01
