"""Training that brings a compressed model's accuracy back, with the uncompressed one as teacher."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from espace_tf.data import batches as user_data
from espace_tf.data.arrays import describe
from espace_tf.data.feed import Feed
from espace_tf.data.forms import understood
from espace_tf.distribution.replicas import Replicas, find_strategy
from espace_tf.network import graph
from espace_tf.network.copies.borrowed import compiled_with, trainable
from espace_tf.network.random_layers import numbered_draws
from espace_tf.progress import draws
from espace_tf.rewriting.fuse import check_not_fused
from espace_tf.schedules import PolynomialDecay
from espace_tf.training import learning_rate
from espace_tf.training.arguments import GRADUAL, check_options, checked_optimizer
from espace_tf.training.checkpoints import Checkpoint
from espace_tf.training.loop import Loop
from espace_tf.training.run_identity import check_alike, described, judgement, weights_hash
from espace_tf.training.set_aside import set_aside
from espace_tf.training.steps.distillation import Teacher
from espace_tf.training.steps.safe_steps import safe_steps
from espace_tf.training.steps.step import Trainer
from espace_tf.training.steps.task import Task


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
    keep_best: bool = True,
    train_frozen: bool = False,
    strategy: tf.distribute.Strategy | None = None,
    seed: int = 0,
    verbose: int = 1,
):
    """Trains `model` in place to do the task and to imitate its teacher.

    The loss is

        task loss + distillation_weight * distillation_loss + feature_weight * feature_loss

    plus the model's regularisation. Outputs of classes and of several labels are distilled by
    T^2 KL(teacher || student) at temperature T; any other output by its relative squared error. The
    feature loss is the relative squared error of the last map of each resolution (the last output
    before each downsampling and before global pooling), averaged; it is scaled down where its term
    would be larger than those of the outputs. Without labels the teacher's terms are all there is.

    The loss without the features' term is watched on held-out images, from before the first step
    on, and the model gets the weights that had the lowest: it never comes back worse than it was.
    These images are validation_data; without it a tenth of the data is set aside (at least 32
    images, at most 512, never more than a quarter), which happens neither with validation_data nor
    with both an optimizer and keep_best=False.

    The teacher is never changed. Batch-norm statistics are re-estimated after every epoch, before
    the validation. Models that compute in float16 train with a dynamically scaled loss. Callbacks
    find the model compiled with the optimizer that trains it, as in `fit`.

    With a strategy every step is that of one device on the same batch, to float rounding: each
    replica runs the model on its part of the batch; losses, batch-norm statistics, metrics and what
    random layers draw are of the whole. On several machines (TF_CONFIG) each process makes the same
    call with the same data; all have the same weights afterwards, the chief alone prints and writes
    checkpoints, and callbacks run everywhere. If one dies the others raise
    tf.errors.UnavailableError; with a checkpoint_dir, which the chief alone has to see, they go on
    where they were once all are started again.

    Args:
        model: a Keras 3 or tf_keras model. Its compile state is not changed.
        data: tf.data.Dataset of batches x, (x, y) or (x, y, sample_weight), or the same with arrays
            (shuffled by seed and epoch; the rest that fills no batch is left out).
        teacher: the uncompressed model; None trains on the labels alone.
        epochs: passes over the data, >= 1.
        validation_data: like data; what val_... in the history is of. None: see above.
        batch_size: for arrays.
        optimizer: optimizer of the model's library, or its name (a copy is used). Default: Adam,
            with a warm-up and cosine decay to 0 over the whole run from the largest of 1e-3, 3e-4,
            1e-4, 3e-5, 1e-5 that does not raise the held-out loss in a short run from the start
            (4 to 20 steps each, at most a tenth of all steps in a run of 200 or more).
        loss: as in `compile`. Default: the compiled loss, else categorical cross-entropy for labels
            that are integer or one-hot classes.
        metrics: as in `compile`, beside `loss`. Default: the compiled ones, else of one output of
            classes accuracy, of a multi-label one binary_accuracy.
        temperature: T, > 0.
        distillation_weight: weight of the teacher's outputs, >= 0.
        feature_weight: weight of the teacher's features, >= 0.
        features: "auto" for the last maps, None for none, or paths of layers that both models have.
        batch_norm_batches: batches to re-estimate batch-norm statistics with; 0 for never.
        schedule: fade of the masks at each step, see `espace_tf.schedules`; "gradual": from dense
            to masked over the first half of all steps, whose steps take longer for that; None:
            masked at once. Inference, and so validation, always uses the masks.
        checkpoint_dir: folder to resume from. A run that was killed continues when the same call is
            repeated with the model as it was, and ends with the weights of an uninterrupted run. A
            dataset must give the same batches in every pass for that. The states of callbacks and
            of tf_keras's Dropout are not kept.
        checkpoint_every: batches between two checkpoints, also between two looks at whether the
            weights are still finite; every epoch ends with one.
        callbacks: callbacks of the model's library, but no BackupAndRestore: checkpoint_dir does
            more. What a callback restores at the end (EarlyStopping's best weights) stays, unless
            it is worse than the model was.
        keep_best: False leaves the weights of the last epoch in the model.
        train_frozen: True trains layers with trainable=False too, and leaves their flags as they
            are; False: they stay as they are, and a warning says how many weights train.
        strategy: tf.distribute.MirroredStrategy, MultiWorkerMirroredStrategy or OneDeviceStrategy.
            None: the one whose scope the model was made in, or is open; otherwise one device. A
            model made outside is trained as a copy, which is what callbacks see.
        seed: of the order of arrays and of random layers (dropout), below 2**32.
        verbose: 0 silent, 1 progress bar, in files as 2, 2 one line an epoch.

    Returns:
        The library's History: loss, task_loss, distillation_loss, feature_loss, metrics, val_...
        Its attributes best_epoch (0: as it came) and best_loss say which weights the model has,
        learning_rate which one was found; they are None without keep_best and with an optimizer.

    Raises:
        TypeError: an argument of another kind.
        ValueError: an argument outside its range, a model that `strip` made, empty data, labels
            without a known loss or that are not the model's classes, no labels and no teacher, a
            teacher with other inputs or outputs, a checkpoint of another run, a callback that sets
            the learning rate of the default optimizer, processes that do not make the same call.
        OSError: checkpoint_dir cannot be written.
        FloatingPointError: the loss became NaN or infinite; the model has its last good weights.

    The published recipe of LRDKT (Lin et al., 2018), on which the profile "faithful" rests:

        fine_tune(model, data, teacher=teacher, temperature=5.0, distillation_weight=0.003,
                  feature_weight=0.0005, schedule=None,
                  optimizer=keras.optimizers.SGD(1e-3, momentum=0.9, weight_decay=5e-4))

    Example:
        >>> history = fine_tune(small, (x, y), teacher=model, epochs=2)
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
        keep_best=keep_best,
        train_frozen=train_frozen,
        seed=seed,
        verbose=verbose,
    )
    library = graph.library(model)
    graph.check_eager(model)
    check_not_fused(model)
    optimizer = checked_optimizer(library, optimizer)
    team = Replicas(find_strategy(model, strategy))
    verbose = verbose if team.is_chief else 0
    verbose = 2 if verbose == 1 and not draws() else verbose
    feed, validation = _feeds(
        model, data, validation_data, batch_size, seed, keep_best or optimizer is None, verbose
    )
    batch = next(feed.epoch(0))
    _check_labels(batch[1], teacher, validation)
    _check_divisible(model, team)
    weights = {"distillation_loss": distillation_weight, "feature_loss": feature_weight}
    with team.scope(), team.hold(model) as model:
        task = Task(model, batch, loss=loss, metrics=metrics, team=team)
        lengths = []
        for each in (feed, validation):
            if each is not None:
                task.check_labels(each.labels, each.name)
                lengths.append(each.steps)  # refuses what does not end
        if teacher is not None:
            teacher = _teacher(model, teacher, batch, task, temperature, features, weights)
        schedule = _schedule(model, schedule, epochs * lengths[0])
        find_rate, optimizer = optimizer is None, _optimizer(library, optimizer)
        known = checkpoint_dir is not None or team.workers > 1
        with (
            trainable(model, train_frozen),
            compiled_with(model, optimizer, task.judge),
            safe_steps(model),
            numbered_draws(model, seed) as seeds,
        ):
            run = {
                "model": graph.fingerprint(model),
                "model weights": weights_hash(model),
                "teacher weights": None if teacher is None else weights_hash(teacher.model),
                "data": describe(understood(data)) if known else None,
                "validation data": describe(understood(validation_data)) if known else None,
                "optimizer": "found" if find_rate else described(optimizer),
                **judgement(task.judge, [each.loss for each in task.outputs]),
                "schedule": described(schedule),
                "features": None if teacher is None else teacher.features,
                **weights,
                **{"epochs": epochs, "batch_size": batch_size, "temperature": temperature},
                **{"keep_best": keep_best, "train_frozen": train_frozen, "seed": seed},
                "batch_norm_batches": batch_norm_batches,
            }
            check_alike(team, {**run, "batches": lengths, "checkpoint_every": checkpoint_every})
            stored = None if checkpoint_dir is None else Checkpoint(checkpoint_dir, run, team)
            loop = Loop(
                Trainer(model, task, teacher, optimizer, weights, seeds=seeds, team=team),
                feed,
                validation,
                epochs=epochs,
                batch_norm_batches=batch_norm_batches,
                schedule=schedule,
                find_rate=find_rate,
                keep_best=keep_best,
                checkpoint=stored,
                checkpoint_every=checkpoint_every,
            )
            return loop.run(list(callbacks), verbose)


