"""The wheel holds espace_tf only, imports little, and leaves the process's Keras alone."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: object, cwd: Path, stderr: int = subprocess.PIPE, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **env},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """As `make wheel` makes it, from the tracked files."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in tracked.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "demo/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = (sys.executable, source / "release" / "build.py", f"--output_dir={folder}")
    said = run(*command, cwd=folder, stderr=subprocess.STDOUT)
    assert "Warning" not in said, said  # of setuptools
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_only_espace_tf(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"espace_tf"}, top
    for module in ("__init__", "network/graph", "kernels/index_map", "keras_layers/masked_conv2d"):
        assert f"espace_tf/{module}.py" in names
    assert "espace_tf/reports/templates/report.html" in names
    # What the operators are compiled from: CMake finds it in an installation, too.
    for folder in ("core", "litert", "tf"):
        for path in ROOT.glob(f"kernels/{folder}/**/*"):
            assert path.is_dir() or f"espace_tf/{path.relative_to(ROOT)}" in names


def test_the_installed_wheel_works_elsewhere(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    named = f"espace_tf[litert,report] @ file://{wheel}"  # as the first page says it
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", named, cwd=tmp_path)
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    )
    landed = {
        path.name
        for path in site.iterdir()
        if not path.name.startswith(
            ("pip", "setuptools", "_distutils", "distutils", "pkg_resources")
        )
    }
    assert "espace_tf" in landed
    assert not {"keras_layers", "kernels", "tests", "benchmarks", "demo"} & landed, landed
    assert all(name == "espace_tf" or name.startswith("espace_tf-") for name in landed), landed
    program = (
        "import espace_tf, espace_tf.keras_layers, espace_tf.kernels as kernels\n"
        "print(espace_tf.__file__, kernels.__file__)"
    )
    paths = run(python, "-c", program, cwd=tmp_path, PYTHONPATH=sysconfig.get_path("purelib"))
    assert all(path.startswith(str(site)) for path in paths.splitlines()[-1].split()), paths


def test_import_loads_no_optional_package_and_leaves_legacy_keras_alone(tmp_path):
    optional = ["tensorflow_model_optimization", "tf_keras", "tensorflow_datasets", "matplotlib"]
    optional += ["rich", "scipy.optimize", "jinja2", "ai_edge_litert"]
    program = (
        "import os, sys\nimport tensorflow as tf, keras\nbefore = set(sys.modules)\n"
        "import espace_tf\n"
        f"print([name for name in {optional} if name in set(sys.modules) - before],"
        " os.environ.get('TF_USE_LEGACY_KERAS'), tf.keras.__version__[0])"
    )
    out = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert out.splitlines()[-1] == "[] None 3"
