"""benchmarks/ablation.py from its flags to its table, after a kill too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import espace_tf

ROOT = Path(__file__).parents[2]
QUICK = (
    *("--speedups=1.2", "--holdout=32", "--train_batch=16", "--calibration_images=32"),
    *("--tune_steps=2", "--batch_norm_batches=2", "--rounds=1", "--time_rounds=1"),
    *("--repeats=3", "--batch_size=2", "--ranks=uniform,energy", "--masks=unmasked,impact"),
    *("--factors=undecomposed,plain", "--tunings=2"),
)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_next_row(files, tmp_path, start, wait_for):
    output, table = tmp_path / "out", tmp_path / "table.md"
    arguments = (f"--model={files / 'tiny.keras'}", f"--data={files / 'data.npz'}", *QUICK)
    arguments += (f"--output_dir={output}", f"--markdown={table}")
    first = "1.2_undecomposed_impact_uniform"
    cut = start("ablation", *arguments)
    wait_for(output / f"tune_{first}.json", cut)
    cut.kill()
    cut.communicate()
    kept = (output / f"tune_{first}.json").read_text()

    resumed = start("ablation", *arguments)
    printed, _ = resumed.communicate()
    assert resumed.returncode == 0, printed
    assert (output / f"tune_{first}.json").read_text() == kept
    rows = json.loads((output / "ablation.json").read_text())["rows"]
    assert [row["setting"] for row in rows] == [
        "Figurnov-style (no decomposition, impact masks, nearest)",
        "plain SVD, uniform ranks, no mask",
        "LRDKT/AIMET-style (plain SVD, energy ranks, no mask)",
        "plain SVD, uniform ranks, impact + nearest",
        "plain SVD, energy ranks, impact + nearest",
    ]
    page = table.read_text()
    for row in rows:
        assert f"| {row['setting']} |" in page
        afters = row["afters"]
        assert len(afters) == 2
        assert row["after"] == pytest.approx(sum(afters) / 2)
        told = f"{row['after']:.4f} ({min(afters):.4f}, {max(afters):.4f})"
        assert f"| {row['before']:.4f} | {told} |" in page
    masked = espace_tf.Plan.load(output / f"plan_{first}.plan")
    assert all(layer.rank is None and layer.keep < 1 for layer in masked.layers.values())


BAD = {
    "--speedups=0.5": "above 1. Received: '0.5'",
    "--factors=magic": "undecomposed, plain, aware",
    "--ranks=": "uniform, energy, planner",
    "--factors=undecomposed --masks=chosen": "leave no row",
    "--model=nothing.keras": "nothing.keras",
    "--markdown=table.txt": "'.md'",
    "--data=nowhere": "'nowhere'",
}


def test_bad_flags_are_refused_in_words(tmp_path):
    program = (
        "import sys\n"
        "from absl import flags\n"
        "from absl.testing import flagsaver\n"
        "from benchmarks import ablation\n"
        "for bad in sys.argv[2:]:\n"
        "    with flagsaver.flagsaver():\n"
        "        given = ['ablation', '--output_dir=' + sys.argv[1], *bad.split()]\n"
        "        print(ablation.main(flags.FLAGS(given)), flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out"), *BAD]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["1"] * len(BAD), ran.stdout + ran.stderr
    lines = [line for line in ran.stderr.splitlines() if line.startswith("ablation: error:")]
    for (flag, words), line in zip(BAD.items(), lines, strict=True):
        assert words in line, (flag, line)
