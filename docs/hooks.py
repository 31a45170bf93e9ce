"""What `mkdocs build` does besides: lays the package as it installs, and takes pages from the root.

In a checkout keras_layers/ and kernels/ lie beside espace_tf/, and only its import joins them;
the reference is read without importing anything. A notebook becomes a page with its cells in order.
"""

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_ROOT = Path(__file__).parent.parent
_PAGES = {"changes.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_startup(command: str, dirty: bool) -> None:
    """Links every file of the package, and its two folders, into build/api/espace_tf."""
    del command, dirty
    package = _ROOT / "build" / "api" / "espace_tf"
    package.mkdir(parents=True, exist_ok=True)
    for old in package.iterdir():
        old.unlink()
    inside = [path for path in (_ROOT / "espace_tf").iterdir() if path.name != "__pycache__"]
    for path in (*inside, _ROOT / "keras_layers", _ROOT / "kernels"):
        (package / path.name).symlink_to(path)


def on_files(files: Any, config: Any) -> Any:
    """Puts a page beside every notebook, which stays there to be downloaded."""
    for file in [each for each in files if each.src_uri.endswith(".ipynb")]:
        path = file.src_uri.removesuffix(".ipynb") + ".md"
        text = cells(json.loads(Path(file.abs_src_path).read_text()), Path(file.src_uri).name)
        files.append(File.generated(config, path, content=text))
    return files


def cells(notebook: dict[str, Any], name: str) -> str:
    """The cells of a notebook as Markdown, with what was printed; its file behind the heading."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        printed = "".join("".join(each.get("text", ())) for each in cell.get("outputs", ()))
        parts += [f"```text\n{printed.rstrip()}\n```"] * bool(printed.strip())
    return "\n\n".join([parts[0], f"[As a notebook]({name})", *parts[1:]])


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """A page, or the file in the root that it stands for, with its links as they are here."""
    del kwargs
    source = _PAGES.get(page.file.src_uri)
    return markdown if source is None else (_ROOT / source).read_text().replace("](docs/", "](")
