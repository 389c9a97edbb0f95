"""Pictures of any size and questions in any words: what is changed for them is said."""

import numpy as np
import pytest
import torch
from PIL import Image

from pixelsail_mm.apis import PixelSAILInferencer, init_model
from pixelsail_mm.apis.inputs import make_record
from pixelsail_mm.apis.remarks import describe_empty
from pixelsail_mm.datasets.files.pictures import BY_BITS
from pixelsail_mm.errors import BadSampleError
from pixelsail_mm.notices import warn_once
from pixelsail_mm.tokenization import write_id_ranges

TEXT, PREFIX = 'Please segment it.', 'It is [SEG].'


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def ask_with(shipped):
    """Inferencer on the tiny model with other settings of its pipeline."""
    model = init_model(shipped, device='cpu')

    def build(max_size=64, **conversation):
        model.cfg.test_pipeline[3]['max_size'] = max_size
        model.cfg.test_pipeline[4].update(conversation)
        return PixelSAILInferencer(model)

    return build


@pytest.fixture
def logged(said):
    """Warnings of the log; what other tests said counts as not said."""
    warn_once.cache_clear()
    return said


@pytest.mark.parametrize(
    'height, width, scaled',
    [(300, 451, '64x48'), (451, 300, '48x64'), (3000, 70, '8x64'), (65, 65, '64x64')],
)
def test_photos_are_scaled_to_what_the_model_reads(ask_with, height, width, scaled):
    result = ask_with(max_size=64)(picture(height, width), TEXT, answer_prefix=PREFIX)
    assert result['masks'].shape[1:] == (height, width)
    assert result['warnings'][0] == (
        f'the picture of {width}x{height} pixels is scaled to {scaled}: this model reads pictures '
        "of up to 64 pixels (max_size of ResizeToGrid); prompts and masks keep to the picture's own"
        ' pixels'
    )


@pytest.mark.parametrize('height, width', [(64, 64), (30, 45), (1, 1), (57, 3)])
def test_pictures_that_fit_are_not_scaled_down(ask_with, height, width):
    result = ask_with()(picture(height, width), TEXT, answer_prefix=PREFIX)
    assert not any('scaled' in text for text in result['warnings'])


def test_pictures_without_a_known_size_get_what_max_length_leaves(ask_with):
    ask = ask_with(max_size=1024, max_length=128)
    result = ask(picture(300, 451), TEXT, answer_prefix=PREFIX, return_datasamples=True)
    assert result['masks'].shape[1:] == (300, 451)
    (said,) = [text for text in result['warnings'] if 'scaled' in text]
    assert 'of 451x300 pixels is scaled to ' in said and 'max_length=128' in said
    rows, columns = result['data_sample'].grid
    assert f'{columns * 8}x{rows * 8}' in said
    # One step more would not have fitted.
    stage = ask.pipeline.stages[4]
    record = make_record('x', None, TEXT, answer_prefix=PREFIX)
    room = stage.image_room(record)
    larger = ask.pipeline.stages[3].grid(300, 451, columns * 8 + 8)
    assert stage.image_length((rows, columns)) <= room < stage.image_length(larger)


def test_a_size_lowered_by_area_is_said(ask_with):
    """Small pictures are enlarged to the area, less than they would be without the bound."""
    model = ask_with(max_length=128).model
    model.cfg.test_pipeline[3].update(rule='area', max_size=160)
    result = PixelSAILInferencer(model)(picture(20, 30), TEXT, answer_prefix=PREFIX)
    (said,) = [text for text in result['warnings'] if 'scaled' in text]
    assert 'of 30x20 pixels is scaled to ' in said and 'max_length=128' in said


def test_answers_to_one_question_get_one_picture(ask_with):
    ask = ask_with(max_size=1024, max_length=128)

    def sample(answer):
        record = make_record('x', picture(300, 451), TEXT)
        return ask.pipeline.with_answer(record, answer), record['meta']['warnings']

    short, said = sample('a')
    long, said_again = sample('a' * 60)
    assert short['inputs']['image'].shape == long['inputs']['image'].shape
    assert len(long['inputs']['input_ids']) - len(short['inputs']['input_ids']) == 59
    assert said == said_again and 'max_length=128' in said[0]
    # Where there is room for all, it is what a forced beginning gives.
    ask = ask_with(max_length=1024)
    forced = ask.pipeline(make_record('x', picture(30, 45), TEXT, answer_prefix='abc'))
    given = ask.pipeline.with_answer(make_record('x', picture(30, 45), TEXT), 'abc')
    for key in ('input_ids', 'labels'):
        assert torch.equal(forced['inputs'][key], given['inputs'][key])


def test_a_question_that_does_not_fit_is_refused(ask_with):
    with pytest.raises(BadSampleError, match='max_length is 16'):
        ask_with(max_length=16)(picture(300, 451), TEXT)


