"""Caption pairs of a drawn world: the list and the lines say the same."""

import json

import numpy as np

from pixelsail_mm.worlds.shapes_world.formats.captions import list_objects, write
from pixelsail_mm.worlds.shapes_world.formats.world import read_world


def test_list_and_lines(world, tmp_path, world_counts):
    images = {image.file_name: image for image in read_world(world)}
    write(list(images.values()), world, tmp_path, np.random.default_rng(0))
    for split, count in world_counts.items():
        entries = json.loads((tmp_path / f'captions_{split}.json').read_text())
        lines = [
            json.loads(line)
            for line in (tmp_path / f'captions_{split}.jsonl').read_text().splitlines()
        ]
        assert len(entries) == count
        assert [(line['image'], line['caption']) for line in lines] == [
            (entry['image'], caption) for entry in entries for caption in entry['captions']
        ]
        for entry in entries:
            image = images[entry['image']]
            assert entry['captions'][0] == list_objects(image)
            assert all(item.description in entry['captions'][0] for item in image.objects)
            assert (entry['height'], entry['width']) == (image.height, image.width)
