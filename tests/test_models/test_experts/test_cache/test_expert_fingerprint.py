"""What identifies an expert, its weights and the images it has seen."""

import json
import os

import pytest
import torch

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.experts.cache.fingerprint import (
    mismatches,
    settings_sha256,
    tensors_sha256,
    weights_sha256,
)
from pixelsail_mm.models.experts.cache.image_names import image_name


class TestImageNames:
    def test_one_root(self):
        assert image_name('data/coco/1.jpg', 'data') == 'coco/1.jpg'
        assert image_name('data/coco/../sam/1.jpg', 'data/') == 'sam/1.jpg'

    def test_of_several_the_innermost_counts(self):
        roots = {'all': '/d', 'coco': '/d/sets/coco'}
        assert image_name('/d/sets/coco/a/1.jpg', roots) == 'coco/a/1.jpg'
        assert image_name('/d/x/1.jpg', roots) == 'all/x/1.jpg'

    def test_outside_is_refused(self):
        with pytest.raises(ConfigError, match='outside of image_root'):
            image_name('/elsewhere/1.jpg', {'a': '/d', 'b': '/e'})


class TestFingerprint:
    def test_a_file_has_its_own_sum(self, tmp_path):
        file = tmp_path / 'w.onnx'
        file.write_bytes(b'abc')
        known = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
        assert weights_sha256(file) == known

    def test_other_weights_with_the_old_time_are_hashed_again(self, tmp_path):
        """As ``rsync -t``, ``cp -p`` or an archive of normalised times leave them."""
        file = tmp_path / 'w.onnx'
        file.write_bytes(b'abc')
        state, old = file.stat(), weights_sha256(file)
        file.write_bytes(b'abd')
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert weights_sha256(file) != old

    def test_folders(self, tmp_path):
        folder = tmp_path / 'model'
        folder.mkdir()
        assert weights_sha256(folder) is None
        (folder / 'pytorch_model.bin').write_bytes(b'not what is loaded')
        (folder / 'model.safetensors').write_bytes(b'abc')
        assert weights_sha256(folder).startswith('ba7816bf')
        (folder / 'model.safetensors').unlink()
        for i in (1, 2):
            (folder / f'model-0000{i}-of-00002.safetensors').write_bytes(b'%d' % i)
        both = weights_sha256(folder)
        (folder / 'model-00002-of-00002.safetensors').write_bytes(b'3')
        assert weights_sha256(folder) != both

    def test_settings_of_a_folder(self, tmp_path):
        """What the model does counts, what the file says about itself does not."""

        def told(**settings):
            (tmp_path / 'config.json').write_text(json.dumps(settings))
            return settings_sha256(tmp_path)

        first = told(heads=2, vision=dict(window=[8, 4]), transformers_version='4.56.0')
        assert first == told(
            vision=dict(window=[8, 4], torch_dtype='float32'),
            heads=2,
            transformers_version='4.57.6',
            architectures=['A'],
        )
        assert first != told(heads=2, vision=dict(window=[8, 8]))
        (tmp_path / 'config.json').unlink()
        assert settings_sha256(tmp_path) is None
        (tmp_path / 'config.json').write_text('{"')
        assert settings_sha256(tmp_path) is None
        assert settings_sha256(dict(heads=2)) != settings_sha256(dict(heads=1))

    def test_weights_that_are_not_here(self):
        assert weights_sha256('nobody/nothing-of-this-name') is None
        assert weights_sha256('/no/such/folder') is None

    def test_tensors(self):
        state = dict(a=torch.ones(2), b=torch.zeros(3))
        assert tensors_sha256(state) == tensors_sha256(dict(reversed(state.items())))
        assert tensors_sha256(state) != tensors_sha256(dict(state, a=torch.tensor([1.0, 2.0])))

    def test_mismatches_name_the_entry(self):
        found = dict(expert='A', preprocessing=dict(size=8, mean=[0]))
        assert mismatches(found, dict(expert=None, preprocessing=dict(size=8))) == []
        assert mismatches(found, dict(preprocessing=dict(mean=[1]))) == [
            'preprocessing.mean[0] is 0 instead of 1'
        ]
