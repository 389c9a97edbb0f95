# From the root of the repository:
#   PYTHONPATH=projects/focal_mask_head python tools/train.py \
#       projects/focal_mask_head/configs/pixelsail_tiny_focal.py
_base_ = '../../../configs/pixelsail/pixelsail_tiny_grounding.py'

custom_imports = dict(imports=['focal_mask_head'])
model = dict(mask_head=dict(type='FocalMaskHead', gamma=2.0))
