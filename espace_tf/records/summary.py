"""A plan in a few columns of text: what is predicted of every layer, and why some stay."""

from collections.abc import Sequence
from dataclasses import dataclass

COLUMNS = ("layer", "before ms", "after ms", "rank", "mask", "computed", "remarks")


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One convolution of a plan, for tables; None is not known.

    Args:
        before_ms, after_ms: predicted milliseconds of the layer, all calls together.
        keep: share of the output positions computed.
        reason: why it was left alone, or why only a part was done.
    """

    path: str
    before_ms: float | None = None
    after_ms: float | None = None
    rank: int | None = None
    order: str | None = None
    family: str | None = None
    keep: float | None = 1.0
    reason: str | None = None

    def cells(self) -> list[str]:
        """The row as texts, one for each of COLUMNS; what is not known is empty.

        Example:
            >>> SummaryRow(path="conv", after_ms=0.5, rank=8, order="vertical").cells()
            ['conv', '', '0.500', '8 vertical', '', '', '']
        """
        rank = f"{self.rank} {self.order}" if self.rank else ""
        keep = "" if self.keep == 1 else _number(self.keep, ".0%")
        times = (_number(self.before_ms, ".3f"), _number(self.after_ms, ".3f"))
        return [self.path, *times, rank, self.family or "", keep, self.reason or ""]


def text(title: str, rows: Sequence[Sequence[str]]) -> str:
    """A title and lines of aligned columns under COLUMNS; numbers stand at the right.

    Args:
        title: the first line.
        rows: lists of cells, shorter ones end early.

    Example:
        >>> print(text("Plan", [["conv", "1.000", "0.500", "8 vertical"]]))
        Plan
        layer  before ms  after ms        rank  mask  computed  remarks
        conv       1.000     0.500  8 vertical
    """
    lines = [COLUMNS, *rows]
    widths = [
        max(len(line[index]) for line in lines if index < len(line))
        for index in range(len(COLUMNS))
    ]
    sides = ("<", *">" * (len(COLUMNS) - 2), "<")
    aligned = (
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=False)
        ).rstrip()
        for line in lines
    )
    return "\n".join([title, *aligned])


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
