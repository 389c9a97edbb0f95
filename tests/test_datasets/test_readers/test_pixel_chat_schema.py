"""The schema of our own format: what it allows, and how its faults are said."""

import copy
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelsail_mm.datasets import BadSampleError
from pixelsail_mm.datasets.readers import pixel_chat
from pixelsail_mm.datasets.readers.pixel_chat import validate_pixel_chat
from pixelsail_mm.structures import PixelDataSample
from pixelsail_mm.tokenization import NUM_PROMPTS
from tests.test_datasets.test_readers.pixel_chat_entries import (
    FULL,
    POLYGON,
    RLE,
    H,
    W,
    asked,
    entry,
    masked,
    prompted,
    turn,
)

SCHEMA = json.loads(
    (Path(pixel_chat.__file__).parents[1] / 'schemas/pixel_chat.schema.json').read_text(
        encoding='utf-8'
    )
)
VALID = dict(
    minimal=dict(turns=[turn()]),
    full=FULL,
    integer_id=entry(id=7),
    empty_lists=entry(masks=[], prompts=[], meta={}),
    several_turns=entry(turn(), turn()),
    empty_mask=masked([]),
    two_polygons=masked(POLYGON * 2),
    rle=masked(RLE),
    counts=masked(dict(size=[H, W], counts=[0, 48])),
    png=masked(dict(png='m.png')),
    segments=masked(dict(png='s.png', ids=[1])),
    union=masked(dict(union=[POLYGON, RLE])),
    mask_prompt=prompted(mask=RLE),
    point=prompted(point=[1.5, 2]),
    box=prompted(box=[0, 0, 1, 1]),
    dot=prompted(scribble=[[1, 2]]),
    pen=prompted(scribble=[[1, 2], [3, 4]], width=1),
    absent=prompted(absent=True),
    whole_float=prompted(id=3.0, point=[1, 2]),
    image_marker=asked(question='<image>\nWhere?'),
    outside=prompted(point=[-4, 1]),
    references=asked(references=['x']),
    no_target=asked(no_target=True),
)

