"""cache_expert_features.py: which images, which expert, kill and resume, what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from pixelsail_mm.errors import ConfigError
from pixelsail_mm.models.experts.cache.build import (
    Job,
    cache_features,
    choose_expert,
    list_images,
    make_job,
)
from pixelsail_mm.models.experts.cache.feature_shards import ShardStore
from pixelsail_mm.registry import DATASETS

HERE = str(Path(__file__).parent)
CACHED = dict(type='CachedExpert', root='somewhere', image_root='data', of=dict(type='SAM2Expert'))


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import toy_expert

    return toy_expert.ToyExpert


@pytest.fixture
def config(tmp_path):
    """Two readers that share images, some entries without; one image is broken."""
    images = tmp_path / 'data/images'
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 256, (8 + i, 16, 3), np.uint8)
        Image.fromarray(pixels).save(images / f'{i:02}.png')
    (images / '07.png').write_bytes(b'broken')
    talk = [{'from': 'human', 'value': 'what?'}, {'from': 'gpt', 'value': 'this'}]
    for name, numbers in (('a', range(25)), ('b', range(15, 40))):
        entries = [dict(image=f'{i:02}.png', conversations=talk) for i in numbers]
        (tmp_path / f'data/{name}.json').write_text(
            json.dumps(entries + entries[:3] + [dict(conversations=talk)])
        )
    readers = [
        dict(
            type='LLaVADataset',
            data_root=str(tmp_path / 'data'),
            ann_file=f'{name}.json',
            data_prefix=dict(img_path='images'),
            pipeline=[dict(type='NotBuilt')],
        )
        for name in 'ab'
    ]
    return Config(
        dict(
            custom_imports=dict(imports=['toy_expert']),
            model=dict(
                distill=[
                    dict(
                        type='ExpertDistillLoss',
                        name='toy',
                        expert=dict(
                            type='CachedExpert',
                            root=str(tmp_path / 'cache'),
                            image_root=str(tmp_path / 'data'),
                            of=dict(type='ToyExpert', seconds=0.05),
                        ),
                    )
                ]
            ),
            train_dataloader=dict(
                dataset=dict(
                    type='MixtureDataset',
                    pipeline=[dict(type='NotBuilt')],
                    datasets=[readers[0], dict(type='MixtureDataset', datasets=readers[1:])],
                )
            ),
        )
    )


class TestImages:
    def test_each_image_once_by_its_path(self, config, tmp_path):
        images = list_images(config, str(tmp_path / 'data'))
        assert [image.name for image in images] == [f'images/{i:02}.png' for i in range(40)]
        assert images[3].path == str(tmp_path / 'data/images/03.png')

    def test_shards_are_disjoint_and_complete(self, config, tmp_path):
        parts = [list_images(config, str(tmp_path / 'data'), (i, 3)) for i in range(3)]
        names = [image.name for part in parts for image in part]
        assert len(set(names)) == len(names) == 40

    def test_merged_readers_train_on_the_images_of_the_first(self, config, tmp_path):
        parts = config.train_dataloader.dataset.datasets
        config.train_dataloader.dataset = dict(
            type='MergedDataset', require_all=True, datasets=[parts[0], parts[1].datasets[0]]
        )
        assert [image.name for image in list_images(config, str(tmp_path / 'data'))] == [
            f'images/{i:02}.png' for i in range(15, 25)
        ]

    def test_mmengines_wrappers(self, config, tmp_path):
        parts = config.train_dataloader.dataset.datasets
        config.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=parts[0])
        assert len(list_images(config, str(tmp_path / 'data'))) == 25

    def test_a_data_set_that_cannot_tell_is_named(self, config):
        DATASETS.register_module(name='Mute', module=lambda: [1, 2], force=True)
        config.train_dataloader.dataset = dict(type='Mute')
        with pytest.raises(ConfigError, match='list does not say which images'):
            list_images(config, 'data')


class TestExpert:
    @pytest.fixture
    def cfg(self):
        return dict(
            model=dict(
                distill=[
                    dict(type='ExpertDistillLoss', expert=dict(type='Mask2FormerExpert')),
                    dict(type='ExpertDistillLoss', name='sam2', expert=CACHED),
                ]
            )
        )

    @pytest.mark.parametrize(
        'wanted, kind',
        [
            ('0', 'Mask2FormerExpert'),
            ('Mask2FormerExpert', 'Mask2FormerExpert'),
            ('1', 'CachedExpert'),
            ('sam2', 'CachedExpert'),
            ('SAM2Expert', 'CachedExpert'),
        ],
    )
    def test_by_name_number_and_type(self, cfg, wanted, kind):
        assert choose_expert(cfg, wanted)['type'] == kind

    @pytest.mark.parametrize('wanted, number', [(None, 2), ('dino', 0)])
    def test_none_or_several_are_refused(self, cfg, wanted, number):
        with pytest.raises(ConfigError, match=f'{number} entries.*Mask2FormerExpert; 1, sam2'):
            choose_expert(cfg, wanted)

    def test_from_a_file(self, cfg, tmp_path):
        file = tmp_path / 'mine.py'
        file.write_text("expert = dict(type='OnnxExpert', model='m.onnx')")
        job = make_job(cfg, Config.fromfile(file), 'out', 'data', device='cpu')
        assert job.expert == dict(type='OnnxExpert', model='m.onnx')
        file.write_text('other = 1')
        with pytest.raises(ConfigError, match='mine.py: must set expert'):
            choose_expert(cfg, Config.fromfile(file))

    def test_imports_of_the_file_reach_the_workers(self, cfg, tmp_path):
        cfg['custom_imports'] = dict(imports=['pixelsail_mm.errors'])
        file = tmp_path / 'mine.py'
        file.write_text(
            "expert = dict(type='Mine')\ncustom_imports = dict(imports=['pixelsail_mm.registry'])"
        )
        job = make_job(cfg, Config.fromfile(file), 'out', 'data', device='cpu')
        assert [entry['imports'] for entry in job.custom_imports] == [
            ['pixelsail_mm.errors'],
            ['pixelsail_mm.registry'],
        ]

    @pytest.mark.parametrize('device', ['gpu', 'cuda:99', 'meta'])
    def test_a_device_that_is_not_there_is_named(self, cfg, device):
        with pytest.raises(ConfigError, match=f'--device {device}: '):
            make_job(cfg, 'sam2', device=device)

    def test_a_cached_expert_says_all(self, cfg):
        job = make_job(cfg, 'sam2', device='cpu')
        assert (job.expert, job.out) == (dict(type='SAM2Expert'), 'somewhere')
        assert job.image_root == 'data'
        assert make_job(cfg, 'sam2', 'elsewhere', device='cpu').out == 'elsewhere'

    def test_what_is_missing_is_named(self, cfg):
        with pytest.raises(ConfigError, match='--out is missing'):
            make_job(cfg, '0')
        cfg['model']['distill'][1]['expert'] = dict(CACHED, of=None)
        with pytest.raises(ConfigError, match='of is missing'):
            make_job(cfg, 'sam2')


class TestFeatures:
    @pytest.fixture
    def job(self, config, toy):
        config.model.distill[0].expert.of.seconds = 0.0
        return make_job(config, device='cpu')

    @pytest.fixture
    def images(self, config, job):
        return list_images(config, job.image_root)

    def test_only_new_and_changed_images_are_computed(self, job, images):
        first = cache_features(job, images)
        assert (first.written, first.found) == (39, 0)
        assert len(first.skipped) == 1 and '07.png' in first.skipped[0]
        os.utime(images[3].path)  # same content
        Image.new('RGB', (8, 8), (10, 20, 30)).save(images[4].path)
        Image.new('RGB', (8, 8), (1, 2, 3)).save(images[7].path)
        second = cache_features(job, images)
        assert (second.written, second.found, second.skipped) == (2, 38, [])
        store = ShardStore(job.out)
        found = store.read(images[4].name)
        assert torch.equal(found, torch.tensor([10.0, 20, 30])[:, None, None].expand(3, 2, 2))

    def test_an_overflow_names_the_image(self, job, images):
        big = Job(dict(job.expert, factor=1e4), job.out, job.image_root)
        with pytest.raises(ConfigError, match='images/00.png: features up to .*--dtype bfloat16'):
            cache_features(big, images)

    @pytest.mark.parametrize(
        'change', [dict(expert=dict(type='ToyExpert', factor=2.0)), dict(dtype='float32')]
    )
    def test_another_kind_cannot_be_added(self, job, images, change):
        cache_features(job, images[:2])
        with pytest.raises(ConfigError, match='another kind'):
            cache_features(Job(**{**vars(job), **change}), images)

    def test_wrong_arguments_are_named_before_processes_start(self, job, images):
        """Out of a worker they would come as a traceback."""
        wrong = Job(dict(job.expert, sise=8), job.out, job.image_root)
        with pytest.raises(ConfigError, match="ToyExpert: .*'sise'"):
            cache_features(wrong, images, workers=2)
        assert not Path(job.out).exists()

    def test_a_full_disk_is_foreseen(self, job, images, monkeypatch):
        """The disk's free space is the one thing that is pretended here."""
        said = []
        monkeypatch.setattr(
            'pixelsail_mm.models.experts.cache.build.print_log',
            lambda message, *args, **options: said.append(message),
        )
        usage = type('Usage', (), dict(free=1000))
        monkeypatch.setattr(
            'pixelsail_mm.models.experts.cache.build.shutil.disk_usage', lambda path: usage
        )
        cache_features(job, images)
        assert len(said) == 1 and 'more are needed for 40 images' in said[0]


