# A single transformer of about a million parameters that learns grounding on a CPU in minutes.
_base_ = './pixel_sail.py'

model = dict(
    tokenizer='{{$PIXELSAIL_DATA:data/shapes_world}}/tokenizer',
    backbone=dict(
        patch_size=8,
        # The published initialiser (0.02) is far too small at this width. Layers must write as
        # loudly as the embeddings speak, or no head learns to use what an earlier one found.
        embedding_std=0.3,
        patch_embed_gain=4.0,
        # Columns have to turn as much as rows, or shapes are seen by rows only.
        rotary_layout='interleaved',
        # Without them mask features never tell left from right, and no relation is learned.
        patch_positions=2.0,
        llm=dict(
            _delete_=True,
            model_type='llama',
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            # The slower half of the frequencies tells columns apart and would not turn at all over
            # a dozen patches with 1e6; with 10 no frequency is slow enough for words to find
            # each other, or patches, whatever the distance.
            rope_theta=1000.0,
            initializer_range=0.08,
            tie_word_embeddings=False)),
    prompt_injector=dict(init_gain=6.0),
    mask_head=dict(
        embed_channels=128,
        num_points=None,
        # Small objects need the region loss to weigh more than in the recipe (0.5).
        loss_dice=dict(loss_weight=3.0)),
    # A stand-in for the vision experts of the paper, see worlds/shapes_world/expert_maps.py.
    # With it grounding begins after some hundred steps instead of many hundreds.
    distill=[
        dict(
            type='ExpertDistillLoss',
            name='oracle',
            feature='neck',
            expert_channels=28,
            loss_weight=7.0,  # falls during training, see DistillScheduleHook
            expert=dict(
                type='CachedExpert',
                root='{{$PIXELSAIL_DATA:data/shapes_world}}/expert',
                image_root='{{$PIXELSAIL_DATA:data/shapes_world}}/images'))
    ],
    lm_loss_weight_with_masks=2.0,
    generation=dict(max_new_tokens=24))
