"""README.md of an exported folder, made of facts about the model in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pixelsail_mm.models.heads.names import head_configs
from pixelsail_mm.version import __version__

if TYPE_CHECKING:
    from pixelsail_mm.hf.modeling import PixelSAILForCausalLM

_CARD = '''\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags:
- pixel-sail
- referring-segmentation
---

# {name}

A Pixel-SAIL ("Single Transformer For Pixel-Grounded Understanding", arXiv 2504.10465): one decoder
reads image patches and text, answers in text, and gives a mask for each `[SEG]` it writes.
Questions can point at regions (`<Prompt0>` ... `<Prompt14>`). Written by pixelsail_mm {version}.

| | |
|---|---|
{facts}

## Use

```python
import pixelsail_mm.hf  # registers the model with Transformers; no remote code
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor

model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype='auto').eval()
processor = AutoProcessor.from_pretrained(FOLDER)
inputs = processor(images=Image.open(IMAGE), text=QUESTION, return_tensors='pt')
outputs = model.generate(**inputs.to(model.device), return_dict_in_generate=True)
print(processor.post_process_answers(outputs.sequences, inputs)[0])
masks = outputs.masks[0]  # bool (number of [SEG], height, width) at the size of the image
```

or `pixelsail_mm.apis.PixelSAILInferencer(FOLDER)`, which gives the same answers.

## Licence

The code of pixelsail_mm is under Apache-2.0. The licence of these weights follows from the base
model and the data they were trained on; whoever publishes them has to state it here.
'''


def write_model_card(model: PixelSAILForCausalLM, folder: Path, name: str) -> None:
    """Write ``README.md``.

    Args:
        model: The exported model.
        folder: The folder, with its weights in it.
        name: Title of the card.
    """
    text, parts = model.config.text_config, model.config.model
    files = sorted(folder.glob('*.safetensors'))
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    decoder = (f'`{text.model_type}`: hidden {text.hidden_size}, {text.num_hidden_layers} layers, '
               f'{text.num_attention_heads} heads, {text.vocab_size} tokens, '
               f'{"tied" if text.tie_word_embeddings else "untied"} embeddings')
    facts = {
        'parameters': f'{model.num_parameters():,}',
        'weights': f'{str(model.dtype).removeprefix("torch.")}, {megabytes:.1f} MB in '
                   f'{len(files)} file{"s" if len(files) > 1 else ""}',
        'decoder': decoder,
        'patch': f'{model.model.backbone.patch_size} pixels',
        'parts': ', '.join(f'`{part["type"]}`' for part in (
            *(parts[key] for key in ('backbone', 'prompt_injector', 'neck')),
            *head_configs(parts.get('mask_head'), parts.get('heads')).values())),
        'longest answer': f'{model.generation_config.max_new_tokens} tokens by default'}
    (folder / 'README.md').write_text(_CARD.format(
        name=name, version=__version__,
        facts='\n'.join(f'| {key} | {value} |' for key, value in facts.items())))
