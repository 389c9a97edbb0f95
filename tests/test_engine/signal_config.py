# The toy, with signals at chosen places and data that can hang.
_base_ = './toy_config.py'
custom_imports = dict(
    imports=['tests.test_engine.toy_components', 'tests.test_engine.signal_components']
)
custom_hooks = [dict(type='SignalHook')]
default_hooks = dict(checkpoint=dict(interval=100))
