"""The display of a whole call: what is done, the time left; lines in files, a bar in terminals."""

import functools
import io
import logging

import pytest
import rich.console

from espace_tf import progress
from espace_tf.progress import Course, shown

PHASES = {"read": 1.0, "think": 2.0, "write": 1.0}


def test_the_time_left_follows_from_what_has_passed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    course = Course(PHASES)
    course.begin("read")
    assert (course.done, course.left) == (0.0, "")
    course.advance(0.5)
    now[0] = 110.0
    assert course.done == pytest.approx(1 / 8)
    assert course.left == "about 1:10 left"
    now[0] = 1000.0
    assert course.left == "about 1:45:00 left"
    course.begin("write")  # nothing was to be thought about
    now[0] = 160.0
    assert course.done == pytest.approx(3 / 4)
    assert course.left == "about 0:20 left"
    course.begin("something else")
    assert course.done == pytest.approx(3 / 4)
    course.begin("write")
    course.advance(7.0)
    assert course.done == pytest.approx(1.0) and course.left == "about 0:00 left"


def work(verbose: int) -> None:
    with shown(verbose, PHASES) as display:
        for phase in PHASES:
            with display(phase, 2) as advance:
                advance(1)
        with display("nothing to do", 0) as advance:
            advance(0)


def test_a_file_gets_a_line_for_every_phase(capsys):
    work(1)
    out = capsys.readouterr().out
    assert "\r" not in out and "\x1b" not in out
    lines = out.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "  0% read", " 25% think", " 75% write", " 75% nothing to do",
    ]  # fmt: skip
    assert "left" in lines[1]
    work(0)
    assert capsys.readouterr().out == ""


def test_a_terminal_has_one_bar(monkeypatch):
    file = io.StringIO()
    terminal = functools.partial(
        rich.console.Console, file=file, force_terminal=True, width=100, legacy_windows=False
    )
    monkeypatch.setattr(rich.console, "Console", terminal)
    work(1)
    bars = [line for line in file.getvalue().splitlines() if "\u2501" in line]
    assert len(bars) <= 2  # the first one, drawn over in place, and the last
    assert "nothing to do" in bars[-1]


def test_a_notebook_keeps_what_is_printed_and_gets_lines():
    """A bar would be kept in each of its states, or ask for ipywidgets as often."""
    assert not progress.draws(rich.console.Console(force_jupyter=True))


def test_an_error_ends_the_display():
    with pytest.raises(ValueError, match="stop"), shown(1, PHASES) as display, display("read", 1):
        raise ValueError("stop")


@pytest.mark.parametrize("verbose", [0, 1])
def test_advice_on_functions_that_are_not_the_users_is_left_out(verbose, caplog):
    logger = logging.getLogger("tensorflow")
    caplog.set_level(logging.WARNING, logger.name)
    logger.addHandler(caplog.handler)
    advice = "5 out of the last 5 calls to %s triggered tf.function retracing."
    with shown(verbose, PHASES):
        logger.warning(advice, "f")
        logger.warning("something else")
    logger.warning(advice, "g")
    logger.removeHandler(caplog.handler)
    messages = {record.getMessage().partition(" triggered")[0] for record in caplog.records}
    assert messages == {"something else", "5 out of the last 5 calls to g"}
