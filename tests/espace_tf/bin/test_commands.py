"""The commands in the order of their use, each cut short in the middle and started again."""

import dataclasses
import json
import os
import re
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from calls import MODULES, call

from espace_tf.bin.frame import command, run
from espace_tf.training import checkpoints

ROOT = Path(__file__).parents[3]
SEED = 4


class Killed(BaseException):
    """What no handler of errors catches; what is on the disk then is what kill -9 leaves."""


def killed(monkeypatch, holder, function: str, times: int, name: str, *arguments: object) -> None:
    """The command, which ends when `function` is called for the so-manieth time."""
    former, calls = getattr(holder, function), []

    def counted(*given, **known):
        calls.append(given)
        if len(calls) == times:
            raise Killed
        return former(*given, **known)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(holder, function, counted)
        call(name, *arguments)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Grey images, the brighter half of which tells one of three classes."""
    random = np.random.default_rng(SEED)
    labels = random.integers(0, 3, 96)
    images = random.integers(0, 120, (96, 16, 16), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[5 * label : 5 * label + 6] += 100
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, x=images, y=labels, x_test=images[:40], y_test=labels[:40])
    return path


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A small network that scales 8-bit images itself."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="conv1"),
            keras.layers.Conv2D(32, 5, padding="same", use_bias=False, name="conv2"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(4),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(3, activation="softmax"),
        ],
        name="small",
    )
    path = tmp_path_factory.mktemp("untrained") / "small.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def trained(data, untrained, tmp_path_factory):
    """A trained network."""
    output = tmp_path_factory.mktemp("trained")
    arguments = ("--epochs=2", "--train_batch_size=16", f"--output_dir={output}")
    assert call("train", f"--model={untrained}", f"--dataset={data}", *arguments) == 0
    return output / "model.keras"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One round with few options: how well it compresses is tested elsewhere."""
    made = MODULES["compress"].config

    def small_config(*given):
        quickly = {"rounds": 1, "calibration_images": 64, "damage_images": 16}
        return dataclasses.replace(made(*given), **quickly, keeps=(0.5,), mask_families=("grid",))

    monkeypatch.setattr(MODULES["compress"], "config", small_config)


def weights(path: Path) -> list[np.ndarray]:
    return keras.models.load_model(path, compile=False).get_weights()


