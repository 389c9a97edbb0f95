# Two processes with losses and gradients that are not finite; from the eighth iteration to the end.
_base_ = './toy_config.py'
train_cfg = dict(max_iters=12)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=-1), bad_steps=dict(max_streak=3))
_faults = [(1, 1, 'loss'), (3, 0, 'gradient'), (5, 1, 'constant')]
_faults += [(iteration, 1, 'loss') for iteration in range(7, 12)]
custom_hooks = [dict(type='FaultHook', faults=_faults)]