INVALID = dict(
    no_object=[FULL],
    nothing={},
    no_turns=dict(turns=[]),
    turns_object=dict(turns={}),
    unknown_key=entry(mask=[]),
    list_id=entry(id=[1]),
    blank_id=entry(id=' '),
    true_id=entry(id=True),
    null_image=dict(turns=[turn()], image=None),
    blank_image=dict(turns=[turn()], image=''),
    height_alone=entry(height=H),
    zero_height=entry(height=0, width=W),
    text_height=entry(height='6', width=W),
    half_height=entry(height=5.5, width=W),
    size_without_image=dict(turns=[turn()], height=H, width=W),
    masks_without_image=dict(turns=[turn()], masks=[]),
    prompts_without_image=dict(turns=[turn()], prompts=[]),
    no_answer=dict(turns=[dict(question='x')]),
    blank_answer=asked(answer=' \n'),
    null_question=asked(question=None),
    other_spelling=dict(turns=[dict(human='x', gpt='y')]),
    unknown_turn_key=asked(mask=POLYGON),
    seg_in_question=asked(question='Is it [SEG]?'),
    prompt_15=asked(question='<Prompt15>?'),
    prompt_03=asked(question='<Prompt03>?'),
    prompt_100=asked(answer='<Prompt100>'),
    image_token=asked(answer='a <vpatch>'),
    end_token=asked(question='</vision>?'),
    choices_alone=asked(choices=['a', 'b']),
    correct_alone=asked(correct='A'),
    one_choice=asked(choices=['a'], correct='A'),
    blank_choice=asked(choices=['a', ''], correct='A'),
    small_letter=asked(choices=['a', 'b'], correct='a'),
    two_letters=asked(choices=['a', 'b'], correct='AB'),
    newline=asked(choices=['a', 'b'], correct='A\n'),
    no_references=asked(references=[]),
    text_references=asked(references='x'),
    number_expression=asked(expression=1),
    text_no_target=asked(no_target='no'),
    masks_object=entry(masks={}),
    null_mask=masked(None),
    flat_polygon=masked([1, 1, 5, 1, 5, 5]),
    two_points=masked([[1, 1, 5, 1]]),
    text_coordinate=masked([[1, 1, 5, 1, 5, '5']]),
    true_coordinate=masked([[1, 1, 5, 1, 5, True]]),
    far_coordinate=masked([[1, 1, 5, 1, 5, 1e7]]),
    no_size=masked(dict(counts='0`1')),
    three_sides=masked(dict(size=[1, 2, 3], counts='0')),
    zero_side=masked(dict(size=[0, 2], counts='0')),
    negative_counts=masked(dict(size=[1, 2], counts=[3, -1])),
    blank_counts=masked(dict(size=[1, 2], counts='')),
    extra_rle=masked(dict(RLE, area=3)),
    empty_object=masked({}),
    no_ids=masked(dict(png='m.png', ids=[])),
    huge_ids=masked(dict(png='m.png', ids=[1 << 24])),
    ids_alone=masked(dict(ids=[1])),
    png_and_rle=masked(dict(RLE, png='m.png')),
    empty_union=masked(dict(union=[])),
    nested_union=masked(dict(union=[dict(union=[POLYGON])])),
    union_and_png=masked(dict(union=[POLYGON], png='m.png')),
    no_prompt_id=entry(prompts=[dict(point=[1, 1])]),
    id_15=prompted(id=15, point=[1, 1]),
    text_prompt_id=prompted(id='3', point=[1, 1]),
    half_prompt_id=prompted(id=2.5, point=[1, 1]),
    no_kind=prompted(),
    two_kinds=prompted(point=[1, 1], box=[1, 1, 2, 2]),
    three_numbers=prompted(point=[1, 1, 1]),
    text_box=prompted(box='1,1,2,2'),
    null_box=prompted(box=None),
    empty_scribble=prompted(scribble=[]),
    flat_scribble=prompted(scribble=[1, 2]),
    thin=prompted(scribble=[[1, 2]], width=0.5),
    wide_box=prompted(box=[1, 1, 2, 2], width=2),
    absent_false=prompted(absent=False),
    absent_one=prompted(absent=1),
    too_many=entry(prompts=[dict(id=0, absent=True)] * 16),
    meta_list=entry(meta=[1]),
    meta_taken=entry(meta=dict(answer='x')),
    meta_method=entry(meta={'keys': 1}),
    meta_private=entry(meta=dict(_x=1)),
    meta_blank=entry(meta={'': 1}),
)

# Place and reason of some of them: unknown and missing keys, values, alternatives.
SAID = dict(
    nothing=": lacks ['turns']; has []",
    other_spelling=".turns[0]: has unknown keys ['human', 'gpt']; known are ['question', 'answer', "
    "'choices', 'correct', 'references', 'expression', 'no_target']",
    height_alone=": lacks ['width']; has ['image', 'turns', 'height']",
    text_height='.height: got str \'6\', but it is not of type "integer"; wanted: A whole number '
    'of pixels, at least 1.',
    null_question='.turns[0].question: got NoneType None, but it is not of type "string"; wanted: '
    'A text that is not blank.',
    prompt_15='.turns[0].question: <Prompt15> cannot be used; wanted: A text without tokens that '
    'only the pipeline writes and without prompts but <Prompt0> to <Prompt14>.',
    text_coordinate='.masks[0][0][5]: got str \'5\', but it is not of type "number"; wanted: A '
    'number of pixels of the image.',
    extra_rle=".masks[0]: has unknown keys ['area']; known are ['size', 'counts']",
    no_size=".masks[0]: lacks ['size']; has ['counts']",
    ids_alone=".masks[0]: lacks ['png']; has ['ids']",
    null_mask='.masks[0]: got NoneType None; wanted: One mask at the size of the image: polygons, '
    "or an object with exactly one of 'counts', 'png' and 'union'.",
    negative_counts='.masks[0].counts[1]: got int -1, but it is less than the minimum of 0; '
    'wanted: COCO run lengths, compressed (text) or not (numbers, column by column).',
    no_kind=".prompts[0]: got dict {'id': 3}; wanted: One visual prompt: an id and exactly one of "
    "'mask', 'box', 'point', 'scribble' and 'absent'.",
    meta_taken=".meta: cannot hold the key 'answer'; wanted: A name that begins with a letter and "
    'means nothing else in a sample.',
)

