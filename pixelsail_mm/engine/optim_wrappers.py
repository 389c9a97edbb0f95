"""Optimizer wrappers, which take no step that would put NaN or infinity into the weights."""

import torch
from mmengine._strategy.deepspeed import DeepSpeedOptimWrapper
from mmengine.logging import MessageHub
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from pixelsail_mm.engine.optimizer_state import state_is_finite
from pixelsail_mm.engine.step_check import LossWatch, Outcome, all_finite, on_any_rank
from pixelsail_mm.errors import ConfigError
from pixelsail_mm.registry import OPTIM_WRAPPERS


def accumulation_of(optim_wrapper) -> int:
    """Give the number of micro-batches per optimizer step, for MMEngine's wrappers and ours."""
    return getattr(optim_wrapper, '_accumulative_counts', 1)


def updates_after(optim_wrapper, iteration: int, max_iters: int) -> bool:
    """Tell whether the optimizer steps at the end of an iteration.

    Args:
        optim_wrapper: The optimizer wrapper.
        iteration: Iterations done, this one included (counted from 1).
        max_iters: Iterations of the whole training; the last one always steps.
    """
    return iteration % accumulation_of(optim_wrapper) == 0 or iteration == max_iters


class _CheckedSteps:
    """Mixed into MMEngine's wrappers: skip a step if what it is made of is not finite.

    That is a loss, the gradient, or what the optimizer remembers: a gradient of 1e20 is finite, and
    its square in Adam's ``exp_avg_sq`` is not.

    Attributes:
        outcome: What became of the last step; None while gradients are accumulated.
        losses: The losses of the window that the last step ended.
        bad_state: The last step was skipped because the optimizer's state is not finite in some
            process; so will the next one be, unless somebody resets it.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.outcome: Outcome | None = None
        self.losses = LossWatch()
        self.bad_state = False

    def update_params(self, loss: torch.Tensor, *args, **kwargs) -> None:
        """Accumulate one micro-batch; step at the end of its window, if that is safe."""
        self.losses.see(loss)
        super().update_params(loss, *args, **kwargs)

    def backward(self, loss: torch.Tensor, **kwargs) -> None:
        """Accumulate gradients.

        Args:
            loss: Scalar. A model that calls this and :meth:`step` itself has its gradients
                checked, not its losses.
            **kwargs: As in MMEngine.
        """
        self.outcome = None
        super().backward(loss, **kwargs)

    def _check(self, *flags: bool) -> list[bool]:
        """Clip; give (a loss or the state is bad, the gradient is bad, the flags) on any process.

        The norm to clip by tells about all gradients. Other ways to clip would turn infinity into
        a number, so the gradients are looked at before.
        """
        trained = [weight for group in self.optimizer.param_groups for weight in group['params']]
        weights = [weight for weight in trained if weight.grad is not None]
        by_norm = (
            bool(self.clip_grad_kwargs and weights)
            and self.clip_func is torch.nn.utils.clip_grad_norm_
        )
        finite = by_norm or all_finite(weight.grad for weight in weights)
        if self.clip_grad_kwargs:
            self._clip_grad()
        if by_norm:
            norm = self.message_hub.get_scalar(f'train/{self.grad_name}').current()
            finite = abs(norm) < float('inf')
        device = (self.losses.finite or trained)[0].device
        bad = [not state_is_finite(self.optimizer), not self.losses.close(), not finite, *flags]
        self.bad_state, bad_loss, *others = on_any_rank(bad, device)
        return [bad_loss or self.bad_state, *others]


@OPTIM_WRAPPERS.register_module()
class PixelOptimWrapper(_CheckedSteps, OptimWrapper):
    """MMEngine's ``OptimWrapper`` that skips steps with a bad loss or gradient."""

    def step(self, **kwargs) -> None:
        """Clip and step, or leave the weights as they are."""
        self.outcome = Outcome.SKIPPED if any(self._check()) else Outcome.TAKEN
        if self.outcome is Outcome.TAKEN:
            self.optimizer.step(**kwargs)


@OPTIM_WRAPPERS.register_module()
class PixelAmpOptimWrapper(_CheckedSteps, AmpOptimWrapper):
    """MMEngine's ``AmpOptimWrapper`` that skips steps with a bad loss or gradient.

    A gradient that overflows while the loss is finite belongs to a dynamic loss scaler, which
    lowers its scale. Where it cannot help, the step counts as skipped: at a scale of 1 there is
    nothing to lower, and finite gradients whose norm overflows are as large at any scale.
    """

    def step(self, **kwargs) -> None:
        """Unscale, clip and step, or leave the weights as they are."""
        scale = self.loss_scaler.get_scale()
        self.loss_scaler.unscale_(self.optimizer)
        # The only record of it; the scaler's own step and update read it, too.
        found = self.loss_scaler._found_inf_per_device(self.optimizer).values()
        unfit, bad_gradient, overflow = self._check(any(bool(flag) for flag in found))
        fixed = not overflow or self._scale_update_param is not None or scale <= 1
        if unfit or (bad_gradient and fixed):
            self.outcome = Outcome.SKIPPED
            self.loss_scaler.update(scale)
            return
        self.outcome = Outcome.RESCALED if bad_gradient else Outcome.TAKEN
        if not bad_gradient:
            self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update(self._scale_update_param)


