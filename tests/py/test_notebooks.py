"""The notebooks on layers, run from the top to the end in a kernel, without a browser."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
PICTURES = "application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"


@pytest.fixture(scope="module", autouse=True)
def installed(builtin):
    """Skips where the built-in model is not."""


def run(name, tmp_path):
    """The notebook's cells after it was run: what each printed, and which kinds of pictures it shows."""
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert "widgets" not in book.metadata
    assert all(
        cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None) for cell in book.cells
    )
    NotebookClient(book, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    printed = ["".join(out.get("text", "") for out in cell.outputs if out.output_type == "stream") for cell in cells]
    kinds = {kind for cell in cells for out in cell.outputs for kind in out.get("data", {})}
    texts = [
        str(out.data.get("text/plain", "")) for cell in cells for out in cell.outputs if out.output_type != "stream"
    ]
    return printed, texts, kinds


def test_the_city_of_light(tmp_path):
    printed, _, kinds = run("city_of_light", tmp_path)
    said = "\n".join(printed)
    assert "' Rome'" in said, "the one nickname it surely knows"
    assert re.search(r"to res\.\d+/\d+, \d+ layers:", said)
    assert re.search(r"\d+ of 12 are on", said)
    assert len(re.findall(r"is on at '", said)) == 2
    assert re.search(r"on the others: \d+ times stronger in the idiom", said)
    assert set(PICTURES) <= kinds


def test_from_layer_to_layer(tmp_path):
    printed, texts, kinds = run("layers", tmp_path)
    said = "\n".join(printed)
    assert re.search(r"after layer 17: ' basketball'", said)
    assert any("against ' football'" in text and "' Jordan'" in text for text in texts)
    assert any(text.startswith("Matches of res.") for text in texts)
    assert set(PICTURES) <= kinds
