"""All metrics give the same bits on two processes as on one, in whatever order samples come."""

import json
import random

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from pixelsail_mm.registry import METRICS

SIZE = 5
# Enough for sums of floats to show their order in the last bits.
COUNT = 60

METRIC_CFGS = dict(
    refseg=dict(type='RefSegMetric', group_by='group'),
    choice=dict(type='MultipleChoiceMetric', group_by='group'),
    caption=dict(type='CaptionMetric', metrics='METEOR', group_by='group'),
    gcg=dict(type='GCGMetric', caption_metrics='METEOR', group_by='group'),
    perbench=dict(type='PerBenchMetric', protocols='strict'),
)


def make_samples(kind):
    """Samples with random masks and texts; PerBench has a third of each task."""
    rng = np.random.default_rng(7)
    words = 'red green dog cat sky A B C'.split()
    samples = []
    for i in range(COUNT):
        gt, pred = rng.random((2, 2, 5, 7)) < 0.5
        if kind == 'refseg':
            gt = gt[:1]
        text = ' '.join(rng.choice(words, 4))
        samples.append(
            dict(
                sample_id=f's{i}',
                dataset=f'd{i % 2}',
                group=f'g{i % 3}',
                image_id=str(i // 2),
                task=('region', 'mcq', 'refseg')[i % 3],
                gt_masks=gt,
                pred_masks=pred,
                pred_text=f'<p> {text} </p> [SEG] and [SEG]',
                phrases=['red dog', 'sky'],
                caption=' '.join(rng.choice(words, 3)),
                references=[' '.join(rng.choice(words, 5))],
                retried=bool(i % 2),
                choices=list('qrstuvwxyz')[: 2 + i % 9],
                answer='A',
            )
        )
        if kind == 'choice':
            samples[-1]['pred_text'] = rng.choice(['A', 'B', 'no'])
    return samples


def deal(samples, seed):
    """Shuffle, deal out unevenly to two processes, let both repeat some of all samples."""
    order = random.Random(seed)
    mixed = order.sample(samples, len(samples))
    cut = order.randrange(1, len(samples))
    return [mixed[:cut] + order.sample(samples, 3), order.sample(samples, 5) + mixed[cut:]]


def score(shares, rank, folder):
    found = {}
    for kind, share in shares.items():
        metric = METRICS.build(dict(METRIC_CFGS[kind], collect_dir=f'{folder}/{kind}'))
        for sample in share[rank]:
            metric.process(None, [sample])
        found[kind] = metric.evaluate(COUNT)
    return found


def worker(rank, shares, folder):
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2
    )
    found = score(shares, rank, folder)
    with open(f'{folder}/result_{rank}.json', 'w') as file:
        json.dump(found, file)
    dist.destroy_process_group()


@pytest.mark.integration
@pytest.mark.slow
def test_all_metrics_on_two_processes(fake_java, tmp_path):
    everything = {kind: make_samples(kind) for kind in METRIC_CFGS}
    expected = score({kind: [samples] for kind, samples in everything.items()}, 0, tmp_path)
    for values in expected.values():
        assert any(0 < value < 1 for value in values.values())
    mp.spawn(
        worker,
        args=({kind: deal(samples, seed=1) for kind, samples in everything.items()}, str(tmp_path)),
        nprocs=2,
    )
    for rank in range(2):
        assert json.loads((tmp_path / f'result_{rank}.json').read_text()) == expected


@pytest.mark.parametrize('kind', METRIC_CFGS)
def test_order_of_arrival_changes_no_bit(kind, fake_java, tmp_path):
    samples = make_samples(kind)
    expected = score({kind: [samples]}, 0, tmp_path)
    for seed in range(3):
        assert score({kind: [sum(deal(samples, seed), [])]}, 0, tmp_path) == expected


@pytest.mark.integration
def test_contiguous_padded_shards(tmp_path):
    # A contiguous sampler that pads rank 1 with samples of rank 0: cutting the interleaved list
    # to SIZE, as MMEngine does, keeps sample 0 twice and loses the last one.
    gt = np.ones((1, 1, 4), bool)
    # Sample i has IoU i/4 with a target of four pixels.
    samples = [
        dict(sample_id=str(i), gt_masks=gt, pred_masks=np.arange(4)[None, None] < i)
        for i in range(SIZE)
    ]
    shares = dict(refseg=[[samples[i] for i in shard] for shard in ([0, 1, 2], [0, 3, 4])])
    mp.spawn(worker, args=(shares, str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = json.loads((tmp_path / f'result_{rank}.json').read_text())['refseg']
        assert (found['refseg/cIoU'], found['refseg/gIoU']) == (10 / 20, 10 / 20)
