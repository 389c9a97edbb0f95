"""What the tests of models share."""

import pytest


@pytest.fixture(autouse=True, scope='module')
def own_cache_home(tmp_path_factory):
    """Sums of weight files are not to be remembered in the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp('home')
        patch.setenv('XDG_CACHE_HOME', str(home))
        yield home
