"""README.md of an exported folder: facts about the model in it, and what a person writes."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.logging import print_log

from pixelsail_mm.models.heads.names import head_configs
from pixelsail_mm.rendering import render
from pixelsail_mm.version import __version__

if TYPE_CHECKING:
    from pixelsail_mm.hf.modeling import PixelSAILForCausalLM

CARD = 'README.md'
# What a new export writes again.
_FACTS = re.compile('<!-- facts of the export -->.*<!-- end of facts -->', re.DOTALL)


def write_model_card(model: PixelSAILForCausalLM, folder: Path, earlier: Path) -> None:
    """Write ``README.md``, or keep that of an earlier export with new facts in it.

    A card without the marks around the table of facts was written by a person and stays as it is.

    Args:
        model: The exported model.
        folder: The folder, with its weights in it.
        earlier: Folder that will be replaced, whether there or not; its name is the title.
    """
    text, kept = _render(model, folder, earlier.name), earlier / CARD
    if kept.is_file():
        facts = _FACTS.search(text).group()
        text, found = _FACTS.subn(lambda _: facts, kept.read_text(encoding='utf-8'))
        if not found:
            print_log(
                f'{kept} has no marked table of facts and stays as it is: check that it '
                'describes the new weights',
                'current',
                logging.WARNING,
            )
    (folder / CARD).write_text(text, encoding='utf-8')


def _render(model: PixelSAILForCausalLM, folder: Path, name: str) -> str:
    parts = model.config.model
    heads = head_configs(parts.get('mask_head'), parts.get('heads')).values()
    parts = (parts['backbone'], parts['prompt_injector'], parts['neck'], *heads)
    card = render(
        'hf/model_card.md.jinja',
        name=name,
        model=model,
        decoder=model.config.text_config,
        dtype=str(model.dtype).removeprefix('torch.'),
        sizes=[file.stat().st_size for file in folder.glob('*.safetensors')],
        parts=[part['type'] for part in parts],
        version=__version__,
    )
    return card + '\n'
