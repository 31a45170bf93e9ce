"""One page about a compressed network: times, ranks, masks, and why layers were left alone.

    python -m espace_tf.bin.report --model=out/tune/model.keras --output_dir=out/report \\
        --benchmark=out/benchmark/benchmark.json --evaluation=out/evaluate/evaluate.json

--model is a compressed network, or the plan.json that `compress` wrote. The results of `benchmark`
and `evaluate` are shown, too, if they are named. Into --output_dir go report.html, which needs
nothing beside itself, report.json and report.flags.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from espace_tf.bin import shared_flags
from espace_tf.bin.frame import tables
from espace_tf.bin.frame.command import Command, start
from espace_tf.bin.frame.run import Run
from espace_tf.checks import require

_BENCHMARK = flags.DEFINE_string("benchmark", None, "benchmark.json of original and model.")
_EVALUATION = flags.DEFINE_string("evaluation", None, "evaluate.json of original and model.")


def run() -> None:
    """The command `espace-report`."""
    start(COMMAND)


def _check() -> None:
    require("report", "jinja2", "matplotlib")
    path = Path(shared_flags.MODEL.value)
    if path.suffix == ".json" and not path.is_file():
        raise ValueError(f"--model must be a file. Received: {shared_flags.MODEL.value!r}")


def _work(run: Run) -> dict[str, Any]:
    from espace_tf.bin import opening
    from espace_tf.records.plan import Plan
    from espace_tf.reports.html import report
    from espace_tf.rewriting.read_back import plan_of
    from espace_tf.timing.benchmark import Row

    path = shared_flags.MODEL.value
    subject = Plan.load(path) if path.endswith(".json") else opening.model(shared_flags.MODEL)
    timed, judged = _models(_BENCHMARK), _models(_EVALUATION)
    rows = [Row(**timed[name]) for name in ("original", "model") if name in timed]
    accuracy = {
        words: judged[name]["accuracy"]
        for words, name in (("before", "original"), ("after", "model"))
        if "accuracy" in judged.get(name, {})
    }
    target = run.output / "report.html"
    run.begin([("about", path), ("results", f"{target}, {run.result}")])
    known = {"rows": rows, "accuracy": accuracy if len(accuracy) == 2 else None}
    report(subject, target, **known)
    plan = subject if isinstance(subject, Plan) else plan_of(subject)
    return {"file": str(target), "compressed": len(plan.layers), "left alone": len(plan.skipped)}


def _models(flag: Any) -> dict[str, Any]:
    """What another command found of each model."""
    if flag.value is None:
        return {}
    try:
        return dict(json.loads(Path(flag.value).read_text())["models"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--{flag.name} must be the .json file of espace-benchmark or espace-evaluate. "
            f"Received: {flag.value!r} ({error})"
        ) from error


COMMAND = Command(
    name="report",
    description=__doc__,
    flags=("model", "benchmark", "evaluation", *shared_flags.COMMON),
    needs=("model", "output_dir"),
    reads=lambda path: not path.endswith(".json"),
    check=_check,
    work=_work,
    table=tables.report_table,
)

if __name__ == "__main__":
    run()
