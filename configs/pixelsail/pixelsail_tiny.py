# Co-training on the whole mix of the recipe, drawn as ShapesWorld, on a CPU. Starts from the weights
# of pixelsail_tiny_grounding.py, which ship.
#   python tools/dataset_converters/make_shapes_world.py --preset full --out data/shapes_world
#   python tools/dataset_converters/shapes_world_to_public.py data/shapes_world data/shapes_public
#   tools/dist_train.sh configs/pixelsail/pixelsail_tiny.py 2
_base_ = [
    '../_base_/models/pixel_sail_tiny.py', '../_base_/datasets/shapes_public.py',
    '../_base_/schedules/schedule_tiny.py', '../_base_/default_runtime.py'
]

model = dict(
    tokenizer='{{$PIXELSAIL_DATA:data/shapes_public}}/tokenizer',
    backbone=dict(llm=dict(num_hidden_layers=5)),
    # Eyes that see need no expert.
    distill=[],
    # Captions of a whole image with a phrase for every object.
    generation=dict(max_new_tokens=96))
load_from = 'demo/checkpoints/pixelsail_tiny_grounding/model.safetensors'
optim_wrapper = dict(optimizer=dict(lr=5e-4, betas=(0.9, 0.98)))
train_cfg = dict(max_iters=12000)
custom_hooks = []
