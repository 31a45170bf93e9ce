"""The page holds the plan's numbers and reasons, and needs nothing beside itself."""

import base64
import dataclasses
import html.parser
import io
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread

from espace_tf.planning.sweep import SweepRow
from espace_tf.records.comparison import Comparison
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.option import Option
from espace_tf.records.plan import Plan
from espace_tf.records.site import Site
from espace_tf.reports.html import report, short
from espace_tf.timing.benchmark import Row

PLAN = Plan(
    layers={
        "block/conv_a": LayerPlan(rank=4),
        "block/conv_b": LayerPlan(
            positions=np.arange(0, 64, 2),
            family="grid",
            output_size=(8, 8),
            note="rank 1 is slower",
        ),
    },
    skipped={"stem": "it would be slower: <0.3 ms>"},
    dense_ms=12.0,
    predicted_ms=4.0,
    speedup=3.0,
    times={"stem": (0.5, 0.5), "block/conv_a": (7.0, 2.5), "block/conv_b": (4.5, 1.0)},
)
# The ratio is a median of ratios, not that of the medians, which would be 2.5 times as fast.
ROWS = [
    Row("net", 12.5, 1.0, 3_000_000, 9_000, 0.0, "given"),
    Row("small", 5.0, 0.3, 999_000, 4_000, np.nan, "given"),
]


def analysis(sample=None):
    """What report reads of an Analysis."""
    sizes = {"input_sizes": ((8, 8),), "output_sizes": ((8, 8),)}

    def site(path):
        return Site(path=path, kind="conv", kernel_size=(3, 3), in_channels=8, filters=16,
                    padding="same", **sizes)  # fmt: skip

    options = {
        "stem": [Option(ms=0.5), Option(rank=2, ms=0.4, damage=0.03)],
        "block/conv_a": [
            *(Option(ms=7.0), Option(rank=4, ms=2.5, damage=0.02)),
            *(Option(rank=8, ms=4.0, damage=0.01), Option(rank=2, ms=2.0, damage=0.07)),
        ],
        "block/conv_b": [Option(ms=4.5), Option(family="grid", keep=0.5, ms=1.0, damage=0.5)],
    }
    errors = np.linspace(1, 0, 25)
    impact = np.random.default_rng(0).random((8, 8))
    return SimpleNamespace(
        config=SimpleNamespace(runtime="litert", batch_size=16, threads=2),
        sample=sample,
        sites={
            path: SimpleNamespace(
                site=site(path),
                options=options[path],
                impact=impact,
                decomposition=lambda order: SimpleNamespace(errors=errors),
            )
            for path in PLAN.times
        },
    )


class Page(html.parser.HTMLParser):
    """Collects the text, and checks that every element is closed."""

    VOID = ("meta", "img", "wbr", "br")

    def __init__(self, source: str):
        super().__init__()
        self.open, self.words, self.links = [], [], []
        self.feed(source)
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def test_everything_that_is_known_is_shown(tmp_path):
    path = report(
        PLAN,
        tmp_path / "report.html",
        accuracy={"before": 0.923, "after": 0.9188},
        analysis=analysis(),
        rows=ROWS,
    )
    assert os.listdir(tmp_path) == ["report.html"]
    page = Page(path.read_text(encoding="utf-8"))
    for words in (
        *("2 of 3 convolutions compressed", "LiteRT with batches of 16, 2 threads"),
        *("Speed-up, measured 3.33×", "small 5 3.33×", "on the inputs given", "4 k nan"),
        *("12.5 → 5 ms", "3.00×", "12 → 4 ms; asked: 3×", "3.00× fewer", "2.25× fewer"),
        *("92.30 → 91.88", "-0.42 points", "block/conv_a", "4 of 24, vertical first"),
        *("50 % (32 of 64), grid", "rank 1 is slower", "it would be slower: <0.3 ms>"),
    ):
        assert words in page.text, words
    assert len(page.links) == 2
    assert page.links[0].startswith("data:image/svg+xml;base64,")
    assert page.links[1].startswith("data:image/png;base64,")


def test_next_options_of_every_layer(tmp_path):
    page = Page(report(PLAN, tmp_path / "a.html", analysis=analysis()).read_text(encoding="utf-8"))
    for words in (
        *("faster: rank 2: -0.5 ms, +0.05 loss", "gentler: rank 8: +1.5 ms, -0.01 loss"),
        "gentler: as it is: +3.5 ms, -0.5 loss",
        "it would be slower: <0.3 ms> rank 2: -0.1 ms, +0.03 loss",
    ):
        assert words in page.text, words
    assert "Next options" not in Page(report(PLAN, tmp_path / "a.html").read_text()).text


