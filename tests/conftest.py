"""What all tests share: modules beside this one, and a folder for measured times off the home."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESPACE_TF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
