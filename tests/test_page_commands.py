"""Every command that a page prints is run by a test or in continuous integration, or is marked."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

_COMMANDS = "espace_tf/bin/test_commands.py::"
_TUNED = f"{_COMMANDS}test_a_compressed_network_is_tuned_judged_exported_and_timed"
_SHORT = "benchmarks/test_short_forms.py::test_a_benchmark_runs"
_STREAM = "benchmarks/test_short_forms.py::test_a_stand_in_is_streamed"
# What runs each: a test, with few images, small networks or few steps, or a target of CI's.
RUN = {
    "espace_tf.bin.train": f"{_COMMANDS}test_training_goes_on_where_it_was_killed",
    "espace_tf.bin.compress": "espace_tf/bin/test_compress.py::test_all_results_are_written",
    "espace_tf.bin.fine_tune": _TUNED,
    "espace_tf.bin.evaluate": _TUNED,
    "espace_tf.bin.export": _TUNED,
    "espace_tf.bin.benchmark": _TUNED,
    "espace_tf.bin.report": _TUNED,
    "benchmarks.ablation": "benchmarks/test_ablation.py::"
    "test_a_killed_run_goes_on_with_the_next_row",
    "benchmarks.applications": _SHORT,
    "benchmarks.budget": _SHORT,
    "benchmarks.call_costs": "benchmarks/test_call_costs.py::test_rows_and_their_summary",
    "benchmarks.compress_time": _SHORT,
    "benchmarks.engine": _SHORT,
    "benchmarks.factors": _SHORT,
    "benchmarks.headline": "benchmarks/test_headline.py::"
    "test_a_killed_run_goes_on_and_its_table_is_that_of_the_networks",
    "benchmarks.int8": _SHORT,
    "benchmarks.interpolation": "benchmarks/test_interpolation.py::test_the_table",
    "benchmarks.kills": "benchmarks/test_short_forms.py::test_a_killed_command_goes_on",
    "benchmarks.litert_files": _SHORT,
    "benchmarks.mask_forms": _SHORT,
    "benchmarks.masked_conv2d": _SHORT,
    "benchmarks.reconstruct": _SHORT,
    "benchmarks.recovery": "benchmarks/test_recovery.py::test_plans_are_made_trained_and_ordered",
    "benchmarks.streaming": _STREAM,
    "benchmarks.tfds_folders": _STREAM,
    "benchmarks.without_data": _SHORT,
    "benchmarks.workers": "test_guides.py::test_on_several_machines",
    "docs.guides.phone": "test_guides.py::test_from_a_trained_model_to_a_phone",
    "docs.guides.pruning": "test_guides.py::test_with_pruning_and_qat",
    "docs.pictures.draw": "benchmarks/test_short_forms.py::test_the_pictures_are_drawn",
    "pip install": "test_package.py::test_the_installed_wheel_works_elsewhere",
    "make wheel": "test_package.py::test_the_wheel_holds_only_espace_tf",
    "pytest": "make test",
    "cmake build/aarch64": "make litert-test-aarch64",
    "bazel build :libespace_litert.so": "make bazel",
}
# Programs that nothing here can run, or not in minutes, by the word of the page that says why.
MARKED = {
    "benchmarks.cuda": "GPU",
    "cmake build/android": "Android and iOS were not built",
    "cmake build/ios": "Android and iOS were not built",
    "python -c": "ImageNet",  # its trained weights are fetched
    "tfds build": "ImageNet",
    "benchmarks.third_party": "are fetched",
    "make test-matrix": "Before a release",
    "make fuzz": "tens of minutes",
    "bazel test //:all": "untested",
}


def code(text: str) -> list[str]:
    """The indented blocks of a page, with continued lines as one, and what stands in ticks."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.M))
    indented = r"^ {4,}(?![-*|]).*$"
    lines = [line.strip() for line in re.findall(indented, text, re.M)]
    ticked = re.findall(r"`([^`]+)`", re.sub(indented, "", text, flags=re.M))
    return [*lines, *(" ".join(each.split()) for each in ticked)]


