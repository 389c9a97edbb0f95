default_scope = 'pixelsail_mm'
model = dict(
    backbone=dict(
        embedding_std=0.3,
        llm=dict(
            hidden_size=128,
            initializer_range=0.08,
            intermediate_size=384,
            model_type='llama',
            num_attention_heads=2,
            num_hidden_layers=5,
            num_key_value_heads=2,
            rope_theta=1000.0,
            tie_word_embeddings=False),
        patch_embed_gain=4.0,
        patch_positions=2.0,
        patch_size=8,
        rotary_layout='interleaved',
        type='SingleTransformer'),
    data_preprocessor=dict(type='PixelDataPreprocessor'),
    generation=dict(do_sample=False, max_new_tokens=24),
    lm_loss_weight=1.0,
    lm_loss_weight_with_masks=2.0,
    mask_head=dict(
        embed_channels=128,
        importance_sample_ratio=0.75,
        loss_dice=dict(
            eps=1.0, loss_weight=3.0, naive_dice=True, type='DiceLoss'),
        loss_mask=dict(
            loss_weight=2.0, type='CrossEntropyLoss', use_sigmoid=True),
        num_points=None,
        oversample_ratio=3.0,
        type='SegTokenMaskHead'),
    neck=dict(out_stride=2, type='LearnableUpsampler'),
    prompt_injector=dict(init_gain=6.0, type='VisualPromptInjector'),
    tokenizer='tokenizer',
    type='PixelSAIL')
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadMasks'),
    dict(type='LoadVisualPrompts'),
    dict(max_size=80, patch_size=8, type='ResizeToGrid'),
    dict(
        generation=True,
        max_length=1024,
        template=dict(INSTRUCTION='{input}\n', SEP='', SUFFIX='<|endoftext|>'),
        tokenizer='tokenizer',
        trained_tokens=
        '0,16,33,67,201,223,269,289,295,297-298,309,314,320,323,329,332,341-342,344-345,356-357,361,366,369,374-376,385,389,392,397,408,410,414,417-418,425,435,438-439,477-480,491,506-507,512,529,533,560,573,578-579,581-583,585,587-591,618,622,630-631,634,636,639-653',
        type='BuildConversation'),
    dict(type='PackPixelInputs'),
]
