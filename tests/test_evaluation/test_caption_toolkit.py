"""The caption toolkit: installation, Java processes, and the formulas of its metrics."""

import math
import os
from collections import Counter

import numpy as np
import pytest

from pixelsail_mm.command_line import explain
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.evaluation.metrics import caption_toolkit
from pixelsail_mm.evaluation.metrics.caption_toolkit import (
    CAPTION_METRICS,
    CaptionToolkit,
    _count_words,
    build_toolkit,
    missing_requirements,
)


def test_what_is_missing_is_named_with_the_way_to_get_it(no_java):
    with pytest.raises(ConfigError) as error:
        build_toolkit(('METEOR', 'CIDEr'), 'error', 'SomeMetric')
    text = explain(error.value)
    assert text.startswith(
        'SomeMetric: METEOR, CIDEr cannot be computed without the package '
        'pycocoevalcap (pip install'
    )
    assert 'Java 8 or later with `java` on the PATH' in text and "on_missing='skip'" in text


def test_skipping_says_so_once_and_gives_no_values(no_java, warnings_of):
    said = warnings_of(caption_toolkit)
    with build_toolkit('METEOR', 'skip', 'SomeMetric') as toolkit:
        assert toolkit.compute(['a'], [['a']]) == toolkit.compute(['b'], [['a']]) == {}
    assert len(said) == 1 and 'METEOR' in said[0] and said[0].endswith('left out')
    assert toolkit.settings['metrics'] == []


def test_nothing_is_needed_for_no_metric(no_java):
    assert build_toolkit((), 'error', 'SomeMetric').metrics == ()


def test_each_requirement_is_looked_for_by_itself(fake_java, tmp_path, monkeypatch):
    assert missing_requirements() == []
    monkeypatch.setenv('PATH', str(tmp_path))
    (found,) = missing_requirements()
    assert 'Java' in found


def test_a_package_of_that_name_without_the_archives_does_not_count(fake_java, tmp_path):
    (tmp_path / 'packages/pycocoevalcap/meteor/meteor-1.5.jar').unlink()
    (found,) = missing_requirements()
    assert 'pip install "pycocoevalcap' in found


@pytest.mark.parametrize(
    'settings, message',
    [
        (
            dict(metrics=['METEOR', 'SPICE'], on_missing='error'),
            r"no caption metrics \['SPICE'\].*ROU",
        ),
        (dict(metrics=['METEOR'], on_missing='ignore'), "on_missing must be one of .*'ignore'"),
    ],
)
def test_faulty_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_toolkit(owner='SomeMetric', **settings)


def test_one_meteor_for_several_calls_and_none_behind_the_block(fake_java):
    with CaptionToolkit(['METEOR']) as toolkit:
        # Words in common by words said: 2 of 2, 1 of 2 (the better reference), none of 0.
        first = toolkit.compute(['Red dog.', 'red cat', ''], [['red dog'], ['a', 'the cat'], ['x']])
        second = toolkit.compute(['red cat'], [['the cat']])
    assert first == {'METEOR': pytest.approx(3 / 4)} and second == {'METEOR': pytest.approx(1 / 2)}
    assert fake_java() == ['tokeniser starts', 'tokeniser ends', 'meteor starts', 'meteor ends']


def test_never_two_java_programs_at_once(fake_java):
    with CaptionToolkit(['METEOR']) as toolkit:
        toolkit.compute(['red'], [['red']])
        toolkit.compute(['blue'], [['red']])
    assert fake_java() == 2 * ['tokeniser starts', 'tokeniser ends', 'meteor starts', 'meteor ends']


def test_meteor_ends_when_the_block_fails(fake_java):
    with pytest.raises(ZeroDivisionError), CaptionToolkit(['METEOR']) as toolkit:
        toolkit.compute(['red'], [['red']])
        raise ZeroDivisionError
    assert fake_java()[-1] == 'meteor ends'


def test_a_program_that_does_not_end_is_killed(fake_java, monkeypatch):
    monkeypatch.setenv('FAKE_JAVA', 'hang')
    monkeypatch.setattr(caption_toolkit, '_SECONDS_TO_STOP', 0.5)
    with CaptionToolkit(['METEOR']) as toolkit:
        toolkit.compute(['red'], [['red']])
        process = toolkit._meteor._process
    assert process.returncode == -9


@pytest.mark.parametrize(
    'fault, message',
    [
        ('die', r"METEOR \(Java with heap='2G'\) stopped; its error output: no space for heap"),
        ('refuse', 'METEOR .* reported "Error: what is this"; its error output: none'),
        ('lines', 'gave 1 lines for 2 texts'),
    ],
)
def test_failing_programs_are_reported_and_closed(fake_java, monkeypatch, fault, message):
    monkeypatch.setenv('FAKE_JAVA', fault)
    with CaptionToolkit(['METEOR']) as toolkit:
        with pytest.raises(RuntimeError, match=message):
            toolkit.compute(['red'], [['blue']])
        meteor = toolkit._meteor
    assert meteor is None or meteor._process.returncode is not None


