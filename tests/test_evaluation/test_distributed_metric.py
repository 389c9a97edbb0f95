"""A metric gives the same values on two processes as on one, whatever the sampler did."""

import numpy as np
import torch.distributed as dist
import torch.multiprocessing as mp

from pixelsail_mm.evaluation import RefSegMetric

SIZE = 5


def samples(indices):
    """Sample i has IoU i/4 with a target of four pixels."""
    gt = np.ones((1, 1, 4), bool)
    return [dict(sample_id=str(i), gt_masks=gt, pred_masks=np.arange(4)[None, None] < i)
            for i in indices]


def worker(rank, shards, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank,
                            world_size=len(shards))
    metric = RefSegMetric(collect_dir=f'{folder}/parts')
    metric.process(None, samples(shards[rank]))
    metrics = metric.evaluate(SIZE)
    np.save(f'{folder}/result_{rank}.npy', [metrics['refseg/cIoU'], metrics['refseg/gIoU']])
    dist.destroy_process_group()


def test_contiguous_padded_shards(tmp_path):
    # A contiguous sampler that pads rank 1 with samples of rank 0: cutting the interleaved list
    # to SIZE, as MMEngine does, keeps sample 0 twice and loses the last one.
    shards = [[0, 1, 2], [0, 3, 4]]
    mp.spawn(worker, args=(shards, str(tmp_path)), nprocs=2)
    for rank in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f'result_{rank}.npy'), [10 / 20, 10 / 20])
