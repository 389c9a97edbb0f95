"""docs/extend.md, done: every part is written, plugged in by its config, trained and asked."""

import copy
import os
import re
import sys
from functools import cache

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper
from PIL import Image

from pixelsail_mm.config import read_config
from pixelsail_mm.errors import BadSampleError
from pixelsail_mm.models.experts.base import VisionExpert
from pixelsail_mm.registry import DATASETS, METRICS, MODELS
from pixelsail_mm.structures import PixelDataSample
from pixelsail_mm.testing.tiny_models import collate
from tests.test_engine.mixed_components import KINDS, SomeMapsExpert, make_batch
from tests.test_models.test_calls_of_modules import calls_of

BLOCK = re.compile(r'^```python\n# (\S+)\n(.*?)^```$', re.DOTALL | re.MULTILINE)
LONGEST = 40
#: Config of the page -> the part of the model that is new; None: no part of the model.
NEW_PARTS = dict(
    centres='centre_head',
    pointing='centre_head',
    tversky=None,
    relations='distill',
    pixel_shuffle='neck',
    film='prompt_injector',
    stem='backbone.stem',
    polygons=None,
)
# Rows of each table; line 4 of the first file is at fault.
POLYGONS = dict(
    train=[
        'a.png,the left one,1 1 20 1 20 20',
        'b.png,the square,5 5 5 9 9 9 9 5',
        'a.png,a broken one,1 1 x 1 20 20',
    ],
    val=['a.png,the left one,1 1 20 1 20 20'],
)


@MODELS.register_module()
class HalfKnownExpert(VisionExpert):
    """Knows some of the images that ``make_batch`` draws."""

    def __call__(self, data_samples):
        return SomeMapsExpert()(data_samples)

    def fingerprint(self):
        return self.fingerprint_of()


def blocks(path):
    """File named in the first line -> the whole block, of every such block."""
    return {name: f'# {name}\n{code}' for name, code in BLOCK.findall(path.read_text('utf-8'))}


@pytest.fixture(scope='module')
def examples(repo_root):
    return blocks(repo_root / 'docs/extend.md')


@pytest.fixture(scope='module')
def project(examples, repo_root, mini_world, tmp_path_factory):
    """The folder that the page describes, beside the configs and data of a user."""
    root = tmp_path_factory.mktemp('extend')
    (root / 'configs').symlink_to(repo_root / 'configs')
    folder = root / 'projects/my_project'
    for name, code in examples.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code, encoding='utf-8')
    (folder / 'my_parts/__init__.py').touch()
    images = root / 'data/my_polygons/images'
    images.mkdir(parents=True)
    for name in 'ab':
        Image.new('RGB', (40, 32), 'red').save(images / f'{name}.png')
    for split, rows in POLYGONS.items():
        (images.parent / f'{split}.csv').write_text('\n'.join(['image,phrase,polygon', *rows]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'path', [str(folder), *sys.path])
        patch.setenv('PIXELSAIL_DATA', str(mini_world))
        patch.chdir(root)
        yield folder
    for name in [name for name in sys.modules if name.split('.')[0] == 'my_parts']:
        del sys.modules[name]


@pytest.fixture(scope='module')
def read(project):
    """Read a config of the page, with a model that is small even for one from scratch."""
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1)

    @cache
    def read(name):
        return read_config(
            os.path.relpath(project / f'configs/{name}.py'),
            [
                'model.generation.max_new_tokens=2',
                *(f'model.backbone.llm.{key}={value}' for key, value in small.items()),
            ],
        )

    return read


@pytest.fixture
def config(read):
    return lambda name: copy.deepcopy(read(name))


def answered(model, loader):
    """The first two samples of a test set, answered with one forced ``[SEG]`` each."""
    dataset, rng = DATASETS.build(loader.dataset), np.random.default_rng(0)
    asked = [
        dataset.pipeline(dict(dataset.record(i, rng), rng=rng, answer_prefix='[SEG].'))
        for i in range(min(2, len(dataset)))
    ]
    model.eval()
    return model.test_step(pseudo_collate(asked))


