"""What all strategies share."""

import torch

from pixelsail_mm.checkpoints.formats.safetensors_files import map_once
from pixelsail_mm.engine.strategies import PixelSingleDeviceStrategy


def test_tied_weights_are_one_tensor_on_the_cpu():
    """From a GPU two copies would come, and a checkpoint would hold the largest table twice."""
    table, empty = torch.ones(4, 2), torch.ones(0)
    state = dict(
        embed=table.view(4, 2),
        head=table.view(4, 2),
        part=table[:2],
        empty=empty,
        other=torch.ones(0),
    )
    result = map_once(state, torch.Tensor.cpu)
    assert result['embed'] is result['head'] and result['part'] is not result['embed']
    assert list(result) == list(state) and result['part'].shape == (2, 2)


def test_buffers_are_bad_if_they_are_saved_and_nan():
    """Infinity may be meant, and what is not saved is made anew."""
    model = torch.nn.Linear(2, 2)
    mask = torch.full((2, 2), float('-inf')).triu(1)
    model.register_buffer('mask', mask.clone(), persistent=False)
    model.register_buffer('saved_mask', mask.clone())
    model.register_buffer('count', torch.tensor(3))
    strategy = PixelSingleDeviceStrategy()
    strategy.model = model
    assert strategy.bad_weights() == []
    model.mask[0, 0] = model.saved_mask[0, 0] = float('nan')
    assert strategy.bad_weights() == ['saved_mask']
    model.bias.data[1] = float('inf')
    assert strategy.bad_weights() == ['bias', 'saved_mask']
