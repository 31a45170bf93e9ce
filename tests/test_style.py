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
# A module may import only what stands before it.
ORDER = [
    *(
        "espace_tf.kernels",
        "espace_tf.keras_layers",
        "files",
        "config",
        "sites",
        "graph",
        "cloning",
    ),
    *(
        "cost",
        "tflite",
        "timing",
        "step_times",
        "timings",
        "data",
        "feed",
        "orders",
        "masks",
        "labels",
        "targets",
        "tracing",
        "moments",
        "factors",
    ),
    *("patches", "low_rank", "options", "analysis_files", "analysis", "offers", "whatif"),
    *("stages", "plan_files"),
    *("layer_plans", "summaries", "plans"),
    *("allocation", "choices", "faithful", "planning", "regions", "topology", "packing"),
    *("lowering", "fusing"),
    *("rewriting", "damages", "analyzing", "schedules"),
    *(
        "callbacks",
        "distillation",
        "checkpoints",
        "trainer",
        "session",
        "finetuning",
        "export",
        "landing",
        "searching",
        "pipeline",
        "sweeping",
    ),
    *("benchmarking", "curves", "reporting", "zoo", "bin"),
]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "espace_tf" else ("espace_tf", *parts))


def rank(module: str) -> int | None:
    for index, name in enumerate(ORDER):
        full = name if name.startswith("espace_tf") else f"espace_tf.{name}"
        if module == full or module.startswith(full + "."):
            return index
    return None


def module_level_imports(tree: ast.Module) -> list[str]:
    names = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import at line {node.lineno}"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path):
    module = module_name(path)
    if module.endswith("__init__"):
        return
    own = rank(module)
    assert own is not None, f"{module} has no place in the order of imports: add it to ORDER"
    for name in module_level_imports(ast.parse(path.read_text())):
        other = rank(name)
        assert other is None or other <= own, f"{module} imports {name}, which stands above it"


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


def test_only_the_graph_modules_read_keras_internals():
    private = re.compile(
        r"\._(inbound_nodes|nodes_by_depth|flatten_layers|keras_history|functional)\b"
    )
    allowed = {"espace_tf.graph", "espace_tf.cloning"}
    for path in SOURCES:
        if module_name(path) not in allowed:
            assert not private.search(path.read_text()), f"{path.name} reads Keras internals"
