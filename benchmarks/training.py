"""Training on, fine-tuning with the best kept, and accuracy, for benchmarks; resumable."""

import json
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from benchmarks.images import Images
from benchmarks.steps import write_json
from espace_tf.files import atomic_write
from espace_tf.objectives.losses import sums_to_one
from espace_tf.training.fine_tune import fine_tune


def save(model: keras.Model, path: Path) -> None:
    """Writes a .keras file whole or not at all."""
    with atomic_write(path) as temporary:
        model.save(temporary)


def cross_entropy(model: keras.Model, images: Images) -> keras.losses.Loss:
    """The loss that goes with a classifier's outputs: logits or probabilities."""
    x, _ = next(iter(images.holdout))
    return keras.losses.SparseCategoricalCrossentropy(from_logits=not sums_to_one(model(x)))


def top1(model: keras.Model, batches: tf.data.Dataset) -> float:
    """Share of the images whose largest output is the label."""
    right = count = 0
    for x, y in batches:
        right += int(np.sum(model.predict_on_batch(x).argmax(-1) == y.numpy()))
        count += len(y)
    return right / count


def judge(model: keras.Model, images: Images) -> dict[str, float]:
    """Cross-entropy ("loss") and "top1" on the test images."""
    loss = cross_entropy(model, images)
    right = total = count = 0.0
    for x, y in images.test:
        out = model.predict_on_batch(x)
        total += float(loss(y, out)) * len(x)
        right += float(np.sum(out.argmax(-1) == y.numpy()))
        count += len(x)
    return {"loss": total / count, "top1": right / count}


def train_on(
    model: keras.Model,
    images: Images,
    work: Path,
    *,
    epoch_images: int,
    batch: int,
    patience: int,
    minutes: float,
    rate: float,
    seed: int,
) -> tuple[keras.Model, dict[str, Any]]:
    """Trains with Adam in short epochs for as long as the accuracy on images.holdout rises.

    In every epoch the rate decays to 0 (cosine; warm restarts, Loshchilov and Hutter, ICLR 2017):
    at a constant rate the accuracy after an epoch says more about its last steps than about what
    was learned. The state after each epoch is in `work`: called again, a run that was killed goes
    on after its last whole epoch.

    Args:
        model: trained in place, unless a state is found.
        images: as they come; every epoch takes the next ones.
        work: a folder of its own.
        epoch_images, batch: images per epoch and per step.
        patience: epochs without a rise after which it ends.
        minutes: of training after which no further epoch begins; 0 leaves the model as it is.
        rate: learning rate at the start of every epoch.
        seed: of the flips.

    Returns:
        The model with its best weights, without an optimizer, and what happened: accuracies on
        images.holdout before ("start"), after every epoch, the best, and why it ended.
    """
    path, console = work / "state.json", Console()
    if path.exists():
        state = json.loads(path.read_text())
        model = keras.models.load_model(work / state["last"])
    else:
        keras.utils.set_random_seed(seed)
        loss = cross_entropy(model, images)
        schedules = keras.optimizers.schedules
        decay = schedules.CosineDecayRestarts(rate, max(epoch_images // batch, 1), t_mul=1.0)
        model.compile(keras.optimizers.Adam(decay), loss, metrics=["accuracy"])
        start = top1(model, images.holdout)
        state = {"epochs": [], "best": start, "start": start, "stale": 0, "seconds": 0.0}
        _keep_state(model, state, work)
    while state["stale"] < patience and state["seconds"] < 60 * minutes:
        began, number = time.perf_counter(), len(state["epochs"])
        model.fit(images.window(number, epoch_images, batch, seed), shuffle=False, verbose=0)
        found = top1(model, images.holdout)
        state["epochs"].append(found)
        state["stale"] = 0 if found > state["best"] else state["stale"] + 1
        state["best"] = max(found, state["best"])
        state["seconds"] += time.perf_counter() - began
        _keep_state(model, state, work)
        console.print(f"  epoch {number + 1}: {found:.4f}, best {state['best']:.4f}")
    ended = "no rise any more" if state["stale"] >= patience else "out of time"
    told = {name: state[name] for name in ("start", "epochs", "best")}
    return keras.models.load_model(work / state["kept"], compile=False), {**told, "ended": ended}


def _keep_state(model: keras.Model, state: dict[str, Any], work: Path) -> None:
    """Writes the model, then the state that names it; models no longer named are removed."""
    state["last"] = f"epoch{len(state['epochs'])}.keras"
    save(model, work / state["last"])
    if not state["stale"]:
        state["kept"] = state["last"]
    write_json(work / "state.json", state)
    for file in work.glob("epoch*.keras"):
        if file.name not in (state["last"], state["kept"]):
            file.unlink()


class _Best(keras.callbacks.Callback):
    """Moves the data on at every epoch and keeps the weights that were judged best, on disk."""

    def __init__(self, path: Path, number: tf.Variable):
        super().__init__()
        self._path, self._number = path, number

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Reads other images than the epoch before."""
        self._number.assign(epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keeps the weights if they are better."""
        if self._path.exists() and logs["val_accuracy"] <= self.best():
            return
        arrays = {f"weight{i}": each for i, each in enumerate(self.model.get_weights())}
        with atomic_write(self._path) as temporary:
            np.savez(temporary, best=logs["val_accuracy"], epoch=epoch + 1, **arrays)

    def best(self, name: str = "best") -> float:
        """The best accuracy so far, or the "epoch" that it was reached in."""
        with np.load(self._path) as stored:
            return stored[name].item()

    def restore(self, model: keras.Model) -> None:
        """Puts the best weights into the model."""
        with np.load(self._path) as stored:
            count = sum(name.startswith("weight") for name in stored.files)
            model.set_weights([stored[f"weight{index}"] for index in range(count)])


def tune(
    model: keras.Model,
    teacher: keras.Model,
    images: Images,
    work: Path,
    *,
    steps: int,
    rounds: int,
    batch: int,
    rate: float,
    batch_norm_batches: int,
    seed: int,
) -> dict[str, Any]:
    """`espace_tf.fine_tune` for so many steps; the weights judged best of all rounds stay.

    Args:
        model: trained in place.
        teacher: another model with the same outputs.
        images: every round takes the next ones, and is judged on images.holdout.
        work: a folder of its own, to resume from.
        steps: altogether; rounded down to whole rounds.
        rounds: how often it is judged.
        batch: images per step.
        rate: of Adam at the start, with cosine decay to 0.
        batch_norm_batches: batches that batch-norm statistics are taken on before each judgement.
        seed: of the flips.

    Returns:
        Steps and images trained on, the best accuracy on images.holdout and its round.
    """
    each = max(steps // rounds, 1)
    number = tf.Variable(0, dtype=tf.int64)
    best = _Best(work / "best.npz", number)
    decay = keras.optimizers.schedules.CosineDecay(rate, each * rounds)
    fine_tune(
        model,
        images.window(number, each * batch, batch, seed),
        teacher=teacher,
        epochs=rounds,
        validation_data=images.holdout,
        optimizer=keras.optimizers.Adam(decay),
        loss=cross_entropy(teacher, images),
        batch_norm_batches=batch_norm_batches,
        checkpoint_dir=work,
        callbacks=[best],
        seed=seed,
        verbose=2,
    )
    best.restore(model)
    return {
        "steps": each * rounds,
        "images": each * rounds * batch,
        "holdout accuracy": best.best(),
        "best round": best.best("epoch"),
    }
