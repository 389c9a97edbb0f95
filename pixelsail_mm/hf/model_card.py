"""README.md of an exported folder: facts about the model in it, and what a person writes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.logging import print_log

from pixelsail_mm.models.heads.names import head_configs
from pixelsail_mm.version import __version__

if TYPE_CHECKING:
    from pixelsail_mm.hf.modeling import PixelSAILForCausalLM

CARD = 'README.md'
# Between these stands what a new export writes again.
_BEGIN, _END = '<!-- facts of the export -->', '<!-- end of facts -->'
_TEXT = """\
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
Questions can point at regions (`<Prompt0>` ... `<Prompt14>`).

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
model and the data they were trained on; whoever publishes them has to state it here. A new export
into this folder writes the table of facts again and keeps everything else of this page.
"""


def write_model_card(model: PixelSAILForCausalLM, folder: Path, earlier: Path) -> None:
    """Write ``README.md``, or keep that of an earlier export with new facts in it.

    A card without the marks around the table of facts was written by a person and stays as it is.

    Args:
        model: The exported model.
        folder: The folder, with its weights in it.
        earlier: Folder that will be replaced, whether there or not; its name is the title.
    """
    facts = f'{_BEGIN}\n\n| | |\n|---|---|\n{_facts(model, folder)}\n\n{_END}'
    kept = earlier / CARD
    text = kept.read_text(encoding='utf-8') if kept.is_file() else None
    if text is None:
        text = _TEXT.format(name=earlier.name, facts=facts)
    elif _BEGIN in text and _END in text:
        text = text[: text.index(_BEGIN)] + facts + text[text.rindex(_END) + len(_END) :]
    else:
        print_log(
            f'{kept} has no marked table of facts and stays as it is: check that it '
            'describes the new weights',
            'current',
            logging.WARNING,
        )
    (folder / CARD).write_text(text, encoding='utf-8')


def _facts(model: PixelSAILForCausalLM, folder: Path) -> str:
    """Rows of the table of facts."""
    text, parts = model.config.text_config, model.config.model
    files = sorted(folder.glob('*.safetensors'))
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    decoder = (
        f'`{text.model_type}`: hidden {text.hidden_size}, {text.num_hidden_layers} layers, '
        f'{text.num_attention_heads} heads, {text.vocab_size} tokens, '
        f'{"tied" if text.tie_word_embeddings else "untied"} embeddings'
    )
    facts = {
        'parameters': f'{model.num_parameters():,}',
        'weights': f'{str(model.dtype).removeprefix("torch.")}, {megabytes:.1f} MB in '
        f'{len(files)} file{"s" if len(files) > 1 else ""}',
        'decoder': decoder,
        'patch': f'{model.model.backbone.patch_size} pixels',
        'parts': ', '.join(
            f'`{part["type"]}`'
            for part in (
                *(parts[key] for key in ('backbone', 'prompt_injector', 'neck')),
                *head_configs(parts.get('mask_head'), parts.get('heads')).values(),
            )
        ),
        'longest answer': f'{model.generation_config.max_new_tokens} tokens by default',
        'written by': f'pixelsail_mm {__version__}',
    }
    modules = model.config.custom_imports
    if modules:
        facts['modules'] = f'import {", ".join(f"`{name}`" for name in modules)} first'
    return '\n'.join(f'| {key} | {value} |' for key, value in facts.items())
