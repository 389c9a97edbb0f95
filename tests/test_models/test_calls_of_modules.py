"""Whatever a batch holds, the same modules are called in the same order, forwards and backwards.

ZeRO-3 gathers the weights of a module in all processes at once: a process whose batch makes other
calls waits for ever. It lets go of them when the gradient of the module's input is there, so that
must be wanted in all processes or in none. tests/integration/test_training/test_unequal_ranks.py
tries the real thing.
"""

import pytest
import torch

from pixelsail_mm.registry import MODELS
from pixelsail_mm.testing.tiny_models import TINY_EVE, byte_tokenizer, collate, tiny_model_config
from tests.test_engine.mixed_components import KINDS, make_batch
from tests.test_models.test_heads import point_head  # noqa: F401  registers the head


def distilled(feature):
    return dict(
        distill=[
            dict(
                type='ExpertDistillLoss',
                expert=dict(type='SomeMapsExpert'),
                feature=feature,
                expert_channels=4,
                name='maps',
            )
        ]
    )


def calls_of(model, batch):
    """Calls of modules with weights of their own, and the tensors that came back, in order."""
    events, handles = [], []

    def note(name):
        def hook(module, inputs, output):
            tensors = [output] if torch.is_tensor(output) else list(output)
            given = [part for part in inputs if torch.is_tensor(part)]
            given += [part for parts in inputs if isinstance(parts, list) for part in parts]
            wanted = any(part.requires_grad for part in given)
            events.append(('forward', name, len(tensors), wanted))
            for tensor in tensors:
                tensor.register_hook(lambda grad: events.append(('backward', name)))

        return hook

    for name, module in model.named_modules():
        if list(module.parameters(recurse=False)):
            handles.append(module.register_forward_hook(note(name)))
    batch = model.data_preprocessor(batch)
    sum(model(**batch, mode='loss').values()).backward()
    for handle in handles:
        handle.remove()
    return events


@pytest.mark.parametrize(
    ('layout', 'parts'),
    [
        ('block', {}),
        ('block', distilled('neck')),
        ('block', distilled('backbone')),
        ('block', dict(neck=dict(type='LearnableUpsampler', out_stride=4, max_channels=16))),
        ('block', dict(neck=dict(type='BilinearUpsampler'))),
        ('block', dict(mask_head=dict(type='SegTokenMaskHead', fold_projector=True))),
        ('block', dict(heads=dict(point=dict(type='PointHead')))),
        ('block', dict(prompt_injector=dict(type='PooledPromptInjector'))),
        ('rows', TINY_EVE),
    ],
    ids=[
        'plain',
        'distilled neck',
        'distilled states',
        'projector',
        'bilinear',
        'folded',
        'two heads',
        'pooled',
        'eve',
    ],
)
def test_calls_do_not_depend_on_the_batch(layout, parts):
    tokenizer = byte_tokenizer()
    model = MODELS.build(tiny_model_config(tokenizer, **parts))
    calls = {
        kind: calls_of(model, collate(make_batch(model.tokens, kind, image_layout=layout)))
        for kind in KINDS
    }
    first = calls[KINDS[0]]
    assert ('backward', 'backbone.llm.model.norm') in first or layout == 'rows'
    for kind, found in calls.items():
        assert found == first, kind