# A schema cannot say these; the reader does.
UNLINKED = dict(
    masks_missing=(
        entry(turn(answer='[SEG] and [SEG].'), masks=[POLYGON]),
        r'masks: 1 masks for 2 \[SEG\]',
    ),
    masks_too_many=(entry(masks=[POLYGON]), r'masks: 1 masks for 0 \[SEG\]'),
    same_id=(
        entry(prompts=[dict(id=1, absent=True), dict(id=1, point=[1, 1])]),
        r'prompts\[1\]\.id: prompt id 1 is used twice',
    ),
    undeclared=(
        entry(turn('<Prompt1>?'), prompts=[dict(id=2, absent=True)]),
        r'turns\[0\]: names <Prompt1>, .* ids \[2\]; add it, as {"id": 1, "absent": true}',
    ),
    no_prompts=(asked(answer='<Prompt0>'), r'names <Prompt0>'),
    third_option=(asked(choices=['a', 'b'], correct='C'), r'turns\[0\]\.correct: C is not .* 2'),
    empty_box=(prompted(box=[3, 1, 3, 2]), r'prompts\[0\]\.box: .* is empty'),
    odd_polygon=(masked([[1, 1, 5, 1, 5, 5, 2]]), r'masks\[0\]\[0\]: a polygon of 7 numbers'),
    odd_part=(masked(dict(union=[[[1, 1, 5, 1, 5, 5, 2]]])), r'masks\[0\]\.union\[0\]\[0\]'),
    odd_prompt=(prompted(mask=[[1, 1, 5, 1, 5, 5, 2]]), r'prompts\[0\]\.mask\[0\]'),
)


def fault_of(candidate):
    """What the schema says of an entry; None if it allows it."""
    try:
        pixel_chat._entry_schema().check(candidate, 'f.json', '[0]')
    except BadSampleError as error:
        assert (error.file, error.key[:3]) == ('f.json', '[0]')
        return f'{error.key}: {error.reason}'
    return None


