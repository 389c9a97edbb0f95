# The same for SmolLM2-135M on a CPU, stage 1 of 2: the patch embedding, on captions of ShapesWorld.
#   tools/train.py configs/sail/sail_smollm2_135m_stage1.py
# How to get the language model: configs/pixelsail/pixelsail_smollm2_135m.py.
_base_ = '../pixelsail/pixelsail_smollm2_135m.py'

model = dict(trainable=['backbone.patch_embed'], distill=[])
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        _delete_=True,
        type='LLaVADataset',
        data_root=_base_.data_root,
        ann_file='llava/llava_train.json',
        data_prefix=dict(img_path='images'),
        # The first turn is the caption.
        max_turns=1,
        pipeline=_base_.train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.0), paramwise_cfg=None)
train_cfg = dict(max_iters=100)
custom_hooks = []
val_cfg = None
test_cfg = None
val_dataloader = None
val_evaluator = None
test_dataloader = None
test_evaluator = None
