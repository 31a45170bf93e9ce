"""The seconds of a call by its phases, and the row of a table that they become."""

from benchmarks import phases


def test_lines_of_progress_end_phases(monkeypatch):
    now = iter([[0.0, 0.0], [2.0, 1.0], [5.0, 1.5], [9.0, 2.0]])
    monkeypatch.setattr(phases.Clock, "_now", lambda self: next(now))
    clock = phases.Clock()
    for line in ("  0% input statistics", "\n", "reading 3 files", " 12% loss gradients, about"):
        assert clock.write(line) == len(line)
    clock.end()
    assert clock.seconds == {
        "before": [2.0, 1.0],
        "input statistics": [3.0, 0.5],
        "loss gradients": [4.0, 0.5],
    }


def test_a_row_has_how_often_the_passes_fit_in():
    found = {
        "phases": {
            "before": [2.0, 1.0],
            "input statistics": [3.0, 2.0],
            "loss gradients": [1.0, 1.0],
        },
        "images": 64,
        "asked": 2.0,
        "megabytes": 900,
        "landed": 2.04,
        "agreement": 0.98,
        "top1": [0.92, 0.91],
    }
    found["phases"]["reconstruction"] = [6.0, 9.0]
    made = dict(zip(phases.COLUMNS, phases.row("net", found), strict=True))
    assert (made["seconds"], made["passes"]) == ("12", "3.0")
    assert made["loss gradients"] == "1 (1)" and made["times of layers"] == "0 (0)"
    assert made["top-1"] == "0.9200 -> 0.9100" and made["landed"] == "2.04"
