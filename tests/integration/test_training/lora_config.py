# The two-process model of alternating_config.py with LoRA; dropout would differ between processes.
_base_ = ['./alternating_config.py']
model = dict(
    backbone=dict(
        embedding_std=0.3,
        lora=dict(type='LoraConfig', r=4, lora_alpha=16, lora_dropout=0.0, bias='none'),
    )
)
