"""The quick tests and the demo's short form, with several versions of Python and TensorFlow.

    python release/matrix.py                          (make test-matrix)
    python release/matrix.py --only=3.11-2.18         one of them

Each version gets an environment of its own under build/matrix, with what the package index serves,
this checkout and the operator compiled for its TensorFlow; environments that are there are used
again. Interpreters are looked for on the PATH and among pyenv's. Writes docs/tested.md, from all
that ran: build/matrix/results.json keeps the results of earlier calls. Hours on 2 cores; the first
call downloads 600 MB a version.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags

_ROOT = Path(__file__).parent.parent
_FOLDER = _ROOT / "build" / "matrix"
# (Python, TensorFlow): the oldest and the newest of both, and every TensorFlow between.
VERSIONS = (
    *(("3.11", "2.18"), ("3.11", "2.19"), ("3.12", "2.20")),
    *(("3.11", "2.21"), ("3.12", "2.21"), ("3.13", "2.21")),
)
# What a version of TensorFlow or Keras can break: graphs, layers, training, files, the operator.
TESTS = (
    *("kernels", "keras_layers", "espace_tf/network", "espace_tf/rewriting"),
    *("espace_tf/test_pipeline.py", "espace_tf/test_callbacks.py", "espace_tf/training"),
    *("espace_tf/deploy", "espace_tf/analysis", "espace_tf/bin/test_compress.py"),
)
_ONLY = flags.DEFINE_list("only", [], "Python-TensorFlow, such as 3.11-2.18; none: all.")
_TESTS = flags.DEFINE_list("tests", list(TESTS), "Files and folders in tests/.")
_SHOWN = ("tensorflow", "keras", "tf_keras", "numpy", "ai-edge-litert")


def interpreter(version: str) -> str | None:
    """The program for a version of Python; None if there is none here."""
    found = [shutil.which(f"python{version}")]
    found += sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        found.insert(0, sys.executable)
    usable = [str(each) for each in found if each and _answers(str(each))]
    return usable[0] if usable else None


def _answers(program: str) -> bool:
    """pyenv leaves programs on the PATH that only say that they are not installed."""
    return not subprocess.run([program, "-c", "import venv, ssl"], capture_output=True).returncode


def run(log: Path, *command: object, **env: str) -> str | None:
    """Runs a command into a log; None if all went well, else what its last lines say."""
    with log.open("a") as output:
        done = subprocess.run(
            list(map(str, command)),
            cwd=_ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **env},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    lines = log.read_text(errors="replace").strip().splitlines()
    return None if done.returncode == 0 else f"{command[1:4]}: {' / '.join(lines[-3:])[:300]}"


def environment(python: str, tensorflow: str, folder: Path, log: Path) -> str | None:
    """Makes the environment; None, or what went wrong."""
    program = folder / "bin" / "python"
    if not program.is_file():
        subprocess.run([python, "-m", "venv", folder], check=True)
    install = (program, "-m", "pip", "install", "--quiet")
    needs = (f"tensorflow=={tensorflow}.*", f"tf_keras=={tensorflow}.*")
    tools = ("pytest", "psutil", "setuptools>=68", "wheel", "build")
    return run(log, *install, *needs, *tools, "--editable", ".[litert,report]") or run(
        log, *(program, "-W", "ignore", "setup.py", "--quiet", "build_ext", "--inplace")
    )


def tried(python: str, tensorflow: str) -> dict[str, str]:
    """One line of the table."""
    row = {"Python": python, "TensorFlow": tensorflow}
    found = interpreter(python)
    if found is None:
        return {**row, "result": "no such Python here"}
    folder = _FOLDER / f"{python}-{tensorflow}"
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    if wrong := environment(found, tensorflow, folder, log):
        return {**row, "result": f"not installed: {wrong}"}
    program, started = folder / "bin" / "python", time.monotonic()
    shown = f"import importlib.metadata as m; print(*map(m.version, {_SHOWN}))"
    versions = subprocess.run([program, "-c", shown], capture_output=True, text=True, check=True)
    row |= dict(zip(_SHOWN, versions.stdout.split(), strict=True))
    paths = [f"tests/{name}" for name in _TESTS.value]
    quick = ("-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider")
    wrong = run(log, program, *quick, *paths)
    row["tests"] = log.read_text(errors="replace").strip().splitlines()[-1].strip("= ")
    short = ("--images=1000", "--epochs=1", "--data=demo/fashion_mnist_subset.npz")
    output = f"--output_dir={folder}/demo"
    wrong = wrong or run(log, program, "demo/demo.py", *short, output, PYTHONPATH=str(_ROOT))
    minutes = (time.monotonic() - started) / 60
    return {**row, "result": wrong or f"passes ({minutes:.0f} minutes)"}


def page(results: dict[str, dict[str, str]]) -> str:
    """docs/tested.md."""
    columns = ("Python", *_SHOWN, "tests", "result")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for key in sorted(results):
        row = {"tensorflow": results[key]["TensorFlow"], **results[key]}
        cells = [str(row.get(name, "")).replace("|", "/") for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    system = f"{platform.machine()} {platform.system()}, glibc {platform.libc_ver()[1]}"
    return _PAGE.format(table="\n".join(lines), system=system)


_PAGE = """# What is tested

Every change: TensorFlow 2.21, Keras 3.15 and tf_keras 2.21, Python 3.11, x86-64 Linux; the C++
operators also for ARM (aarch64), cross-compiled and emulated, and under the sanitizers of
addresses, undefined behaviour and threads.

Before a release, with what the package index serves: the quick tests of what a version of
TensorFlow or Keras can break, and the demo's short form. `make test-matrix` wrote this, on
{system}:

{table}
"""


def main(argv: list[str]) -> None:
    """Tries what was asked for, and writes the table after each."""
    del argv
    _FOLDER.mkdir(parents=True, exist_ok=True)
    kept, failed = _FOLDER / "results.json", False
    results = json.loads(kept.read_text()) if kept.is_file() else {}
    for python, tensorflow in VERSIONS:
        key = f"{python}-{tensorflow}"
        if _ONLY.value and key not in _ONLY.value:
            continue
        results[key] = tried(python, tensorflow)
        print(key, results[key], flush=True)
        failed |= not results[key]["result"].startswith(("passes", "no such Python"))
        kept.write_text(json.dumps(results, indent=2))
        (_ROOT / "docs" / "tested.md").write_text(page(results))
    sys.exit(failed)


if __name__ == "__main__":
    app.run(main)
