"""The chapters in a real browser: no script error, no missing image, readable anywhere.

That is in light, in dark and on a telephone. A page is nbconvert's plain HTML with the
few rules of Quarto's two themes that decide about colour and width, and those of our
own nbs/styles.scss. Code cells are left out, since the theme alone colours and wraps
them: what is found here, in prose, tables, figures and printed text, is ours. Formulas
stay TeX, as MathJax is not to be had offline.
"""

import re
from configparser import ConfigParser

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import NOTEBOOKS, ROOT
from nbconvert import HTMLExporter
from test_site import OPTION, code_cells, read

NBS = ROOT / "nbs"

# Quarto 1.7: cosmo by day, darkly by night; outputs scroll, code wraps, and Bootstrap
# breaks long words of code.
THEMES = """
  body { margin: 1rem; font: 17px/1.5 sans-serif; background: #fff; color: #343a40; }
  a { color: #2761e3; }
  @media (prefers-color-scheme: dark) {
    body { background: #222; color: #fff; }
    a { color: #00bc8c; }
  }
  .output_area { overflow-x: auto; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  code { overflow-wrap: break-word; }
  .anchor-link, .prompt { display: none; }
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
        const visible = getComputedStyle(box).overflowX === "visible";
        if (box !== document.body && !visible) return false;
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
    rules = re.sub(r"^//.*$", "", (NBS / "styles.scss").read_text(), flags=re.M)
    style = THEMES + rules.replace(".cell-output-display", ".output_area")
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
    found += [
        f"wider than the screen: {element}" for element in page.evaluate(TOO_WIDE)
    ]
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_in_the_browser(page, path):
    assert problems(page, page_of(read(path))) == []


@pytest.mark.parametrize(
    "html, fault",
    [
        ("<script>gone()</script>", "script error"),
        ('<img alt="a" src="data:image/png;base64,AAAA">', "missing image"),
        ('<div style="width: 500px">wide</div>', "wider than the screen"),
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


def test_a_chapter_links_to_colab_and_to_its_notebook(page):
    "On a page like Quarto's, and from the address in settings.ini alone."
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini")
    git_url = settings["DEFAULT"]["git_url"]
    file = f"{git_url}/blob/main/nbs/02_tasks.ipynb"
    source = f'<a class="toc-action" href="{file}">View source</a>'
    head = '<header id="title-block-header"></header>'
    script = (NBS / "chapter_links.html").read_text()
    page.set_content(f'{head}<div class="cell"></div>{source}{script}')
    colab, download = page.locator(".chapter-links > a").all()
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
    page.set_content(f"{head}{source}{script}")  # no code, nothing to run
    assert page.locator(".chapter-links").count() == 0


def test_long_code_is_closed_until_a_click(page):
    script = (NBS / "chapter_links.html").read_text()
    fold = (
        '<details class="code-fold" open><summary>Code</summary><pre>{}</pre></details>'
    )
    cells = "".join(fold.format("x = 1\n" * lines) for lines in (25, 26))
    page.set_content(f"{cells}{script}")
    found = [each.get_attribute("open") for each in page.locator("details").all()]
    assert found == ["", None]
