"""README.md is index.ipynb as Markdown: `python tests/readme.py` writes it, a test says when it is stale."""

import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import Preprocessor

ROOT = Path(__file__).parents[1]
IMAGES = "nbs/images"


class HideDirectives(Preprocessor):
    "What Quarto does with `#|` lines: drop them, and the whole source of cells that say `echo: false`."

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == "code":
            hidden = "#| echo: false" in cell.source
            cell.source = "" if hidden else re.sub(r"^#\|.*\n", "", cell.source, flags=re.M)
            alt = re.search(r'^#\| fig-alt: "(.*)"$', cell.get("source", ""), flags=re.M)
            cell.metadata["alt"] = alt.group(1) if alt else ""
        return cell, resources


def cite(text: str) -> str:
    "Citations by key as author and year, from references.bib."
    bib = (ROOT / "nbs" / "references.bib").read_text(encoding="utf-8")
    years = dict(re.findall(r"@\w+\{(\w+),.*?year = \{(\d+)\}", bib, flags=re.S))
    authors = dict(re.findall(r"@\w+\{(\w+),.*?author = \{([^,}]+)", bib, flags=re.S))
    return re.sub(r"\[@(\w+)\]", lambda m: f"({authors[m[1]]} et al., {years[m[1]]})", text)


def render() -> tuple[str, dict[str, bytes]]:  # the text, and the images by path
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", 4)
    exporter = MarkdownExporter(preprocessors=[HideDirectives])
    resources = {"output_files_dir": IMAGES, "unique_key": "index"}
    text, resources = exporter.from_notebook_node(notebook, resources)
    text = re.sub(r"\(((?:\d\d_)?\w+)\.ipynb\)", r"(nbs/\1.ipynb)", text)
    text = re.sub(r"~~~~(\w+)\n(.*?)~~~~", r"```\1\n\2```", text, flags=re.S)
    text = re.sub(r"```python\s*```\n", "", text)
    text = re.sub(r"\n{3,}", "\n\n", cite(text)).strip() + "\n"
    return text, resources["outputs"]


if __name__ == "__main__":
    text, images = render()
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    (ROOT / IMAGES).mkdir(exist_ok=True)
    for path, content in images.items():
        (ROOT / path).write_bytes(content)