def test_no_example_is_long(examples):
    lines = {name: len(code.splitlines()) for name, code in examples.items()}
    assert {name for name in lines if name.startswith('my_parts/')} and max(
        lines.values()
    ) <= LONGEST, lines
    assert {name for name in lines if name.startswith('configs/')} == {
        f'configs/{name}.py' for name in NEW_PARTS
    }


@pytest.mark.parametrize(('name', 'part'), NEW_PARTS.items(), ids=NEW_PARTS)
def test_part_trains_and_answers(config, name, part):
    cfg = config(name)
    model = MODELS.build(cfg.model)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    new = dict((model.get_submodule(part) if part else model.mask_head).named_parameters())
    before = {key: weight.detach().clone() for key, weight in new.items()}
    optimizer = OptimWrapper(torch.optim.Adam(model.parameters(), 1e-3))
    batch = pseudo_collate([dataset[0], dataset[1]])
    for _ in range(2):  # the first layer of the stem stands still while the second one is zero
        log = model.train_step(batch, optimizer)
    assert all(torch.isfinite(value) for value in log.values())
    assert [key for key, weight in new.items() if torch.equal(weight, before[key])] == []
    if part == 'distill':
        assert log['loss_distill_relation'] > 0
    if part == 'centre_head':
        assert log['centre.loss_centre'] > 0
    samples = answered(model, cfg.val_dataloader[0])
    metrics = cfg.val_evaluator[0]
    for metric in map(METRICS.build, metrics if isinstance(metrics, list) else [metrics]):
        metric.process(None, [sample.to_dict() for sample in samples])
        assert all(0 <= value <= 1 for value in metric.evaluate(len(samples)).values())
    for sample in samples:
        assert sample.pred_text.startswith('[SEG].') and sample.pred_masks.any((1, 2)).shape == (1,)
        if part == 'centre_head':
            (x, y), (height, width) = sample.pred_centres[0].tolist(), sample.ori_shape
            assert 0 < x < width and 0 < y < height


@pytest.mark.parametrize(
    'name', [name for name, part in NEW_PARTS.items() if part and name != 'pointing']
)
def test_calls_of_modules_do_not_depend_on_the_batch(config, name):
    """What ZeRO-3 needs; the tests of models do the same for the parts of the package."""
    cfg = config(name).model
    cfg.distill = [
        dict(loss, expert=dict(type='HalfKnownExpert'))
        for loss in cfg.distill
        if loss.type == 'RelationLoss'
    ]
    model = MODELS.build(cfg)
    calls = {kind: calls_of(model, collate(make_batch(model.tokens, kind))) for kind in KINDS}
    for kind, found in calls.items():
        assert found == calls[KINDS[0]], kind


def test_text_only_answers_have_the_field_of_the_head(config):
    model = MODELS.build(config('centres').model)
    model.eval()
    sample, _ = model.test_step(collate(make_batch(model.tokens, ('none', False, False))))
    assert sample.pred_centres.shape == (0, 2)


def test_the_centre_head_learns_centres(config):
    """Cells that name their own object: the head has to find them by its queries."""
    model_cfg = config('centres').model
    head = MODELS.build(dict(model_cfg.heads.centre, in_channels=4, hidden_size=4))
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 2:6, 2:12], masks[1, 10:20, 20:30] = True, True
    cells = torch.zeros(10, 15, 4)
    cells[1:3, 1:6, 0] = cells[5:10, 10:15, 1] = 1
    sample = PixelDataSample(metainfo=dict(ori_shape=(20, 30)), gt_masks=masks)
    optimizer = torch.optim.Adam(head.parameters(), 0.3)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss([torch.eye(4)[:2]], [cells], [sample])['loss_centre'].backward()
        optimizer.step()
    head.predict(torch.eye(4)[:2], cells, sample)
    expected = torch.tensor([[7.0, 4.0], [25.0, 15.0]])
    torch.testing.assert_close(sample.pred_centres.detach(), expected, atol=0.5, rtol=0)


def test_the_metric_counts_hits(config):
    metric = METRICS.build(config('pointing').val_evaluator[0][0])
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[0, 1, 4] = True
    for i, points in enumerate([[[4.5, 1.5]], [[1.5, 3.5]], []]):
        metric.process(
            None,
            [
                dict(
                    sample_id=str(i),
                    dataset='d',
                    gt_masks=mask,
                    pred_centres=torch.tensor(points).reshape(-1, 2),
                )
            ],
        )
    assert metric.evaluate(3) == {'pointing/hit': pytest.approx(1 / 3)}


