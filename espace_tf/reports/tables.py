"""A plan as a table for the terminal, readable on 80 columns."""

import io
import re
from typing import Any

from espace_tf.config import runtime_title
from espace_tf.records.alternatives import Alternatives, alternatives

_WIDTH = 80
_PATH_WIDTH = 18
_LAYOUT = {"box": None, "padding": (0, 1, 0, 0), "pad_edge": False}
_SHORT = {"vertical": "vert.", "horizontal": "horiz."}


def summary_table(plan: Any, analysis: Any = None) -> Any:
    """All convolutions of a plan, one a row, for a `rich.console.Console`.

    Remarks, which may be long, are numbered and stand below the table, equal ones once.

    Args:
        plan: the Plan.
        analysis: the Analysis that it was made from, for what each layer's next faster option would
            have saved and cost, and the line below; None: neither.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table, legend, remarks = Table(**_LAYOUT), Table(**_LAYOUT, show_header=False), {}
    beside = {} if analysis is None else alternatives(plan, analysis)
    if all(each.faster is None for each in beside.values()):
        beside = {}
    table.add_column("\nlayer")
    names = ("ms\nbefore", "\nafter", "\nrank", "\ncomputed")
    for name in names + ("next:\nms", "\nloss") * bool(beside) + ("\nremark",):
        table.add_column(name, justify="right")
    for row in plan.summary():
        number = str(remarks.setdefault(row.reason, len(remarks) + 1)) if row.reason else ""
        times = (_milliseconds(row.before_ms), _milliseconds(row.after_ms))
        rank = f"{row.rank} {_SHORT.get(row.order, '')}".strip() if row.rank else ""
        next_one = _next(beside.get(row.path)) if beside else ()
        cells = (*times, rank, _computed(row), *next_one, number)
        table.add_row(Text(folded(row.path, _PATH_WIDTH)), *cells)
    if plan.dense_ms and plan.predicted_ms:
        times = (_milliseconds(plan.dense_ms), _milliseconds(plan.predicted_ms))
        table.add_row("whole model", *times)
    for reason, number in remarks.items():
        legend.add_row(str(number), Text(reason))
    below = [legend] if remarks else []
    if beside:
        below.append("next: what the layer's next faster option would have saved and cost")
    if analysis is not None:
        below.append(_source(analysis))
    return Group(f"Plan: {plan.headline()}", table, *below)


def as_text(shown: Any, width: int = _WIDTH) -> str:
    """What a console of this width would print, without colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    console.print(shown)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def folded(path: str, width: int) -> str:
    """A path over lines of at most `width` letters, broken behind "/" or "_" where it can be.

    Example:
        >>> folded("stage_2/unit_1/conv", 12).split()
        ['stage_2/', 'unit_1/conv']
    """
    line = f".{{1,{width}}}"
    return "\n".join(re.findall(f"{line}(?:(?<=/)|$)|{line}(?<=_)|{line}", path))


def _computed(row: Any) -> str:
    if row.keep == 1:
        return ""
    return f"{row.family or ''} {_number(row.keep, '.0%')}".strip() or "a part"


def _milliseconds(value: float | None) -> str:
    """In five letters where that tells three digits."""
    return _number(value, ".3f" if value is None or value < 10 else ".4g")


def _next(found: Alternatives | None) -> tuple[str, str]:
    """Milliseconds and loss of the next faster option."""
    faster = None if found is None else found.faster
    if faster is None:
        return "", ""
    return f"{faster.ms:+.3f}", f"{faster.damage:+.2g}".replace("+0.", "+.")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _source(analysis: Any) -> str:
    config = analysis.config
    where = f"predicted times: {runtime_title(config.runtime)}, batches of {config.batch_size}"
    if analysis.target == "no data":
        return f"{where}; no data: factors from the weights alone, masks without impact"
    return f"{where}; {analysis.images} images, gradients of {analysis.target}"
