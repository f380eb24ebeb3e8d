"""The notebook examples/first_steps.ipynb, made from the script beside it, and its page in the site, with outputs.

The repository holds the notebook without outputs: they would be large, and old after the next change.
"""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

SCRIPT = Path(__file__).parents[2] / "examples/first_steps.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")
PAGE = "first_steps.md"


def notebook_of(script: Path) -> NotebookNode:
    """The cells of a script in jupytext's percent format, without outputs."""
    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # jupytext draws them at random, and others each time
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def executed(notebook: NotebookNode) -> NotebookNode:
    """The notebook after all its cells ran, in a process and a temporary folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, resources={"metadata": {"path": folder}}, extra_arguments=["--log-level=ERROR"]
        )
        return client.execute(env=os.environ | {"TMPDIR": folder})


def page_of(notebook: NotebookNode) -> dict[str, str | bytes]:
    """The page, as Markdown, and its pictures, by their places in the site; what is on standard error is left out."""
    parts, pictures = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(_block(cell.source, "python"))
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stdout":
                parts.append(_block(output.text, "text"))
            elif output.output_type == "execute_result":
                name = f"{PAGE.removesuffix('.md')}/{len(pictures)}.png"
                pictures[name] = base64.b64decode(output.data["image/png"])
                parts.append(f"![What the code above shows]({name})")
    return {PAGE: "\n\n".join(parts), **pictures}


def _block(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


if __name__ == "__main__":
    nbformat.write(notebook_of(SCRIPT), NOTEBOOK)
