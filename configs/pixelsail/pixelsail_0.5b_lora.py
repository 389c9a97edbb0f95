# The 0.5B model with LoRA: the decoder is frozen but for adapters and the rows of the new tokens,
# everything around it trains. Start it from a base that sees, for Qwen2.5 has never seen a patch:
#   tools/dist_train.sh configs/pixelsail/pixelsail_0.5b_lora.py 8 --cfg-options load_from=BASE
# Merge: tools/model_converters/merge_lora.py (docs/lora.md).
_base_ = './pixelsail_0.5b.py'

model = dict(
    backbone=dict(
        # Without `target_modules`: all linear layers of the decoder but its output head.
        lora=dict(
            type='LoraConfig',
            r=64,
            lora_alpha=16,
            lora_dropout=0.05,
            bias='none',
            task_type='CAUSAL_LM')))

# XTuner's learning rate for LoRA.
optim_wrapper = dict(optimizer=dict(lr=2e-4))
