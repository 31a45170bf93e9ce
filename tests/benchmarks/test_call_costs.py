"""What a call costs: the peak of known memory, rows and sums of a network of two layers."""

import contextlib
import json
import sys
import types

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import call_costs, masked_conv2d
from benchmarks.masked_conv2d import Layer
from espace_tf.kernels.index_map import Geometry

LAYERS = [
    Layer(Geometry(kernel_size=(k, k), input_size=(6, 5), padding="SAME"), 3, 4, 1) for k in (1, 3)
]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


def test_the_peak_is_that_of_the_process():
    before = call_costs._memory()["VmRSS"]
    values = np.ones(50_000_000, np.uint8)
    after = call_costs._memory()
    assert after["VmHWM"] >= after["VmRSS"]
    assert after["VmRSS"] - before == pytest.approx(values.nbytes, rel=0.1)


@pytest.mark.parametrize("keep", [None, 0.5])
def test_a_call_is_measured_whatever_it_takes(monkeypatch, keep):
    monkeypatch.setattr(masked_conv2d, "layers", lambda network: LAYERS)
    assert call_costs.peak_bytes("tiny", 1, keep, 2) >= 0


def test_rows_and_their_summary(monkeypatch, tmp_path, capsys):
    found = {None: 8.0e6, 0.5: 9.0e6, 1.0: 7.0e6}
    pool = types.SimpleNamespace(
        starmap=lambda _, calls, chunksize: [found[keep] for _, _, keep, _ in calls],
    )
    monkeypatch.setattr(masked_conv2d, "layers", lambda network: LAYERS)
    monkeypatch.setattr(call_costs, "_pool", lambda: contextlib.nullcontext(pool))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(
        networks=["tiny"], batch=2, keep=0.5, turns=2, json=str(tmp_path / "rows.json")
    ):
        call_costs.main([])
    (row,) = json.loads((tmp_path / "rows.json").read_text())  # 1x1 convolutions are left out
    assert (row["dense_mb"], row["masked_mb"], row["full_mb"]) == (8.0, 9.0, 7.0)
    assert row["layer"] == str(LAYERS[1]) and row["checking"] >= 0
    assert "1 layers; in 1 of them" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_refused_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(call_costs, "_pool", None)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    path = str(tmp_path / "gone" / "rows.json")
    with flagsaver.flagsaver(json=path), pytest.raises(FileNotFoundError, match="--json must lie"):
        call_costs.main([])
