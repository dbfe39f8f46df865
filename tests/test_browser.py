"""Chapters in a real browser: no script error, no missing image, readable anywhere.

That is in light, in dark and on a telephone. A page is nbconvert's plain HTML with the
few rules of Quarto's theme that decide about colour and width, and those of our own
nbs/styles.scss, with the colours of nbs/dark.scss. Code cells are left out, since the
theme alone colours and wraps them: what is found here, in prose, tables, figures and
printed text, is ours. Formulas stay TeX, as MathJax is not to be had offline.
"""

import re
from configparser import ConfigParser

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT
from nbconvert import HTMLExporter
from test_site import OPTION, code_cells, read

NBS = ROOT / "nbs"
# With every kind of thing that pages are made of.
PAGES = ["index", "03_meta_dropout", "08_maml", "09_does_it_help", "cli", "glossary"]
DARK = dict(
    re.findall(r"^\$([\w-]+): (.+);", (NBS / "dark.scss").read_text(), flags=re.M)
)
_, STYLES = (NBS / "styles.scss").read_text().split("/*-- scss:rules --*/")
STYLES = re.sub(r"^//.*$", "", STYLES, flags=re.M)

# Quarto 1.7, cosmo: outputs scroll, code wraps, Bootstrap breaks long words of code.
THEMES = f"""
  body {{ margin: 1rem; font: 17px/1.5 sans-serif; background: #fff; color: #373a3c; }}
  a {{ color: #2761e3; }}
  :not(pre) > code {{ color: #7d12ba; background: #f8f9fa; }}
  figcaption {{ color: #5c6369; }}
  tr:nth-child(odd) {{ background: #f2f2f2; }}
  @media (prefers-color-scheme: dark) {{
    body {{ background: {DARK["body-bg"]}; color: {DARK["body-color"]}; }}
    a {{ color: {DARK["link-color"]}; }}
    :not(pre) > code {{ color: {DARK["code-color"]}; background: {DARK["code-bg"]}; }}
    figcaption {{ color: {DARK["body-secondary"]}; }}
    tr:nth-child(odd) {{ background: {DARK["table-striped-bg"]}; }}
  }}
  .output_area {{ overflow-x: auto; }}
  pre {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
  code {{ overflow-wrap: break-word; }}
  .anchor-link, .prompt {{ display: none; }}
"""
RULES = [
    "color-contrast",
    "image-alt",
    "svg-img-alt",
    "role-img-alt",
    "input-image-alt",
    "area-alt",
    "object-alt",
]
TOO_WIDE = """() => [...document.body.querySelectorAll("*")].filter(element => {
    for (let box = element.parentElement; box; box = box.parentElement) {
        const scrolls = ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
        if (box !== document.body && scrolls) return false;
    }
    const screen = document.documentElement.clientWidth;
    return element.getBoundingClientRect().right > screen + 1;
}).map(element => element.outerHTML.slice(0, 200))"""
BROKEN = """() => [...document.images].filter(
    image => !(image.complete && image.naturalWidth)
).map(image => image.outerHTML.slice(0, 200))"""


def page_of(notebook) -> str:
    "A chapter in plain HTML, its figures with the alt text that Quarto gives them."
    for cell in code_cells(notebook):
        alt = re.search(OPTION.format("fig-alt"), cell.source, re.M)
        for output in cell.outputs:
            if alt and "image/png" in output.get("data", {}):
                output.metadata["image/png"] = {"alt": alt[1].strip('"')}
    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, embed_images=True
    )
    where = {"metadata": {"path": str(NBS)}}
    body, _ = exporter.from_notebook_node(notebook, where)
    body = body.replace('alt="No description has been provided for this image"', "")
    rules = STYLES.replace(".cell-output-display", ".output_area")
    style = THEMES + rules.replace(".cell-output", ".output_area")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>A chapter</title><style>{style}</style>"
    )
    return document(head, body)


def document(head: str, body: str) -> str:
    page = f"<head>{head}</head><body>{body}</body>"
    return f'<!doctype html><html lang="en">{page}</html>'


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.route(
        "http*://**", lambda route: route.abort()
    )  # no network: what a page needs, it carries
    yield page
    page.close()


def problems(page, html) -> list[str]:
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(f"script error: {error}"))
    page.set_content(html, wait_until="load")
    found += [f"missing image: {image}" for image in page.evaluate(BROKEN)]
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        found += [f"wider than {width}: {each}" for each in page.evaluate(TOO_WIDE)]
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        options = {
            "runOnly": {"type": "rule", "values": RULES},
            "resultTypes": ["violations"],
        }
        for violation in Axe().run(page, options=options).response["violations"]:
            found += [
                f"{violation['id']} ({scheme}): {node['html'][:200]}"
                for node in violation["nodes"]
            ]
    return found


@pytest.mark.parametrize("name", PAGES)
def test_a_chapter_in_the_browser(page, name):
    assert problems(page, page_of(read(NBS / f"{name}.ipynb"))) == []


@pytest.mark.parametrize(
    "html, fault",
    [
        ("<script>gone()</script>", "script error"),
        ('<img alt="a" src="data:image/png;base64,AAAA">', "missing image"),
        ('<div style="width: 500px">wide</div>', "wider than 390"),
        (
            '<div style="overflow: hidden"><p style="width: 500px">cut off</p></div>',
            "wider than 390",
        ),
        ('<p style="color: #ccc">pale</p>', "color-contrast (light)"),
        ('<p style="color: #333">dim</p>', "color-contrast (dark)"),
        (
            '<img src="data:image/svg+xml,'
            '<svg xmlns=%22http://www.w3.org/2000/svg%22 width=%229%22 />">',
            "image-alt",
        ),
    ],
)
def test_every_kind_of_problem_is_found(page, html, fault):
    found = problems(page, document(f"<style>{THEMES}</style>", html))
    assert any(fault in problem for problem in found), found


