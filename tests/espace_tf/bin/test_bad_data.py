"""Data that is no good: a line that names it, whatever the command, and nothing is left."""

import io

import keras
import numpy as np
import pytest
from calls import call
from PIL import Image

from espace_tf.bin.inputs import broken_files

SEED = 8
COMMANDS = {
    "train": ["--epochs=1"],
    "fine_tune": ["--epochs=1", "--original=MODEL"],
    "evaluate": ["--test_split=train"],
    "export": ["--formats=int8"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Networks of three classes, for one channel and for three."""
    folder = tmp_path_factory.mktemp("models")
    for channels in (1, 3):
        layers = keras.layers
        keras.Sequential(
            [
                keras.Input((16, 16, channels)),
                layers.Rescaling(1 / 255),
                layers.Conv2D(4, 3, activation="relu"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(3, activation="softmax"),
            ]
        ).save(folder / f"{channels}.keras")
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Four noisy images of each of three classes."""
    random = np.random.default_rng(SEED)
    for name in ("cat", "dog", "eel"):
        for number in range(4):
            path = tmp_path / "pictures" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    return tmp_path / "pictures"


def refused(name, model, dataset, output, capsys, *more):
    """What the command says of it."""
    given = [f"--model={model}", f"--dataset={dataset}", f"--output_dir={output}"]
    more = [each.replace("MODEL", str(model)) for each in (*COMMANDS.get(name, ()), *more)]
    assert call(name, *given, *more) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"espace-{name}: error: ") and error.count("\n") == 1
    assert not output.exists()
    return error


def encoded(form):
    content = io.BytesIO()
    noise = np.random.default_rng(SEED).integers(0, 255, (60, 60, 3), np.uint8)
    Image.fromarray(noise).save(content, form)
    return content.getvalue()


@pytest.mark.parametrize("name", COMMANDS)
def test_an_image_that_is_cut_short_is_named(name, models, pictures, tmp_path, capsys):
    (pictures / "dog" / "2.jpg").write_bytes(encoded("JPEG")[:1500])
    given = (models / "3.keras", f"folder:{pictures}", tmp_path / "out", capsys)
    error = refused(name, *given, "--preprocessing=imagenet")
    assert f"no whole image: {pictures / 'dog' / '2.jpg'}: " in error
    assert broken_files.find() is None  # forgotten


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0 no", encoded("PNG")[:2000]])
def test_a_file_that_is_no_image_is_named(content, models, pictures, tmp_path, capsys):
    (pictures / "dog" / "2.jpg").write_bytes(content)
    given = (models / "3.keras", f"folder:{pictures}", tmp_path / "out", capsys)
    error = refused("evaluate", *given, "--preprocessing=imagenet")
    assert f"no whole image: {pictures / 'dog' / '2.jpg'}: " in error


def test_a_class_without_images_is_named_and_what_is_hidden_is_not_there(
    models, pictures, tmp_path, capsys
):
    (pictures / ".checkpoints").mkdir()
    (pictures / "cat" / "._0.jpg").write_bytes(b"of a Mac")
    given = (models / "3.keras", f"folder:{pictures}")
    arguments = (f"--model={given[0]}", f"--dataset={given[1]}", f"--output_dir={tmp_path / 'a'}")
    assert call("evaluate", *arguments, "--test_split=train", "--preprocessing=imagenet") == 0
    for file in (pictures / "dog").iterdir():
        file.unlink()
    capsys.readouterr()
    error = refused("train", *given, tmp_path / "out", capsys, "--preprocessing=imagenet")
    assert f"of every class. Received: none in {pictures / 'dog'}" in error


@pytest.mark.parametrize("name", [*COMMANDS, "compress"])
@pytest.mark.parametrize(("label", "words"), [(-1, "-1 to 2"), (3, "0 to 3"), (2**40, "0 to 1099")])
def test_labels_that_are_no_classes(name, label, words, models, tmp_path, capsys):
    labels = np.arange(96) % 3
    labels[70] = label
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((96, 16, 16), np.uint8), y=labels)
    arguments = (models / "1.keras", path, tmp_path / "out", capsys)
    if name == "export":  # looks at images alone
        return
    assert f"from 0 to 2. Received: {words}" in refused(name, *arguments)


def test_a_network_by_name_needs_classes(tmp_path, capsys):
    for labels, words in (
        (np.arange(30) % 3 - 1, "int64 of shape (30,), -1 among them"),
        (np.arange(30) % 3 + 0.5, "float64 of shape (30,), 0.5 among them"),
        (np.array(["cat", "dog", "eel"] * 10), "<U3 of shape (30,), cat among them"),
    ):
        np.savez(tmp_path / "data.npz", x=np.zeros((30, 16, 16), np.uint8), y=labels)
        error = refused("train", "resnet20", tmp_path / "data.npz", tmp_path / "out", capsys)
        assert f"integers from 0 on, for --model=resnet20. Received: {words}" in error


def test_a_split_to_judge_on_must_be_there(models, tmp_path, capsys):
    np.savez(tmp_path / "data.npz", x=np.zeros((9, 16, 16), np.uint8), y=np.arange(9) % 3)
    given = [f"--model={models / '1.keras'}", f"--dataset={tmp_path / 'data.npz'}"]
    assert call("evaluate", *given, f"--output_dir={tmp_path / 'out'}") == 1
    assert "--test_split must be given for a dataset without" in capsys.readouterr().err


def test_damaged_results_are_named(models, tmp_path, capsys):
    np.savez(tmp_path / "data.npz", x=np.zeros((9, 16, 16), np.uint8), y=np.arange(9) % 3)
    given = [f"--model={models / '1.keras'}", f"--dataset={tmp_path / 'data.npz'}"]
    given += ["--test_split=train", f"--output_dir={tmp_path / 'out'}"]
    assert call("evaluate", *given) == 0
    (tmp_path / "out" / "evaluate.json").write_text("{")
    assert call("evaluate", *given) == 1
    assert "evaluate.json is damaged: " in capsys.readouterr().err
    assert call("evaluate", *given, "--overwrite") == 0