def test_texts_cannot_break_the_lines_they_travel_in(fake_java):
    odd = ['red\u2028dog', 'red\rdog', 'red\ndog\x85', 'red ||| dog', 'red \ud800 dog', '\n', ' ']
    with CaptionToolkit(['METEOR']) as toolkit:
        for text in odd[:4]:
            assert toolkit.compute([text], [['red dog']]) == {'METEOR': 1.0}
        assert toolkit.compute(['red dog'], [['blue ||| dog']]) == {'METEOR': 0.5}
        assert toolkit.compute(odd, [['dog red']] * len(odd))['METEOR'] > 0.9


def test_punctuation_and_case_do_not_count(fake_java):
    with CaptionToolkit(['METEOR']) as toolkit:
        toolkit.compute(['A Dog: here, now.'], [['x']])
        assert toolkit._tokens['A Dog: here, now.'] == 'a dog here now'


def words_of(said, true):
    return ({i: [text] for i, text in enumerate(said)}, dict(enumerate(true)))


def count(metrics, said, true):
    return _count_words(metrics, *words_of(said, true))


def test_hand_worked_cider(toolkit_package):
    # All words are in one of the two samples' references: every IDF is log 2 and cancels.
    # a: 1- and 2-grams agree, there are no longer ones: 10 (1 + 1 + 0 + 0) / 4.
    # b: one of two words, no 2-gram: 10 (1/2) / 4.
    assert count(['CIDEr'], ['red dog', 'red cat'], [['red dog'], ['blue cat']]) == {
        'CIDEr': pytest.approx((5 + 1.25) / 2)
    }
    # A word too few: cosine 1 / sqrt 2, times exp(-1 / 72); a mean over two references.
    short = 2.5 / math.sqrt(2) * math.exp(-1 / 72)
    assert count(['CIDEr'], ['red', 'x'], [['red dog', 'sad'], ['blue cat']]) == {
        'CIDEr': pytest.approx(short / 2 / 2)
    }
    assert count(['CIDEr'], ['red dog'], [['red dog']]) == {'CIDEr': 0}
    assert count(['CIDEr'], ['red'], [['']]) == {'CIDEr': 0}


def test_hand_worked_bleu(toolkit_package):
    names = [f'BLEU-{n}' for n in range(1, 5)]
    values = count(names, ['the red dog runs'], [['the red dog sits']])
    assert values['BLEU-1'] == pytest.approx(3 / 4)
    assert values['BLEU-2'] == pytest.approx(math.sqrt(3 / 4 * 2 / 3))
    assert values['BLEU-3'] == pytest.approx((3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3))
    assert values['BLEU-4'] == pytest.approx(0, abs=1e-3)
    # Two words of three: all right, but exp(1 - 3 / 2). Repeats are clipped: 1 of 2.
    assert count(names, ['the red'], [['the red dog']])['BLEU-1'] == pytest.approx(math.exp(-0.5))
    assert count(names, ['red red'], [['red dog']])['BLEU-1'] == pytest.approx(1 / 2)


def test_hand_worked_rouge(toolkit_package):
    # LCS "red runs": P 2/3 and R 2/4.
    found = count(['ROUGE-L'], ['red dog runs'], [['red cat runs fast', 'no']])['ROUGE-L']
    assert found == pytest.approx(2.44 * (2 / 3) * (1 / 2) / (1 / 2 + 1.44 * 2 / 3))


def slow_cider(said, true):
    """CIDEr-D from its formula."""

    def grams(text, n):
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    scores = []
    for text, references in zip(said, true):
        total = 0
        for reference in references:
            for n in range(1, 5):
                a, b = grams(text, n), grams(reference, n)
                idf = {
                    gram: math.log(
                        len(true)
                        / max(1, sum(any(gram in grams(r, n) for r in texts) for texts in true))
                    )
                    for gram in {*a, *b}
                }
                norm = math.sqrt(
                    sum((a[g] * idf[g]) ** 2 for g in a) * sum((b[g] * idf[g]) ** 2 for g in b)
                )
                dot = sum(min(a[g], b[g]) * b[g] * idf[g] ** 2 for g in a)
                # The package takes the number of 2-grams for the length.
                gap = grams(text, 2).total() - grams(reference, 2).total()
                total += dot / norm * math.exp(-(gap**2) / 72) if norm else 0
        scores.append(10 * total / 4 / len(references))
    return sum(scores) / len(scores)