def programs(text: str) -> set[str]:
    """What the commands of a page start, by the names of RUN and MARKED."""
    found = set()
    for command in (each for line in code(text) for each in line.split("&&")):
        words = re.sub(r"^[A-Z_]+=\S+ ", "", command.strip())
        if match := re.match(r"(?:\S*/)?python(?: -W ignore)? -m ([\w.]+)", words):
            found.add(match[1])
        elif match := re.match(r"python(?: -W ignore)? (\S+)\.py", words):
            found.add(match[1].replace("/", "."))
        elif match := re.match(r"(python -c|make [a-z][\w-]*|pip install|tfds build)\b", words):
            found.add(match[1])
        elif match := re.match(r"bazel (?!/)\S+ \S+", words):
            found.add(match[0])
        elif match := re.match(r"cmake -S.* -B (\S+)", words):
            found.add(f"cmake {match[1]}")
    return found - {"espace_tf.bin.NAME"}


def in_ci(target: str) -> bool:
    """Whether continuous integration makes a target, by itself or for another one."""
    if re.search(rf"\bmake (?:-j2 )?{target}(?![\w-])", CI):
        return True
    return any(
        in_ci(other) for other in re.findall(rf"^([\w-]+):.*\s{target}(?:\s|$)", MAKEFILE, re.M)
    )


def left(text: str) -> set[str]:
    """The programs of a page that nothing runs and that it does not mark."""
    return {
        name
        for name in programs(text)
        if name not in RUN
        and not (name.startswith("make ") and in_ci(name.removeprefix("make ")))
        and not (name in MARKED and MARKED[name] in text)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_run_or_marked(page):
    assert not left(page.read_text(encoding="utf-8"))


def test_a_command_that_nothing_runs_is_found():
    text = "Text, `python benchmarks/new.py --a`:\n\n    make magic && python -m benchmarks.cuda\n"
    assert left(text) == {"benchmarks.new", "make magic", "benchmarks.cuda"}
    assert left(text + "\nIt needs a GPU.") == {"benchmarks.new", "make magic"}


def test_the_named_tests_are_there_and_start_the_program():
    for program, where in RUN.items():
        if where.startswith("make "):
            assert in_ci(where.removeprefix("make ")), where
            continue
        path, name = where.split("::")
        text = (ROOT / "tests" / path).read_text(encoding="utf-8")
        tests = {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
        assert name in tests, where
        last = program.split()[0].rpartition(".")[2]
        assert re.search(rf'"{last}(\.py)?"|/{last}\.py|\b{last}\.main\b|{program}', text), program


def defined(module: str, seen: tuple[str, ...] = ()) -> set[str]:
    """The flags of a script and of the benchmarks that it imports; "no" turns one off."""
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    found = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text))
    names = re.findall(r"^from benchmarks import (.*)$", text, re.M)
    names = [name.split(" as ")[0].strip() for line in names for name in line.split(",")]
    names += re.findall(r"^from benchmarks\.(\w+) import", text, re.M)
    for other in (f"benchmarks.{name}" for name in names):
        if other not in seen and (ROOT / f"{other.replace('.', '/')}.py").is_file():
            found |= defined(other, (*seen, module))
    return found | {f"no{name}" for name in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_have_the_flags_that_a_page_gives_them(page):
    for line in code(page.read_text(encoding="utf-8")):
        for name in programs(f"    {line}"):
            if name.startswith(("benchmarks.", "docs.")):
                given = set(re.findall(r" --(\w+)", line))
                assert given <= defined(name), f"{name} has no --{given - defined(name)}"


@pytest.fixture(scope="module")
def taken() -> dict[str, set[str]]:
    """The flags of each command of espace_tf.bin; "no" turns one off."""
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    print(name, *importlib.import_module(name).COMMAND.flags)"
    )
    names = [name for name in RUN if name.startswith("espace_tf.bin.")]
    command = [sys.executable, "-c", program, *names]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in said.splitlines()]
    return {name: {*given, *(f"no{each}" for each in given)} for name, *given in rows}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_flags_that_a_page_gives_them(page, taken):
    text = page.read_text(encoding="utf-8")
    shared = dict(re.findall(r'^ {4,}([A-Z]+)="(.*)"$', text, re.M))  # DATA="--dataset=..."
    for line in code(text):
        for name, value in shared.items():
            line = line.replace(f"${name}", value)
        for name in programs(f"    {line}") & set(taken):
            given = set(re.findall(r" --(\w+)", line))
            assert given <= taken[name], f"{name} has no --{given - taken[name]}"


def test_nothing_is_named_that_no_page_has():
    found = set().union(*(programs(page.read_text(encoding="utf-8")) for page in PAGES))
    assert set(RUN) | set(MARKED) <= found
