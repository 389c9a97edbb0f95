"""Settings of vision experts of the real architectures, small enough for tests."""

_SWIN = dict(
    model_type='swin',
    image_size=64,
    embed_dim=8,
    depths=[1, 1, 1, 1],
    num_heads=[1, 1, 2, 2],
    window_size=4,
    out_features=['stage1', 'stage2', 'stage3', 'stage4'],
)
#: For ``Mask2FormerExpert(MASK2FORMER, size=64)``: 32 channels.
MASK2FORMER = dict(
    backbone_config=_SWIN,
    feature_size=32,
    mask_feature_size=32,
    hidden_dim=32,
    encoder_layers=1,
    decoder_layers=2,
    num_attention_heads=4,
    encoder_feedforward_dim=32,
    dim_feedforward=32,
    num_queries=4,
)
_HIERA = dict(
    model_type='sam2_hiera_det_model',
    hidden_size=8,
    num_attention_heads=1,
    blocks_per_stage=[1, 1, 2, 1],
    embed_dim_per_stage=[8, 16, 32, 64],
    num_attention_heads_per_stage=[1, 1, 2, 2],
    image_size=[128, 128],
    window_positional_embedding_background_size=[4, 4],
    window_size_per_stage=[4, 2, 4, 2],
    global_attention_blocks=[3],
)
#: For ``SAM2Expert(SAM2, size=128)``: maps of 32x8x8.
SAM2 = dict(
    vision_config=dict(
        backbone_config=_HIERA,
        backbone_channel_list=[64, 32, 16, 8],
        fpn_hidden_size=32,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    ),
    prompt_encoder_config=dict(
        hidden_size=32, image_size=128, patch_size=16, mask_input_channels=4
    ),
    mask_decoder_config=dict(
        hidden_size=32,
        mlp_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        iou_head_hidden_dim=32,
    ),
)
