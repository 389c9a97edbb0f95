"""The trained weights as one plain file."""

import os.path as osp

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from pixelsail_mm.engine.checkpoint import save_weights
from pixelsail_mm.registry import HOOKS


@HOOKS.register_module()
class ExportWeightsHook(Hook):
    """Write ``work_dir/model.safetensors`` when training ends.

    The file holds the whole model whatever the strategy (ZeRO-3 keeps each weight in parts), and
    ``tools/test.py`` and ``init_model`` load it.

    Args:
        filename: Name of the file in the work directory.
    """

    priority = 'LOWEST'

    def __init__(self, filename: str = 'model.safetensors'):
        self.filename = filename

    def after_train(self, runner) -> None:
        """Gather and write the weights.

        Args:
            runner: The runner.
        """
        state = runner.strategy.gathered_state_dict()
        if is_main_process():
            path = osp.join(runner.work_dir, self.filename)
            save_weights(state, path, metadata=dict(iter=str(runner.iter),
                                                    experiment=runner.experiment_name))
            runner.logger.info(f'wrote {len(state)} weights to {path}')
