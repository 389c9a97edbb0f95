"""Feature shards: what is written is read, and what is stale, foreign or damaged is refused."""

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.experts import CachedExpert, VisionExpert
from pixelsail_mm.models.experts.cache.build import Image as ImageFile
from pixelsail_mm.models.experts.cache.build import Job, cache_images
from pixelsail_mm.models.experts.cache.feature_shards import (
    ImageState,
    ShardStore,
    create_cache,
    narrow,
    write_shard,
)
from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample

STATE = ImageState(size=5, mtime=7, content='9')
FINGERPRINT = dict(expert='Numbers', weights_sha256='ab', feature='last', preprocessing={'size': 8})


@MODELS.register_module(force=True)
class NumbersOfTest(VisionExpert):
    """An expert whose config tells all of its fingerprint but the weights."""

    def __call__(self, data_samples):
        raise AssertionError('a training from a cache must not run the expert')

    @classmethod
    def fingerprint_of(cls, size=8):
        return FINGERPRINT | dict(weights_sha256=None, preprocessing=dict(size=size))


def feature(seed, shape=(2, 3, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write(root, names, dtype='float16', fingerprint=FINGERPRINT, per_shard=100):
    create_cache(root, fingerprint, dtype)
    numbered = list(enumerate(names))
    for i in range(0, len(numbered), per_shard):
        maps = {n: narrow(n, feature(seed), dtype) for seed, n in numbered[i : i + per_shard]}
        write_shard(root, maps, dict.fromkeys(maps, STATE))


def read(root, name):
    return ShardStore(root).read(name)


class TestShards:
    @pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32'])
    def test_values_are_those_of_the_dtype(self, dtype, tmp_path):
        write(tmp_path, ['a.jpg', 'b/ü.png'], dtype)
        found = read(tmp_path, 'b/ü.png')
        assert found.dtype == torch.float32
        assert torch.equal(found, feature(1).to(getattr(torch, dtype)).float())

    def test_a_shard_is_a_plain_safetensors_file(self, tmp_path):
        write(tmp_path, ['a.jpg', 'b.jpg'])
        found = load_file(tmp_path / 'features-000000.safetensors')
        assert set(found) == {'a.jpg', 'b.jpg'}
        assert torch.equal(found['b.jpg'], feature(1).half())

    @given(st.lists(st.sampled_from('abcdefgh'), min_size=1, max_size=12), st.integers(1, 12))
    def test_the_newest_map_of_a_name_counts(self, tmp_path_factory, names, per_shard):
        root = tmp_path_factory.mktemp('shards')
        write(root, names, per_shard=per_shard)
        store = ShardStore(root)
        assert sorted(store.names()) == sorted(set(names)) and len(store) == len(set(names))
        for name in set(names):
            last = len(names) - 1 - names[::-1].index(name)
            assert torch.equal(store.read(name), feature(last).half().float())
        assert store.is_current('z', root) is None

    def test_maps_that_the_expert_overwrites_are_kept(self):
        """Maps wait for their shard; an expert may use one buffer for all of them."""
        buffer = torch.zeros(1, 1, 1)
        kept = []
        for name in 'abc':
            buffer += 1
            kept.append(narrow(name, buffer, 'float32'))
        assert [values.item() for values in kept] == [1, 2, 3]

    @pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason="needs Linux' /proc/self/fd")
    def test_reading_keeps_no_shard_open(self, tmp_path):
        """A map keeps its file open: thousands of shards would use up a process's files."""
        write(tmp_path, 'abcdefgh', per_shard=1)
        store = ShardStore(tmp_path)
        before = len(list(Path('/proc/self/fd').iterdir()))
        for seed, name in enumerate('abcdefgh'):
            assert torch.equal(store.read(name), feature(seed).half().float())
        assert len(list(tmp_path.glob('*.safetensors'))) == 8
        assert len(list(Path('/proc/self/fd').iterdir())) == before

    def test_copies_read_the_same(self, tmp_path):
        """A copied or pickled model must not carry gigabytes of mapped shards along."""
        write(tmp_path, ['a'])
        store = ShardStore(tmp_path)
        store.read('a')
        pickled = pickle.dumps(store)
        assert len(pickled) < 2000
        for other in (copy.deepcopy(store), pickle.loads(pickled)):  # noqa: S301  our own bytes
            assert torch.equal(other.read('a'), feature(0).half().float())

    def test_whoever_may_read_the_shards_may_read_the_index(self, tmp_path):
        write(tmp_path, ['a'])
        modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
        assert set(modes) == {'index.json', 'features-000000.safetensors'}
        assert modes['index.json'] == modes['features-000000.safetensors']

    @pytest.mark.parametrize(
        'given, says',
        [
            (None, 'NoneType'),
            (torch.zeros(1, 2, 0), 'float32 .1, 2, 0.'),
            (torch.zeros(2, 2, dtype=torch.int64), 'int64 .2, 2.'),
        ],
    )
    def test_what_is_no_map_is_refused(self, given, says):
        with pytest.raises(ConfigError, match=f'a.jpg: the expert gives .*{says}'):
            narrow('a.jpg', given, 'float16')

    @pytest.mark.parametrize(
        'value, dtype, says',
        [
            (7e4, 'float16', '70000 exceed float16.*bfloat16'),
            (float('nan'), 'float16', 'NaN'),
            (float('inf'), 'float32', 'NaN or infinity'),
        ],
    )
    def test_what_the_dtype_cannot_hold_is_refused(self, value, dtype, says):
        values = torch.full((1, 2, 2), value)
        with pytest.raises(ConfigError, match=f'big.jpg.*{says}'):
            narrow('big.jpg', values, dtype)
        if value == 7e4:
            assert narrow('big.jpg', values, 'bfloat16').isfinite().all()


class TestInterrupted:
    """A killed process leaves whole shards and at most a file that nobody reads."""

    def test_an_error_keeps_what_was_computed_before(self, tmp_path):
        class Interrupted(NumbersOfTest):
            def fingerprint(self):
                return FINGERPRINT

            def __call__(self, data_samples):
                if data_samples[0].sample_id == 'b.png':
                    raise KeyboardInterrupt
                return [feature(0)]

        for name in 'ab':
            Image.new('RGB', (4, 4)).save(tmp_path / f'{name}.png')
        job = Job(dict(type='NumbersOfTest'), str(tmp_path / 'cache'), str(tmp_path))
        create_cache(job.out, FINGERPRINT, job.dtype)
        with pytest.raises(KeyboardInterrupt):
            cache_images(
                job,
                Interrupted(),
                [ImageFile(f'{name}.png', str(tmp_path / f'{name}.png')) for name in 'ab'],
            )
        assert list(ShardStore(job.out).names()) == ['a.png']
        assert torch.equal(read(job.out, 'a.png'), feature(0).half().float())

    def test_an_unfinished_file_is_not_read(self, tmp_path):
        write(tmp_path, 'ab')
        shard = tmp_path / 'features-000000.safetensors'
        (tmp_path / '0123.unfinished').write_bytes(shard.read_bytes()[:-20])
        write(tmp_path, 'c')
        assert sorted(ShardStore(tmp_path).names()) == ['a', 'b', 'c']

    def test_every_damaged_shard_is_named_and_can_be_made_again(self, tmp_path):
        """A power cut may leave zeros or nothing in files whose names were on the disk already."""
        write(tmp_path, 'abc', per_shard=1)
        for number, content in enumerate([b'', bytes(128)]):
            (tmp_path / f'features-00000{number}.safetensors').write_bytes(content)
        with pytest.raises(ConfigError, match='features-000000.*features-000001.*delete these'):
            ShardStore(tmp_path)
        for number in range(2):
            (tmp_path / f'features-00000{number}.safetensors').unlink()
        write(tmp_path, 'ab')
        assert torch.equal(read(tmp_path, 'b'), feature(1).half().float())
        assert torch.equal(read(tmp_path, 'c'), feature(2).half().float())

    def test_writers_at_the_same_time_take_shards_of_their_own(self, tmp_path):
        """All processes find the same highest number and ask for the next one at once."""
        create_cache(tmp_path, FINGERPRINT, 'float16')
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: write(tmp_path, [f'w{i}']), range(32)))
        assert len(list(tmp_path.iterdir())) == 33 and len(ShardStore(tmp_path)) == 32
        assert torch.equal(read(tmp_path, 'w31'), feature(0).half().float())


