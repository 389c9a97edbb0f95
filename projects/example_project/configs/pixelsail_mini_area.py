# The quickstart's model with a second head. From the root of the repository, after the quickstart
# or the data of configs/pixelsail/pixelsail_mini.py:
#   python tools/train.py projects/example_project/configs/pixelsail_mini_area.py
_base_ = '../../../configs/pixelsail/pixelsail_mini.py'

custom_imports = dict(imports=['example_project'])
model = dict(heads=dict(area=dict(type='AreaHead')))