def assert_same(one: Path, other: Path) -> None:
    for first, second in zip(weights(one), weights(other), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_training_goes_on_where_it_was_killed(
    data, untrained, trained, tmp_path, monkeypatch, capsys
):
    arguments = (f"--model={untrained}", f"--dataset={data}", "--epochs=2", "--train_batch_size=16")
    arguments += (f"--output_dir={tmp_path}",)
    killed(monkeypatch, checkpoints.Checkpoint, "save", 2, "train", *arguments)
    assert (tmp_path / ".train" / "training" / "fine_tune.npz").is_file()
    assert not (tmp_path / "model.keras").exists()
    assert call("train", *arguments[:2], "--epochs=3", *arguments[3:]) == 1
    assert "--epochs=2 now --epochs=3" in capsys.readouterr().err
    assert call("train", *arguments) == 0
    assert_same(tmp_path / "model.keras", trained)
    assert sorted(os.listdir(tmp_path)) == ["events", "model.keras", "train.flags", "train.json"]
    summary = json.loads((tmp_path / "train.json").read_text())
    assert summary["history"] == json.loads((trained.parent / "train.json").read_text())["history"]
    assert len(summary["history"]["val_accuracy"]) == 2
    capsys.readouterr()
    before = (tmp_path / "model.keras").stat().st_mtime_ns
    assert call("train", f"--flagfile={tmp_path / 'train.flags'}") == 0  # done: nothing to do
    assert "holds these results already" in capsys.readouterr().out
    assert (tmp_path / "model.keras").stat().st_mtime_ns == before
    tags = {
        value.tag
        for file in (tmp_path / "events" / "train").iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    }
    assert {"epoch/val_loss", "epoch/accuracy", "parameters"} <= tags


def test_a_compressed_network_is_tuned_judged_exported_and_timed(
    data, trained, tmp_path, monkeypatch, capsys
):
    quick = ("--speedup=1.3", "--noreport", "--formats=")
    small, given = tmp_path / "compress", f"--dataset={data}"
    arguments = (f"--model={trained}", given, *quick, f"--output_dir={small}")
    killed(monkeypatch, run, "write_json", 4, "compress", *arguments)
    made = sorted(path.name for path in (small / ".compress").iterdir())
    assert "1.3x.plan.json" in made
    plan = (small / ".compress" / "1.3x.plan.json").read_bytes()
    assert call("compress", *arguments) == 0, capsys.readouterr().err
    kept, written = json.loads(plan), json.loads((small / "plan.json").read_text())
    assert kept["layers"].keys() == written["layers"].keys()

    tune = tmp_path / "tune"
    both = (f"--model={small / 'compressed.keras'}", f"--original={trained}", given)
    options = ("--train_batch_size=16", "--checkpoint_every=2", "--epochs=1")
    assert call("fine_tune", *both, *options, f"--output_dir={tune}") == 0
    again = (*both, *options, f"--output_dir={tmp_path / 'again'}")
    killed(monkeypatch, checkpoints.Checkpoint, "save", 3, "fine_tune", *again)
    assert call("fine_tune", *again) == 0
    assert_same(tmp_path / "again" / "model.keras", tune / "model.keras")

    both = (f"--model={tune / 'model.keras'}", f"--original={trained}")
    evaluate = (*both, given, f"--output_dir={tmp_path / 'out'}")
    killed(monkeypatch, run, "write_json", 2, "evaluate", *evaluate)
    assert call("evaluate", *evaluate) == 0
    judged = json.loads((tmp_path / "out" / "evaluate.json").read_text())["models"]
    arrays = np.load(data)
    network = keras.models.load_model(tune / "model.keras", compile=False)
    answers = network.predict(arrays["x_test"][..., None], verbose=0).argmax(-1)
    assert judged["model"]["accuracy"] == pytest.approx(np.mean(answers == arrays["y_test"]))
    assert judged["original"]["images"] == 40

    export = (both[0], given, "--formats=float32,int8", f"--output_dir={tmp_path / 'out'}")
    killed(monkeypatch, run, "write_json", 3, "export", *export)
    first = (tmp_path / "out" / "model.tflite").stat().st_mtime_ns
    assert call("export", *export) == 0
    assert (tmp_path / "out" / "model.tflite").stat().st_mtime_ns == first
    assert call("evaluate", f"--model={tmp_path / 'out' / 'model.tflite'}", both[1], given,
                f"--output_dir={tmp_path / 'file'}") == 0  # fmt: skip
    found = json.loads((tmp_path / "file" / "evaluate.json").read_text())["models"]["model"]
    assert found["loss"] == pytest.approx(judged["model"]["loss"], abs=1e-4)

    assert call("benchmark", *both, "--repeats=2", f"--output_dir={tmp_path / 'out'}") == 0
    rows = json.loads((tmp_path / "out" / "benchmark.json").read_text())["models"]
    assert rows["model"]["parameters"] == network.count_params()
    results = [f"--{name}={tmp_path / 'out' / file}" for name, file in
               (("benchmark", "benchmark.json"), ("evaluation", "evaluate.json"))]  # fmt: skip
    about = f"--model={small / 'plan.json'}"
    assert call("report", about, *results, f"--output_dir={tmp_path / 'out'}") == 0
    assert (tmp_path / "out" / "report.html").is_file()
    printed = capsys.readouterr()
    assert "top-1 as the original" in printed.out and "times as fast" in printed.out


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(data, trained, tmp_path, capsys):
    output = tmp_path / "out"
    common = (f"--dataset={data}", f"--output_dir={output}", "--dry_run")
    assert call("train", "--model=ResNet20", "--epochs=3", *common) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 epochs of 3 steps" in printed and "train: 96, test: 40" in printed
    assert call("export", f"--model={trained}", *common) == 0
    assert "model.tflite" in capsys.readouterr().out
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train", ["--dataset=data.npz"], "--model must be given"),
        ("train", ["--model=resnet21", "--dataset=DATA"], "--model must be a file, or one of"),
        ("train", ["--model=gone.keras", "--dataset=DATA"], "--model must be an existing"),
        ("train", ["--model=resnet20", "--dataset=DATA", "--train_split=dev"], "a split must be"),
        ("train", ["--model=resnet20", "--dataset=DATA", "--train_split=train[:0]"], "holds none"),
        ("train", ["--model=resnet20", "--dataset=DATA", "--preprocessing=x"], "--preprocessing"),
        ("train", ["--model=alexnet", "--dataset=DATA"], "does not take images of (16, 16, 1)"),
        ("train", ["--model=resnet20", "--dataset=DATA", "--optimizer=sgd"], "needs --learning_r"),
        ("train", ["--model=MODEL", "--dataset=DATA", "--image_size=9"], "made by name"),
        ("train", ["--model=MODEL", "--dataset=EMPTY"], "must hold examples"),
        ("train", ["--model=MODEL", "--dataset=UNLABELLED"], "data must hold labels"),
        ("train", ["--model=MODEL", "--dataset=BROKEN"], "arrays: it does not begin like one"),
        (
            "train",
            ["--model=MODEL", "--dataset=folder:PICTURES", "--preprocessing=imagenet"],
            "--dataset holds a file that is no whole image: ",
        ),
        ("evaluate", ["--model=DATA.tflite", "--original=MODEL", "--dataset=DATA"], "cannot be re"),
        ("evaluate", ["--model=a.tflite", "--dataset=DATA"], "--original must name the Keras"),
        (
            "evaluate",
            ["--model=MODEL", "--dataset=DATA", "--runtime=tf"],
            "--runtime is no flag of",
        ),
        ("export", ["--model=MODEL", "--formats=int4"], "Received: 'int4'"),
        ("export", ["--model=MODEL", "--formats=int8"], "--formats=int8 needs --dataset"),
        ("fine_tune", ["--model=MODEL", "--dataset=DATA", "--epochs=0"], "--epochs must be"),
        ("report", ["--model=gone.json"], "--model must be a file"),
        ("report", ["--model=MODEL", "--benchmark=DATA"], "--benchmark must be the .json file"),
    ],
)
def test_mistakes_are_one_line(name, arguments, words, data, trained, tmp_path, capsys):
    output = tmp_path / "out"
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 16, 16), np.uint8))
    np.savez(tmp_path / "unlabelled.npz", x=np.zeros((40, 16, 16), np.uint8))
    (tmp_path / "data.npz.tflite").write_bytes(b"nothing")
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    for kind in ("cat", "dog", "eel"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        (tmp_path / "pictures" / kind / "1.jpg").write_bytes(b"nothing")
    names = {"DATA.tflite": tmp_path / "data.npz.tflite", "DATA": data, "MODEL": trained}
    names |= {each.upper(): tmp_path / f"{each}.npz" for each in ("empty", "unlabelled", "broken")}
    names["PICTURES"] = tmp_path / "pictures"
    given = arguments
    for name_, path in names.items():
        given = [each.replace(name_, str(path)) for each in given]
    assert call(name, *given, f"--output_dir={output}") == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith(f"espace-{name}: error: ") and error.count("\n") == 1
    assert not output.exists()  # also of what was found late


def test_an_interrupt_has_a_status_of_its_own(data, untrained, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoint, "save", interrupt)
    arguments = (f"--model={untrained}", f"--dataset={data}", f"--output_dir={tmp_path}")
    assert call("train", *arguments) == command.INTERRUPTED
    assert "the same command goes on" in capsys.readouterr().err


def test_a_changed_model_is_another_run(data, trained, tmp_path, capsys):
    model = tmp_path / "model.keras"
    model.write_bytes(trained.read_bytes())
    arguments = (f"--model={model}", f"--dataset={data}", f"--output_dir={tmp_path / 'out'}")
    assert call("evaluate", *arguments) == 0
    other = keras.models.load_model(model)
    other.set_weights([0 * weight for weight in other.get_weights()])
    other.save(model)
    assert call("evaluate", *arguments) == 1
    assert "the content of a file that a flag names" in capsys.readouterr().err
    assert call("evaluate", *arguments, "--overwrite") == 0


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_have_the_flags_that_there_are(path):
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    shared = dict(re.findall(r'^ +([A-Z]+)="(.*)"$', text, re.MULTILINE))
    for name, line in re.findall(r"python -m espace_tf\.bin\.([a-z_]+)(.*)", text):
        for key, value in shared.items():
            line = line.replace(f"${key}", value)
        with flagsaver.flagsaver():
            try:
                rest = flags.FLAGS([name, *shlex.split(line)])
            finally:
                flags.FLAGS.mark_as_parsed()
            command.check_flags(MODULES[name].COMMAND)
            missing = [n for n in MODULES[name].COMMAND.needs if flags.FLAGS[n].value is None]
        assert rest == [name] and not missing, line