class TestCachedExpert:
    """Reading by image path, and everything that is refused."""

    @pytest.fixture
    def images(self, tmp_path):
        folder = tmp_path / 'data' / 'images'
        folder.mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(folder / f'{i}.png')
        return folder

    @pytest.fixture
    def root(self, tmp_path, images):
        root = tmp_path / 'cache'
        names = [f'images/{i}.png' for i in range(2)]
        create_cache(root, FINGERPRINT, 'float16')
        write_shard(
            root,
            {name: narrow(name, feature(i), 'float16') for i, name in enumerate(names)},
            {name: ImageState.read(images.parent / name) for name in names},
        )
        return root

    def sample(self, path):
        return PixelDataSample(metainfo=dict(sample_id='s', img_path=str(path)))

    def open(self, root, images, **options):
        return CachedExpert(str(root), str(images.parent), **options)

    def test_maps_of_a_batch(self, root, images):
        text = PixelDataSample(metainfo=dict(sample_id='t', img_path=None))
        expert = self.open(root, images, of=dict(type='NumbersOfTest'))
        one, nothing, zero = expert(
            [self.sample(images / '1.png'), text, self.sample(images / '0.png')]
        )
        assert nothing is None and torch.equal(one, feature(1).half().float())
        assert torch.equal(zero, feature(0).half().float())
        assert expert.fingerprint() == FINGERPRINT

    def test_the_data_may_move(self, root, images, tmp_path):
        images.parent.rename(tmp_path / 'moved')
        expert = CachedExpert(str(root), str(tmp_path / 'moved'))
        assert expert([self.sample(tmp_path / 'moved/images/1.png')])[0] is not None

    def test_a_copy_with_another_time_is_the_same_image(self, root, images):
        content = (images / '0.png').read_bytes()
        (images / '0.png').write_bytes(content)
        assert self.open(root, images)([self.sample(images / '0.png')])[0] is not None

    @pytest.mark.parametrize(
        'change', [lambda content: content + b'\0', lambda content: content[:-1] + b'\0']
    )
    def test_a_changed_image_is_refused(self, root, images, change):
        path = images / '0.png'
        path.write_bytes(change(path.read_bytes()))
        expert = self.open(root, images)
        with pytest.raises(ConfigError, match='0.png: changed since'):
            expert([self.sample(path)])
        assert expert([self.sample(images / '1.png')])[0] is not None

    def test_a_missing_image_is_named_with_what_there_is(self, root, images):
        other = self.sample(images / 'absent.png')
        with pytest.raises(FileNotFoundError, match='images/absent.png .*e.g. images/[01].png'):
            self.open(root, images)([other])
        lenient = self.open(root, images, allow_missing=True)
        assert lenient([other]) == [None] and lenient.missing == {'images/absent.png': 1}

    def test_another_expert_is_refused(self, root, images):
        with pytest.raises(ConfigError, match='preprocessing.size is 8 instead of 16'):
            self.open(root, images, of=dict(type='NumbersOfTest', size=16))
        with pytest.raises(ConfigError, match="weights_sha256 is 'ab' instead of 'cd'"):
            self.open(root, images, fingerprint=dict(weights_sha256='cd'))

    def test_unknown_weights_are_reported_and_the_rest_compared(self, root, images, caplog):
        from mmengine.logging import MMLogger

        logger = MMLogger.get_current_instance()
        logger.addHandler(caplog.handler)
        try:
            self.open(root, images, of=dict(type='NumbersOfTest'))
        finally:
            logger.removeHandler(caplog.handler)
        assert 'weights_sha256 of NumbersOfTest cannot be told' in caplog.text

    def test_of_must_be_the_config_of_an_expert(self, root, images):
        with pytest.raises(ConfigError, match="of: type='LearnableUpsampler'"):
            self.open(root, images, of=dict(type='LearnableUpsampler'))
        with pytest.raises(ConfigError, match="of, NumbersOfTest: .*'sise'"):
            self.open(root, images, of=dict(type='NumbersOfTest', sise=8))

    def test_a_truncated_shard_is_refused(self, root, images):
        shard = root / 'features-000000.safetensors'
        shard.write_bytes(shard.read_bytes()[:-60])
        with pytest.raises(ConfigError, match='truncated: .*features-000000.*delete these files'):
            self.open(root, images)

    def test_a_shard_that_is_cut_while_it_is_read_is_named(self, root, images):
        """A file that stays mapped would end the process without a word."""
        expert = self.open(root, images)
        expert([self.sample(images / '0.png')])
        shard = root / 'features-000000.safetensors'
        shard.write_bytes(shard.read_bytes()[:-60])
        with pytest.raises(ConfigError, match='features-000000.*: the features of images/1.png'):
            expert([self.sample(images / '1.png')])
        shard.unlink()
        with pytest.raises(FileNotFoundError):
            expert([self.sample(images / '1.png')])

    def test_a_cache_without_an_image_yet(self, images, tmp_path):
        """The tool was stopped before the first one was done; the folder is no set of files."""
        create_cache(tmp_path / 'new', FINGERPRINT, 'float16')
        expert = self.open(tmp_path / 'new', images)
        with pytest.raises(FileNotFoundError, match=r'new/images/0.png \(empty\)'):
            expert([self.sample(images / '0.png')])

    def test_a_flipped_bit_is_named(self, root, images):
        shard = root / 'features-000000.safetensors'
        content = bytearray(shard.read_bytes())
        content[-3] ^= 1
        shard.write_bytes(content)
        with pytest.raises(ConfigError, match='features-000000.*images/1.png are damaged'):
            self.open(root, images)([self.sample(images / '1.png')])

    def test_a_damaged_header_is_refused(self, root, images):
        shard = root / 'features-000000.safetensors'
        whole = shard.read_bytes()
        for place in range(int.from_bytes(whole[:8], 'little') + 8):
            content = bytearray(whole)
            content[place] ^= 1
            shard.write_bytes(content)
            try:
                found = self.open(root, images)(
                    [self.sample(images / f'{i}.png') for i in range(2)]
                )
            except (ConfigError, FileNotFoundError) as error:
                assert 'cache' in str(error)
            else:  # a space, or a digit of a time, which the image's hash makes up for
                assert [torch.equal(found[i], feature(i).half().float()) for i in range(2)] == [
                    True,
                    True,
                ], place

    def test_a_cache_of_an_earlier_version_is_refused(self, images, tmp_path):
        (tmp_path / 'index.json').write_text(
            json.dumps(
                dict(FINGERPRINT, format='pixelsail_mm feature shards, version 1', dtype='float16')
            )
        )
        with pytest.raises(ConfigError, match="version 1' is not .*delete the folder and run"):
            self.open(tmp_path, images)
        with pytest.raises(ConfigError, match='version 1.* instead of .*version 2.*delete this'):
            create_cache(tmp_path, FINGERPRINT, 'float16')

    @pytest.mark.parametrize(
        'content',
        ['{"format": "pixelsail', '[]', None, '{"format": "pixelsail_mm feature shards, 3"}'],
    )
    def test_a_damaged_index_is_refused(self, content, root, images):
        (root / 'index.json').unlink()
        if content is not None:
            (root / 'index.json').write_text(content)
        with pytest.raises(ConfigError, match='index.json'):
            self.open(root, images)

    def test_sample_ids_name_no_image(self, root):
        with pytest.raises(ConfigError, match="use key='img_path'"):
            CachedExpert(str(root), key='sample_id')

    @pytest.mark.parametrize(
        'fingerprint, dtype, says',
        [
            (FINGERPRINT | dict(weights_sha256='cd'), 'float16', "'ab' instead of 'cd'"),
            (FINGERPRINT, 'float32', "dtype is 'float16' instead of 'float32'"),
        ],
    )
    def test_nothing_else_can_be_added(self, fingerprint, dtype, says, root):
        before = {path.name: path.read_bytes() for path in root.iterdir()}
        with pytest.raises(ConfigError, match=says):
            create_cache(root, fingerprint, dtype)
        assert {path.name: path.read_bytes() for path in root.iterdir()} == before
