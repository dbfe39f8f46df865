"""What can be checked of the site without Quarto: its settings, links and labels."""

import ast
import gzip
import re
import shutil
import subprocess
from configparser import ConfigParser
from zipfile import ZipFile

import nbformat
import pytest
import yaml
from conftest import NOTEBOOKS, ROOT, code_cells, read
from execnb.nbio import read_nb
from nbdev.processors import FilterDefaults
from readme import render

NBS = ROOT / "nbs"
CONFIG = yaml.safe_load((ROOT / "_quarto.yml").read_text())
SETTINGS = ConfigParser()
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
ENTRIES = dict(
    re.findall(
        r"^@\w+\{(\w+),(.*?)^\}",
        (NBS / "references.bib").read_text(),
        re.M | re.S,
    )
)
IMPORTS = {ast.Import, ast.ImportFrom}
DEFINITIONS = ast.FunctionDef, ast.ClassDef
OPTION = r"^#\| {}: *(.+)$"


def prose(notebook) -> str:
    "The Markdown of a chapter, and the captions of its figures, without code."
    text = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    captions = [
        c
        for cell in code_cells(notebook)
        for c in re.findall(OPTION.format("fig-cap"), cell.source, re.M)
    ]
    return re.sub(
        r"^~~~~.*?^~~~~$|`[^`\n]*`",
        "",
        "\n\n".join([text, *captions]),
        flags=re.S | re.M,
    )


def labels(notebook) -> list[str]:
    code = "\n".join(c.source for c in code_cells(notebook))
    return re.findall(OPTION.format("label"), code, re.M) + re.findall(
        r"\{#((?:eq|tbl|fig)-\S+?)\}", prose(notebook)
    )


def identifiers(notebook) -> list[str]:
    """The anchors that Pandoc gives to headings.

    The first heading is the title of the page, and has none."""
    found: list[str] = []
    text = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for heading in re.findall(
        r"^#{2,} +(.+?) *$",
        re.sub(r"^~~~~.*?^~~~~$", "", text, flags=re.S | re.M),
        re.M,
    ):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = (
            re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", plain)).lstrip("0123456789._-")
            or "section"
        )
        earlier = sum(
            re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None
            for other in found
        )
        found.append(f"{name}-{earlier}" if earlier else name)
    return found


def anchors(notebook) -> set[str]:
    return {*identifiers(notebook), *labels(notebook)}


def faults(notebook, book) -> list[str]:
    """What would be a dead link, a broken reference or a figure without words.

    `book` holds the anchors by file name."""
    text, found = prose(notebook), []
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
        if file and not (NBS / file).exists():
            found.append(f"link to {file}, which is not there")
        elif anchor and anchor not in (book[file] if file else anchors(notebook)):
            found.append(f"link to {file}#{anchor}: no such heading")
    known = labels(notebook)
    found += [f"label {label} twice" for label in {*known} if known.count(label) > 1]
    for reference in re.findall(r"(?<![\w.])@([\w-]+)", text):
        if reference not in (
            known if reference.startswith(("fig-", "eq-", "tbl-")) else ENTRIES
        ):
            found.append(f"no @{reference}")
    for cell in code_cells(notebook):
        label, *described = (
            re.search(OPTION.format(o), cell.source, re.M)
            for o in ("label", "fig-cap", "fig-alt")
        )
        if label and not all(described):
            found.append(f"a label wants caption and alt text:\n{cell.source}")
        if (
            label
            and sum("image/png" in output.get("data", {}) for output in cell.outputs)
            > 1
        ):
            found.append(f"two figures under one label:\n{cell.source}")
    terms = re.findall(r"\(glossary\.ipynb#([\w-]+)\)", text)
    return found + [
        f"{term} is linked to the glossary twice"
        for term in {*terms}
        if terms.count(term) > 1
    ]


