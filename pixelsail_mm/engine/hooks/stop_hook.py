"""Save and end when the system or the user asks a training to stop."""

from mmengine.hooks import Hook

from pixelsail_mm.engine.agreement import Agreement
from pixelsail_mm.engine.hooks.checkpoint_hook import PixelCheckpointHook
from pixelsail_mm.engine.optim_wrappers import updates_after
from pixelsail_mm.engine.stop_signals import REQUEST
from pixelsail_mm.errors import StoppedError
from pixelsail_mm.registry import HOOKS


@HOOKS.register_module()
class StopHook(Hook):
    """Save a checkpoint and end the training after the first SIGTERM or Ctrl-C.

    The processes agree on the iteration: the first end of an accumulation window at which all of
    them know, one window after the signal at most. A validation under way is left. The second
    signal, two seconds later or more, ends the process at once.

    ``tools/train.py`` handles the signals; where nobody does, they act as usual.

    Raises:
        StoppedError: The training has stopped, in all processes at once.
    """

    priority = 'LOWEST'  # behind all that belongs to an iteration

    def before_train(self, runner) -> None:
        """Begin to defer signals."""
        self._agreement = Agreement(1)
        REQUEST.deferred = True

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None
    ) -> None:
        """Stop if any process was asked to and the accumulation window ends here."""
        done = batch_idx + 1
        if done == runner.max_iters or not updates_after(
            runner.optim_wrapper, done, runner.max_iters
        ):
            return
        [asked] = self._agreement.ask(REQUEST.signal is not None)
        if asked:
            self._stop(runner, done)

    def _stop(self, runner, done: int) -> None:
        hook = next((hook for hook in runner.hooks if isinstance(hook, PixelCheckpointHook)), None)
        saved = 'there is no PixelCheckpointHook, so nothing was saved'
        if hook is not None:
            path = hook.save_now(runner)
            saved = f'saved {path}; continue with --resume'
        reason = REQUEST.signal.name if REQUEST.signal else 'a signal to another process'
        raise StoppedError(
            f'stopped by {reason} at iteration {done} of {runner.max_iters}: {saved}'
        )

    def after_train(self, runner) -> None:
        """Let signals act as usual again."""
        REQUEST.deferred = False
        self._agreement.wait()