def test_answers_before_and_after_are_those_of_held_out_images(tmp_path):
    compared = Comparison(
        images=200, loss_increase=0.0125, agreement=0.97, accuracy_before=0.9, accuracy_after=0.89
    )
    plan = dataclasses.replace(PLAN, comparison=compared)
    page = Page(report(plan, tmp_path / "a.html").read_text(encoding="utf-8"))
    for words in ("97.00 on 200 held-out images; loss +0.0125", "90.00 → 89.00 -1.00 points"):
        assert words in page.text, words
    given = {"before": 0.91, "after": 0.9}
    page = Page(report(plan, tmp_path / "a.html", accuracy=given).read_text(encoding="utf-8"))
    assert "91.00 → 90.00" in page.text and "90.00 → 89.00" not in page.text


def test_kept_positions_lie_over_an_image(tmp_path):
    sample = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    source = report(PLAN, tmp_path / "a.html", analysis=analysis(sample)).read_text("utf-8")
    assert source.count("url(data:image/png;base64,") == 1, "once, however many layers show it"
    assert not re.search(r"https?:|@import|url\((?!data:)|<script|<link", source)
    assert source.count('class="map over"') == 1, "of the one masked layer"
    (encoded,) = re.findall(r"url\(data:image/png;base64,([^)]*)\)", source)
    pixels = imread(io.BytesIO(base64.b64decode(encoded)), format="png")
    assert (np.round(255 * pixels[..., :3]) == sample).all()


def test_the_curve_of_a_sweep_and_its_rows(tmp_path):
    model = SimpleNamespace(name="net", espace_plan=PLAN)
    rows = [
        SweepRow(asked=1.0, measured=1.0, damage=0.0, accuracy=0.923),
        SweepRow(asked=3.0, measured=2.94, damage=0.0123, accuracy=0.9188, model=model),
    ]
    page = Page(report(model, tmp_path / "a.html", sweep=rows).read_text(encoding="utf-8"))
    for words in ("Speeds", "accuracy on held-out images", "2.94× 0.0123 91.88 –"):
        assert words in page.text, words
    assert [link.split(";")[0] for link in page.links] == ["data:image/svg+xml", "data:image/png"]
    unknown = [SweepRow(asked=2.0, measured=1.9)]
    page = Page(report(PLAN, tmp_path / "a.html", sweep=unknown).read_text(encoding="utf-8"))
    assert "1.90×" in page.text and len(page.links) == 1
    with pytest.raises(TypeError, match="sweep must be what sweep returned"):
        report(PLAN, tmp_path / "a.html", sweep=ROWS)


def test_a_plan_alone_is_enough(tmp_path):
    plan = Plan(layers={"conv": LayerPlan(rank=4, positions=[1, 2])}, skipped={})
    page = Page(report(plan, tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "No convolution was left as it is." in page.text
    assert "ms" not in re.findall(r"\w+", page.text)
    empty = Page(report(Plan(skipped={"conv": "1 x 1"}), tmp_path / "a.html").read_text())
    assert "No layer was compressed." in empty.text


def test_a_model_brings_its_plan_and_analysis(tmp_path):
    model = SimpleNamespace(name="net", espace_plan=PLAN, espace_analysis=analysis())
    page = Page(report(model, tmp_path / "a.html").read_text(encoding="utf-8"))
    assert page.text.startswith("Compression of net")
    assert len(page.links) == 2


def test_nothing_is_fetched_from_elsewhere(tmp_path):
    source = report(PLAN, tmp_path / "a.html", analysis=analysis()).read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(|<script|<link", source)


@pytest.mark.parametrize(
    ("number", "text"), [(950, "950"), (1_200, "1.2 k"), (41_234_567, "41.2 M"), (2e9, "2 G")]
)
def test_short_numbers(number, text):
    assert short(number) == text


def test_arguments_that_make_no_sense(tmp_path):
    with pytest.raises(TypeError, match="Plan"):
        report(object(), tmp_path / "a.html")
    with pytest.raises(ValueError, match="accuracy must be"):
        report(PLAN, tmp_path / "a.html", accuracy={"before": 92.3})
    with pytest.raises(OSError, match="path must lie in an existing folder"):
        report(PLAN, tmp_path / "missing" / "a.html")
    assert os.listdir(tmp_path) == []
