"""The TensorFlow that is installed for a Python, as a library to compile operations against.

PYTHON_BIN_PATH names the Python; python3 if it is not set.
"""

_LOCATE = """
import tensorflow as tf
print("\\n".join([tf.sysconfig.get_include(), tf.sysconfig.get_lib(),
                 *(f for f in tf.sysconfig.get_compile_flags() if f.startswith("-D"))]))
"""

_BUILD = """
load("@rules_cc//cc:defs.bzl", "cc_library")

cc_library(
    name = "tensorflow",
    srcs = ["libtensorflow_framework.so.2"],
    hdrs = glob([
        "include/**/*.h",
        "include/**/*.inc",
        "include/**/*.hpp",
        "include/Eigen/**",
        "include/unsupported/Eigen/**",
    ]),
    defines = {defines},
    includes = ["include"],
    visibility = ["//visibility:public"],
)
"""

def _installed_tensorflow(context):
    python = context.os.environ.get("PYTHON_BIN_PATH", "python3")
    found = context.execute(
        [python, "-c", _LOCATE],
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if found.return_code:
        fail("PYTHON_BIN_PATH must name a Python with TensorFlow. Received: %s, which said:\n%s" %
             (python, found.stderr[-500:]))
    lines = found.stdout.strip().split("\n")
    context.symlink(lines[0], "include")
    context.symlink(lines[1] + "/libtensorflow_framework.so.2", "libtensorflow_framework.so.2")
    defines = [flag[len("-D"):] for flag in lines[2:]]
    context.file("BUILD", _BUILD.replace("{defines}", repr(defines)))

installed_tensorflow = repository_rule(
    implementation = _installed_tensorflow,
    environ = ["PYTHON_BIN_PATH"],
    local = True,
)

