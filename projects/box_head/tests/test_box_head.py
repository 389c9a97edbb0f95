"""Boxes: targets, head, losses, predictions, metric, config."""

import numpy as np
import pytest
import torch
from box_head import BoxMetric, LoadBoxes, SegTokenBoxHead
from mmengine.config import Config
from torchvision.ops import box_iou

from pixelsail_mm.registry import MODELS
from pixelsail_mm.structures import PixelDataSample
from pixelsail_mm.testing.tiny_models import TINY_LLM, byte_tokenizer, collate, make_sample
from tests.test_engine.mixed_components import KINDS, make_batch
from tests.test_models.test_calls_of_modules import calls_of


def sample(boxes, size=(40, 60)):
    element = PixelDataSample(metainfo=dict(ori_shape=size, sample_id='a', dataset='d'))
    element.gt_boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return element


def test_boxes_are_those_of_the_annotation_or_around_the_masks():
    masks = np.zeros((2, 10, 12), bool)
    masks[0, 2:5, 3:9] = True
    around = LoadBoxes().transform(dict(gt_masks=masks))['gt_boxes']
    np.testing.assert_array_equal(around, [[3, 2, 9, 5], [0, 0, 0, 0]])
    given = LoadBoxes().transform(dict(gt_masks=masks, boxes=[[1, 2, 3, 4.5]]))['gt_boxes']
    np.testing.assert_array_equal(given, np.array([[1, 2, 3, 4.5]], np.float32))


def test_head_learns_boxes_of_images_of_several_sizes():
    torch.manual_seed(0)
    head = SegTokenBoxHead(in_channels=6, hidden_size=8, embed_channels=16)
    maps = [torch.randn(5, 9, 6), torch.randn(7, 4, 6)]
    states = [torch.randn(2, 8), torch.randn(1, 8)]
    samples = [sample([[3, 4, 20, 30], [30, 10, 50, 36]]), sample([[2, 2, 15, 8]], (28, 16))]
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    for _ in range(300):
        head_maps = head.project_images(maps)
        losses = head.loss(states, head_maps, samples)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert set(losses) == set(head.losses)
    with torch.no_grad():
        for state, image_map, element in zip(states, head.project_images(maps), samples):
            head.predict(state, image_map, element)
            assert box_iou(element.pred_boxes, element.gt_boxes).diagonal().min() > 0.9


def test_boxes_without_size_teach_nothing_and_no_seg_gives_no_box():
    head = SegTokenBoxHead(in_channels=6, hidden_size=8, embed_channels=16)
    (image_map,) = head.project_images([torch.randn(4, 4, 6)])
    losses = head.loss([torch.randn(1, 8)], [image_map], [sample([[0, 0, 0, 0]])])
    assert [value.item() for value in losses.values()] == [0, 0]
    element = sample([])
    head.predict(torch.randn(0, 8), image_map, element)
    assert element.pred_boxes.shape == (0, 4)
    head.predict(torch.randn(0, 8), None, element)
    assert element.pred_boxes.shape == (0, 4)


def test_metric():
    metric = BoxMetric()
    cases = [
        ([0, 0, 10, 10], [[0, 0, 10, 10]]),
        ([0, 0, 10, 10], [[0, 0, 10, 5]]),
        ([0, 0, 10, 10], []),
        ([0, 0, 0, 0], [[1, 1, 2, 2]]),
    ]
    for i, (truth, found) in enumerate(cases):
        metric.process(
            None,
            [
                dict(
                    sample_id=str(i),
                    dataset='d',
                    gt_boxes=torch.tensor([truth]),
                    pred_boxes=torch.tensor(found).reshape(-1, 4),
                )
            ],
        )
    values = metric.evaluate(4)
    assert values['box/Acc@0.5'] == pytest.approx(1 / 3)  # an IoU of exactly 0.5 is not above it
    assert values['box/mIoU'] == pytest.approx(0.5)
    assert values['box/missing'] == pytest.approx(1 / 3)


@pytest.fixture
def model():
    """A small model with the heads of the config."""
    cfg = Config.fromfile('projects/box_head/configs/pixelsail_tiny_boxes.py')
    settings = cfg.model.to_dict() | dict(tokenizer=byte_tokenizer())
    settings['backbone']['llm'] = TINY_LLM
    return MODELS.build(settings)


def with_boxes(samples):
    for _, element in samples:
        height, width = element.ori_shape
        element.gt_boxes = torch.tensor([[0, 0, width / 2, height]] * len(element.gt_masks))
        element.gt_boxes = element.gt_boxes.reshape(-1, 4)
    return samples


def test_model_of_the_config_trains_and_answers_with_both_heads(model):
    batch = with_boxes([make_sample(model.tokens, (2, 3), 2), make_sample(model.tokens, None)])
    losses = model(**model.data_preprocessor(collate(batch)), mode='loss')
    assert {'loss_mask', 'loss_dice', 'box.loss_l1', 'box.loss_giou'} <= losses.keys()
    sum(losses.values()).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.box_head.parameters())
    found, text_only = model(**model.data_preprocessor(collate(batch)), mode='predict')
    assert found.pred_boxes.shape == (2, 4) and len(found.pred_masks) == 2
    assert text_only.pred_boxes.shape == (0, 4)


def test_calls_of_modules_do_not_depend_on_the_batch(model):
    calls = {
        kind: calls_of(model, collate(with_boxes(make_batch(model.tokens, kind)))) for kind in KINDS
    }
    for kind, found in calls.items():
        assert found == calls[KINDS[0]], kind
