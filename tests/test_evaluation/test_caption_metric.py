"""CaptionMetric: cleaning of predictions, records, groups and protocols."""

import json

import pytest

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.evaluation.metrics import CaptionMetric, caption_toolkit
from pixelsail_mm.evaluation.metrics.caption_metric import clean_paper, clean_strict
from pixelsail_mm.registry import METRICS


@pytest.mark.parametrize(
    'text, strict, paper',
    [
        ('<Prompt0>: A red dog.', 'A red dog.', 'A red dog'),
        ('<Prompt12>:A dog.<|endoftext|>', 'A dog.', 'A dog'),
        (' <Prompt3> : A dog<|im_end|> <|endoftext|>\n', 'A dog', 'A dog'),
        ('A dog: 3.5 kg', 'A dog: 3.5 kg', 'A dog 35 kg'),
        ('A dog near <Prompt1>: big.', 'A dog near <Prompt1>: big.', 'A dog near big'),
        ('<Prompt0>: <Prompt0>: x', '<Prompt0>: x', 'x'),
        ('<Prompt0> is not in the image.', '<Prompt0> is not in the image.', 'is not in the image'),
        ("<p> A  dog </p> [SEG] 's'", "<p> A  dog </p> [SEG] 's'", "A dog 's"),
        ("'A dog'", "'A dog'", 'A dog'),
        ('<|endoftext|>', '', ''),
        ('', '', ''),
        ('<Prompt0>:', '', ''),
    ],
)
def test_cleaning(text, strict, paper):
    assert clean_strict(text) == strict
    assert clean_paper(text) == paper


def caption(sample_id, text, references, **meta):
    return dict(
        sample_id=sample_id,
        dataset='d',
        task='caption',
        pred_text=text,
        references=references,
        **meta,
    )


def evaluate(samples, **kwargs):
    metric = CaptionMetric(**{'metrics': 'METEOR', **kwargs})
    metric.process(None, samples)
    return metric.evaluate(size=len(samples))


SAMPLES = [
    caption('a', '<Prompt0>: Red dog.', ['red dog', 'cat'], kind='animal'),  # 2 of 2 words
    caption('b', 'red sky', 'blue sky', kind='thing'),  # 1 of 2
    caption('c', '<Prompt0>:', ['x']),  # no word
]


def test_values_groups_and_one_meteor(fake_java):
    assert evaluate([*SAMPLES, SAMPLES[1]], group_by='kind') == {
        'caption/METEOR': pytest.approx(3 / 4),
        'caption/empty': pytest.approx(1 / 3),
        'caption/animal/METEOR': 1.0,
        'caption/animal/empty': 0.0,
        'caption/thing/METEOR': 0.5,
        'caption/thing/empty': 0.0,
    }
    assert fake_java() == ['tokeniser starts', 'tokeniser ends', 'meteor starts', 'meteor ends']


def test_meteor_ends_when_the_evaluation_fails(fake_java, monkeypatch):
    monkeypatch.setenv('FAKE_JAVA', 'refuse')
    with pytest.raises(RuntimeError, match='METEOR .* reported'):
        evaluate(SAMPLES)
    assert fake_java()[-1] == 'meteor ends'


def test_protocols_differ_by_their_cleaning(fake_java):
    samples = [caption('a', 'dog 3.5', ['dog 3.5'])]
    assert evaluate(samples) == {'caption/METEOR': 1.0, 'caption/empty': 0.0}
    # The fake tokeniser splits 3.5; without its period it is the number 35.
    paper = evaluate(samples, protocol='paper')
    assert paper == {'caption/METEOR': 0.5, 'caption/empty': 0.0, 'caption/protocol': 'paper'}
    assert next(iter(paper)) == 'caption/METEOR'


def test_records_are_plain_and_small(fake_java):
    metric = CaptionMetric()
    metric.process(None, SAMPLES)
    assert json.loads(json.dumps(metric.results))[0]['text'] == 'Red dog.'
    assert metric.results[1]['references'] == ['blue sky']


def test_settings_say_what_the_values_depend_on(fake_java):
    settings = CaptionMetric(protocol='paper').settings
    assert settings['protocol'] == 'paper' and settings['cleaning'] == 'clean_paper'
    assert settings['metrics'] == ['METEOR', 'CIDEr'] and 'PTB' in settings['tokeniser']
    json.dumps(settings)


def test_other_tasks_are_left_out(fake_java):
    samples = [SAMPLES[0], dict(sample_id='q', task='mcq', pred_text='B')]
    assert evaluate(samples, tasks=['caption'])['caption/METEOR'] == 1


@pytest.mark.parametrize(
    'fault, message',
    [
        (dict(references=None), "'a': metainfo 'references' must list at least one"),
        (dict(references=[]), "'references'"),
        (dict(references=['x', ' ']), "'references'"),
        (dict(references=[3]), "'references'"),
        (dict(pred_text=None), "'a' has no 'pred_text'"),
    ],
)
def test_faulty_samples_are_named(fake_java, fault, message):
    with pytest.raises(ValueError, match=message):
        evaluate([{**SAMPLES[0], **fault}])


def test_faulty_protocol():
    with pytest.raises(ConfigError, match="protocol must be one of .*'loose'"):
        CaptionMetric(protocol='loose')


def test_missing_java_from_a_config(no_java, warnings_of):
    cfg = dict(type='CaptionMetric', metrics=('METEOR', 'CIDEr'))
    with pytest.raises(ConfigError, match='CaptionMetric: METEOR, CIDEr cannot be computed'):
        METRICS.build(cfg)
    said = warnings_of(caption_toolkit)
    metric = METRICS.build(dict(cfg, on_missing='skip', group_by='kind'))
    metric.process(None, SAMPLES)
    assert set(metric.evaluate(3)) == {
        'caption/empty',
        'caption/animal/empty',
        'caption/thing/empty',
    }
    assert len(said) == 1
