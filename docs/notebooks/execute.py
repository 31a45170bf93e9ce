"""Runs the notebooks of this folder.

python docs/notebooks/execute.py            as they are; keeps what they print (make notebooks)
python docs/notebooks/execute.py --short    with few images and epochs; keeps nothing
"""

import os
import re
import tempfile
from pathlib import Path

import nbformat
from absl import app, flags
from nbclient import NotebookClient

_HERE = Path(__file__).parent
_SHORT = flags.DEFINE_bool("short", False, "Few images and epochs; keeps nothing.")
# What the cell with the tag "parameters" says in the short form.
_FEW = {"IMAGES": 256, "TRAINING": 1, "EPOCHS": 1}


def shortened(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same with small parameters."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    names = re.search(r"^([A-Z, ]+) = ", cell.source, re.MULTILINE)[1].split(", ")
    cell.source = "\n".join(f"{name} = {_FEW[name]}" for name in names)
    return notebook


def execute(path: Path, short: bool) -> nbformat.NotebookNode:
    """The notebook with what it printed; it writes its files into an empty folder of the checkout.

    Raises:
        CellExecutionError: a cell has raised; the message has its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    if short:
        notebook = shortened(notebook)
    runs = _HERE.parent.parent / "build" / "notebooks"
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs) as folder:
        client = NotebookClient(notebook, timeout=600, kernel_name="python3")
        client.resources = {"metadata": {"path": folder}}
        client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if "outputs" in cell:
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    return notebook


def main(argv: list[str]) -> None:
    """Runs all of them."""
    del argv
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    for path in sorted(_HERE.glob("*.ipynb")):
        notebook = execute(path, _SHORT.value)
        if not _SHORT.value:
            nbformat.write(notebook, path)
        print(f"{path.name}: done")


if __name__ == "__main__":
    app.run(main)