def test_the_head_loss_is_the_formula(config):
    loss = MODELS.build(dict(config('tversky').model.mask_head.loss_dice, eps=0.0))
    logits, target = (
        torch.tensor([[60.0, 60.0, -60.0, -60.0]]),
        torch.tensor([[1.0, 0.0, 1.0, 1.0]]),
    )
    # One hit, one false alarm, two misses.
    assert loss(logits, target).item() == pytest.approx(3 * (1 - 1 / (1 + 0.3 + 2 * 0.7)))


def test_the_neck_puts_cells_where_their_patch_is(config):
    neck = MODELS.build(dict(config('pixel_shuffle').model.neck, in_channels=8, patch_size=8))
    maps = [torch.randn(2, 3, 8), torch.randn(4, 1, 8)]
    large = neck(maps)
    assert [tuple(x.shape) for x in large] == [(4, 6, 64), (8, 2, 64)]
    changed = maps[0].clone()
    changed[1, 2] += 1
    moved = (neck([changed])[0] - large[0]).abs().sum(-1) > 1e-4
    assert moved.nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


def test_the_injector_changes_what_a_prompt_covers(config):
    injector = MODELS.build(dict(config('film').model.prompt_injector, hidden_size=4))
    embeds, prompts = torch.randn(1, 3, 4), torch.randn(15, 4)
    found = injector(embeds, None, prompts, dict(vp_token_indices=torch.tensor([[-1, 2, -2]])))
    scale, shift = injector.film(prompts[2]).chunk(2)
    torch.testing.assert_close(found[0, 1], embeds[0, 1] * (1 + scale) + shift)
    assert torch.equal(found[0, [0, 2]], embeds[0, [0, 2]])


def test_the_backbone_starts_as_what_it_inherits_from(config):
    cfg = config('stem').model
    ours = MODELS.build(cfg)
    plain = MODELS.build(dict(config('tversky').model))
    missing, unexpected = plain.load_state_dict(ours.state_dict(), strict=False)
    assert not missing and all(key.startswith('backbone.stem') for key in unexpected)
    batch = plain.data_preprocessor(collate(make_batch(plain.tokens, KINDS[0])))['inputs']
    assert torch.equal(ours(batch)['logits'], plain(batch)['logits'])


def test_the_reader_reads_counts_and_refuses(config, project):
    cfg = config('polygons')
    table = DATASETS.build(
        dict(
            cfg.train_dataloader.dataset, pipeline=[dict(type='LoadImage'), dict(type='LoadMasks')]
        )
    )
    assert [
        sample['conversation'][0]['human'].rstrip('.?').split(' the ')[-1] for sample in table
    ] == ['left one', 'square']
    assert [sample['gt_masks'].sum() for sample in table][1] == 16
    assert sum(table.skipped.values()) == 1 and 'must hold numbers' in str(table.skipped)
    with pytest.raises(BadSampleError, match='line 4: polygon'):
        DATASETS.build(dict(cfg.val_dataloader[0].dataset, ann_file='train.csv'))
    path = project.parents[1] / 'data/my_polygons/other.csv'
    path.write_text('image,phrase\na.png,the left one\n')
    with pytest.raises(BadSampleError, match='polygon'):
        DATASETS.build(dict(cfg.train_dataloader.dataset, ann_file='other.csv'))


@pytest.mark.parametrize(
    'page',
    [
        'README.md',
        'projects/box_head/README.md',
        'projects/focal_mask_head/README.md',
        'projects/example_project/README.md',
    ],
)
def test_quoted_code_is_that_of_the_files(repo_root, page):
    """Lines of a block whose first line names a file stand in it in this order; ``...`` skips."""
    quoted = {name: code for name, code in blocks(repo_root / page).items() if '/' in name}
    assert quoted or page != 'README.md'
    for name, code in quoted.items():
        lines = iter((repo_root / name).read_text('utf-8').splitlines())
        for line in code.splitlines()[1:]:
            assert line.strip() in ('', '...') or line in lines, f'{name}: {line}'
