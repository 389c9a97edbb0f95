"""The processor gives what the config's own pipeline gives, by every way of asking."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

import pixelsail_mm.hf  # noqa: F401  (registers the Auto classes)
from pixelsail_mm.datasets.transforms import BuildConversation
from pixelsail_mm.errors import BadSampleError
from pixelsail_mm.hf.chat import ChatFormat
from pixelsail_mm.testing.tiny_models import byte_tokenizer
from tests.helpers.png_headers import png_header

TURNS = [('What is it?', 'A ship.'), ('  And where,\nexactly? ', 'In the harbour: [SEG].')]
TEMPLATES = {
    'pixel_sail': 'pixel_sail',
    'bare': dict(INSTRUCTION='{input}\n', SUFFIX='<|endoftext|>', SEP=''),
    'header': dict(
        INSTRUCTION='<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n',
        SUFFIX='<|im_end|>',
        SEP='\n',
    ),
    'rounds': dict(
        INSTRUCTION='[Round {round}] {input} {bot_name}:', SUFFIX='<|im_end|>', SEP='\n'
    ),
}


@pytest.fixture(scope='module')
def exported(exports):
    return exports[True]


@pytest.fixture(scope='module')
def processor(exported):
    return AutoProcessor.from_pretrained(exported.folder)


def messages(turns, question=None, content=str):
    result = []
    for human, answer in turns:
        result += [
            dict(role='user', content=content(human)),
            dict(role='assistant', content=content(answer)),
        ]
    return result + ([dict(role='user', content=content(question))] if question else [])


def ids_of(template, turns, question, prefix=''):
    conversation = [dict(human=human, gpt=answer) for human, answer in turns]
    stage = BuildConversation(byte_tokenizer(), template, generation=True)
    return stage.transform(
        dict(
            conversation=[*conversation, dict(human=question, gpt='')],
            grid=(0, 0),
            gt_masks=[],
            answer_prefix=prefix,
        )
    )['input_ids'].tolist()


@pytest.mark.parametrize('template', TEMPLATES)
@pytest.mark.parametrize('turns', [0, 1, 2])
def test_chat_template_gives_the_ids_of_training(template, turns):
    template = TEMPLATES[template]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = ChatFormat(template, '<|endoftext|>').jinja()
    ids = tokenizer.apply_chat_template(
        messages(TURNS[:turns], ' Whose is it? '), return_dict=False
    )
    assert ids == ids_of(template, TURNS[:turns], ' Whose is it? ')


@pytest.mark.parametrize('template', ['pixel_sail', 'header', 'rounds'])
@pytest.mark.parametrize('prefix', ['', 'It is [SEG]'])
def test_rendered_text_is_read_back(template, prefix):
    chat = ChatFormat(TEMPLATES[template], '<|endoftext|>')
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat.jinja()
    text = tokenizer.apply_chat_template(messages(TURNS, 'Whose?'), tokenize=False) + prefix
    turns, question, begun = chat.parse(text)
    stripped = [(human.strip(), answer.strip()) for human, answer in TURNS]
    assert (turns, question, begun) == (stripped, 'Whose?', prefix)


@pytest.mark.parametrize('text', ['Where is it?', 'Two\nlines', ' What? ', 'a <|im_end|>\n b'])
@pytest.mark.parametrize('template', ['pixel_sail', 'bare'])
def test_a_plain_question_stays_one(template, text):
    chat = ChatFormat(TEMPLATES[template], '<|endoftext|>')
    assert chat.parse(text) == ([], text, '')


@pytest.mark.parametrize('template', TEMPLATES)
@pytest.mark.parametrize('turns', [0, 1])
def test_a_rendered_question_of_two_lines_stays_one(template, turns):
    chat = ChatFormat(TEMPLATES[template], '<|endoftext|>')
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat.jinja()
    text = tokenizer.apply_chat_template(messages(TURNS[:turns], 'Look.\nWhose?'), tokenize=False)
    assert chat.parse(text) == (TURNS[:turns], 'Look.\nWhose?', '')


def test_a_template_without_text_around_the_question():
    chat = ChatFormat(dict(INSTRUCTION='{input}', SUFFIX='<|endoftext|>'), '<|endoftext|>')
    assert chat.parse('Whose is it?') == ([], 'Whose is it?', '')


@pytest.mark.parametrize('template', TEMPLATES)
def test_a_finished_conversation_is_no_question(template):
    chat = ChatFormat(TEMPLATES[template], '<|endoftext|>')
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat.jinja()
    with pytest.raises(ValueError, match='ends with an answer'):
        chat.parse(tokenizer.apply_chat_template(messages([('What?', 'It.')]), tokenize=False))


def test_the_tokenizer_alone_knows_the_template(exported, processor):
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    ids = tokenizer.apply_chat_template(messages(TURNS, 'Whose is it?'), return_dict=False)
    assert ids == processor(text='Whose is it?', history=TURNS)['input_ids'][0].tolist()


def test_every_way_of_asking_gives_the_same_batch(processor, image):
    expected = processor(images=image, text='Whose is it?', history=TURNS)
    rendered = processor.apply_chat_template(messages(TURNS, 'Whose is it?'))
    assert rendered == ''.join(
        f'<|im_start|>user\n{human.strip()}<|im_end|>\n{answer}<|endoftext|>'
        for human, answer in TURNS
    ) + ('<|im_start|>user\nWhose is it?<|im_end|>\n')
    image = Image.fromarray(image)
    chat = messages(TURNS, 'Whose is it?', lambda text: [dict(type='text', text=text)])
    chat[0]['content'].insert(0, dict(type='image', image=image))
    for batch in (
        processor(images=[image], text=[rendered], return_tensors='pt', padding=True),
        processor(images=[[image]], text=[rendered]),
        processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_tensors='pt', add_generation_prompt=True
        ),
    ):
        assert batch.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(batch[key], value), key


def test_a_forced_beginning_by_the_chat_template(processor, exported, image):
    chat = messages(
        [('Whose is it?', 'It is')], content=lambda text: [dict(type='text', text=text)]
    )
    call = dict(tokenize=True, return_dict=True, continue_final_message=True)
    batch = processor.apply_chat_template(chat, **call)
    expected = processor(text='Whose is it?', answer_prefix='It is')
    assert all(torch.equal(batch[key], value) for key, value in expected.items())
    bare = AutoProcessor.from_pretrained(exported.folder)
    bare.transforms[0]['template'].update(TEMPLATES['bare'])
    bare.chat_template = bare.chat_format.jinja()
    with pytest.raises(ValueError, match='continue_final_message: .*answer_prefix'):
        bare.apply_chat_template(chat, **call)


def test_batch_layout(processor, questions):
    batch = processor(**questions)
    assert processor.model_input_names == list(batch.keys())
    assert batch['pixel_values'].dtype == torch.uint8
    assert batch['original_sizes'].tolist() == [[30, 45], [20, 45], [0, 0]]
    assert batch['image_sizes'].tolist() == [[32, 48], [24, 48], [0, 0]]
    assert batch['image_grids'].tolist() == [[4, 6], [3, 6], [0, 0]]
    assert batch['prompt_map'][0].unique().tolist() == [-2, 0, 2, 7]
    assert (batch['prompt_map'][1:] == -2).all()
    forced = [row[mask.bool()] for row, mask in zip(batch['input_ids'], batch['answer_mask'])]
    assert [processor.decode(ids) for ids in forced] == ['It is [SEG] and [SEG].', '[SEG]', '']
    text_only = processor(text='Who are you?')
    assert list(text_only) == ['input_ids', 'attention_mask', 'answer_mask']


def test_image_processor_alone(exported, processor, questions):
    batch = processor(**questions)
    alone = AutoImageProcessor.from_pretrained(exported.folder)(
        questions['images'], visual_prompts=questions['visual_prompts']
    )
    assert alone.keys() == batch.keys() - {'input_ids', 'attention_mask', 'answer_mask'}
    for key, value in alone.items():
        assert torch.equal(batch[key], value), key


def test_save_pretrained_round_trip(processor, questions, tmp_path):
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.transforms == processor.transforms
    assert again.image_processor.transforms == processor.image_processor.transforms
    expected = processor(**questions)
    for key, value in again(**questions).items():
        assert torch.equal(expected[key], value), key


@pytest.mark.parametrize(
    'call, error, message',
    [
        (dict(text=None), BadSampleError, 'empty'),
        (dict(text='What?', images='nowhere.png'), BadSampleError, 'nowhere.png.*no such file'),
        (dict(text='What?', videos=[1]), TypeError, 'videos not supported'),
        (dict(text='What?', max_pixels=3), TypeError, 'max_pixels not supported'),
        (dict(text='What?', return_tensors='np'), ValueError, "only 'pt'"),
        (dict(text='What?', images=['a.png', 'b.png']), ValueError, '2 images for one question'),
        (dict(text=['What?', 'Who?'], images=[None]), ValueError, 'images: .* 2 entries, got 1'),
        (dict(text=[], images=[]), ValueError, 'text: an empty list'),
        (dict(text=['What?'], visual_prompts=3), ValueError, 'visual_prompts: 1 samples'),
        (dict(text='What is <Prompt3>?', visual_prompts=[[1, 1]]), BadSampleError, 'Prompt3'),
    ],
)
def test_unusable_inputs_are_named(processor, call, error, message):
    with pytest.raises(error, match=message):
        processor(**call)


def test_photos_that_do_not_fit_are_scaled_and_that_is_said(exported, image, monkeypatch):
    """Also a prompt that no text names; a batch has no place for warnings, so they are logged."""
    said = []
    monkeypatch.setattr('pixelsail_mm.hf.processing.warn_once', said.append)
    processor = AutoProcessor.from_pretrained(exported.folder)
    processor.transforms[0]['max_length'] = 48
    batch = processor(images=np.tile(image, (10, 10, 1)), text='What?', visual_prompts=[[1, 1]])
    assert batch['original_sizes'].tolist() == [[300, 450]]
    assert batch['input_ids'].shape[1] <= 48
    assert said[0].startswith('no text names <Prompt0>')
    assert said[1].startswith('the picture of 450x300 pixels is scaled')
    assert 'max_length=48' in said[1]


def test_prompts_that_are_not_given_are_refused_in_a_chat(processor):
    chat = [dict(role='user', content=[dict(type='text', text='What is <prompt0>?')])]
    with pytest.raises(BadSampleError, match='write <Prompt0>'):
        processor.apply_chat_template(chat, tokenize=True, return_dict=True)


def test_a_picture_is_refused_by_its_header(processor, tmp_path):
    """Path or PIL image, with the text or without."""
    path = png_header(tmp_path / 'a.png', 9400, 9400)
    with Image.open(path) as image:
        for images in (str(path), image):
            with pytest.raises(BadSampleError, match='9400x9400 .*max_pixels=67108864'):
                processor(images=images, text='What?')
            with pytest.raises(BadSampleError, match='9400x9400 .*max_pixels=67108864'):
                processor.image_processor.preprocess(images)
