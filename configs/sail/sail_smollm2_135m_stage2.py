# SmolLM2-135M on a CPU, stage 2 of 2: the whole transformer, captions, questions and plain text.
#   tools/train.py configs/sail/sail_smollm2_135m_stage2.py
# Its weights are a base that sees:
#   tools/train.py configs/pixelsail/pixelsail_smollm2_135m.py \
#       --cfg-options load_from=work_dirs/sail_smollm2_135m_stage2/model.safetensors
_base_ = './sail_smollm2_135m_stage1.py'

# 3 of 100 conversations of ShapesWorld are text; weighed fourfold they are a tenth of the loss.
model = dict(trainable=['backbone'], lm_loss_weight_text_only=4.0)
train_dataloader = dict(dataset=dict(max_turns=4, shuffle_turns=True))
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=0.05))
train_cfg = dict(max_iters=100)
load_from = 'work_dirs/sail_smollm2_135m_stage1/model.safetensors'
