"""benchmarks/recovery.py from its flags to its table, and what it refuses."""

import json

import pytest

QUICK = (
    *("--speedups=1.3,1.6", "--plans=2", "--holdout=32", "--train_batch=16", "--tune_steps=2"),
    *("--calibration_images=32", "--batch_size=2"),
)


@pytest.mark.slow
def test_plans_are_made_trained_and_ordered(files, tmp_path, start):
    arguments = (f"--model={files / 'tiny.keras'}", f"--data={files / 'data.npz'}", *QUICK)
    arguments += (f"--output_dir={tmp_path / 'out'}", f"--markdown={tmp_path / 'table.md'}")
    process = start("recovery", *arguments)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    found = json.loads((tmp_path / "out" / "recovery.json").read_text())
    asked = {(row["speedup"], row["number"]) for row in found["rows"]}
    numbers = (0, 1, -1, -2)
    assert asked == {(speed, number) for speed in (1.3, 1.6) for number in numbers}
    page = (tmp_path / "table.md").read_text()
    for name, value in found["table"]:
        assert f"| {name} | {value} |" in page
        assert -1 <= float(value) <= 1
    for row in found["rows"]:
        for stage in ("before", "refitted", "after"):
            assert row[stage]["loss"] > 0 and 0 <= row[stage]["top1"] <= 1


@pytest.mark.parametrize("flag", ["--speedups=1", "--speedups=two"])
def test_speeds_that_are_none_are_refused(files, tmp_path, start, flag):
    process = start("recovery", flag, f"--output_dir={tmp_path / 'out'}")
    printed, _ = process.communicate()
    assert process.returncode == 1
    assert f"--speedups must be numbers above 1. Received: '{flag.partition('=')[2]}'" in printed
