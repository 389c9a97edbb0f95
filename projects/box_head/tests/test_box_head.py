"""Boxes: targets, head, losses, predictions, metric, config."""

import numpy as np
import pytest
import torch
from box_head import BoxMetric, LoadBoxes, SegTokenBoxHead
from mmengine.config import Config
from torchvision.ops import box_iou

from pixelsail_mm.structures import PixelDataSample


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
    image_map, = head.project_images([torch.randn(4, 4, 6)])
    losses = head.loss([torch.randn(1, 8)], [image_map], [sample([[0, 0, 0, 0]])])
    assert [value.item() for value in losses.values()] == [0, 0]
    element = sample([])
    head.predict(torch.randn(0, 8), image_map, element)
    assert element.pred_boxes.shape == (0, 4)
    head.predict(torch.randn(0, 8), None, element)
    assert element.pred_boxes.shape == (0, 4)


def test_metric():
    metric = BoxMetric()
    cases = [([0, 0, 10, 10], [[0, 0, 10, 10]]), ([0, 0, 10, 10], [[0, 0, 10, 5]]),
             ([0, 0, 10, 10], []), ([0, 0, 0, 0], [[1, 1, 2, 2]])]
    for i, (truth, found) in enumerate(cases):
        metric.process(None, [dict(sample_id=str(i), dataset='d', gt_boxes=torch.tensor([truth]),
                                   pred_boxes=torch.tensor(found).reshape(-1, 4))])
    values = metric.evaluate(4)
    assert values['box/Acc@0.5'] == pytest.approx(1 / 3)  # an IoU of exactly 0.5 is not above it
    assert values['box/mIoU'] == pytest.approx(0.5)
    assert values['box/missing'] == pytest.approx(1 / 3)


def test_config_has_both_heads():
    cfg = Config.fromfile('projects/box_head/configs/pixelsail_tiny_boxes.py')
    assert cfg.model.mask_head.type == 'SegTokenMaskHead'
    assert cfg.model.heads.box.type == 'SegTokenBoxHead'
