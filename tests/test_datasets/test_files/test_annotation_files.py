"""Reading of annotation files: plain pickles, JSON, missing paths."""

import copy
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelsail_mm.datasets.files import annotation_files
from pixelsail_mm.datasets.files.annotation_files import (
    MissingFilesError,
    find_file,
    iter_json_list,
    load_json,
    require_keys,
    require_paths,
)
from pixelsail_mm.datasets.files.restricted_pickle import load_plain_pickle
from pixelsail_mm.errors import AnnotationError

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=8,
)


@settings(max_examples=25)
@given(content=plain, protocol=st.sampled_from([3, 4, 5]))
def test_plain_containers_are_read(content, protocol, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / 'plain.p'
    path.write_bytes(pickle.dumps(content, protocol))
    assert load_plain_pickle(path) == content


@pytest.mark.parametrize('protocol', range(6))
def test_refs_like_content_of_any_protocol_is_read(tmp_path, protocol):
    refs = [dict(ref_id=1, sentences=[dict(raw='the left boy', sent_ids={1, 2})])]
    path = tmp_path / 'refs.p'
    path.write_bytes(pickle.dumps(refs, protocol))
    assert load_plain_pickle(path) == refs


def test_text_written_by_python_2_is_read_as_utf8(tmp_path):
    path = tmp_path / 'refs.p'
    path.write_bytes(b'\x80\x02U\x05caf\xc3\xa9.')
    assert load_plain_pickle(path) == 'café'


class _Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize('protocol', range(6))
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, protocol):
    path, trace = tmp_path / 'refs.p', tmp_path / 'trace'
    path.write_bytes(pickle.dumps([dict(ref_id=1), _Malicious(trace)], protocol))
    with pytest.raises(AnnotationError, match='refused to unpickle.*mkdir') as caught:
        load_plain_pickle(path)
    assert not trace.exists()
    assert caught.value.file == str(path) and caught.value.key == 'split_file'
    pickle.loads(path.read_bytes())  # noqa: S301 - our own pickle, made above
    assert trace.is_dir(), 'the pickle must be one that an ordinary reader would have run'


@pytest.mark.parametrize('content', [np.zeros(2), OrderedDict(a=1), Path('.'), print, 1j])
def test_anything_but_plain_containers_is_refused(tmp_path, content):
    path = tmp_path / 'refs.p'
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(AnnotationError, match='refused'):
        load_plain_pickle(path)


@given(st.binary(max_size=60))
def test_random_bytes_never_do_more_than_raise(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / 'noise.p'
    path.write_bytes(data)
    try:
        load_plain_pickle(path)
    except AnnotationError as error:
        assert str(path) in str(error)


def test_a_truncated_pickle_is_named(tmp_path):
    path = tmp_path / 'refs.p'
    path.write_bytes(pickle.dumps([dict(a=1)] * 9)[:-9])
    with pytest.raises(AnnotationError, match='refs.p.*(damaged|refused)'):
        load_plain_pickle(path)


def test_json(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('[1]')
    assert load_json(str(path), 'ann_file', list) == [1]
    with pytest.raises(AnnotationError, match='must hold a JSON dict'):
        load_json(str(path), 'ann_file', dict)
    path.write_text('[1')
    with pytest.raises(AnnotationError, match='a.json: ann_file: not valid JSON'):
        load_json(str(path), 'ann_file', list)


def test_require_keys():
    require_keys(dict(a=1), ('a',), 'f', 'x[0]')
    with pytest.raises(AnnotationError, match=r"f: x\[0\]: lacks \['b'\]"):
        require_keys(dict(a=1), ('a', 'b'), 'f', 'x[0]')
    with pytest.raises(AnnotationError, match='must be a dict'):
        require_keys([1], ('a',), 'f', 'x[0]')


def test_all_missing_paths_are_named_at_once(tmp_path):
    require_paths(dict(ann_file=str(tmp_path)), 'set')
    with pytest.raises(MissingFilesError) as caught:
        require_paths(dict(ann_file='gone.json', split_file='gone.p', root=str(tmp_path)), 'set')
    assert caught.value.missing == [('ann_file', 'gone.json'), ('split_file', 'gone.p')]
    assert all(word in str(caught.value) for word in ('gone.json', 'gone.p', 'data_root', 'set'))
    twin = copy.copy(caught.value)
    assert str(twin) == str(caught.value) and isinstance(twin, FileNotFoundError)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=50)
@given(
    content=st.lists(json_values, max_size=6),
    chunk=st.integers(1, 9),
    indent=st.sampled_from([None, 1]),
)
def test_lists_are_read_entry_by_entry_wherever_the_windows_end(
    content, chunk, indent, tmp_path_factory
):
    path = tmp_path_factory.getbasetemp() / 'list.json'
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding='utf-8')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotation_files, '_CHUNK', chunk)
        assert list(iter_json_list(str(path), 'ann_file')) == content


@pytest.mark.parametrize(
    'text, where',
    [
        ('{"a": 1}', 'ann_file: must hold a JSON list'),
        ('', 'ann_file: must hold a JSON list'),
        ('[{"a": 1}, {"a":', r'\[1\]: not valid JSON'),
        ('[{"a": 1}', r'\[1\]: not valid JSON \(expected a comma'),
        ('[1 2]', r'\[1\]: not valid JSON \(expected a comma'),
        ('[1, ]', r'\[1\]: not valid JSON'),
        ('[1] x', r'\[1\]: not valid JSON \(text behind'),
    ],
)
def test_damaged_lists_are_named(text, where, tmp_path):
    path = tmp_path / 'list.json'
    path.write_text(text)
    with pytest.raises(AnnotationError, match=rf'list\.json: {where}'):
        list(iter_json_list(str(path), 'ann_file'))


def test_a_list_that_is_not_text_is_named(tmp_path):
    path = tmp_path / 'list.json'
    path.write_bytes(b'["\xff\xfe"]')
    with pytest.raises(AnnotationError, match='not UTF-8'):
        list(iter_json_list(str(path), 'ann_file'))


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / 'list.json'
    path.write_bytes(b'\xef\xbb\xbf[1, 2]')
    assert list(iter_json_list(str(path), 'ann_file')) == [1, 2]


def test_a_file_is_found_whatever_the_case_of_its_name(tmp_path):
    (tmp_path / 'muse_train.json').write_text('[]')
    assert find_file(str(tmp_path / 'MUSE_train.json')).lower().endswith('muse_train.json')
    assert os.path.exists(find_file(str(tmp_path / 'MUSE_train.json')))
    assert find_file(str(tmp_path / 'muse_train.json')) == str(tmp_path / 'muse_train.json')
    for gone in ('muse_val.json', 'nowhere/muse_train.json'):
        assert find_file(str(tmp_path / gone)) == str(tmp_path / gone)


def test_of_several_spellings_none_is_guessed(tmp_path):
    for name in ('muse_train.json', 'Muse_train.json'):
        (tmp_path / name).write_text('[]')
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip('this file system takes both names for one file')
    wanted = str(tmp_path / 'MUSE_train.json')
    assert find_file(wanted) == wanted