@pytest.fixture
def tool(config, toy, tmp_path, repo_root):
    """Command that runs the tool on the config, and how."""
    path = tmp_path / 'config.py'

    def prepare():
        path.write_text(config.pretty_text)
        command = [
            sys.executable,
            'tools/dataset_converters/cache_expert_features.py',
            str(path),
            '--expert',
            'toy',
            '--device',
            'cpu',
        ]
        return command, dict(
            cwd=repo_root,
            env=dict(os.environ, PYTHONPATH=f'{repo_root}{os.pathsep}{HERE}', OMP_NUM_THREADS='1'),
        )

    return prepare


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_at_once(tool, config, tmp_path):
    """They do not finish the images that they were given, which may take minutes."""
    config.model.distill[0].expert.of.seconds = 1000
    command, how = tool()
    run = subprocess.Popen(
        [*command, '--workers', '2'],
        **how,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that a script runs in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 240
    while not (tmp_path / 'cache/index.json').exists():  # a worker begins
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    workers = psutil.Process(run.pid).children(recursive=True)
    try:
        os.killpg(run.pid, signal.SIGINT)
        _, said = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 130 and 'interrupted' in said
    assert not psutil.wait_procs(workers, timeout=30)[1]


@pytest.mark.slow
def test_a_killed_run_is_continued(tool, config, tmp_path):
    """Two processes; the parent is killed, its workers end, and a second run adds the rest."""
    command, how = tool()
    cache = tmp_path / 'cache'
    first = subprocess.Popen([*command, '--workers', '2'], **how, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while not list(cache.glob('*.safetensors')):
        assert first.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    workers = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.wait()
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert gone and not alive, 'workers outlive their parent'
    kept = len(ShardStore(cache))
    assert 5 <= kept < 39

    second = subprocess.run(command, **how, text=True, capture_output=True, timeout=240)
    assert second.returncode == 0, second.stderr
    written, found = map(int, re.search(r'(\d+) written .*?(\d+) there', second.stdout).groups())
    assert (found, written) == (kept, 39 - kept)
    assert '1 unreadable and skipped' in second.stdout and '07.png' in second.stdout
    images = list_images(config, str(tmp_path / 'data'))
    job = make_job(config, out=str(tmp_path / 'at_once'), device='cpu')
    cache_features(job, images)
    continued, at_once = ShardStore(cache), ShardStore(job.out)
    assert sorted(continued.names()) == sorted(at_once.names())
    for name in at_once.names():
        assert torch.equal(continued.read(name), at_once.read(name))
