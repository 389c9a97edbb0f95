# From the root of the repository:
#   python tools/train.py projects/focal_mask_head/configs/pixelsail_tiny_focal.py
_base_ = 'pixelsail_mm::pixelsail/pixelsail_tiny_grounding.py'

custom_imports = dict(imports=['focal_mask_head'])
model = dict(mask_head=dict(type='FocalMaskHead', gamma=2.0))