@OPTIM_WRAPPERS.register_module()
class PixelDeepSpeedOptimWrapper(DeepSpeedOptimWrapper):
    """DeepSpeed's backward and step with the accumulation rules of MMEngine's ``OptimWrapper``.

    The last window of a training may be shorter than the others; its losses are then averaged over
    what it holds, and the step happens, as in single-process training (DeepSpeed alone would drop
    it). The step runs without autograd: gloo's all-gather into the flat parameters fails otherwise
    in ZeRO stages 1 and 2.

    A step with a bad loss, gradient or state is skipped by the means with which DeepSpeed skips
    float16 steps that overflow: all processes agree on it, and the gradients are dropped.

    Args:
        optimizer: The optimizer; the strategy replaces it with DeepSpeed's.
        accumulative_counts: Micro-batches per optimizer step.
        check_steps: Skip bad steps; False leaves float16 to DeepSpeed and everything else unseen.

    Attributes:
        outcome: What became of the last step; None while gradients are accumulated.
        losses: The losses of the window that the last step ended.
        bad_state: As in :class:`PixelOptimWrapper`; in ZeRO each process looks at its part.
    """

    def __init__(self, optimizer, accumulative_counts: int = 1, check_steps: bool = True):
        super().__init__(optimizer)
        self.outcome: Outcome | None = None
        self.losses = LossWatch()
        self._check_steps, self._checks_itself = check_steps, None
        self._unfit = self.bad_state = False
        self._accumulative_counts = accumulative_counts
        self._inner_count, self._max_counts = 0, -1
        self.message_hub = MessageHub.get_current_instance()

    def initialize_count_status(self, done: int, max_counts: int) -> None:
        """Set how many micro-batches were done before, and how many the whole training has."""
        self._inner_count, self._max_counts = done, max_counts

    def _window(self) -> int:
        """Give the number of micro-batches in the current accumulation window."""
        remainder = self._max_counts % self._accumulative_counts if self._max_counts > 0 else 0
        in_last = self._inner_count >= self._max_counts - remainder
        return remainder if remainder and in_last else self._accumulative_counts

    def update_params(self, loss: torch.Tensor) -> None:
        """Accumulate one micro-batch; step at the end of its window."""
        factor = self._accumulative_counts / self._window()
        self._inner_count += 1
        steps = updates_after(self, self._inner_count, self._max_counts)
        self.outcome = None
        self.losses.see(loss)
        self.model.set_gradient_accumulation_boundary(steps)
        self.backward(loss * factor)
        if steps and self._check_steps:
            self._agree(loss.device)
        self.step()
        if steps:
            self._note_outcome()
            norm = self.model.get_global_grad_norm()
            if norm is not None:
                norm = float(norm) if self.outcome is Outcome.TAKEN else float('nan')
                self.message_hub.update_scalar('train/grad_norm', norm)

    def step(self, **kwargs) -> None:
        """Let DeepSpeed step, if the window is full."""
        with torch.no_grad():
            super().step(**kwargs)

    def _agree(self, device: torch.device) -> None:
        """Make DeepSpeed's optimizer skip the coming step if what it is made of is bad."""
        optimizer = self.model.optimizer
        bad = [not self.losses.close(), not state_is_finite(optimizer.optimizer)]
        bad_loss, self.bad_state = on_any_rank(bad, device)
        self._unfit = bad_loss or self.bad_state
        if self._checks_itself is None:
            self._checks_itself = self._prepare_check(optimizer)
        self._scale = optimizer.loss_scale
        if not self._checks_itself:
            optimizer.check_overflow()

    def _prepare_check(self, optimizer) -> bool:
        """Extend DeepSpeed's test of the gradients; whether its step makes the test by itself.

        Stages 1 and 2 do so when told to, stage 3 in float16 only.
        """
        if not hasattr(optimizer, 'has_overflow') or not hasattr(optimizer, 'loss_scale'):
            raise ConfigError(
                f'--deepspeed: {type(optimizer).__name__}, which DeepSpeed made of this '
                'configuration, cannot skip a step; use a preset of ZeRO stage 1 to 3 without '
                'data_types, or train unchecked with default_hooks.bad_steps=None'
            )
        gradients_overflow = optimizer.has_overflow
        # Always both: DeepSpeed's test also forgets what it has found.
        optimizer.has_overflow = lambda *args, **kwargs: (
            gradients_overflow(*args, **kwargs) or self._unfit
        )
        if hasattr(getattr(optimizer, 'loss_scaler', None), 'raise_error_at_min_scale'):
            optimizer.loss_scaler.raise_error_at_min_scale = False  # BadStepHook ends the training
        if hasattr(optimizer, 'check_grad_overflow'):
            optimizer.check_grad_overflow = True
            return True
        return optimizer.dtype == torch.float16

    def _note_outcome(self) -> None:
        """Say what DeepSpeed did at the end of the window."""
        optimizer = self.model.optimizer
        if not self._check_steps or not optimizer.overflow:
            self.outcome = Outcome.TAKEN
            return
        scaler = getattr(optimizer, 'loss_scaler', None)
        lowest = max(1, getattr(scaler, 'min_scale', 1))
        if self._unfit or self._scale <= lowest or not optimizer.dynamic_loss_scale:
            self.outcome = Outcome.SKIPPED
        else:
            self.outcome = Outcome.RESCALED
        if self._unfit and hasattr(scaler, 'cur_scale'):
            scaler.cur_scale = self._scale  # no scale mends that
