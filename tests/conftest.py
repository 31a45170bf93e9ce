"""What all tests share: measured times are kept in a folder of the session, never in the home."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESPACE_TF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
