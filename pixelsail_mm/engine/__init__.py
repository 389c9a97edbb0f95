"""Training and testing machinery: runner factory, strategies, loops, hooks and checkpoints.

The registered components live in the sub-packages (``engine.hooks``, ``engine.loops``,
``engine.strategies``, ``engine.optim_wrappers``), which the registries import when a type is first
looked up; importing this package alone is cheap.
"""