def test_prompts_follow_the_picture(ask_with):
    """The left half stays the left half, whatever kind of prompt says so."""
    ask = ask_with(max_size=64)
    mask = np.zeros((320, 640), bool)
    mask[:, :320] = True
    for prompt in (dict(mask=mask), dict(box=[0, 0, 320, 320])):
        record = make_record('x', picture(320, 640), 'What is <Prompt0>?', [prompt])
        prompt_map = ask.pipeline(record)['inputs']['prompt_map'].numpy()
        assert prompt_map.shape == (4, 8)
        assert (prompt_map[:, :4] == 0).all() and (prompt_map[:, 4:] == -2).all()
    record = make_record('x', picture(320, 640), 'What is <Prompt0>?', [dict(point=[630, 310])])
    prompt_map = ask.pipeline(record)['inputs']['prompt_map'].numpy()
    assert np.argwhere(prompt_map == 0).tolist() == [[3, 7]]


def test_each_size_is_logged_once(ask_with, logged):
    ask = ask_with()
    images = [picture(70, 80), picture(70, 80), picture(80, 70)]
    for result in ask(images, TEXT, batch_size=2):
        assert len([text for text in result['warnings'] if 'scaled' in text]) == 1
    ask(images[0], 'Where?')
    assert [text.split(' pixels')[0] for text in logged if 'scaled' in text] == [
        'the picture of 80x70',
        'the picture of 70x80',
    ]


def test_left_out_turns_are_said(ask_with):
    ask = ask_with(max_length=128)
    history = [('a long question ' * 4, 'a long answer ' * 4), ('q', 'a')]
    result = ask(picture(16, 16), 'Now?', history=history)
    assert any(
        text.startswith('1 earlier turns are left out') and 'max_length=128' in text
        for text in result['warnings']
    )
    assert not any('left out' in text for text in ask(picture(16, 16), 'Now?')['warnings'])


def test_words_that_were_not_read_in_training(ask_with, logged):
    """A tokenizer of bytes: training had those of 'red cat?' and of the template."""
    ask = ask_with()
    ids = ask.pipeline.stages[4].transform(
        dict(conversation=[dict(human='red cat?', gpt='')], grid=(0, 0), gt_masks=[])
    )['input_ids']
    ask = ask_with(trained_tokens=write_id_ranges(ids.tolist()))
    assert ask(None, 'cat? red')['warnings'] == []
    result = ask(None, 'The red dog, tea? dog', answer_prefix='[SEG]')
    said = (
        "not among the words of the training samples that were read: 'The', 'dog', ',', "
        "'[SEG]' (as written here); the model hardly knows what that means"
    )
    assert result['warnings'][0] == logged[0] == said
    # The history was asked about when it was new.
    assert ask(None, 'red cat?', history=[('dog', 'dog')])['warnings'] == []


def test_prompts_without_a_name_are_said(ask_with):
    warnings = ask_with()(picture(30, 45), 'What is it?', [[0, 0, 9, 9]])['warnings']
    assert warnings[0].startswith('no text names <Prompt0>')


@pytest.mark.parametrize('in_memory', [True, False])
def test_pictures_read_otherwise_than_stored_are_said(ask_with, tmp_path, logged, in_memory):
    deep = Image.fromarray(np.linspace(0, 65535, 900).astype(np.uint16).reshape(30, 30))
    deep.save(tmp_path / 'deep.png')
    image = deep if in_memory else str(tmp_path / 'deep.png')
    assert ask_with()(image, TEXT)['warnings'] == logged == [BY_BITS.format(16)]


def test_empty_masks_are_said(ask_with, monkeypatch, logged):
    ask = ask_with()
    predict = ask.model.predict

    def with_empty_mask(*args, **kwargs):
        samples = predict(*args, **kwargs)
        for sample in samples:
            sample.pred_masks[1] = False
        return samples

    monkeypatch.setattr(ask.model, 'predict', with_empty_mask)
    result = ask(picture(30, 45), TEXT, answer_prefix='[SEG] and [SEG]', max_new_tokens=1)
    assert any(text.startswith('mask 1 is empty') for text in result['warnings'])
    assert any(text.startswith('mask 1 is empty') for text in logged)


def test_which_masks_are_empty():
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    masks[1, 3, 4] = True
    assert [text[:15] for text in describe_empty(masks)] == ['mask 0 is empty', 'mask 2 is empty']
    assert describe_empty(torch.zeros(0, 4, 5, dtype=torch.bool)) == []


def test_an_empty_mask_may_be_what_the_answer_says():
    masks = torch.zeros(2, 4, 5, dtype=torch.bool)
    assert describe_empty(masks[:1], 'No target [SEG].') == []
    assert [text[:15] for text in describe_empty(masks, 'It is [SEG]. No target [SEG].')] == [
        'mask 0 is empty'
    ]
    assert [text[:15] for text in describe_empty(masks, 'No target [SEG]. A cat [SEG].')] == [
        'mask 1 is empty'
    ]
    assert all('right if the answer says' in text for text in describe_empty(masks))


def test_without_an_image_there_is_no_mask(ask_with):
    said = 'the answer has {} [SEG], but there is no image: it has no mask'
    assert describe_empty(torch.zeros(2, 0, 0, dtype=torch.bool)) == [said.format(2)]
    assert describe_empty(torch.zeros(0, 0, 0, dtype=torch.bool), 'A cat.') == []
    result = ask_with()(None, TEXT, answer_prefix='[SEG] and [SEG]', max_new_tokens=1)
    assert said.format(result['text'].count('[SEG]')) in result['warnings']
