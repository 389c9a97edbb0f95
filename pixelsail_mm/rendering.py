"""Pages and reports: Jinja files that lie beside the code which fills them."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader('pixelsail_mm', '.'),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(name: str, /, **values: Any) -> str:
    """Fill a Jinja file; gives the text without a line break at its end.

    Args:
        name: Its path in the package, such as ``'model_zoo/page.md.jinja'``.
        **values: What it names.
    """
    return _environment().get_template(name).render(values).rstrip('\n')
