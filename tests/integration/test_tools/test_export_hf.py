"""The command on the trained model that ships; its folder in a process that knows no more."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from pixelsail_mm.apis import PixelSAILInferencer

QUESTION = 'Please segment the leftmost shape.'
SAVE = """
import json
answer = processor.post_process_answers(outputs.sequences, inputs)[0]
json.dump(dict(answer=answer, masks=masks.tolist()), open(RESULT, 'w'))
"""


def blocks(page, language):
    return re.findall(f'```{language}\n(.*?)```', page.read_text(), re.S)


def run(folder, *arguments, **variables):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=dict(os.environ, **variables),
    )


@pytest.mark.slow
def test_command_then_the_code_of_card_and_document(repo_root, tmp_path):
    """Offline, in a fresh process, with ``import pixelsail_mm.hf`` and Auto classes only."""
    document = repo_root / 'docs/hugging_face.md'
    shipped, folder = repo_root / 'demo/checkpoints/pixelsail_tiny_grounding', tmp_path / 'hf'
    done = run(
        repo_root,
        'tools/model_converters/export_hf.py',
        shipped,
        shipped / 'model.safetensors',
        folder,
        '--dtype',
        'float32',
        '--max-shard-size',
        '2MB',
        '--debug',
        PYTHONPATH=str(repo_root),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(rf'wrote {folder} \(6\.\d MB\)', done.stdout)
    assert len(list(folder.glob('*.safetensors'))) >= 3

    moved, picture = folder.rename(tmp_path / 'moved'), repo_root / 'demo/shapes.jpg'
    code = blocks(moved / 'README.md', 'python')[0]
    more = ''.join(blocks(document, 'python')).replace('work_dirs/tiny_hf', str(moved))
    values = dict(
        FOLDER=str(moved),
        IMAGE=str(picture),
        QUESTION=QUESTION,
        RESULT=str(tmp_path / 'result.json'),
    )
    script = tmp_path / 'card.py'
    script.write_text(
        '\n'.join(f'{key} = {value!r}' for key, value in values.items()) + f'\n{code}{SAVE}{more}'
    )
    done = run(repo_root, script, HF_HUB_OFFLINE='1', PYTHONPATH=str(repo_root))
    assert done.returncode == 0, done.stderr
    alone = json.loads((tmp_path / 'result.json').read_text())

    before = PixelSAILInferencer(shipped, device='cpu')(str(picture), QUESTION)
    after = PixelSAILInferencer(moved, device='cpu')(str(picture), QUESTION)
    assert before['masks'].sum() > 50
    assert before['text'] == after['text'] == alone['answer']
    for printed in blocks(document, 'text')[1:]:
        assert printed in done.stdout
    np.testing.assert_array_equal(before['masks'], after['masks'])
    np.testing.assert_array_equal(before['masks'], np.array(alone['masks']))
