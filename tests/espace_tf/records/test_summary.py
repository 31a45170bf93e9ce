"""A plan as text: short where it is shown in passing, a table where it is printed."""

import numpy as np

from espace_tf.numerics.factors import plain_factors
from espace_tf.records.plan import LayerPlan, Plan
from espace_tf.records.summary import COLUMNS, SummaryRow, text

SEED = 4


def plan() -> Plan:
    kernel = np.random.default_rng(SEED).normal(size=(3, 3, 64, 128))
    factors = plain_factors(kernel, 24)
    masked = {"positions": np.arange(0, 100, 2), "output_size": (10, 10), "family": "grid"}
    return Plan(
        layers={
            "stage/conv_with_a_long_name": LayerPlan(rank=24, factors=factors, **masked),
            "second": LayerPlan(**masked, note="a 1 x 1 kernel is not decomposed"),
        },
        skipped={"stem": "would get slower"},
        speedup=2.0,
        dense_ms=12.5,
        predicted_ms=6.25,
        times={"stem": (2.0, 2.0), "stage/conv_with_a_long_name": (8.0, 2.0)},
    )


def test_repr_is_one_short_line():
    assert repr(plan()) == (
        "Plan(speedup asked 2, 6.25 ms predicted instead of 12.5, 1 decomposed, 2 masked, 1 left)"
    )
    assert repr(Plan()) == "Plan(0 decomposed, 0 masked, 0 left)"
    layer = plan().layers["stage/conv_with_a_long_name"]
    assert repr(layer.factors) == "Factors(first=(3, 1, 64, 24), second=(1, 3, 24, 128))"
    assert repr(layer) == (
        "LayerPlan(rank=24, order='vertical', positions=<50 kept>, family='grid', "
        "output_size=(10, 10), factors=Factors(first=(3, 1, 64, 24), second=(1, 3, 24, 128)))"
    )
    assert repr(LayerPlan()) == "LayerPlan()"
    assert "array" not in repr({"plans": [plan()], **plan().layers})


def test_str_is_a_table_of_the_summary():
    title, head, *lines = str(plan()).splitlines()
    assert title.startswith("Plan: speedup asked 2, 6.25 ms predicted")
    assert head.split("  ")[0] == "layer" and head.endswith("remarks")
    assert [line.split()[0] for line in lines[:-1]] == [row.path for row in plan().summary()]
    assert lines[-1].split() == ["whole", "model", "12.500", "6.250"]
    end = head.index("after ms") + len("after ms")
    for line, after in zip(lines, ("2.000", "2.000", "", "6.250"), strict=True):
        assert line[:end].endswith(after) and line[end : end + 2].strip() == ""
    assert lines[1].split()[3:] == ["24", "vertical", "grid", "50%"]
    assert lines[0].endswith("would get slower")
    assert str(Plan()).splitlines()[0] == "Plan: 0 decomposed, 0 masked, 0 left"


def test_cells_and_columns_go_together():
    assert len(SummaryRow(path="a").cells()) == len(COLUMNS)
    assert SummaryRow(path="a", keep=None).cells() == ["a", "", "", "", "", "", ""]
    assert SummaryRow(path="a", keep=0.25, reason="why").cells()[-2:] == ["25%", "why"]
    assert text("t", []) == "t\n" + "  ".join(COLUMNS)
