"""The quick tests and the demo's short form, with several versions of Python and TensorFlow.

    python release/matrix.py                          (make test-matrix)
    python release/matrix.py --only=3.11-2.18         one of them
    python release/matrix.py --parts=use              only what takes a minute in each

Each version gets an environment of its own under build/matrix, with what the package index serves,
this checkout and the operator compiled for its TensorFlow; environments that are there are used
again. Three parts run there: `use`, the program of release/try_out.py (a network is compressed,
tuned, stripped to native fused graphs, saved, loaded and exported), the quick `tests`, and the
`demo` in short form. Interpreters are looked for on the PATH and among pyenv's. Writes
docs/tested.md after each, and keeps what that page has of versions and parts that do not run.
Hours on 2 cores; the first call downloads 600 MB a version.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags
from try_out import USE

_ROOT = Path(__file__).parent.parent
_FOLDER = _ROOT / "build" / "matrix"
# (Python, TensorFlow): the oldest and the newest of both, and every TensorFlow between.
VERSIONS = (
    *(("3.11", "2.18"), ("3.11", "2.19"), ("3.12", "2.20")),
    *(("3.11", "2.21"), ("3.12", "2.21"), ("3.13", "2.21")),
)
# What a version of TensorFlow or Keras can break, in minutes: the operator, its gradients, layers
# out of configs and files, graphs read, rewritten and fused, exports, the loop of training.
# Numbers, plans and the checks of arguments depend on no version.
TESTS = (
    *("kernels/test_loader.py", "kernels/test_native.py", "kernels/test_native_gradients.py"),
    *("keras_layers/test_convolution.py", "keras_layers/test_fused.py"),
    *("keras_layers/test_legacy.py", "keras_layers/test_registration.py"),
    *("espace_tf/network/copies/test_cloning.py", "espace_tf/network/test_graph.py"),
    *("espace_tf/rewriting/test_apply.py", "espace_tf/rewriting/test_strip.py"),
    *("espace_tf/rewriting/test_fuse.py", "espace_tf/deploy/test_export_saved_model.py"),
    *("espace_tf/deploy/test_export_tflite.py", "espace_tf/training/test_fine_tune.py"),
)
_PARTS = flags.DEFINE_list("parts", ["use", "tests", "demo"], "What runs in each.")
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


def run(log: Path, *command: object, cwd: Path = _ROOT, **env: str) -> str | None:
    """Runs a command into a log; None if all went well, else what its last lines say."""
    with log.open("a") as output:
        done = subprocess.run(
            list(map(str, command)),
            cwd=cwd,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **env},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    lines = log.read_text(errors="replace").strip().splitlines()
    return None if done.returncode == 0 else f"{command[1:3]}: {' / '.join(lines[-3:])[:300]}"


def environment(python: str, tensorflow: str, folder: Path, log: Path) -> str | None:
    """Makes the environment, or brings it up to date; None, or what went wrong."""
    program, made = folder / "bin" / "python", folder / "made"
    install = (program, "-m", "pip", "install", "--quiet")
    needs = (f"tensorflow=={tensorflow}.*", f"tf_keras=={tensorflow}.*")
    tools = ("pytest", "psutil", "setuptools>=68", "wheel", "build")
    if not made.is_file():
        subprocess.run([python, "-m", "venv", folder], check=True)
        if wrong := run(log, *install, *needs, *tools, "--editable", ".[litert,report]"):
            return wrong
        made.touch()
    return run(log, program, "-W", "ignore", "setup.py", "--quiet", "build_ext", "--inplace")


def use(program: Path, log: Path) -> str:
    """Runs the program of release/try_out.py; on what it ran, or what went wrong."""
    command = (program, "-W", "ignore", "-c", USE)
    if wrong := run(log, *command, cwd=program.parents[1], ESPACE_TF_CACHE="off"):
        return wrong
    return log.read_text(errors="replace").strip().splitlines()[-1].split("|")[-1].split(" (")[0]


def tests(program: Path, log: Path) -> str:
    """Runs the quick tests; pytest's last words, or what went wrong."""
    paths = [f"tests/{name}" for name in _TESTS.value]
    quick = ("-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider")
    run(log, program, *quick, *paths)
    words = log.read_text(errors="replace").strip().splitlines()[-1].strip("= ")
    words = words if re.match(r"\d+ ", words) else "stopped"  # killed: dots
    chosen = len(set(_TESTS.value) & set(TESTS))
    some = "" if chosen == len(TESTS) else f", of {chosen} of {len(TESTS)} files"
    return re.sub(r" in \d.*", "", words) + some


