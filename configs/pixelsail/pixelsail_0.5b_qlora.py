# LoRA over 4-bit weights (QLoRA), for cards of little memory; needs bitsandbytes:
#   tools/dist_train.sh configs/pixelsail/pixelsail_0.5b_qlora.py 1 --cfg-options load_from=BASE
# Not with ZeRO-3. Merge: tools/model_converters/merge_lora.py (docs/lora.md).
_base_ = './pixelsail_0.5b_lora.py'

model = dict(
    backbone=dict(
        quantization=dict(
            type='BitsAndBytesConfig',
            load_in_4bit=True,
            bnb_4bit_quant_type='nf4',
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype='bfloat16')))
