"""Bazel compiles every file that setup.py compiles: a shared library links without them, too."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def strings(node: ast.AST) -> set[str]:
    return {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}


def test_bazel_compiles_what_setup_compiles():
    lists = {
        node.targets[0].id: node.value
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    core = strings(lists["CORE"]) | {key.value for key in lists["INSTRUCTION_SETS"].keys}
    assert {"cpu/gradients", "cpu/variant_portable", "cpu/channels_avx2"} <= core
    build = strings(ast.parse((ROOT / "BUILD").read_text()))  # Starlark's syntax is Python's
    for name in core:
        kind, _, variant = name.partition("_")
        by_variant = f"{kind}_%s.cc" in build and variant in build
        assert name in build or by_variant, f"BUILD does not compile {name}.cc"
    for folder, names in (("tf", "OPERATIONS"), ("litert", "DELEGATE")):
        for name in strings(lists[names]):
            assert f"kernels/{folder}/{name}.cc" in build, f"BUILD does not compile {name}.cc"
