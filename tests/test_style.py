"""Rules that a machine can hold: one direction of imports, no bare package names, sane raises."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("espace_tf", "keras_layers", "kernels")
    for path in (ROOT / folder).rglob("*.py")
)
# What stands here may import only what stands above it; those of one line do not know each other.
ORDER = """
kernels
checks files progress
litert numerics
keras_layers
config
records
network
data
objectives
distribution
rewriting
deploy
timing
analysis
planning
schedules
training
reconstruction
callbacks
reports tfmot
kept
race
pipeline
zoo
bin
"""
RANKS = {name: rank for rank, line in enumerate(ORDER.split("\n")) for name in line.split()}
# Public methods of classes that need no TensorFlow, which take a model, or print a table.
UPWARD = {("records.plan", "network"), ("records.analysis", "network"), ("records.plan", "reports")}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "espace_tf" else ("espace_tf", *parts))


def own_imports(path: Path) -> set[str]:
    """Modules of this project that a file imports anywhere, without the project's name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import at line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("espace_tf.") for name in names if name.startswith("espace_tf.")}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path):
    module = module_name(path).removeprefix("espace_tf.")
    if path == ROOT / "espace_tf" / "__init__.py":
        return
    package = module.split(".")[0]
    assert package in RANKS, f"{module} has no place in the order of imports: add it to ORDER"
    for name in own_imports(path):
        other = name.split(".")[0]
        if other == package or (module, other) in UPWARD:
            continue
        assert RANKS.get(other, -1) < RANKS[package], f"{module} imports {name}, which stands above"


def test_no_package_has_a_circle_of_imports():
    modules = {module_name(path).removeprefix("espace_tf."): own_imports(path) for path in SOURCES}
    known = {name for name in modules if not name.endswith("__init__")}

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"imports in a circle: {' -> '.join([*above, name])}"
        if name not in done:
            for other in modules[name]:
                for each in (other, other.rpartition(".")[0]):
                    if each in known:
                        visit(each, (*above, name))
            done.add(name)

    done: set[str] = set()
    for name in known:
        visit(name, ())


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_bare_package_names_are_not_imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        bare = [name for name in names if re.match(r"(keras_layers|kernels)\b", name)]
        assert not bare, f"line {node.lineno}: import espace_tf.{bare[0]}, never {bare[0]}"
        heavy = [name for name in names if name.startswith("tensorflow_model_optimization")]
        assert not heavy, "tfmot switches the whole process to Keras 2"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_an_exception_takes_one_message(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = getattr(node.exc.func, "id", getattr(node.exc.func, "attr", ""))
            if name in ("ValueError", "TypeError", "RuntimeError"):
                assert len(node.exc.args) == 1, f"line {node.lineno} raises a tuple"


def test_only_network_reads_keras_internals():
    private = re.compile(
        r"\._(inbound_nodes|nodes_by_depth|flatten_layers|keras_history|functional)\b"
    )
    for path in SOURCES:
        if "network" not in path.parts:
            assert not private.search(path.read_text()), f"{path.name} reads Keras internals"


def test_no_file_is_long():
    folders = ("espace_tf", "keras_layers", "kernels", "tests", "benchmarks", "docs", "demo")
    suffixes = (".py", ".cc", ".h", ".inc")
    files = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    lines = {
        path.relative_to(ROOT): len(path.read_text().splitlines())
        for path in files
        if path.suffix in suffixes and "build" not in path.parts
    }
    assert not {str(path): count for path, count in lines.items() if count > 400}