def demo(program: Path, log: Path) -> str:
    """Runs the demo in short form; how long it took, or what went wrong."""
    started = time.monotonic()
    short = ("--images=1000", "--epochs=1", "--data=demo/fashion_mnist_subset.npz")
    output = f"--output_dir={program.parents[1]}/demo"
    wrong = run(log, program, "demo/demo.py", *short, output, PYTHONPATH=str(_ROOT))
    return wrong or f"passes ({(time.monotonic() - started) / 60:.0f} minutes)"


PARTS = {"use": use, "tests": tests, "demo": demo}


def tried(python: str, tensorflow: str, key: str, before: dict[str, str]) -> dict[str, str]:
    """One line of the table."""
    row = {**before, "Python": python}
    found = interpreter(python)
    if found is None:
        return {**row, "use": "no such Python here"}
    folder, log = _FOLDER / key, _FOLDER / f"{key}.log"
    log.write_text("")
    if wrong := environment(found, tensorflow, folder, log):
        return {**row, "use": f"not installed: {wrong}"}
    program = folder / "bin" / "python"
    shown = f"import importlib.metadata as m; print(*map(m.version, {_SHOWN}))"
    versions = subprocess.run([program, "-c", shown], capture_output=True, text=True, check=True)
    row |= dict(zip(_SHOWN, versions.stdout.split(), strict=True))
    return row | {name: PARTS[name](program, log) for name in _PARTS.value}


def failed(row: dict[str, str]) -> bool:
    """Whether a part went wrong."""
    good = {"use": "native", "demo": "passes"}
    wrong = [name for name, word in good.items() if not row.get(name, word).startswith(word)]
    missing = row.get("use") == "no such Python here"
    tests = row.get("tests", "0 passed")
    return bool(wrong and not missing) or not re.match(r"\d+ passed(?!.*error)", tests)


def page(results: dict[str, dict[str, str]]) -> str:
    """docs/tested.md."""
    columns = ("Python", *_SHOWN, *PARTS)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for python, tensorflow in VERSIONS:
        row = results.get(f"{python}-{tensorflow}", {})
        row = {"Python": python, "tensorflow": tensorflow, **row}
        cells = [str(row.get(name, _NONE.get(name, ""))).replace("|", "/") for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    system = f"{platform.machine()} {platform.system()}, glibc {platform.libc_ver()[1]}"
    return _PAGE.format(table="\n".join(lines), system=system)


def known(text: str) -> dict[str, dict[str, str]]:
    """The rows of docs/tested.md, as `page` wrote them, by Python and TensorFlow."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    names, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    found = {}
    for row in (dict(zip(names, cells, strict=True)) for cells in rows):
        minor = ".".join(row["tensorflow"].split(".")[:2])
        kept = {name: cell for name, cell in row.items() if cell != _NONE.get(name, "")}
        found[f"{row['Python']}-{minor}"] = kept
    return found


_NONE = dict.fromkeys(PARTS, "not run")
_PAGE = """# What is tested

Every change: TensorFlow 2.21, Keras 3.15 and tf_keras 2.21, Python 3.11, x86-64 Linux; the C++
operators also for ARM (aarch64), cross-compiled and emulated, and under the sanitizers of
addresses, undefined behaviour and threads.

Before a release, with what the package index serves: `use`, a network is compressed, tuned,
stripped to fused graphs, saved, loaded and exported, on the backend named; the quick `tests` of
what a version of TensorFlow or Keras can break; the `demo` in short form. `make test-matrix` wrote
this, on {system}:

{table}
"""


def main(argv: list[str]) -> None:
    """Tries what was asked for, and writes the table after each."""
    del argv
    _FOLDER.mkdir(parents=True, exist_ok=True)
    written = _ROOT / "docs" / "tested.md"
    results, wrong = known(written.read_text(encoding="utf-8")), False
    for python, tensorflow in VERSIONS:
        key = f"{python}-{tensorflow}"
        if _ONLY.value and key not in _ONLY.value:
            continue
        results[key] = tried(python, tensorflow, key, results.get(key, {}))
        print(key, results[key], flush=True)
        wrong |= failed(results[key])
        written.write_text(page(results), encoding="utf-8")
    sys.exit(wrong)


if __name__ == "__main__":
    app.run(main)
