"""PixelVisualizationHook: which samples are drawn, where the files go, which image is used."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pixelsail_mm.registry import HOOKS
from pixelsail_mm.structures import PixelDataSample
from pixelsail_mm.visualization import Panel, PixelVisualizer


class RecordingVisualizer:
    def __init__(self):
        self.calls = []

    def add_datasample(self, name, image, data_sample, out_file):
        self.calls.append((data_sample.sample_id, image, out_file))


def make_runner(size, iteration=40, prefixes=('a', 'b')):
    metrics = [SimpleNamespace(prefix=prefix) for prefix in prefixes]
    loop = SimpleNamespace(
        dataloader=SimpleNamespace(dataset=range(size), batch_sampler=None),
        evaluator=SimpleNamespace(metrics=metrics),
    )
    return SimpleNamespace(
        test_loop=loop,
        val_loop=loop,
        iter=iteration,
        cfg={},
        visualizer=SimpleNamespace(_vis_backends={}),
        logger=logging.getLogger('pictures'),
    )


def batches(size, batch_size, dataset=lambda i: 'shapes', **meta):
    samples = [
        PixelDataSample(
            metainfo=dict(sample_id=f'id/{i}', dataset=dataset(i), ori_shape=(6, 4), **meta)
        )
        for i in range(size)
    ]
    for start in range(0, size, batch_size):
        part = samples[start : start + batch_size]
        image = torch.zeros(3, 16, 16, dtype=torch.uint8)
        yield dict(inputs=dict(image=[image] * len(part))), part


def run(hook, mode, runner, data):
    hook._visualizer = hook._visualizer or RecordingVisualizer()
    getattr(hook, f'before_{mode}_epoch')(runner)
    for i, (batch, outputs) in enumerate(data):
        getattr(hook, f'after_{mode}_iter')(runner, i, batch, outputs)
    getattr(hook, f'after_{mode}_epoch')(runner, {})
    return hook._visualizer.calls


def build(**kwargs):
    return HOOKS.build(dict(type='PixelVisualizationHook', **kwargs))


@pytest.mark.parametrize('size, num, batch_size', [(10, 3, 4), (7, 7, 2), (5, 9, 3), (100, 20, 16)])
def test_spread_draws_the_wanted_number_evenly(tmp_path, size, num, batch_size):
    hook = build(show_dir=str(tmp_path), num=num)
    calls = run(hook, 'test', make_runner(size), batches(size, batch_size))
    drawn = [int(sample_id[3:]) for sample_id, _, _ in calls]
    assert drawn[0] == 0 and len(drawn) == min(num, size)
    assert max(np.diff(drawn), default=1) <= size / num + 1


def test_first_counts_per_dataset(tmp_path):
    hook = build(show_dir=str(tmp_path), num=2, select='first')
    data = batches(8, 3, dataset=lambda i: 'ab'[i % 2])
    files = [
        str(path.relative_to(tmp_path)) for _, _, path in run(hook, 'test', make_runner(8), data)
    ]
    assert files == ['a/id_0.png', 'b/id_1.png', 'a/id_2.png', 'b/id_3.png']


def test_counts_start_anew_for_each_data_loader_and_epoch(tmp_path):
    hook = build(show_dir=str(tmp_path), num=1)
    run(hook, 'test', make_runner(4), batches(4, 2, dataset=lambda i: 'a'))
    calls = run(hook, 'test', make_runner(4), batches(4, 2, dataset=lambda i: 'b'))
    assert [path.parent.name for _, _, path in calls] == ['a', 'b']


def test_one_metric_or_two_protocols_give_their_prefix_to_the_folder(tmp_path):
    hook = build(show_dir=str(tmp_path), num=1)
    for prefix in ('refseg', 'shuffled'):
        runner = make_runner(4, prefixes=[prefix, f'{prefix}_paper'])
        calls = run(hook, 'test', runner, batches(4, 2))
    assert [path.parent.name for _, _, path in calls] == ['refseg', 'shuffled']


def test_validation_folder_names_the_iteration(tmp_path):
    hook = build(show_dir=str(tmp_path), num=1)
    calls = run(hook, 'val', make_runner(2, iteration=120), batches(2, 2))
    assert calls[0][2] == tmp_path / 'val_120/shapes/id_0.png'


def test_off_without_folder():
    hook = build()
    assert run(hook, 'test', make_runner(4), batches(4, 2)) == []
    assert run(hook, 'val', make_runner(4), batches(4, 2)) == []


def test_folder_is_reported(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(build(show_dir=str(tmp_path), num=3), 'test', make_runner(4), batches(4, 2))
    assert f'3 pictures of predictions in {tmp_path}/shapes' in caplog.text


def test_image_comes_from_sample_file_or_model_input(tmp_path):
    red = np.full((6, 4, 3), (255, 0, 0), np.uint8)
    Image.fromarray(red).save(tmp_path / 'red.png')
    hook = build(show_dir=str(tmp_path / 'out'), num=1)
    from_file = run(
        hook, 'test', make_runner(1), batches(1, 1, img_path=str(tmp_path / 'red.png'))
    )[-1][1]
    np.testing.assert_array_equal(from_file, red)
    from_model = run(hook, 'test', make_runner(1), batches(1, 1))[-1][1]
    assert from_model.shape == (6, 4, 3) and from_model.max() == 0
    ((batch, samples),) = batches(1, 1)
    samples[0].image = torch.from_numpy(red).permute(2, 0, 1).contiguous()
    np.testing.assert_array_equal(run(hook, 'test', make_runner(1), [(batch, samples)])[-1][1], red)
    text_only = (dict(inputs=dict(image=[None])), list(batches(1, 1))[0][1])
    assert run(hook, 'test', make_runner(1), [text_only])[-1][1] is None


def test_draws_real_pictures(tmp_path):
    hook = build(show_dir=str(tmp_path), num=1, visualizer=dict(panel_size=(64, 64)))
    data = batches(1, 1)
    hook.before_test_epoch(make_runner(1))
    batch, outputs = next(data)
    hook.after_test_iter(make_runner(1), 0, batch, outputs)
    assert Image.open(tmp_path / 'shapes/id_0.png').size[0] > 64


def test_faulty_select():
    with pytest.raises(ValueError, match='select'):
        build(select='random')


class NumberedVisualizer(PixelVisualizer):
    """A project's: one more panel."""

    def panels(self, image, sample, draw_gt, draw_pred):
        extra = Panel('Mine', 'note', np.full_like(self.enlarge(image), 7))
        return [*super().panels(image, sample, draw_gt, draw_pred), extra]


def test_the_configured_visualizer_draws_and_its_pictures_reach_tensorboard(tmp_path):
    from mmengine.visualization import TensorboardVisBackend, Visualizer
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorboardVisBackend(save_dir=str(tmp_path / 'board'))
    visualizer = Visualizer(vis_backends=None)
    visualizer._vis_backends = dict(board=board)
    runner = make_runner(2, prefixes=('a',))
    runner.visualizer, runner.cfg = visualizer, dict(visualizer=dict(type=NumberedVisualizer))
    hook = build(show_dir=str(tmp_path / 'pictures'), num=1)
    hook.before_test_epoch(runner)
    for i, (batch, outputs) in enumerate(batches(2, 2)):
        hook.after_test_iter(runner, i, batch, outputs)
    board.close()
    [file] = (tmp_path / 'pictures').rglob('*.png')
    picture = np.asarray(Image.open(file))
    assert (picture == 7).all(-1).any(), 'the panel of the project'
    events = EventAccumulator(str(tmp_path / 'board')).Reload()
    [tag] = events.Tags()['images']
    assert (
        tag == 'a/id_0'
        and (events.Images(tag)[0].height, events.Images(tag)[0].width) == picture.shape[:2]
    )