def slow_bleu(said, true, order):
    right, offered, length, wanted = [0] * order, [0] * order, 0, 0
    for text, references in zip(said, true):
        words = text.split()
        length += len(words)
        wanted += min(
            (len(r.split()) for r in references), key=lambda size: (abs(size - len(words)), size)
        )
        for n in range(1, order + 1):
            counts = [
                Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1))
                for w in (words, *(r.split() for r in references))
            ]
            best = counts[1]
            for other in counts[2:]:
                best = best | other
            right[n - 1] += (counts[0] & best).total()
            offered[n - 1] += counts[0].total()
    mean = math.prod(r / o for r, o in zip(right, offered)) ** (1 / order)
    return mean * min(1, math.exp(1 - wanted / length))


def slow_rouge(said, true):
    def lcs(a, b):
        if not a or not b:
            return 0
        return 1 + lcs(a[1:], b[1:]) if a[0] == b[0] else max(lcs(a[1:], b), lcs(a, b[1:]))

    scores = []
    for text, references in zip(said, true):
        a = text.split()
        p = max(lcs(a, r.split()) / len(a) for r in references)
        r = max(lcs(a, r.split()) / len(r.split()) for r in references)
        scores.append(2.44 * p * r / (r + 1.44 * p) if p else 0)
    return sum(scores) / len(scores)


def random_texts(rng, count, words='red blue dog cat the a on runs'):
    draw = [' '.join(rng.choice(words.split(), rng.integers(2, 7))) for _ in range(4 * count)]
    return draw[:count], [draw[count + i :: count][: rng.integers(1, 4)] for i in range(count)]


@pytest.mark.parametrize('seed', range(3))
def test_equal_slow_references(toolkit_package, seed):
    said, true = random_texts(np.random.default_rng(seed), 12)
    said[:4] = [texts[0] for texts in true[:4]]
    values = count(CAPTION_METRICS, said, true)
    assert values['CIDEr'] == pytest.approx(slow_cider(said, true), rel=1e-9)
    assert values['ROUGE-L'] == pytest.approx(slow_rouge(said, true), rel=1e-9)
    for n in range(1, 4):
        # The package adds 1e-15 to numerators, 1e-9 to denominators.
        assert values[f'BLEU-{n}'] == pytest.approx(slow_bleu(said, true, n), abs=1e-5)


@pytest.mark.slow
def test_hand_worked_meteor(real_java):
    """(1 - 0.6 (chunks / matches)^0.2) F; a text that agrees wholly has no penalty."""
    pairs = {
        ('red dog', 'red dog'): 1,
        # P = R = 1/2, one chunk of one match.
        ('dog zebra', 'dog kettle'): 0.4 / 2,
        # P = R = 2/3, one chunk of two matches.
        ('red dog zebra', 'red dog kettle'): (1 - 0.6 * 0.5**0.2) * 2 / 3,
        # All matched, in two chunks.
        ('dog red', 'red dog'): 0.4,
        # A synonym weighs 0.8.
        ('sofa', 'couch'): 0.8,
        ('', 'dog'): 0,
    }
    with CaptionToolkit(['METEOR']) as toolkit:
        # Tokens of all texts first, so that METEOR is started once.
        toolkit.compute(*zip(*[(text, [other]) for text, other in pairs]))
        process = toolkit._meteor._process
        for (text, reference), value in pairs.items():
            assert toolkit.compute([text], [[reference]]) == {'METEOR': pytest.approx(value)}, (
                text,
                reference,
            )
        best = toolkit.compute(['dog red'], [['dog kettle', 'red dog']])
        assert best['METEOR'] == pytest.approx(0.4)
        assert toolkit._meteor._process is process
    assert process.returncode is not None


@pytest.mark.slow
def test_equals_the_package_with_its_own_tokeniser_and_meteor(real_java):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer import ptbtokenizer

    if not os.access(os.path.dirname(ptbtokenizer.__file__), os.W_OK):
        pytest.skip('the tokeniser of pycocoevalcap writes into its folder, which is read-only')
    said, true = random_texts(
        np.random.default_rng(0),
        40,
        'red dogs dog: running, runs. caf\xe9 sofa couch "a" the it\'s don\'t 3.5 (two) on',
    )
    said[3], said[-1] = '', ''
    with CaptionToolkit(CAPTION_METRICS) as toolkit:
        ours = toolkit.compute(said, true)
    tokenise = ptbtokenizer.PTBTokenizer().tokenize
    true = tokenise({i: [dict(caption=text) for text in texts] for i, texts in enumerate(true)})
    said = tokenise({i: [dict(caption=text)] for i, text in enumerate(said)})
    theirs = dict(zip(CAPTION_METRICS[2:6], Bleu(4).compute_score(true, said, verbose=0)[0]))
    for name, metric in dict(METEOR=Meteor, CIDEr=Cider, **{'ROUGE-L': Rouge}).items():
        theirs[name] = metric().compute_score(true, said)[0]
    assert ours == {name: pytest.approx(theirs[name], rel=1e-12) for name in CAPTION_METRICS}
