"""Training that brings a compressed model's accuracy back, with the uncompressed one as teacher."""

import hashlib
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.checks import MOST_SEED, check_choice, check_count, check_number
from espace_tf.data import batches as user_data
from espace_tf.data.arrays import describe
from espace_tf.data.feed import Feed
from espace_tf.network import graph
from espace_tf.rewriting.fuse import check_not_fused
from espace_tf.schedules import PolynomialDecay
from espace_tf.training.batch_norms import reestimate_batch_norm
from espace_tf.training.checkpoints import Checkpoint
from espace_tf.training.distillation import Teacher
from espace_tf.training.loop import Session
from espace_tf.training.step import Trainer
from espace_tf.training.task import Task

__all__ = ["fine_tune", "reestimate_batch_norm"]
LEARNING_RATE = 1e-3
GRADUAL = "gradual"


def fine_tune(
    model,
    data: Any,
    *,
    teacher=None,
    epochs: int = 1,
    validation_data: Any = None,
    batch_size: int = 32,
    optimizer: Any = None,
    loss: Any = None,
    metrics: Any = None,
    temperature: float = 4.0,
    distillation_weight: float = 0.5,
    feature_weight: float = 1.0,
    features: str | Sequence[str] | None = "auto",
    batch_norm_batches: int = 200,
    schedule: Callable[[Any], float] | str | None = GRADUAL,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = 100,
    callbacks: Sequence[Any] = (),
    seed: int = 0,
    verbose: int = 1,
):
    """Trains `model` in place to do the task and to imitate its teacher.

    The loss is

        task loss + distillation_weight * distillation_loss + feature_weight * feature_loss

    plus the model's regularisation. Outputs of classes and of several labels are distilled by
    T^2 KL(teacher || student) at temperature T; any other output by its relative squared error. The
    feature loss is the relative squared error at the stage ends (the last output before each
    downsampling and before global pooling), averaged. Without labels the teacher's terms are all
    there is.

    Layers with trainable=False stay as they are, and the teacher is never changed. Batch-norm
    statistics are re-estimated before every validation and at the end. Models that compute in
    float16 train with a dynamically scaled loss.

    Args:
        model: a Keras 3 or tf_keras model. Its compile state is not changed.
        data: tf.data.Dataset of batches x, (x, y) or (x, y, sample_weight), or the same with arrays
            (shuffled by seed and epoch; the rest that fills no batch is left out).
        teacher: the uncompressed model; None trains on the labels alone.
        epochs: passes over the data, >= 1.
        validation_data: like data; adds val_... to the history.
        batch_size: for arrays.
        optimizer: optimizer of the model's library, or its name (a copy is used). Default: Adam,
            1e-3 with cosine decay to 0 over the whole run.
        loss: as in `compile`. Default: the compiled loss, else categorical cross-entropy for labels
            that are integer or one-hot classes.
        metrics: as in `compile`, beside `loss`. Default: the compiled ones, else of one output of
            classes accuracy, of a multi-label one binary_accuracy.
        temperature: T, > 0.
        distillation_weight: weight of the teacher's outputs, >= 0.
        feature_weight: weight of the teacher's features, >= 0.
        features: "auto" for stage ends, None for none, or paths of layers that both models have.
        batch_norm_batches: batches to re-estimate batch-norm statistics with; 0 for never.
        schedule: fade of the masks at each step, see `espace_tf.schedules`; "gradual": from dense
            to masked over the first half of all steps, whose steps take longer for that; None:
            masked at once. Inference, and so validation, always uses the
            masks.
        checkpoint_dir: folder to resume from. A run that was killed continues when the same call is
            repeated with the model as it was, and ends with the weights of an uninterrupted run. A
            dataset must give the same batches in every pass for that. The states of callbacks and
            of tf_keras's Dropout are not kept.
        checkpoint_every: batches between two checkpoints, also between two looks at whether the
            weights are still finite; every epoch ends with one.
        callbacks: callbacks of the model's library.
        seed: of the order of arrays and of Keras 3's random layers (dropout), below 2**32.
        verbose: 0 silent, 1 progress bar, 2 one line an epoch.

    Returns:
        The library's History: loss, task_loss, distillation_loss, feature_loss, metrics, val_...

    Raises:
        TypeError: an argument of another kind.
        ValueError: an argument outside its range, a model that `strip` made, empty data, labels
            without a known loss or that are not the model's classes, no labels and no teacher, a
            teacher with other inputs or outputs, a checkpoint of another run.
        OSError: checkpoint_dir cannot be written.
        FloatingPointError: the loss became NaN or infinite; the model has its last good weights.

    The published recipe of LRDKT (Lin et al., 2018), on which the profile "faithful" rests:

        fine_tune(model, data, teacher=teacher, temperature=5.0, distillation_weight=0.003,
                  feature_weight=0.0005, schedule=None,
                  optimizer=keras.optimizers.SGD(1e-3, momentum=0.9, weight_decay=5e-4))

    Example:
        >>> compressed = espace_tf.compress(model, (x, y), speedup=4)
        >>> history = fine_tune(compressed, (x, y), teacher=model, epochs=2)
    """
    check_options(
        epochs=epochs,
        batch_size=batch_size,
        temperature=temperature,
        distillation_weight=distillation_weight,
        feature_weight=feature_weight,
        features=features,
        batch_norm_batches=batch_norm_batches,
        schedule=schedule,
        checkpoint_every=checkpoint_every,
        callbacks=callbacks,
        seed=seed,
        verbose=verbose,
    )
    library = graph.library(model)
    check_not_fused(model)
    optimizer = checked_optimizer(library, optimizer)
    inputs = user_data.named_inputs(model)
    feed = Feed(data, batch_size, seed=seed, inputs=inputs)
    validation = None
    if validation_data is not None:
        validation = Feed(validation_data, batch_size, inputs=inputs, name="validation_data")
    batch = next(feed.epoch(0))
    if batch[1] is None and teacher is None:
        raise ValueError(
            "data must hold labels, (x, y), when there is no teacher. Received: inputs only; give "
            "teacher=, the uncompressed model"
        )
    if validation is not None and batch[1] is not None and next(validation.epoch(0))[1] is None:
        raise ValueError(
            "validation_data must hold labels, (x, y), as data does. Received: inputs only"
        )
    weights = {"distillation_loss": distillation_weight, "feature_loss": feature_weight}
    task = Task(model, batch, loss=loss, metrics=metrics)
    lengths = []
    for each in (feed, validation):
        if each is not None:
            task.check_labels(each.labels, each.name)
            lengths.append(each.steps)  # refuses what does not end
    if teacher is not None:
        teacher = _teacher(model, teacher, batch, task, temperature, features, weights)
    steps = epochs * lengths[0]
    optimizer = _optimizer(library, optimizer, steps)
    schedule = _schedule(model, schedule, steps)
    run = {
        "model": graph.fingerprint(model),
        "model weights": _weights_hash(model),
        "teacher weights": None if teacher is None else _weights_hash(teacher.model),
        "data": checkpoint_dir and describe(data),
        "validation data": checkpoint_dir and describe(validation_data),
        "optimizer": type(optimizer).__name__,
        **{
            f"optimizer's {name}": str(value)
            for name, value in optimizer.get_config().items()
            if name != "name"  # numbered anew in every process
        },
        "loss": [_name(each.loss) for each in task.outputs],
        "schedule": None if schedule is None else _name(schedule),
        "features": None if teacher is None else teacher.features,
        **weights,
        **{"epochs": epochs, "batch_size": batch_size, "temperature": temperature, "seed": seed},
        "batch_norm_batches": batch_norm_batches,
    }
    session = Session(
        Trainer(model, task, teacher, optimizer, weights, seed=seed),
        feed,
        validation,
        epochs=epochs,
        batch_norm_batches=batch_norm_batches,
        schedule=schedule,
        checkpoint=None if checkpoint_dir is None else Checkpoint(checkpoint_dir, run),
        checkpoint_every=checkpoint_every,
    )
    return session.run(list(callbacks), verbose)


