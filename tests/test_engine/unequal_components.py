"""Data, and the hook that compares a training of two processes with one that has both batches."""

from __future__ import annotations

import faulthandler
import hashlib
import os
import sys
import threading

import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS
from torch.utils.data import Dataset

from pixelsail_mm.engine.optim_wrappers import accumulation_of
from pixelsail_mm.engine.strategies.common import unwrap
from pixelsail_mm.registry import DATASETS, HOOKS, MODELS
from pixelsail_mm.tokenization import SpecialTokens, build_tokenizer
from tests.test_engine.unequal_cases import plan

#: Status of a process that its watchdog ended.
WATCHDOG = 86


@FUNCTIONS.register_module()
def whole_batch(batches):
    """Collate draws that are whole batches, one by one."""
    [batch] = batches
    return batch


@DATASETS.register_module()
class UnequalBatches(Dataset):
    """Draw ``2 * t + r`` is the batch of process ``r`` in step ``t`` of a plan.

    Args:
        tokenizer: Folder of the tokenizer.
        steps: Arguments of :func:`~tests.test_engine.unequal_cases.plan`.
        image_layout: See :func:`~pixelsail_mm.testing.tiny_models.make_sample`.
    """

    def __init__(self, tokenizer, steps, image_layout='block'):
        self.tokens = SpecialTokens.from_tokenizer(build_tokenizer(tokenizer))
        self.steps, self.image_layout = plan(**steps), image_layout

    def __len__(self):
        return 2 * len(self.steps)

    def __getitem__(self, draw):
        step, rank = divmod(draw, 2)
        return self.collated(self.steps[step].batches[rank])

    def collated(self, batch):
        """A batch as a data loader gives it."""
        samples = batch.samples(self.tokens, self.image_layout)
        return pseudo_collate(
            [dict(inputs=inputs, data_samples=sample) for inputs, sample in samples]
        )


class Watchdog:
    """Ends this process if a step lasts too long, and says which.

    Args:
        limit: Seconds for a step.
    """

    def __init__(self, limit):
        self.limit, self._timer = limit, None

    def expect(self, what):
        """Begin a step; None: there is none any more."""
        if self._timer is not None:
            self._timer.cancel()
        if what is not None:
            self._timer = threading.Timer(self.limit, self._end, [what])
            self._timer.daemon = True
            self._timer.start()

    def _end(self, what):
        print(f'watchdog: no end after {self.limit} s: {what}', file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(WATCHDOG)


@HOOKS.register_module()
class AgainstOneProcessHook(Hook):
    """Do what one process would do that accumulates over the batches of both; compare.

    At each step the losses of this process; at the end of each case the weights. They were moved by
    plain gradient descent, so equal weights are equal gradients. Weights whose gradient is zero
    there must not have moved by a bit, and all processes must have the same bits.

    Args:
        limit: Seconds for a step, then the process ends.
        lr: Learning rate of the gradient descent.
        tolerance: Of a weight after the steps of a case; by ``lr`` it is one of the gradient.
    """

    priority = 'HIGHEST'  # the losses are this process's own

    def __init__(self, limit=60, lr=0.05, tolerance=1e-6):
        self.watchdog, self.lr, self.tolerance = Watchdog(limit), lr, tolerance
        self.cases = 0

    def before_train(self, runner):
        self.data = runner.train_loop.dataloader.dataset
        self.steps = self.data.steps
        self.reference = MODELS.build(runner.cfg.model).train()
        self._begin(runner)

    def _weights(self, runner):
        """Copies of the whole model's weights, in every process."""
        with runner.strategy.evaluation(), torch.no_grad():
            model = unwrap(runner.model)
            return {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def _begin(self, runner):
        self.before = self._weights(runner)
        self.still = set(self.before)
        with torch.no_grad():
            for name, weight in self.reference.named_parameters():
                weight.copy_(self.before[name])
        self.reference.zero_grad()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        step = self.steps[batch_idx]
        self.where = f'case {step.case}, rank {get_rank()}, step {batch_idx}: {step.batches}'
        self.watchdog.expect(self.where)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        with torch.enable_grad():
            self._compare_losses(batch_idx, outputs, accumulation_of(runner.optim_wrapper))
        if runner.optim_wrapper.outcome is None:
            return
        self._descend()
        last = batch_idx + 1 == runner.max_iters
        if last or self.steps[batch_idx + 1].case != self.steps[batch_idx].case:
            self._compare_weights(runner)
            self._begin(runner)
            self.cases += 1
        if last:
            self.watchdog.expect(None)

    def _compare_losses(self, batch_idx, outputs, accumulation):
        """Run the batches of both processes; the losses of its own are those of the training."""
        for rank, batch in enumerate(self.steps[batch_idx].batches):
            data = self.reference.data_preprocessor(self.data.collated(batch), True)
            losses = self.reference(**data, mode='loss')
            total, logged = self.reference.parse_losses(losses)
            (total / (2 * accumulation)).backward()
            unused = set(self.reference.head_names) - batch.used_heads()
            for name in unused:
                head = self.reference.heads[name]
                for key in head.losses:
                    assert losses[key if name == 'mask' else f'{name}.{key}'] == 0, self.where
            if rank == get_rank():
                assert outputs.keys() == logged.keys(), self.where
                for key, value in logged.items():
                    value = value.detach()
                    assert torch.isfinite(value), (self.where, key)
                    torch.testing.assert_close(
                        torch.as_tensor(outputs[key]).detach().float(),
                        value,
                        atol=1e-4,
                        rtol=1e-4,
                        msg=lambda text, key=key: f'{self.where}: {key}: {text}',
                    )

    def _descend(self):
        """Take the step of the optimizer."""
        with torch.no_grad():
            for name, weight in self.reference.named_parameters():
                assert weight.grad is not None, (self.where, name)
                if weight.grad.any():
                    self.still.discard(name)
                weight -= self.lr * weight.grad
        self.reference.zero_grad()

    def _compare_weights(self, runner):
        after = self._weights(runner)
        digest = hashlib.sha256()
        for name, weight in self.reference.named_parameters():
            torch.testing.assert_close(
                after[name],
                weight.detach(),
                atol=self.tolerance,
                rtol=0,
                msg=lambda text, name=name: f'{self.where}: {name}: {text}',
            )
            if name in self.still:
                assert torch.equal(after[name], self.before[name]), (self.where, name)
            digest.update(after[name].numpy().tobytes())
        assert len(set(all_gather_object(digest.hexdigest()))) == 1, self.where
