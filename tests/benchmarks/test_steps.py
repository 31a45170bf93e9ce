"""Steps that are done once, and the time they took over several processes."""

import json
import time

import pytest

from benchmarks.steps import Steps, Stopwatch, markdown


def test_a_step_is_done_once_and_its_folder_outlives_a_failure(tmp_path):
    calls = []

    def compute(work):
        calls.append(sorted(path.name for path in work.iterdir()))
        (work / "note").write_text("half")
        if len(calls) == 1:
            raise RuntimeError("cut")
        return {"value": 7}

    with pytest.raises(RuntimeError, match="cut"):
        Steps(tmp_path / "run", {"seed": 0}).run("one", compute)
    steps = Steps(tmp_path / "run", {"seed": 0})
    assert steps.run("one", compute) == steps.run("one", compute) == {"value": 7}
    assert calls == [[], ["note"]]
    assert not (tmp_path / "run" / "one.work").exists()
    assert steps.seconds["one"] > 0


def test_other_settings_are_refused(tmp_path):
    Steps(tmp_path, {"seed": 0, "rate": 0.1})
    with pytest.raises(ValueError, match="--rate=0.1. Received: 0.2"):
        Steps(tmp_path, {"seed": 0, "rate": 0.2})


def test_time_of_earlier_processes_counts(tmp_path):
    path = tmp_path / "seconds.json"
    path.write_text(json.dumps(100.0))
    started = time.perf_counter()
    with Stopwatch(path) as watch:
        time.sleep(0.01)
    assert 100.01 <= watch.seconds <= 100 + time.perf_counter() - started


def test_markdown():
    assert markdown(["a b", "c"], [["1", "2 3"]]) == "| a b | c |\n|---|---|\n| 1 | 2 3 |"