class TestSchema:
    @pytest.mark.parametrize('name', VALID)
    def test_valid_entries(self, name, tmp_path):
        assert fault_of(VALID[name]) is None
        (tmp_path / 'f.json').write_text(json.dumps([VALID[name]]))
        assert validate_pixel_chat(tmp_path / 'f.json') == []

    @pytest.mark.parametrize('name', INVALID)
    def test_invalid_entries(self, name, tmp_path):
        assert fault_of(INVALID[name])
        (tmp_path / 'f.json').write_text(json.dumps([INVALID[name]]))
        (problem,) = validate_pixel_chat(tmp_path / 'f.json')
        assert 'f.json: [0]' in problem

    @pytest.mark.parametrize('name', UNLINKED)
    def test_faults_that_a_schema_cannot_name(self, name, tmp_path):
        candidate, message = UNLINKED[name]
        assert fault_of(candidate) is None
        (tmp_path / 'f.json').write_text(json.dumps([VALID['full'], candidate]))
        (problem,) = validate_pixel_chat(tmp_path / 'f.json')
        assert re.search(r'f\.json: \[1\].*' + message, problem), problem

    @pytest.mark.parametrize(('name', 'message'), SAID.items())
    def test_faults_are_said_with_their_place_and_what_is_wanted(self, name, message):
        assert fault_of(INVALID[name]) == '[0]' + message

    @pytest.mark.parametrize('number', [float('nan'), float('inf')])
    def test_what_python_alone_takes_for_json_is_refused(self, number):
        assert re.search(
            rf'masks\[0\]\[0\]\[5\]: got float {number}.*A number of pixels',
            fault_of(masked([[1, 1, 5, 1, 5, number]])),
        )
        assert 'surrogates not allowed' in fault_of(asked(answer='half a pair \ud83d'))

    @settings(max_examples=250)
    @given(st.data())
    def test_damaged_entries_are_read_or_refused(self, data):
        damaged = copy.deepcopy(FULL)
        for _ in range(data.draw(st.integers(1, 2))):
            damage(damaged, data)
        try:
            pixel_chat._make_item(damaged, 0, pixel_chat._Place('f', '[0]'), 'images', 'masks')
        except BadSampleError as error:
            assert error.key.startswith('[0]')

    def test_reserved_keys_are_those_of_the_reader_the_pipeline_and_the_sample(self):
        names = SCHEMA['$defs']['entry']['properties']['meta']['propertyNames']['not']['enum']
        given = set(
            'sample_id dataset choices answer references expression no_target img_path '
            'ori_shape grid question gt_text dropped_turns gt_masks prompt_masks '
            'prompt_ids image pred_text pred_masks pred_scores'.split()
        )
        assert set(names) == given | {name for name in dir(PixelDataSample) if name[0] != '_'}

    def test_prompts_are_as_many_as_the_tokenizer_has(self):
        prompts = SCHEMA['$defs']['entry']['properties']['prompts']
        assert prompts['maxItems'] == NUM_PROMPTS
        assert SCHEMA['$defs']['prompt']['properties']['id']['maximum'] == NUM_PROMPTS - 1

    def test_every_key_is_described(self):
        definitions = SCHEMA['$defs']
        for name in ('entry', 'turn', 'prompt'):
            for key, rule in definitions[name]['properties'].items():
                target = rule.get('$ref', '').removeprefix('#/$defs/')
                assert rule.get('description') or definitions[target]['description'], key

    def test_examples_of_the_documentation_are_valid(self, repo_root):
        text = (repo_root / 'docs/custom_data.md').read_text(encoding='utf-8')
        blocks = re.findall(r'```json\n(.*?)```', text, re.DOTALL)
        examples = [json.loads(block) for block in blocks]
        assert len(examples) >= 3
        for example in examples:
            assert all(fault_of(e) is None for e in example), example
        keys = set(re.findall(r'^\| `(\w+)`', text, re.MULTILINE))
        for name in ('entry', 'turn', 'prompt'):
            assert set(SCHEMA['$defs'][name]['properties']) <= keys


VALUES = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        2.5,
        3.0,
        1e9,
        '',
        ' ',
        'x',
        '[SEG]',
        '<Prompt20>',
        [],
        {},
        [1, 2],
        [[1, 2]],
        [1] * 4,
        [[1] * 6],
        dict(png='x'),
        dict(id=1),
    ]
)


def damage(value, data):
    """Change, remove or add something somewhere inside a container."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        action = data.draw(st.sampled_from(['go', 'go', 'go', 'change', 'remove', 'add']))
        if not keys or action == 'add':
            if isinstance(value, dict):
                key = data.draw(st.sampled_from(['x', 'id', 'width', 'mask', 'point', 'ids']))
                value[key] = copy.deepcopy(data.draw(VALUES))
            else:
                value.append(copy.deepcopy(data.draw(VALUES)))
            return
        key = data.draw(st.sampled_from(keys))
        if action == 'remove':
            del value[key]
            return
        if action == 'change' or not isinstance(value[key], (dict, list)):
            value[key] = copy.deepcopy(data.draw(VALUES))
            return
        value = value[key]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    'turns',
                    'image',
                    'masks',
                    'prompts',
                    'question',
                    'answer',
                    'id',
                    'box',
                    'union',
                    'counts',
                ]
            ),
            inner,
            max_size=4,
        )
    ),
)


@given(JSON)
def test_no_json_value_ends_in_another_error(value):
    try:
        pixel_chat._make_item(value, 0, pixel_chat._Place('f', '[0]'), 'images', 'masks')
    except BadSampleError:
        pass
