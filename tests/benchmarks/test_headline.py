"""benchmarks/headline.py from its flags to its tables, after a kill too."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from espace_tf.network import costs

ROOT = Path(__file__).parents[2]
QUICK = (
    *("--holdout=32", "--epoch_images=32", "--train_batch=16", "--patience=1"),
    *("--train_minutes=0.02", "--calibration_images=32", "--tune_steps=4", "--tune_rounds=2"),
    *("--batch_norm_batches=2", "--timed_batches=1", "--rounds=2", "--repeats=3"),
    *("--batch_size=2", "--speedups=1.2"),
)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_its_table_is_that_of_the_networks(
    files, tmp_path, start, wait_for
):
    folder = tmp_path / "out" / "tiny"
    arguments = (f"--model={files / 'tiny.keras'}", f"--data={files / 'data.npz'}", *QUICK)
    arguments += (f"--output_dir={tmp_path / 'out'}",)
    cut = start("headline", *arguments)
    wait_for(folder / "compress.work", cut)
    cut.kill()
    cut.communicate()
    trained = (folder / "train.json").read_text()

    resumed = start("headline", *arguments)
    printed, _ = resumed.communicate()
    assert resumed.returncode == 0, printed
    assert (folder / "train.json").read_text() == trained
    assert not list(folder.glob("*.work"))
    (found,) = json.loads((tmp_path / "out" / "headline.json").read_text())["networks"].values()
    with np.load(files / "data.npz") as data:
        x, y = data["x_test"][..., None] / np.float32(255), data["y_test"]
    import espace_tf.keras_layers  # noqa: F401  The files name its layers.

    for label, file in (
        *(("teacher", "teacher"), ("control", "control")),
        *(("before", "compressed"), ("after", "tuned")),
    ):
        model = keras.models.load_model(folder / f"{file}.keras")
        right = np.mean(model.predict(x, verbose=0).argmax(-1) == y)
        assert found["accuracy"][label] == pytest.approx(right), label
    models = [keras.models.load_model(folder / f"{f}.keras") for f in ("teacher", "tuned")]
    assert found["compress"]["macs"] == [costs.macs(model) for model in models]
    for times in found["times"].values():
        small = times["compressed"]
        assert small["low"] <= small["ratio"] <= small["high"]
        assert times["folded"]["ratio"] == 1.0
    assert set(found["times"]) == {"tf, 1", "litert, 1"}
    page = (tmp_path / "out" / "headline.md").read_text()
    assert f"{found['accuracy']['after']:.4f}" in page

    refused = start("headline", *arguments, "--tune_steps=6")
    printed, _ = refused.communicate()
    assert refused.returncode == 1
    assert "--tune_steps=4. Received: 6" in printed, printed


@pytest.mark.slow
def test_speed_only_claims_no_accuracy(files, tmp_path, start):
    ran = start(
        *("headline", "--speed_only", f"--model={files / 'tiny.keras'}", *QUICK),
        f"--output_dir={tmp_path}",
    )
    printed, _ = ran.communicate()
    assert ran.returncode == 0, printed
    (found,) = json.loads((tmp_path / "speed.json").read_text())["networks"].values()
    assert set(found) == {"compress", "times", "seconds"}
    assert found["compress"]["asked"] == 1.2
    assert "no accuracy is claimed" in (tmp_path / "speed.md").read_text()


BAD = {
    "--speedups=1": "above 1. Received: '1'",
    "--speedups=2,3,4": "one number or 2",
    "--speedup=nan": "Received: 'nan'",
    "--networks=lenet": "alexnet, googlenet",
    "--model=nothing.keras": "nothing.keras",
    "--dataset=imagenet2012": "needs --model",
    "--timed_batches=0": "above 0. Received: '0'",
    "--train_batch=9999": "at most --epoch_images",
    "--data=nowhere": "'nowhere'",
}


def test_bad_flags_are_refused_in_words(tmp_path):
    program = (
        "import sys\n"
        "from absl import flags\n"
        "from absl.testing import flagsaver\n"
        "from benchmarks import headline\n"
        "for bad in sys.argv[2:]:\n"
        "    with flagsaver.flagsaver():\n"
        "        rest = flags.FLAGS(['headline', '--output_dir=' + sys.argv[1], bad])\n"
        "        print(headline.main(rest), flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out"), *BAD]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["1"] * len(BAD), ran.stdout + ran.stderr
    lines = [line for line in ran.stderr.splitlines() if line.startswith("headline: error:")]
    for (flag, words), line in zip(BAD.items(), lines, strict=True):
        assert words in line, (flag, line)
