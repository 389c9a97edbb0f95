"""The trained weights as one plain file, and the tokens that all checkpoints of a run know."""

import os.path as osp

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from pixelsail_mm.checkpoints.checkpoint import TRAINING_ONLY_PREFIXES, save_weights
from pixelsail_mm.checkpoints.formats.checkpoint_files import replace_when_complete
from pixelsail_mm.checkpoints.loading.vocabulary import vocabulary_metadata
from pixelsail_mm.engine.strategies.common import unwrap
from pixelsail_mm.registry import HOOKS


@HOOKS.register_module()
class ExportWeightsHook(Hook):
    """Write ``work_dir/model.safetensors`` when training ends.

    The file holds what prediction uses, whatever the strategy (ZeRO-3 keeps each weight in parts),
    and ``tools/test.py`` and ``init_model`` load it; the projections onto the experts are left to
    the checkpoints. When training starts, the tokenizer is written to ``work_dir/tokenizer``: it
    says which token each row of the checkpoints beside it belongs to.

    Args:
        filename: Name of the file in the work directory.
    """

    priority = 'LOWEST'

    def __init__(self, filename: str = 'model.safetensors'):
        self.filename = filename

    def before_train(self, runner) -> None:
        """Write the tokenizer."""
        tokenizer = _tokenizer(runner)
        if tokenizer is not None and is_main_process():
            with replace_when_complete(osp.join(runner.work_dir, 'tokenizer')) as unfinished:
                tokenizer.save_pretrained(unfinished)

    def after_train(self, runner) -> None:
        """Gather and write the weights.

        Raises:
            DivergedError: A weight is NaN or infinite; nothing is written then.
        """
        path = osp.join(runner.work_dir, self.filename)
        runner.strategy.require_finite_weights(path)
        state = {
            key: value
            for key, value in runner.strategy.gathered_state_dict().items()
            if not key.startswith(TRAINING_ONLY_PREFIXES)
        }
        if is_main_process():
            tokenizer = _tokenizer(runner)
            tokens = {} if tokenizer is None else vocabulary_metadata(tokenizer)
            save_weights(
                state,
                path,
                metadata=dict(iter=str(runner.iter), experiment=runner.experiment_name, **tokens),
            )
            runner.logger.info(f'wrote {len(state)} weights to {path}')


def _tokenizer(runner):
    """The model's tokenizer, None for a model without text."""
    return getattr(unwrap(runner.model), 'tokenizer', None)
