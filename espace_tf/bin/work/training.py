"""What `train`, `fine_tune` and `compress` do to train: `fine_tune` of the library, by flags."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from espace_tf.bin import shared_flags
from espace_tf.bin.frame.run import Run
from espace_tf.bin.inputs.datasets import Examples
from espace_tf.network import graph
from espace_tf.training.events import write_numbers
from espace_tf.training.fine_tune import fine_tune
from espace_tf.training.run_identity import weights_hash

# Of all steps, the share in which the learning rate rises.
_WARM_UP = 0.05


def strategy() -> tf.distribute.Strategy | None:
    """What --strategy means; made before TensorFlow computes anything."""
    if shared_flags.STRATEGY.value == "mirrored":
        return tf.distribute.MirroredStrategy()
    if shared_flags.STRATEGY.value == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    return None


def train(
    model: Any,
    examples: Examples,
    test_split: str | None,
    *,
    teacher: Any = None,
    epochs: int,
    keep_best: bool,
    run: Run,
    part: str = "",
    strategy: Any = None,
) -> dict[str, Any]:
    """Trains a model in place, as the flags say; goes on where a killed run was.

    Args:
        model: the Keras model.
        examples: the data, of which --train_split is trained on.
        test_split: what is judged on after every epoch; None: some examples are set aside.
        teacher: the uncompressed network; None: labels alone.
        epochs: passes over the data.
        keep_best: whether the weights that judged best are kept, or the last ones.
        run: keeps the checkpoints and the events.
        part: of the run, if it trains several networks.
        strategy: from `strategy`.

    Returns:
        "history": of each epoch, "learning_rate", "best_epoch"; "checksum": of the weights.
    """
    library = graph.library(model)
    data = examples.training(shared_flags.TRAIN_SPLIT.value)
    steps = epochs * steps_of(data)
    with _precision(model, library):
        history = fine_tune(
            model,
            data,
            teacher=teacher,
            epochs=epochs,
            validation_data=None if test_split is None else examples.held_out(test_split),
            batch_size=shared_flags.TRAIN_BATCH.value,
            optimizer=_optimizer(library, steps),
            keep_best=keep_best,
            checkpoint_dir=run.state / (part or "training"),
            checkpoint_every=shared_flags.CHECKPOINT_EVERY.value,
            callbacks=[_epochs(library, examples, run, part)],
            **({} if strategy is None else {"strategy": strategy}),
            seed=shared_flags.SEED.value,
            verbose=2,
        )
    found = {name: [float(v) for v in values] for name, values in history.history.items()}
    return {
        "epochs": len(history.epoch),
        "learning_rate": history.learning_rate,
        "best_epoch": history.best_epoch,
        "checksum": weights_hash(model),
        "history": found,
    }


def described(epochs: int, examples: Examples) -> str:
    """The training that the flags ask for, in words."""
    count = examples.source.count(shared_flags.TRAIN_SPLIT.value)
    size, rate = shared_flags.TRAIN_BATCH.value, shared_flags.RATE.value
    optimizer = shared_flags.OPTIMIZER.value if rate is None else (
        f"{shared_flags.OPTIMIZER.value} at {rate:g}")  # fmt: skip
    steps = max(1, count // size)
    return (
        f"{epochs} epochs of {steps:,} steps, batches of {size}, optimizer {optimizer}, "
        f"{shared_flags.PRECISION.value}, strategy {shared_flags.STRATEGY.value}"
    )


def steps_of(data: Any) -> int:
    """Steps of an epoch."""
    if isinstance(data, tf.data.Dataset):
        return int(data.cardinality())
    images = data[0] if isinstance(data, tuple) else data
    return max(1, len(images) // shared_flags.TRAIN_BATCH.value)


def _epochs(library: Any, examples: Examples, run: Run, part: str) -> Any:
    """Gives every epoch its own order and crops, and writes its numbers for TensorBoard."""

    def begin(epoch: int, logs: Any = None) -> None:
        examples.epoch.assign(epoch)

    def end(epoch: int, logs: Any = None) -> None:
        if run.is_chief:
            write_numbers(
                run.output / "events" / (part or run.name), {"epoch": logs or {}}, epoch + 1
            )

    return library.callbacks.LambdaCallback(on_epoch_begin=begin, on_epoch_end=end)


def _optimizer(library: Any, steps: int) -> Any:
    """The optimizer that the flags name; None for the one that is found."""
    name, rate = shared_flags.OPTIMIZER.value, shared_flags.RATE.value
    if name == "auto":
        return None
    warm = max(1, round(_WARM_UP * steps))
    schedule = library.optimizers.schedules.CosineDecay(
        rate / warm, max(1, steps - warm), warmup_target=rate, warmup_steps=warm
    )
    kinds = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop"}
    options = {} if shared_flags.DECAY.value is None else {"weight_decay": shared_flags.DECAY.value}
    if name == "sgd":
        options["momentum"] = 0.9
    return getattr(library.optimizers, kinds[name])(schedule, **options)


@contextlib.contextmanager
def _precision(model: Any, library: Any) -> Iterator[None]:
    """Lets the layers compute in --precision while open; their weights stay float32."""
    policy = shared_flags.PRECISION.value
    if policy == "float32":
        yield
        return
    if library.__name__.split(".")[0] != "keras":
        raise ValueError(f"--precision={policy} is for Keras 3. Received: a tf_keras model")
    outputs = getattr(model, "output_names", ())  # these stay as they are: probabilities
    layers = [layer for path, layer in graph.layers(model).items() if path not in outputs]
    former = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = policy
        yield
    finally:
        for layer, before in zip(layers, former, strict=True):
            layer.dtype_policy = before
