"""docs/model_zoo.md, from the metafiles, the published table and the catalogue of downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixelsail_mm.downloads import load_catalogue
from pixelsail_mm.model_zoo.metafile import NOT_RUN, all_metafiles, paper_results, read_metafile
from pixelsail_mm.rendering import render


def render_page(root: Path) -> str:
    """Give the page of a source tree with ``model-index.yml``."""
    collections = [
        (
            collection,
            [model for model in content['Models'] if model['In Collection'] == collection['Name']],
        )
        for content in map(read_metafile, all_metafiles(root))
        for collection in content['Collections']
    ]
    page = render(
        'model_zoo/page.md.jinja',
        collections=collections,
        ran=_ran,
        not_run=NOT_RUN,
        downloads=load_catalogue(),
        **paper_results(),
    )
    return page + '\n'


def _ran(model: dict[str, Any]) -> bool:
    """Whether any result of the model is ours."""
    return any(value != NOT_RUN for row in model['Results'] for value in row['Metrics'].values())
