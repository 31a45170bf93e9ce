"""A warning names the line of its user, however deep in the library it is given."""

from pathlib import Path

import pytest

from espace_tf.checks import warn

LIBRARY = """
def deep():
    warn("look", UserWarning)

def public(between):
    between(deep)
"""


@pytest.mark.parametrize("between", [lambda function: function(), lambda function: [function()]])
def test_a_warning_names_the_line_that_called_the_library(between):
    library = {"__name__": "espace_tf.made_up", "warn": warn}
    exec(compile(LIBRARY, "library.py", "exec"), library)
    with pytest.warns(UserWarning, match="look") as record:
        library["public"](between)  # here
    assert record[0].filename == __file__
    lines = Path(__file__).read_text().splitlines()
    assert lines[record[0].lineno - 1].endswith("# here")


def test_a_warning_outside_of_the_library_names_its_own_line():
    with pytest.warns(UserWarning, match="look") as record:
        warn("look", UserWarning)
    assert record[0].filename == __file__
