"""Items as bytes: in memory, on disk, and rebuilt whenever something they depend on changes."""

import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from pixelsail_mm.datasets import AnnotationError, LLaVADataset
from pixelsail_mm.datasets.files.index_cache import (
    IndexCache,
    fingerprint,
    items_in_memory,
    read_item,
    without_garbage_collection,
    write_items,
)


def write_turns(path, questions):
    path.write_text(
        json.dumps(
            [
                dict(conversations=[{'from': 'human', 'value': q}, {'from': 'gpt', 'value': 'yes'}])
                for q in questions
            ]
        )
    )


@pytest.fixture
def build(tmp_path):
    """Build a LLaVA reader with an index cache, counting how often it parses."""
    (tmp_path / 'images').mkdir()
    write_turns(tmp_path / 'a.json', ['one', 'two', 'three'])
    parsed = []

    class Counted(LLaVADataset):
        def load_data_list(self):
            parsed.append(1)
            return super().load_data_list()

    def make(**options):
        options = dict(dict(ann_file='a.json', index_cache=str(tmp_path / 'cache')), **options)
        dataset = Counted(data_root=str(tmp_path), data_prefix=dict(img_path='images'), **options)
        return dataset, len(parsed)

    return make


def questions(dataset):
    return [sample['conversation'][0]['human'] for sample in dataset]


def test_items_come_back():
    items = [dict(a=[1, 2.5, None], b='ü'), dict(), dict(c=b'\0')]
    data, ends = items_in_memory(iter(items))
    assert [read_item(data, ends, i) for i in range(3)] == items
    assert data.dtype == np.uint8 and len(data) == ends[-1]


def test_items_are_pickles_of_their_own_wherever_the_writes_end(tmp_path):
    shared = ['shared'] * 2
    items = [dict(shared=shared, number=i, text='x' * 5000) for i in range(450)]
    with open(tmp_path / 'items.bin', 'wb') as file:
        ends = write_items(iter(items), file)
    data = np.fromfile(tmp_path / 'items.bin', np.uint8)
    assert len(data) == ends[-1] > 2 << 20
    assert [read_item(data, ends, i) for i in range(len(items))] == items


def test_bytes_that_would_run_code_are_refused():
    data = np.frombuffer(pickle.dumps(os.getcwd), np.uint8)
    with pytest.raises(pickle.UnpicklingError, match='getcwd'):
        read_item(data, np.array([len(data)]), 0)


def test_the_second_build_reads_the_index(build):
    first, parsed = build()
    second, again = build()
    assert (parsed, again) == (1, 1)
    assert questions(first) == questions(second) == ['one', 'two', 'three']
    assert isinstance(second.data_bytes, np.memmap)


def test_skipped_entries_are_counted_from_the_index_too(build, tmp_path):
    write_turns(tmp_path / 'a.json', ['one', '', 'three'])
    first, _ = build()
    second, _ = build()
    assert first.skipped == second.skipped
    assert sum(second.skipped.values()) == 1 and questions(second) == ['one', 'three']


@pytest.mark.parametrize('change', ['file', 'option', 'indices'])
def test_a_change_builds_another_index(build, tmp_path, change):
    build()
    options = {}
    if change == 'file':
        write_turns(tmp_path / 'a.json', ['four', 'five'])
    elif change == 'option':
        options = dict(max_turns=1)
    else:
        options = dict(indices=[2, 0])
    dataset, parsed = build(**options)
    assert parsed == 2
    assert (
        questions(dataset)
        == dict(file=['four', 'five'], option=['one', 'two', 'three'], indices=['three', 'one'])[
            change
        ]
    )


def test_options_that_are_objects_do_not_change_the_fingerprint():
    class Option:
        def __init__(self, value):
            self.value = value

    def make(value):
        return fingerprint(LLaVADataset, dict(option=Option(value), names={'b', 'a'}), [])

    assert make(1) == make(1) != make(2)


@pytest.mark.parametrize('damage', ['cut', 'meta', 'other', 'empty', 'gone'])
def test_a_damaged_index_is_built_again(build, tmp_path, damage):
    build()
    (entry,) = (tmp_path / 'cache').iterdir()
    if damage == 'cut':
        (entry / 'items.bin').write_bytes((entry / 'items.bin').read_bytes()[:-1])
    elif damage == 'meta':
        (entry / 'meta.json').write_text('{')
    elif damage == 'other':
        (entry / 'meta.json').write_text('[]')
    elif damage == 'empty':
        (entry / 'ends.npy').write_bytes(b'')
    else:
        (entry / 'ends.npy').unlink()
    dataset, parsed = build()
    assert parsed == 2 and questions(dataset) == ['one', 'two', 'three']
    assert build()[1] == 2


def test_an_interrupted_build_leaves_nothing_behind(tmp_path):
    def items():
        yield dict(a=1)
        raise KeyboardInterrupt

    cache = IndexCache(tmp_path / 'cache')
    identity = fingerprint(LLaVADataset, {}, [])
    with pytest.raises(KeyboardInterrupt):
        cache.store(identity, items, dict)
    assert cache.load(identity) is None and not list((tmp_path / 'cache').iterdir())


def test_a_folder_that_cannot_be_written_costs_the_cache_only(build, tmp_path):
    (tmp_path / 'file').write_text('')
    dataset, parsed = build(index_cache=str(tmp_path / 'file' / 'cache'))
    assert parsed == 1 and questions(dataset) == ['one', 'two', 'three']


def test_no_item_is_an_error_and_leaves_no_index(build, tmp_path):
    (tmp_path / 'a.json').write_text('[]')
    for _ in range(2):
        with pytest.raises(AnnotationError, match='has no item'):
            build()
    assert not list((tmp_path / 'cache').iterdir())


@pytest.mark.integration
def test_processes_that_build_at_once_agree(tmp_path):
    (tmp_path / 'images').mkdir()
    write_turns(tmp_path / 'a.json', [f'question {i}' for i in range(500)])
    script = textwrap.dedent(f"""
        from pixelsail_mm.datasets import LLaVADataset
        d = LLaVADataset('a.json', data_root={str(tmp_path)!r}, index_cache={str(tmp_path / 'c')!r},
                         data_prefix=dict(img_path='images'))
        print(len(d), d[499]['conversation'][0]['human'])
    """)
    runs = [
        subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert {run.communicate()[0] for run in runs} == {'500 question 499\n'}
    assert len(list((tmp_path / 'c').iterdir())) == 1
    shutil.rmtree(tmp_path / 'c')


def test_the_collector_rests_and_comes_back():
    with without_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with without_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
