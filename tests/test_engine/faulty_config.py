# Two processes with losses, gradients and optimizer states that are not finite; from the tenth
# iteration to the end.
_base_ = './toy_config.py'
train_cfg = dict(max_iters=14)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=-1), bad_steps=dict(max_streak=3))
_faults = [(1, 1, 'loss'), (3, 0, 'gradient'), (5, 1, 'constant'), (6, 1, 'state')]
_faults += [(iteration, 1, 'loss') for iteration in range(9, 14)]
custom_hooks = [dict(type='FaultHook', faults=_faults), dict(type='EqualWeightsHook')]
