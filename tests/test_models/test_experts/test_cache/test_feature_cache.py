"""Feature shards: what is written is read, and what is stale, foreign or damaged is refused."""

import copy
import json
import pickle
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
from pixelsail_mm.models.experts.cache.feature_shards import ImageState, ShardStore, ShardWriter
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


def write(root, names, dtype='float16', fingerprint=FINGERPRINT, **options):
    with ShardWriter(root, fingerprint, dtype, **options) as writer:
        for seed, name in enumerate(names):
            writer.write(name, feature(seed), STATE)


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

    @given(st.lists(st.sampled_from('abcdefgh'), min_size=1, max_size=12), st.integers(1, 200))
    def test_the_newest_map_of_a_name_counts(self, tmp_path_factory, names, shard_bytes):
        root = tmp_path_factory.mktemp('shards')
        write(root, names, shard_bytes=shard_bytes)
        store = ShardStore(root)
        assert sorted(store.names()) == sorted(set(names)) and len(store) == len(set(names))
        for name in set(names):
            last = len(names) - 1 - names[::-1].index(name)
            assert torch.equal(store.read(name), feature(last).half().float())
        assert store.is_current('z', root) is None

    def test_shards_end_at_their_size(self, tmp_path):
        write(tmp_path, 'abcd', shard_bytes=60)  # a map has 48 bytes
        assert sorted(p.name for p in tmp_path.glob('*.safetensors')) == [
            'features-000000.safetensors',
            'features-000001.safetensors',
        ]

    def test_maps_that_the_expert_overwrites_are_kept(self, tmp_path):
        """Maps wait for their shard; an expert may use one buffer for all of them."""
        buffer = torch.zeros(2, 1, 1, 1)
        with ShardWriter(tmp_path, FINGERPRINT, 'float32') as writer:
            for i, name in enumerate('abc'):
                buffer += 1
                writer.write(name, buffer[i % 2], STATE)
        assert [read(tmp_path, name).item() for name in 'abc'] == [1, 2, 3]

    @pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason="needs Linux' /proc/self/fd")
    def test_reading_keeps_no_shard_open(self, tmp_path):
        """A map keeps its file open: thousands of shards would use up a process's files."""
        write(tmp_path, 'abcdefgh', shard_bytes=1)
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
    def test_what_is_no_map_is_refused(self, given, says, tmp_path):
        with ShardWriter(tmp_path, FINGERPRINT, 'float16') as writer:
            with pytest.raises(ConfigError, match=f'a.jpg: the expert gives .*{says}'):
                writer.write('a.jpg', given, STATE)
        assert len(ShardStore(tmp_path)) == 0

    @pytest.mark.parametrize(
        'value, dtype, says',
        [
            (7e4, 'float16', '70000 exceed float16.*bfloat16'),
            (float('nan'), 'float16', 'NaN'),
            (float('inf'), 'float32', 'NaN or infinity'),
        ],
    )
    def test_what_the_dtype_cannot_hold_is_refused(self, value, dtype, says, tmp_path):
        with ShardWriter(tmp_path, FINGERPRINT, dtype) as writer:
            with pytest.raises(ConfigError, match=f'big.jpg.*{says}'):
                writer.write('big.jpg', torch.full((1, 2, 2), value), STATE)
        assert len(ShardStore(tmp_path)) == 0
        if value == 7e4:
            write(tmp_path / 'wide', ['a'], 'bfloat16')


class TestInterrupted:
    """A killed process leaves whole shards and at most a file that nobody reads."""

    def test_an_error_keeps_what_was_computed_before(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            with ShardWriter(tmp_path, FINGERPRINT, 'float16') as writer:
                writer.write('a', feature(0), STATE)
                raise KeyboardInterrupt
        assert torch.equal(read(tmp_path, 'a'), feature(0).half().float())

    def test_an_unfinished_file_is_not_read(self, tmp_path):
        write(tmp_path, 'ab')
        shard = tmp_path / 'features-000000.safetensors'
        (tmp_path / '0123.unfinished').write_bytes(shard.read_bytes()[:-20])
        write(tmp_path, 'c')
        assert sorted(ShardStore(tmp_path).names()) == ['a', 'b', 'c']

    def test_every_damaged_shard_is_named_and_can_be_made_again(self, tmp_path):
        """A power cut may leave zeros or nothing in files whose names were on the disk already."""
        write(tmp_path, 'abc', shard_bytes=1)
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
        one, two = (ShardWriter(tmp_path, FINGERPRINT, 'float16') for _ in range(2))
        for i in range(3):
            one.write(f'one{i}', feature(i), STATE)
            two.write(f'two{i}', feature(10 + i), STATE)
            one.save()
        two.save()
        assert len(list(tmp_path.iterdir())) == 5 and len(ShardStore(tmp_path)) == 6
        assert torch.equal(read(tmp_path, 'one2'), feature(2).half().float())
        assert torch.equal(read(tmp_path, 'two2'), feature(12).half().float())


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
        with ShardWriter(root, FINGERPRINT, 'float16') as writer:
            for i in range(2):
                writer.write(f'images/{i}.png', feature(i), ImageState.read(images / f'{i}.png'))
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
        ShardWriter(tmp_path / 'new', FINGERPRINT, 'float16')
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
            ShardWriter(tmp_path, FINGERPRINT, 'float16')

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
            ShardWriter(root, fingerprint, dtype)
        assert {path.name: path.read_bytes() for path in root.iterdir()} == before
