"""The installed TensorFlow for MODULE.bazel; in a file of its own, since Bazel 4 cannot read it."""

load(":tensorflow.bzl", "installed_tensorflow")

def _tensorflow(_context):
    installed_tensorflow(name = "tensorflow")

tensorflow = module_extension(implementation = _tensorflow)
