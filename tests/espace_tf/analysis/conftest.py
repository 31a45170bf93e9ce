"""Analyses that several files look at."""

import pytest
from analysed import hurry, of_labelled_images


@pytest.fixture
def quick(monkeypatch):
    hurry(monkeypatch)


@pytest.fixture(scope="module")
def labelled():
    return of_labelled_images()
