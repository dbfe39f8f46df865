"""What can be checked of the site without Quarto: the sidebar, the README, links and citation keys."""

import re

import nbformat
import pytest
import yaml
from conftest import NOTEBOOKS, ROOT
from readme import render


def prose(path) -> str:
    return "\n\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")


def pages(contents) -> list[str]:
    return [page for item in contents for page in ([item] if isinstance(item, str) else pages(item["contents"]))]


def test_every_chapter_is_in_the_sidebar_once():
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    assert pages(config["website"]["sidebar"]["contents"]) and sorted(
        pages(config["website"]["sidebar"]["contents"])
    ) == sorted(path.name for path in NOTEBOOKS)


def test_the_pointer_leads_to_the_configuration():
    pointer = yaml.safe_load((ROOT / "nbs" / "_quarto.yml").read_text())
    assert pointer == {"metadata-files": ["../_quarto.yml", "nbdev.yml"]}


def test_readme_is_index():
    text, images = render()
    assert (ROOT / "README.md").read_text() == text, "run: python tests/readme.py"
    assert all((ROOT / path).read_bytes() == content for path, content in images.items())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_citations_and_figure_references_resolve(path):
    text = prose(path)
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
    code = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code")
    labels = set(re.findall(r"#\| label: (\S+)", code)) | set(re.findall(r"\{#(eq-\S+?)\}", text))
    keys = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "nbs" / "references.bib").read_text(), re.M))
    without_code = re.sub(r"~~~~.*?~~~~|`[^`]*`", "", text, flags=re.S)
    for reference in re.findall(r"(?<![\w.])@([\w-]+)", without_code):
        known = labels if reference.startswith(("fig-", "eq-", "tbl-")) else keys
        assert reference in known, f"{path.name} refers to @{reference}"