@pytest.fixture(scope="module")
def book() -> dict[str, set[str]]:
    return {path.name: anchors(read(path)) for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_labels_and_citations_resolve(path, book):
    assert faults(read(path), book) == []


@pytest.mark.parametrize(
    "markdown, code, fault",
    [
        ("[x](gone.ipynb)", "", "link to gone.ipynb"),
        ("[x](02_tasks.ipynb#gone)", "", "no such heading"),
        ("## Here\n\n[x](#there)", "", "no such heading"),
        ("see @fig-gone", "", "no @fig-gone"),
        ("as @nobody1900 says", "", "no @nobody1900"),
        ("$$a$$ {#eq-a}\n\n$$b$$ {#eq-a}", "", "label eq-a twice"),
        (
            "",
            "#| label: fig-a\n#| fig-cap: Text.\nplot()",
            "wants caption and alt text",
        ),
        (
            "",
            "#| label: fig-a\n#| fig-cap: As @eq-a says.\n#| fig-alt: Text.\nplot()",
            "no @eq-a",
        ),
        ("[x](glossary.ipynb#task) [y](glossary.ipynb#task)", "", "twice"),
    ],
)
def test_every_kind_of_fault_is_found(markdown, code, fault, book):
    cells = [nbformat.v4.new_markdown_cell(markdown), nbformat.v4.new_code_cell(code)]
    (found,) = faults(nbformat.v4.new_notebook(cells=cells), book)
    assert fault in found


def test_headings_get_the_anchors_that_pandoc_gives():
    headings = ["# Title", "## `fit`, and *more*: a [link](x.ipynb)?", "## 2. Again"]
    text = "\n\n".join([*headings, "### Again", "~~~~sh\n## not one\n~~~~"])
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    assert identifiers(notebook) == ["fit-and-more-a-link", "again", "again-1"]


def test_every_reference_leads_somewhere():
    assert [
        k for k, entry in ENTRIES.items() if not re.search("(doi|url) = ", entry)
    ] == []


def test_the_search_finds_every_term_of_the_glossary():
    "Quarto's index goes by headings of the second level."
    text = prose(read(NBS / "glossary.ipynb"))
    assert re.findall(r"^#{3,} .*", text, re.M) == []
    terms = re.findall(r"^## (.+)", text, re.M)
    assert len(terms) > 30 and terms == sorted(terms, key=str.lower)


def options(source: str) -> str:
    """The `#|` lines of a cell that have a key, as Quarto's YAML parser gets them.

    nbdev's directives have none."""
    lines = [line for line in source.splitlines() if line.startswith("#|")]
    return "\n".join(line[2:].strip() for line in lines if ":" in line)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_options_of_every_cell_are_yaml(path):
    for cell in code_cells(read(path)):
        found = yaml.safe_load(options(cell.source)) or {}
        assert all(
            isinstance(found.get(key, ""), str)
            for key in ("label", "fig-cap", "fig-alt")
        ), cell.source


def test_an_unquoted_colon_in_a_caption_is_no_yaml():
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(options("#| export\n#| fig-cap: Two: one and another.\nplot()"))


def pages(contents) -> list[str]:
    found: list[str] = []
    for item in contents:
        if isinstance(item, str):
            found.append(item)
        else:
            found += pages(item["contents"]) if "contents" in item else [item["href"]]
    return found


def test_every_chapter_is_in_the_sidebar_once():
    assert sorted(pages(CONFIG["website"]["sidebar"]["contents"])) == [
        path.name for path in NOTEBOOKS
    ]


def test_the_settings_name_files_that_are_there():
    html, site = CONFIG["format"]["html"], CONFIG["website"]
    named = [html["include-after-body"], CONFIG["bibliography"], site["favicon"]]
    named += [
        theme for themes in html["theme"].values() for theme in themes if "." in theme
    ]
    cards = [site[card]["image"] for card in ("open-graph", "twitter-card")]
    assert all((NBS / name).is_file() for name in named + cards)
    assert all((NBS / card).stat().st_size < 200_000 for card in cards)


def test_the_pointer_leads_to_the_configuration():
    pointer = yaml.safe_load((NBS / "_quarto.yml").read_text())
    assert pointer == {"metadata-files": ["../_quarto.yml", "nbdev.yml"]}


def test_the_owner_stands_in_one_place():
    "In settings.ini. README.md and outputs are computed from it."
    files = [
        p
        for p in (*ROOT.glob("*.*"), *NBS.glob("*.*"))
        if p.suffix not in {".png", ".ini", ".ipynb"} and p.is_file()
    ]
    written = {p.name: p.read_text() for p in files if p.name != "README.md"}
    written |= {
        p.name: "\n".join(cell.source for cell in read(p).cells) for p in NOTEBOOKS
    }
    names = [re.escape(SETTINGS["DEFAULT"][key]) for key in ("user", "author")]
    owner = re.compile(rf"\b({'|'.join(names)})\b")
    assert [name for name, text in written.items() if owner.search(text)] == []


def test_the_citation_has_the_year_of_the_settings():
    code = "\n".join(cell.source for cell in code_cells(read(NBS / "index.ipynb")))
    year = re.search(r"\d{4}", SETTINGS["DEFAULT"]["copyright"])[0]
    assert f"year = {{{{{year}}}}}" in code


@pytest.mark.parametrize(
    "path", [p for p in NOTEBOOKS if p.stem[:2].isdigit()], ids=lambda path: path.stem
)
def test_a_chapter_says_how_long_it_takes(path):
    form = r"^About \d+ minutes to read, .+ to run on a laptop CPU[.,;]"
    assert re.search(form, prose(read(path)), re.M), (
        "say: About 20 minutes to read, under a minute to run on a laptop CPU."
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_is_title_and_promise(path):
    "nbdev makes them the head of the page, and drops what else stands in that cell."
    assert re.fullmatch(r"# [^\n]+\n\n> [^\n]+", read(path).cells[0].source)


@pytest.mark.parametrize(
    "path",
    [path for path in NOTEBOOKS if re.match(r"a?\d", path.name)],
    ids=lambda path: path.stem,
)
def test_titles_carry_the_number_of_the_file(path):
    "Sidebar, search, previous and next have them from there."
    number = path.stem.split("_")[0].removeprefix("0").upper()
    assert read(path).cells[0].source.startswith(f"# {number} · ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_is_light(path):
    """Under 1 MB compressed, pictures included; and no output in HTML, for which Quarto
    loads require.js and jQuery, but for figures that need a frame."""
    assert len(gzip.compress(path.read_bytes())) < 1_000_000
    for output in (o for cell in code_cells(read(path)) for o in cell.outputs):
        assert "<iframe" in output.get("data", {}).get("text/html", "<iframe")


def mixed_cells(notebook) -> list[str]:
    """Cells that import and do more.

    Where a chapter exports anything, nbdev runs them to render it, slow or not."""
    cells = [cell.source for cell in code_cells(notebook)]
    found = []
    for source in cells if any("#| export" in source for source in cells) else []:
        kinds = {type(node) for node in ast.parse(source).body}
        inside = {type(node) for node in ast.walk(ast.parse(source))}
        if "#| export" not in source and inside & IMPORTS and kinds - IMPORTS:
            found.append(source)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_imports_have_cells_of_their_own(path):
    assert mixed_cells(read(path)) == []


def test_a_mixed_cell_is_found():
    cells = [
        nbformat.v4.new_code_cell(source)
        for source in ("#| export\nimport os\na = 1", "import re\ntrain()")
    ]
    assert mixed_cells(nbformat.v4.new_notebook(cells=cells)) == ["import re\ntrain()"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nbdev_prepares_the_page(path, monkeypatch):
    "The step of `nbdev_docs` before Quarto: it runs a few cells and describes symbols."
    monkeypatch.chdir(NBS)
    notebook = read_nb(path)
    FilterDefaults()(notebook)
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    told = "".join("".join(o.get("data", {}).get("text/markdown", "")) for o in outputs)
    for of_python in ("Call self as a function", "Create a collection of name/value"):
        assert of_python not in told
    assert not re.findall(r"^\*[^*].*\*\n\S.*", told, re.M), "a summary of two lines"


def too_early(notebook) -> list[str]:
    """Quoted annotations with a name that a later cell defines.

    nbdev runs exported cells in the order of the page, and evaluates annotations."""
    trees = [
        ast.parse(cell.source)
        for cell in code_cells(notebook)
        if "#| export" in cell.source
    ]
    defined = [
        {node.name for node in tree.body if isinstance(node, DEFINITIONS)}
        for tree in trees
    ]
    found = []
    for i, tree in enumerate(trees):
        later = set().union(*defined[i + 1 :])
        for node in ast.walk(tree):
            for quoted in (
                getattr(node, "annotation", None),
                getattr(node, "returns", None),
            ):
                if isinstance(quoted, ast.Constant) and isinstance(quoted.value, str):
                    found += later & set(re.findall(r"\w+", quoted.value))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_annotations_name_what_is_defined_above(path):
    assert too_early(read(path)) == []


def test_an_annotation_that_comes_too_early_is_found():
    cells = [
        nbformat.v4.new_code_cell(f"#| export\n{source}")
        for source in ('def of(run: "Run"): pass', "class Run: pass")
    ]
    assert too_early(nbformat.v4.new_notebook(cells=cells)) == ["Run"]
    assert too_early(nbformat.v4.new_notebook(cells=cells[::-1])) == []


def test_there_are_downloads_and_a_page_for_programs(tmp_path):
    "On two notebooks. Without Quarto there is no page, and no sitemap."
    names = ["06_eb_meta_network", "glossary"]
    for folder in ("nbs", "_docs"):
        (tmp_path / folder).mkdir()
    for name in names:
        shutil.copy(NBS / f"{name}.ipynb", tmp_path / "nbs")
    shutil.copy(ROOT / "README.md", tmp_path)
    subprocess.run(
        ["bash", ROOT / ".ci/downloads"], cwd=tmp_path, check=True, capture_output=True
    )
    made = tmp_path / "_docs"
    with ZipFile(made / "notebooks.zip") as file:
        assert sorted(file.namelist()) == [f"{name}.ipynb" for name in names]
    guide = (made / "llms.txt").read_text()
    assert guide.startswith("# ") and "![" not in guide and "nbs/" not in guide
    for name in names:
        assert f"({name}.md)" in guide
        assert (made / f"{name}.ipynb").exists()
        assert "image/png" not in (made / f"{name}.md").read_text()


def test_readme_is_index():
    text, images = render()
    assert (ROOT / "README.md").read_text() == text, "run: python tests/readme.py"
    assert all(
        (ROOT / path).read_bytes() == content for path, content in images.items()
    )


def test_the_index_tells_how_long_the_chapters_take():
    chapters = [
        prose(read(path)) for path in NOTEBOOKS if re.match(r"\d\d_", path.name)
    ]
    minutes = sum(
        int(re.search(r"^About (\d+) minutes to read", text, re.M)[1])
        for text in chapters
    )
    words = ("two", "three", "four", "five")
    assert f"take about {words[round(minutes / 60) - 2]} hours to read" in prose(
        read(NBS / "index.ipynb")
    ), minutes
