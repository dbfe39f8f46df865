"""README.md is index.ipynb as Markdown: `python tests/readme.py` writes it.

A test says when it is stale."""

import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import Preprocessor

ROOT = Path(__file__).parents[1]
IMAGES = "nbs/images"


class HideDirectives(Preprocessor):
    """What Quarto does with `#|` lines.

    It drops them and the source of cells with `echo: false`, and keeps alt text and
    caption.
    What runs in a page alone is left out."""

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == "code":
            for kind in ("alt", "cap"):
                resources.setdefault(kind, []).extend(
                    re.findall(rf'^#\| fig-{kind}: "(.*)"$', cell.source, flags=re.M)
                )
            cell.outputs = [each for each in cell.outputs if "<iframe" not in str(each)]
            hidden = "#| echo: false" in cell.source
            cell.source = (
                "" if hidden else re.sub(r"^#\|.*\n", "", cell.source, flags=re.M)
            )
        return cell, resources


def cite(text: str) -> str:
    "Citations as years, from references.bib; the prose of the index names the authors."
    bib = (ROOT / "nbs" / "references.bib").read_text(encoding="utf-8")
    years = dict(re.findall(r"@\w+\{(\w+),.*?year = \{(\d+)\}", bib, flags=re.S))
    return re.sub(r"\[-?@(\w+)\]", lambda match: f"({years[match[1]]})", text)


def render() -> tuple[str, dict[str, bytes]]:  # the text, and the images by path
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", 4)
    notebook.metadata["language_info"] = {"name": "python"}
    exporter = MarkdownExporter(preprocessors=[HideDirectives])
    resources = {"output_files_dir": IMAGES, "unique_key": "index"}
    text, resources = exporter.from_notebook_node(notebook, resources)
    text = re.sub(r"\(((?:\d\d_)?\w+)\.ipynb\)", r"(nbs/\1.ipynb)", text)
    text = text.replace("](card.png)", "](nbs/card.png)")
    text = re.sub(r"~~~~(\w+)\n(.*?)~~~~", r"```\1\n\2```", text, flags=re.S)
    text = re.sub(r"```python\s*```\n", "", text)
    said = iter(zip(resources["alt"], resources["cap"], strict=True))
    for image in re.findall(r"!\[png\]\(.*\)", text):
        alt, cap = next(said)
        new = image.replace("![png]", f"![{alt}]")
        text = text.replace(f"{image}\n    ", f"{new}\n\n*{cap}*\n")
    text = re.sub(r"\n[ \n]*\n", "\n\n", cite(text)).strip() + "\n"
    return text, resources["outputs"]


if __name__ == "__main__":
    text, images = render()
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    (ROOT / IMAGES).mkdir(exist_ok=True)
    for path, content in images.items():
        (ROOT / path).write_bytes(content)