SCRIPT = (NBS / "page.html").read_text()


def show(page, body):
    "A page of the site, at an address, so that it can remember."
    address = "http://site.test/page.html"
    html = document("<title>Page</title>", body + SCRIPT)
    page.route(
        address, lambda route: route.fulfill(body=html, content_type="text/html")
    )
    page.goto(address)


def test_a_chapter_links_to_colab_and_to_its_notebook(page):
    "On a page like Quarto's, and from the address in settings.ini alone."
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini")
    git_url = settings["DEFAULT"]["git_url"]
    file = f"{git_url}/blob/main/nbs/02_tasks.ipynb"
    source = f'<a class="toc-action" href="{file}">View source</a>'
    head = '<header id="title-block-header"></header>'
    show(page, f'{head}<div class="cell"></div>{source}')
    colab, download, _ = page.locator(".chapter-links > a").all()
    on_github = file.removeprefix("https://github.com")
    where = f"https://colab.research.google.com/github{on_github}"
    assert colab.get_attribute("href") == where
    assert (
        download.get_attribute("href") == "02_tasks.ipynb"
        and download.get_attribute("download") == ""
    )
    name = settings["DEFAULT"]["repo"]
    commands = [
        f"!git clone --depth 1 {git_url}",
        f"!pip install ./{name}",
        f"%cd {name}/nbs",
    ]
    assert page.locator(".chapter-links code").text_content().splitlines() == commands
    show(page, f"{head}{source}")  # no code, nothing to run
    assert page.locator(".chapter-links").count() == 0


FOLD = """<div class="cell"><details class="code-fold" open><summary>{summary}</summary>
<pre>{code}</pre></details>{output}</div>"""


def test_code_for_looking_up_is_closed_until_a_click(page):
    imports = "import os\nfrom sys import (\n    argv,\n    path,\n)\n"
    cells = [  # summary, code, output; whether it stands open
        ("Code", "x = 1\n" * 25, "", True),
        ("Code", "x = 1\n" * 26, "", False),
        ("Code", imports, "", False),
        ("Code", f"{imports}argv", "", True),
        ("Code", "plot()", "<img alt='' src='data:,'>", False),
        ("Code", 'check("01.1", f);', "<img alt='' src='data:,'>", True),
        ("Exported source", "x = 1\n" * 12, "", True),
        ("Exported source", "x = 1\n" * 13, "", False),
    ]
    body = "".join(
        FOLD.format(summary=summary, code=code, output=output)
        for summary, code, output, _ in cells
    )
    menu = '<button id="quarto-show-all-code"></button>'
    show(page, body + menu)

    def is_open():
        return page.locator("details").evaluate_all("all => all.map(each => each.open)")

    assert is_open() == [expected for *_, expected in cells]
    page.locator("button").click()
    show(page, body + menu)
    assert is_open() == [True] * len(cells), "the choice is kept on the next page"


def test_keyboard_and_phone(page):
    "First the text, not the sidebar; tables that scroll; contents below the title."
    wide = "<td>word</td>" * 90
    show(
        page,
        '<a href="#x">sidebar</a><main id="quarto-document-content">'
        '<header id="title-block-header"></header>'
        f'<table style="display: block; overflow-x: auto"><tr>{wide}</tr></table>'
        "<table><tr><td>narrow</td></tr></table></main>"
        '<div id="quarto-margin-sidebar"><nav id="TOC"><ul>'
        '<li><a id="t" href="#a">A</a></li><li><a href="#b">B</a></li>'
        "</ul></nav></div>",
    )
    page.keyboard.press("Tab")
    focused = "document.activeElement.getAttribute('href')"
    assert page.evaluate(focused) == "#quarto-document-content"
    wide, narrow = page.locator("table").all()
    assert wide.get_attribute("tabindex") == "0"
    assert narrow.get_attribute("tabindex") is None
    contents = page.locator("header .contents")
    assert contents.locator("a").all_text_contents() == ["A", "B"]
    assert page.locator("#t").count() == 1, "no identifier twice"


def test_a_table_of_many_columns_is_a_list_on_a_phone(page):
    "Nothing to scroll, and every value says the name of its column."
    names = ["learner", "difference", "95 % interval", "seeds", "verdict", "corrected"]
    head = "".join(f"<th>{name}</th>" for name in names)
    row = "<td>0.1234567890123</td>" * (len(names) - 1) + "<td></td>"
    many = f"<thead><tr>{head}</tr></thead><tbody><tr>{row}</tr></tbody>"
    few = many.replace("<th>seeds</th>", "").replace("<td></td>", "")
    show(
        page,
        f"<style>{STYLES}</style>"
        f'<table class="table">{many}</table><table class="table">{few}</table>',
    )
    table, narrow = page.locator("table").all()
    assert not table.locator("thead").is_visible()
    assert narrow.locator("thead").is_visible()
    assert table.evaluate("each => each.scrollWidth <= each.clientWidth")
    said = "all => all.map(each => getComputedStyle(each, '::before').content)"
    told = table.locator("td").evaluate_all(said)
    assert all(name in text for name, text in zip(names, told, strict=True))
    assert not table.locator("td").last.is_visible(), "an empty cell is left out"
    page.set_viewport_size({"width": 1280, "height": 844})
    assert table.locator("thead").is_visible()
