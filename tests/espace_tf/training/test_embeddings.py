"""An unlabelled network of embeddings, near its teacher: fine-tuning must not ruin it."""

import numpy as np
from finetuning_networks import LIBRARIES

from espace_tf.training.fine_tune import fine_tune

SEED = 4


def net(library):
    library.utils.set_random_seed(SEED)
    layers = library.layers
    inputs = library.Input((8, 8, 2))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv1")(inputs)
    x = layers.ReLU(name="relu1")(layers.BatchNormalization(name="norm1")(x))
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="conv2")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(layers.ReLU(name="relu2")(x))
    return library.Model(inputs, layers.Dense(5, name="embedding")(x))


@LIBRARIES
def test_embeddings_do_not_get_worse_and_the_teacher_is_left_alone(library):
    rng = np.random.default_rng(SEED)
    x, unseen = rng.normal(1.0, 2.0, size=(2, 192, 8, 8, 2)).astype("float32")
    teacher, student = net(library), net(library)
    for weight in student.trainable_weights:
        weight.assign(weight.numpy() * (1 + 0.1 * rng.normal(size=weight.shape)))
    calls = {layer.name: vars(layer).get("call") for layer in teacher.layers}
    seen = []

    class Look(library.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append({layer.name: vars(layer).get("call") for layer in teacher.layers})

    def error():
        ours, theirs = (m(unseen, training=False).numpy() for m in (student, teacher))
        return float(((ours - theirs) ** 2).sum() / (theirs**2).sum())

    before = error()
    history = fine_tune(
        student, x, teacher=teacher, epochs=2, verbose=0, batch_size=16, callbacks=[Look()]
    )
    assert error() <= before * 1.02, f"seed {SEED}: {before} {error()} {history.learning_rate}"
    assert all(each == calls for each in seen)
