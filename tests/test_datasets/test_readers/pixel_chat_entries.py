"""Entries of PixelChat files that several test files use."""

H, W = 6, 8
POLYGON = [[1, 1, 5, 1, 5, 5]]
RLE = dict(size=[H, W], counts='0`1')


def turn(question='Where is it?', answer='There.', **more):
    return dict(question=question, answer=answer, **more)


def entry(*turns, **more):
    return dict(image='a.png', turns=list(turns) or [turn()], **more)


def masked(mask):
    return entry(turn(answer='[SEG].'), masks=[mask])


def prompted(**prompt):
    return entry(turn('What is <Prompt3>?'), prompts=[{'id': 3, **prompt}])


def asked(**more):
    return entry(turn(**more))


FULL = entry(
    turn(
        'Where is <Prompt3>?',
        '<p> This </p> [SEG] and [SEG].',
        expression='<Prompt3>',
        no_target=False,
    ),
    turn('Which? A. a B. b', 'B', choices=['a', 'b'], correct='B', references=['b', 'B']),
    turn('<Prompt0>, <Prompt14>, <Prompt1>?', '[SEG], <Prompt2>.'),
    id='first',
    height=H,
    width=W,
    meta=dict(task='refseg', kind=3),
    masks=[dict(union=[POLYGON, RLE, dict(png='m.png')]), dict(png='s.png', ids=[3, 65536]), RLE],
    prompts=[
        dict(id=3, mask=POLYGON),
        dict(id=0, box=[1, 1, 4.5, 4]),
        dict(id=14, point=[2, 3]),
        dict(id=1, scribble=[[1, 1], [4, 4]], width=1.5),
        dict(id=2, absent=True),
    ],
)
