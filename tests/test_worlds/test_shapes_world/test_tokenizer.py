"""The ShapesWorld tokenizer: small, complete, offline."""

import pytest

from pixelsail_mm.datasets.templates import load_templates
from pixelsail_mm.tokenization import SpecialTokens, build_tokenizer
from pixelsail_mm.worlds.shapes_world.expressions import SUPERLATIVES
from pixelsail_mm.worlds.shapes_world.presets import COLOURS, KINDS, SIZES, TEXTURES
from pixelsail_mm.worlds.shapes_world.questions import NUMBERS


@pytest.fixture(scope='module')
def tokenizer(mini_world):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(mini_world / 'tokenizer'))


@pytest.mark.parametrize(
    'words',
    [
        COLOURS,
        KINDS,
        TEXTURES,
        SIZES,
        SUPERLATIVES,
        NUMBERS,
        (
            'shape',
            'shapes',
            'stars',
            'crosses',
            'above',
            'below',
            'segment',
            'image',
            'mask',
            'option',
            'one',
            'every',
        ),
    ],
)
def test_words_of_the_domain_are_one_token(tokenizer, words):
    for word in words:
        assert len(tokenizer(' ' + word)['input_ids']) == 1, word


def test_templates_cost_one_token_a_word(tokenizer):
    for question in load_templates('segmentation_questions'):
        text = question.replace('{x}', 'the small dotted pink crescent')
        words = len(text.replace('.', ' .').replace('?', ' ?').replace(',', ' ,').split())
        assert len(tokenizer(text)['input_ids']) == words, tokenizer.tokenize(text)


def test_special_tokens_are_there_and_nothing_is_added_later(tokenizer):
    size = len(tokenizer)
    special = SpecialTokens.from_tokenizer(build_tokenizer(tokenizer))
    assert len(tokenizer) == size == special.vocab_size < 800
    assert len(set(special.prompts)) == 15
    assert tokenizer('[SEG]')['input_ids'] == [special.seg]
    assert special.eos == tokenizer.eos_token_id == special.pad


@pytest.mark.parametrize(
    'text',
    [
        'Please segment the red star in this image.',
        'A. red B. blue',
        'grün, 東京 and 7 emojis 🦀\n',
        'It is [SEG].',
        '<Prompt3>: a large striped red star',
        '<|im_start|>user\nhi<|im_end|>\n',
    ],
)
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)['input_ids']) == text
