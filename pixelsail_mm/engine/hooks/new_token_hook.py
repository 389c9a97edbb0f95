"""Warn before a training that cannot teach the model its new tokens."""

from mmengine.hooks import Hook

from pixelsail_mm.engine.strategies.common import unwrap
from pixelsail_mm.errors import shortened
from pixelsail_mm.models.backbones.new_tokens import frozen_ids
from pixelsail_mm.registry import HOOKS

_NAMED = 6


@HOOKS.register_module()
class NewTokenHook(Hook):
    """Warn when rows of tokens that the base does not know are frozen, whatever froze them.

    A model whose ``[SEG]`` row never moves does not learn to answer with masks, and nothing else
    in the log shows it.
    """

    priority = 'VERY_LOW'  # behind hooks that freeze parts

    def before_train(self, runner) -> None:
        """Check embedding and output head."""
        model = unwrap(runner.model)
        backbone = getattr(model, 'backbone', None)
        if not hasattr(backbone, 'untrained_ids'):
            return
        for place, ids in frozen_ids(backbone.llm, backbone.untrained_ids).items():
            names = model.tokenizer.convert_ids_to_tokens(sorted(ids, key=_task_first(model)))
            runner.logger.warning(
                f'the {place} is frozen for tokens that the base never learned: '
                f'{shortened(names, _NAMED)}. The model cannot learn to '
                f'{"read" if place == "embedding" else "write"} them. Set '
                'model.backbone.new_token_rows=True (rows of their own, which train), and leave '
                'them out of what freezes parameters (model.trainable)'
            )


def _task_first(model):
    """Sort key that puts ``[SEG]`` in front: it is what users look for."""
    return lambda token: (token != model.tokens.seg, token)
