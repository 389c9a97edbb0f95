"""A language model of a few hundred weights and its data, to test the engine alone."""

import hashlib
import os
import signal

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import all_gather_object, get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.structures import BaseDataElement
from torch import nn

from pixelsail_mm.engine import checkpoint_writer
from pixelsail_mm.engine.optimizer_state import named_state
from pixelsail_mm.engine.strategies.common import unwrap
from pixelsail_mm.registry import DATASETS, HOOKS, METRICS, MODELS

VOCAB = 17


@DATASETS.register_module()
class ToyDataset(torch.utils.data.Dataset):
    """Token sequences that depend on the draw index alone."""

    def __init__(self, length=12, seed=0, ann_file=None, name='toy'):
        self.size, self.seed, self.name = length, seed, name
        self.length = [4 + index % 5 for index in range(length)]
        self.skipped, self.noted = {}, {'toy rotation ignored': 2}

    def __len__(self):
        return self.size

    def __getitem__(self, draw):
        rng = np.random.default_rng([self.seed, draw])
        ids = torch.from_numpy(rng.integers(0, VOCAB, self.length[draw % self.size]))
        if draw % 5 == 0:
            self.skipped['toy reason'] = self.skipped.get('toy reason', 0) + 1
        sample = BaseDataElement(metainfo=dict(sample_id=str(draw % self.size), dataset=self.name))
        return dict(inputs=dict(input_ids=ids), data_samples=sample)


@MODELS.register_module()
class ToyPreprocessor(BaseDataPreprocessor):
    """Pad on the right."""

    def forward(self, data, training=False):
        ids = nn.utils.rnn.pad_sequence(data['inputs']['input_ids'], batch_first=True)
        return dict(inputs=ids.to(self.device), data_samples=data.get('data_samples'))


@MODELS.register_module()
class ToyModel(BaseModel):
    """Embedding, dropout, layer, tied head; the prediction is the sum of the first logits."""

    def __init__(self, width=16, dropout=0.1, dtype='float32'):
        super().__init__(data_preprocessor=dict(type='ToyPreprocessor'))
        self.embed = nn.Embedding(VOCAB, width)
        self.layer = nn.Linear(width, width)
        self.head = nn.Linear(width, VOCAB, bias=False)
        self.head.weight = self.embed.weight
        self.distill = nn.ModuleList([nn.Linear(width, 1)])
        self.drop = nn.Dropout(dropout)
        self.fault = None
        self.to(getattr(torch, dtype))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        states = torch.tanh(self.layer(self.drop(self.embed(inputs))))
        if self.fault == 'gradient':
            states.register_hook(lambda gradient: gradient * float('inf'))
        logits = self.head(states)
        if mode == 'loss':
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs[:, 1:].flatten())
            if self.fault == 'loss':
                loss = loss * float('nan')
            if self.fault == 'constant':  # the gradients stay finite
                loss = loss + float('inf')
            noise = torch.rand(states.shape[-1], device=states.device)
            return dict(loss_lm=loss, loss_noise=(self.distill[0](states * noise) ** 2).mean())
        if mode == 'predict':
            for sample, row in zip(data_samples, logits):
                sample.set_field(float(row[0].sum()), 'score')
            return data_samples
        return logits


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Mean of the toy scores."""

    def process(self, data_batch, data_samples):
        self.results += [sample['score'] for sample in data_samples]

    def compute_metrics(self, results):
        return dict(mean=sum(results) / len(results), count=len(results))


@HOOKS.register_module()
class KillHook(Hook):
    """End the process without warning.

    Args:
        before: Iteration (from 0) not to be begun.
        writing: Which write of a checkpoint (from 1) to die in, half of it on the disk.
    """

    def __init__(self, before=None, writing=None):
        self.before, self.writing = before, writing

    def before_train(self, runner):
        if self.writing is None:
            return
        write, calls = checkpoint_writer.write_state, []

        def write_or_die(state, path):
            write(state, path)
            calls.append(path)
            if len(calls) == self.writing:
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint_writer.write_state = write_or_die

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == self.before:
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class FaultHook(Hook):
    """Break chosen iterations.

    Args:
        faults: (iteration from 0, rank, kind); kinds: a ``loss`` of NaN, an infinite ``constant``
            in the loss, an infinite ``gradient``, ``weights`` that are NaN after the step, a
            ``state`` of the optimizer that is, in this process.
    """

    priority = 'HIGHEST'

    def __init__(self, faults=()):
        self.faults = list(faults)

    def _now(self, batch_idx):
        return [
            kind
            for iteration, rank, kind in self.faults
            if iteration == batch_idx and rank == get_rank()
        ]

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        unwrap(runner.model).fault = next(iter(self._now(batch_idx)), None)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if 'weights' in self._now(batch_idx):
            unwrap(runner.model).layer.bias.data[0] = float('nan')
        if 'state' in self._now(batch_idx):
            states = named_state(unwrap(runner.model), runner.optim_wrapper.optimizer)
            next(state['exp_avg'] for name, state in states if name == 'layer.weight').view(-1)[
                -1:
            ] = float('nan')


@HOOKS.register_module()
class EqualWeightsHook(Hook):
    """Fail if the processes' weights differ by a bit; with ZeRO-3 each has a part of its own."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        digest = hashlib.sha256()
        for weight in unwrap(runner.model).parameters():
            digest.update(weight.detach().numpy().tobytes())
        assert len(set(all_gather_object(digest.digest()))) == 1, batch_idx


@DATASETS.register_module()
class AlternatingDataset(torch.utils.data.Dataset):
    """Draws of several datasets in turn; with as many processes, each gets one of them."""

    def __init__(self, datasets):
        self.parts = [DATASETS.build(cfg) for cfg in datasets]

    def __len__(self):
        return len(self.parts) * min(len(part) for part in self.parts)

    def __getitem__(self, draw):
        return self.parts[draw % len(self.parts)][draw // len(self.parts)]
