"""A plan's table: every convolution and reason, nothing cut off on 80 columns."""

from types import SimpleNamespace

import numpy as np

from espace_tf.config import EspaceConfig
from espace_tf.numerics.factors import plain_factors
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.option import Option
from espace_tf.records.plan import Plan
from espace_tf.reports.tables import as_text, folded, summary_table

SEED = 4


def plan() -> Plan:
    random = np.random.default_rng(SEED)
    masked = {"positions": np.arange(0, 100, 2), "output_size": (10, 10), "family": "columns"}
    thin = plain_factors(random.normal(size=(1, 1, 64, 128)), 16)
    return Plan(
        layers={
            "stage/conv_with_a_long_name_in_unit_2": LayerPlan(
                rank=128, order="horizontal", **masked
            ),
            "point": LayerPlan(rank=16, factors=thin),
            "second": LayerPlan(**masked, note="a [/red] kernel is not decomposed"),
            "[b]third[/c]": LayerPlan(positions=[3], note="a [/red] kernel is not decomposed"),
        },
        skipped={"stem": f"would get slower: {'0.1234 ms instead of 0.1111, ' * 5}done"},
        speedup=2.0,
        dense_ms=1234.5,
        predicted_ms=617.25,
        times={
            "stem": (2.0, 2.0),
            "stage/conv_with_a_long_name_in_unit_2": (1023.125, 1011.5),
            "point": (1.0, 0.5),
        },
    )


def test_a_plan_as_text():
    title, rest, units, head, *lines = str(plan()).splitlines()
    assert title.startswith("Plan: speedup asked 2, 617.2 ms predicted")
    assert rest == "masked, 1 left"
    assert units.split() == ["ms"]
    assert head.split() == ["layer", "before", "after", "rank", "computed", "remark"]
    assert max(map(len, [head, *lines])) <= 80
    cells = [line.split() for line in lines]
    assert cells[0] == ["stem", "2.000", "2.000", "1"]
    long = ["1023", "1012", "128", "horiz.", "columns", "50%"]
    assert cells[1] == ["stage/", *long]
    assert cells[2:5] == [["conv_with_a_long_"], ["name_in_unit_2"], cells[4]]
    assert cells[4] == ["point", "1.000", "0.500", "16"], "the order of 1 x 1 means nothing"
    assert cells[5] == ["second", "columns", "50%", "2"]
    assert cells[6] == ["[b]third[/c]", "a", "part", "2"]
    assert cells[7] == ["whole", "model", "1234", "617.2"]
    assert cells[8][:4] == ["1", "would", "get", "slower:"]
    assert " ".join(" ".join(lines).split()).endswith("done 2 a [/red] kernel is not decomposed")
    assert str(Plan()).splitlines()[0] == "Plan: 0 decomposed, 0 masked, 0 left"


def test_next_options_fit_on_80_columns():
    kinds = {"family": "columns", "keep": 0.5}
    path = "stage/conv_with_a_long_name_in_unit_2"
    sites = {
        path: [
            *(Option(ms=1023.125), Option(rank=128, order="horizontal", ms=1011.5, **kinds)),
            Option(rank=120, order="horizontal", ms=999.25, damage=0.00125, **kinds),
        ],
        "point": [Option(ms=1.0), Option(rank=16, ms=0.5), Option(rank=8, ms=0.25, damage=12.5)],
    }
    made = SimpleNamespace(
        config=EspaceConfig(),
        target="labels",
        images=512,
        sites={
            name: SimpleNamespace(site=SimpleNamespace(path=name), options=options)
            for name, options in sites.items()
        },
    )
    lines = as_text(summary_table(plan(), made)).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[3].split()[-3:] == ["ms", "loss", "remark"]
    rows = [line.split() for line in lines]
    long = ["1023", "1012", "128", "horiz.", "columns", "50%", "-12.250", "+.0013"]
    assert ["stage/", *long] in rows
    assert ["point", "1.000", "0.500", "16", "-0.250", "+12"] in rows
    assert any(line.startswith("next: what the layer's next faster option") for line in lines)


def test_what_it_was_made_from_stands_below():
    made = SimpleNamespace(config=EspaceConfig(batch_size=4), target="labels", images=512, sites={})
    expected = "predicted times: TensorFlow, batches of 4; 512 images, gradients of labels"
    assert as_text(summary_table(plan(), made)).splitlines()[-1] == expected
    made.target = "no data"
    assert "no data: factors from the weights alone" in as_text(summary_table(plan(), made), 120)


def test_paths_are_folded_where_words_end():
    assert folded("short", 8) == "short"
    assert folded("stage_2/unit_1/conv_a", 12).split() == ["stage_2/", "unit_1/", "conv_a"]
    assert folded("stage_2/unit_1/conv", 11).split() == ["stage_2/", "unit_1/conv"]
    assert folded("abcdefghij", 4).split() == ["abcd", "efgh", "ij"]
    assert "".join(folded("größe/" * 9, 7).split()) == "größe/" * 9
