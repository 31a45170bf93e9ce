"""A plan as a table for the terminal, readable on 80 columns."""

import io
import re
from typing import Any

from espace_tf.config import runtime_title

_WIDTH = 80
_PATH_WIDTH = 22
_LAYOUT = {"box": None, "padding": (0, 2, 0, 0), "pad_edge": False}


def summary_table(plan: Any, analysis: Any = None) -> Any:
    """All convolutions of a plan, one a row, for a `rich.console.Console`.

    Remarks, which may be long, are numbered and stand below the table, equal ones once.

    Args:
        plan: the Plan.
        analysis: the Analysis that it was made from, for the line below; None: no such line.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table, legend, remarks = Table(**_LAYOUT), Table(**_LAYOUT, show_header=False), {}
    table.add_column("layer")
    for name in ("ms before", "ms after", "rank", "computed", "remark"):
        table.add_column(name, justify="right")
    for row in plan.summary():
        number = str(remarks.setdefault(row.reason, len(remarks) + 1)) if row.reason else ""
        times = (_number(row.before_ms, ".3f"), _number(row.after_ms, ".3f"))
        rank = f"{row.rank} {row.order or ''}".strip() if row.rank else ""
        table.add_row(Text(folded(row.path, _PATH_WIDTH)), *times, rank, _computed(row), number)
    if plan.dense_ms and plan.predicted_ms:
        table.add_row("whole model", f"{plan.dense_ms:.3f}", f"{plan.predicted_ms:.3f}")
    for reason, number in remarks.items():
        legend.add_row(str(number), Text(reason))
    below = [legend] if remarks else []
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


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _source(analysis: Any) -> str:
    config = analysis.config
    where = f"predicted times: {runtime_title(config.runtime)}, batches of {config.batch_size}"
    if analysis.target == "no data":
        return f"{where}; no data: factors from the weights alone, masks without impact"
    return f"{where}; {analysis.images} images, gradients of {analysis.target}"
