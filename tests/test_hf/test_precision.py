"""The table of what half precision changes."""

from PIL import Image

from pixelsail_mm.benchmarks.precision import compare_precisions, report
from pixelsail_mm.checkpoints.checkpoint import load_state, save_weights


def test_float32_is_what_the_others_are_compared_with(exports, image, tmp_path):
    Image.fromarray(image).save(tmp_path / 'image.png')
    training = exports[True]
    rows = compare_precisions(
        training.cfg, training.checkpoint, str(tmp_path / 'image.png'), 'What is it?'
    )
    assert [(row['stored'], row['computed']) for row in rows] == [
        ('float32', 'float32'),
        ('float16', 'float32'),
        ('bfloat16', 'float32'),
        ('float16', 'float16'),
        ('bfloat16', 'bfloat16'),
    ]
    exact, *halves = [row['difference'] for row in rows]
    assert exact == 0 and rows[0]['same_text']
    # A bfloat16 keeps 8 bits of the mantissa, a float16 keeps 11.
    assert 0 < halves[0] < halves[1] and 0 < halves[2] < halves[3]
    assert len(report(rows).splitlines()) == 7


def test_weights_that_fit_into_half_precision_lose_nothing_when_stored(exports, image, tmp_path):
    Image.fromarray(image).save(tmp_path / 'image.png')
    state = {
        key: value.bfloat16().float() if value.is_floating_point() else value
        for key, value in load_state(exports[True].checkpoint)['state_dict'].items()
    }
    save_weights(state, tmp_path / 'model.safetensors')
    rows = compare_precisions(
        exports[True].cfg,
        tmp_path / 'model.safetensors',
        str(tmp_path / 'image.png'),
        'What is it?',
    )
    assert rows[2]['difference'] == 0 < rows[4]['difference']
