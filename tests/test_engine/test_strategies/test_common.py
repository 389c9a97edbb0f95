"""What all strategies share."""

import torch

from pixelsail_mm.engine.strategies.common import on_cpu


def test_tied_weights_are_one_tensor_on_the_cpu():
    """From a GPU two copies would come, and a checkpoint would hold the largest table twice."""
    table, empty = torch.ones(4, 2), torch.ones(0)
    state = dict(embed=table.view(4, 2), head=table.view(4, 2), part=table[:2], empty=empty,
                 other=torch.ones(0))
    result = on_cpu(state)
    assert result['embed'] is result['head'] and result['part'] is not result['embed']
    assert list(result) == list(state) and result['part'].shape == (2, 2)
