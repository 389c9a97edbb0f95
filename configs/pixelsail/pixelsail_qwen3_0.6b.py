# Co-training from Qwen3-0.6B, a second family of language models (normalised queries and keys, heads
# wider than the hidden size), 8 GPUs:
#   tools/dist_train.sh configs/pixelsail/pixelsail_qwen3_0.6b.py 8
_base_ = './pixelsail_0.5b.py'

tokenizer = 'Qwen/Qwen3-0.6B'
model = dict(tokenizer=tokenizer, backbone=dict(llm='Qwen/Qwen3-0.6B'))

train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[4].tokenizer = tokenizer
test_pipeline[5].tokenizer = tokenizer
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = [dict(loader, dataset=dict(loader.dataset, pipeline=test_pipeline))
                  for loader in _base_.val_dataloader]
test_dataloader = val_dataloader