def check_options(**options: Any) -> None:
    """Refuses what can be refused without the model or the data.

    Args:
        **options: any arguments of `fine_tune`.

    Raises:
        TypeError, ValueError: an argument of another kind, or outside its range.
    """
    for name, value in options.items():
        if name in _COUNTS:
            check_count(value, name, *_COUNTS[name])
        elif name in _NUMBERS:
            check_number(value, name, *_NUMBERS[name])
        elif name in _CHECKS:
            _CHECKS[name](value)


def _check_features(features: Any) -> None:
    if features is None or isinstance(features, str):
        return
    if not isinstance(features, Sequence) or not all(isinstance(f, str) for f in features):
        raise TypeError(
            f'features must be "auto", None or a list of layer paths. Received: {features!r}'
        )


def _check_schedule(schedule: Any) -> None:
    text = isinstance(schedule, str) and schedule == GRADUAL
    if not callable(schedule) and schedule is not None and not text:
        raise ValueError(
            f"schedule must be {GRADUAL!r}, None, or a function of the step, such as "
            f"espace_tf.schedules.PolynomialDecay(end_step=1000). Received: {schedule!r}"
        )


def _check_callbacks(callbacks: Any) -> None:
    known = isinstance(callbacks, Sequence) and not isinstance(callbacks, str)
    if not known or not all(hasattr(each, "on_train_begin") for each in callbacks):
        raise TypeError(f"callbacks must be a list of Keras callbacks. Received: {callbacks!r}")


