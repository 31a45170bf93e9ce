"""One display for a whole call: its phase, what is done, and about how long it takes yet."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

# About how the time of a call is divided; what really passed corrects it.
SHARES = {
    "input statistics": 1.0,
    "loss gradients": 1.5,
    "times of layers": 3.0,
    "what changes cost": 3.0,
    "plans and their speeds": 3.0,
    "reconstruction": 4.0,
}
ANALYSIS = dict(list(SHARES.items())[:4])


class Progress(Protocol):
    """A call gives the context of a phase, in which advance(count) tells of what is done."""

    def __call__(
        self, phase: str, total: int
    ) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        """Begins a phase of so many parts."""


@contextlib.contextmanager
def silent(phase: str, total: int) -> Iterator[Callable[[int], None]]:
    """A `Progress` that shows nothing."""
    yield lambda count: None


@contextlib.contextmanager
def shown(verbose: int, phases: Mapping[str, float] = SHARES) -> Iterator[Progress]:
    """A display of these phases, if `verbose`, while the block lasts.

    A terminal has one bar for all of them; a file, a pipe or a notebook, which keeps what is
    printed, gets a line when a phase begins, without carriage returns. TensorFlow's advice on
    retracing, which Keras's own functions draw here, is left out meanwhile.

    Args:
        verbose: 0 for nothing.
        phases: in their order, each with its share of the time; one that never begins counts as
            done when a later one does.

    Example:
        >>> with shown(1, {"reading": 1, "thinking": 3}) as progress:
        ...     with progress("reading", 2) as advance:
        ...         advance(1)
    """
    logger = logging.getLogger("tensorflow")
    logger.addFilter(_no_retracing)
    try:
        with _display(verbose, phases) as progress:
            yield progress
    finally:
        logger.removeFilter(_no_retracing)


def _no_retracing(record: logging.LogRecord) -> bool:
    return "triggered tf.function retracing" not in str(record.msg)


@contextlib.contextmanager
def _display(verbose: int, phases: Mapping[str, float]) -> Iterator[Progress]:
    if not verbose:
        yield silent
        return
    from rich import progress

    console, course = _console(), Course(phases)
    if not draws(console):
        yield _Lines(course, console)
        return
    columns = (
        progress.TextColumn("{task.description:<22}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[left]}"),
    )
    with progress.Progress(*columns, console=console) as bar:
        yield _Bar(course, bar)


def draws(console: Any = None) -> bool:
    """Whether what is printed is looked at as it comes, on a terminal, and not kept."""
    return (_console() if console is None else console).is_terminal


def _console() -> Any:
    from rich import console

    return console.Console(highlight=False)


class Course:
    """How far a call is, by phases that take their shares of the time.

    Args:
        phases: as in `shown`.
    """

    def __init__(self, phases: Mapping[str, float]):
        total = sum(phases.values())
        self._shares = {name: share / total for name, share in phases.items()}
        self._start, self._before, self._phase, self._part = time.perf_counter(), 0.0, "", 0.0

    def begin(self, phase: str) -> None:
        """All phases that stand before this one are done; one that is not known takes no time."""
        self._phase, self._part = phase, 0.0
        if phase in self._shares:
            names = list(self._shares)
            self._before = sum(self._shares[name] for name in names[: names.index(phase)])

    def advance(self, part: float) -> None:
        """Adds a part of the phase, at most the whole of it."""
        self._part = min(self._part + part, 1.0)

    @property
    def done(self) -> float:
        """The share of the time that has passed, about."""
        return self._before + self._part * self._shares.get(self._phase, 0.0)

    @property
    def left(self) -> str:
        """About how long it takes yet, in words; empty as long as nothing tells."""
        if self.done < 0.02:
            return ""
        seconds = (time.perf_counter() - self._start) * (1 / self.done - 1)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        front = f"{hours}:{minutes:02d}" if hours else minutes
        return f"about {front}:{seconds:02d} left"


class _Lines:
    """One line for every phase that begins."""

    def __init__(self, course: Course, console: Any):
        self._course, self._console = course, console

    @contextlib.contextmanager
    def __call__(self, phase: str, total: int) -> Iterator[Callable[[int], None]]:
        self._course.begin(phase)
        left = self._course.left
        self._console.print(f"{self._course.done:4.0%} {phase}" + f", {left}" * bool(left))
        yield lambda count: self._course.advance(count / max(total, 1))


class _Bar:
    """The bar of a terminal."""

    def __init__(self, course: Course, bar: Any):
        self._course, self._bar = course, bar
        self._task = bar.add_task("", total=1.0, left="")

    @contextlib.contextmanager
    def __call__(self, phase: str, total: int) -> Iterator[Callable[[int], None]]:
        self._course.begin(phase)
        self._show(phase)

        def advance(count: int) -> None:
            self._course.advance(count / max(total, 1))
            self._show(phase)

        yield advance
        advance(total)

    def _show(self, phase: str) -> None:
        done, left = self._course.done, self._course.left
        self._bar.update(self._task, description=phase, completed=done, left=left)