def _check_divisible(model, team: Replicas) -> None:
    fixed = user_data.fixed_batch(user_data.named_inputs(model))
    if team.count > 1 and fixed is not None:
        raise ValueError(
            f"model must take batches of any size to be trained on {team.count} replicas. "
            f"Received: one of a fixed batch of {fixed}; build it without batch_size"
        )


def _feeds(model, data, validation_data, batch_size, seed, needed, verbose):
    """What to train on and what to judge by, some of the data if need be; None if it need not."""
    inputs = user_data.named_inputs(model)
    data = understood(data, inputs)
    if validation_data is not None:
        feed = Feed(data, batch_size, seed=seed, inputs=inputs)
        return feed, Feed(validation_data, batch_size, inputs=inputs, name="validation_data")
    if not needed:
        return Feed(data, batch_size, seed=seed, inputs=inputs), None
    feed, validation, count = set_aside(data, batch_size, seed=seed, inputs=inputs)
    if verbose:
        few = "The data is too little to set some aside: it is judged by what it is trained on"
        print(f"{count} samples of the data are set aside as validation data" if count else few)
    return feed, validation


def _check_labels(labels, teacher, validation: Feed | None) -> None:
    if labels is None and teacher is None:
        raise ValueError(
            "data must hold labels, (x, y), when there is no teacher. Received: inputs only; give "
            "teacher=, the uncompressed model"
        )
    if validation is not None and labels is not None and next(validation.epoch(0))[1] is None:
        raise ValueError(
            "validation_data must hold labels, (x, y), as data does. Received: inputs only"
        )


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


def _optimizer(library, optimizer):
    """A fresh optimizer like the given one, or the default."""
    if optimizer is None:
        return library.optimizers.Adam(learning_rate.RATES[0])
    return type(optimizer).from_config(optimizer.get_config())