_COUNTS = {  # least and most
    **dict.fromkeys(("epochs", "batch_size", "checkpoint_every"), (1,)),
    "batch_norm_batches": (0,),
    "seed": (0, MOST_SEED),
}
_NUMBERS = {
    **dict.fromkeys(("distillation_weight", "feature_weight"), (0.0,)),
    "temperature": (1e-3, 1e3),
}
_CHECKS = {
    "features": _check_features,
    "schedule": _check_schedule,
    "callbacks": _check_callbacks,
    "verbose": lambda value: check_choice(value, "verbose", (0, 1, 2)),
}


def _schedule(model, schedule, steps: int) -> Callable[[Any], float] | None:
    """The schedule of the masks: the default fades them in over the first half of the steps."""
    if not (isinstance(schedule, str) and schedule == GRADUAL):
        return schedule
    known = graph.layers(model).values()
    masked = any(getattr(layer, "positions", None) is not None for layer in known)
    return PolynomialDecay(end_step=steps // 2) if masked and steps > 1 else None


def _are_compatible(one: Sequence[tf.TensorShape], other: Sequence[tf.TensorShape]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a.is_compatible_with(b) for a, b in pairs)


def _teacher(model, teacher, batch, task, temperature, features, weights) -> Teacher:
    graph.library(teacher, "teacher")
    if teacher is model:
        raise ValueError("teacher must be another model than the one that is trained, not itself")
    inputs = [user_data.named_inputs(each) or {} for each in (teacher, model)]
    if set(inputs[0]) == set(inputs[1]):  # data may come by name then
        inputs[0] = {name: inputs[0][name] for name in inputs[1]}
    shapes = [[tuple(tensor.shape) for tensor in each.values()] for each in inputs]
    sizes = [[tf.TensorShape(shape) for shape in each] for each in shapes]
    if all(sizes) and not _are_compatible(*sizes):
        raise ValueError(
            "teacher must take the model's inputs, shape for shape. Received: a teacher that takes "
            f"{shapes[0]}, a model that takes {shapes[1]}"
        )
    if not weights["feature_loss"]:
        features = None
    return Teacher(
        teacher, model, batch[0], outputs=task.outputs, temperature=temperature, features=features
    )


def checked_optimizer(library, optimizer):
    """The optimizer as an object, None for the default.

    Raises:
        ValueError: none of the library's, or one with a learning rate below 0 or not finite.
    """
    if optimizer is None:
        return None
    try:
        found = library.optimizers.get(optimizer)
    except (ValueError, TypeError):
        found = None
    if not isinstance(found, library.optimizers.Optimizer):
        raise ValueError(
            f"optimizer must be one of {library.__name__}.optimizers or its name, as the model is "
            f"of {library.__name__}. Received: {optimizer!r}"
        )
    found = getattr(found, "inner_optimizer", found)  # the trainer scales the loss
    rate = found.get_config()["learning_rate"]
    if isinstance(rate, Real):  # a schedule is described by a dictionary
        check_number(float(rate), "optimizer's learning_rate", 0.0)
    return found


def _optimizer(library, optimizer, steps: int):
    """A fresh optimizer like the given one, or the default for so many steps."""
    if optimizer is None:
        decay = library.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
        return library.optimizers.Adam(decay)
    return type(optimizer).from_config(optimizer.get_config())


def _weights_hash(model) -> str:
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return digest.hexdigest()[:16]


def _name(thing: Any) -> str | None:
    """A text for a loss or schedule that is the same in every process."""
    if thing is None or isinstance(thing, str):
        return thing
    if hasattr(thing, "fade") and hasattr(thing, "get_config"):
        return f"{type(thing).__name__}({thing.get_config()})"
    return getattr(thing, "__name__", type(thing).__name__)
