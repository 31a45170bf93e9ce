"""Which image file a stream was at when it failed, of which TensorFlow's decoders say nothing."""

import functools
from collections.abc import Callable

import tensorflow as tf


@functools.cache
def _at_work() -> tf.lookup.experimental.MutableHashTable:
    """The paths of the files that are being read and decoded."""
    with tf.init_scope():
        return tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)


def watched(path: tf.Tensor, compute: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """What is computed of a file's content; if that fails `find` knows the file.

    Args:
        path: of the file, a string.
        compute: of the content.
    """
    table, noted = _at_work(), path[tf.newaxis]
    with tf.control_dependencies([table.insert(noted, tf.ones(1, tf.int64))]):
        found = compute(tf.io.read_file(path))
    with tf.control_dependencies([found]):
        done = table.remove(noted)
    with tf.control_dependencies([done]):
        return tf.identity(found)


def find() -> str | None:
    """The path of a file that was being read and is no whole image, and why; None if all are.

    All are forgotten.
    """
    paths, _ = _at_work().export()
    _at_work().remove(paths)
    for path in paths.numpy():
        try:
            tf.io.decode_image(tf.io.read_file(path), expand_animations=False)
        except tf.errors.OpError as error:
            return f"{path.decode()}: {error.message}"
    return None
