"""The figures to play with, in a real browser: true numbers, keyboard, telephone."""

import html
import json
import re

import nbformat
import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT
from nbconvert import HTMLExporter

from metadropout_nb.draw import draw_your_own
from metadropout_nb.explorer import mask_explorer
from metadropout_nb.meta_dropout import ARMS, MetaDropout
from metadropout_nb.omniglot import glyphs, show_images
from metadropout_nb.tasks import TaskSampler
from metadropout_nb.trained import lake_quiz, pretrained


def cell(chapter: str, source: str):
    "The cell of a chapter that holds a figure."
    notebook = nbformat.read(ROOT / "nbs" / f"{chapter}.ipynb", 4)
    (cell,) = [
        c for c in notebook.cells if c.cell_type == "code" and source in c.source
    ]
    return cell


EXPLORER = ("04_embedding_network", "mask_explorer(")


@pytest.fixture(scope="module")
def stored():
    return cell(*EXPLORER).outputs[0].data["text/markdown"]


@pytest.fixture(scope="module")
def quiz():
    run = TaskSampler(glyphs(40), n_way=20, n_query=1).sample(1)[0]
    return lake_quiz(run)._repr_mimebundle_()["text/markdown"]


@pytest.fixture(scope="module")
def network():
    return pretrained("original")[0].network


@pytest.fixture(scope="module")
def tasks():
    return TaskSampler(glyphs(40), n_query=3).sample(4)[:3]


@pytest.fixture
def page(browser, stored):
    "A narrow page with the figure in it. Errors and requests fail the test."
    errors = []
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route("http*://**", lambda route: errors.append(route.request.url))
    page.set_content(
        '<!doctype html><html lang="en"><title>Figure</title>'
        f"<body>{stored}</body></html>"
    )
    page.frame_locator("iframe").locator("#gap").wait_for()
    yield page
    page.close()
    assert errors == []


@pytest.fixture
def figure(page):
    return page.frames[1]


def choose(figure, **values):
    for name, value in values.items():
        figure.check(f'input[name="{name}"][value="{value}"]')


def numbers(figure) -> tuple[list[int], float]:
    "How many elements the images lose; the largest difference of the same drawing."
    return [int(n) for n in figure.inner_text("#dropped").split(",")], float(
        figure.inner_text("#gap")
    )


def picture(figure, place: int) -> str:
    return figure.evaluate(f"document.querySelectorAll('canvas')[{place}].toDataURL()")


def page_data(stored: str) -> dict:
    page = html.unescape(re.search('srcdoc="(.*?)"', stored, re.S)[1])
    return json.loads(re.search(r"const data = (\{.*?\});\n", page)[1])


def test_one_query_per_class_is_refused(network):
    tasks = TaskSampler(glyphs(40), n_query=1).sample()
    with pytest.raises(ValueError, match="two queries per class, got 1 tasks with 1"):
        mask_explorer(network, tasks, None)


def test_the_stored_figure_is_what_the_code_gives(stored, network, tasks):
    page = mask_explorer(network, tasks, show_images([[torch.zeros(2, 2)]]))
    now = page_data(page._repr_mimebundle_()["text/markdown"])
    was = page_data(stored)
    assert len(stored) < 300_000
    for a, b in zip(was["tasks"], now["tasks"], strict=True):
        assert a["drawings"] == b["drawings"]
        for one, other in zip(a["blocks"], b["blocks"], strict=True):
            assert (
                one["masks"] == other["masks"] and one["channels"] == other["channels"]
            )
            maps = [
                np.frombuffer(bytes.fromhex("".join(block["maps"])), np.uint8).astype(
                    int
                )
                for block in (one, other)
            ]
            assert (
                np.abs(maps[0] - maps[1]).max() <= 1
            )  # another processor may round to the next step


@pytest.mark.parametrize(
    ("arm", "task", "block", "step"),
    [(arm, 1, 1, 6) for arm in ARMS]
    + [("separate", *at) for at in ((0, 0, 4), (2, 2, 15), (0, 1, 0))],
)
def test_the_numbers_are_those_of_the_layer(
    figure, stored, network, tasks, arm, task, block, step
):
    choose(figure, arm=arm, task=task, block=block)
    figure.fill("#rate", str(step))
    dropped, gap = numbers(figure)
    about = page_data(stored)["tasks"][task]["blocks"][block]
    of_class = (
        (tasks[task].query_y == tasks[task].support_y[0]).nonzero().flatten().tolist()
    )
    queries = tasks[task].query_x.clone()
    queries[of_class[0]] = tasks[task].support_x[0]
    arrive = []
    hook = network.sites[block].register_forward_hook(
        lambda site, given, y: arrive.append(given[0].relu())
    )
    with torch.no_grad():
        network(tasks[task].support_x), network(queries, query=True)
    hook.remove()
    layer = MetaDropout(step / 20, arm, site=block)
    layer.next_task = task
    layer.reset_mask(arrive[0].shape)
    support = layer(torch.ones_like(arrive[0]))[0, about["channels"]]
    twin, other = layer(torch.ones_like(arrive[1]), query=True)[of_class[:2]][
        :, about["channels"]
    ]
    assert dropped == [int((mask == 0).sum()) for mask in (support, twin, other)]
    expected = ((support - twin) * arrive[0][0, about["channels"]]).abs().max()
    # Two decimals are shown, of maps stored in 255 steps.
    assert gap == pytest.approx(
        float(expected), abs=0.006 + about["largest"] / 255 / (1 - step / 20)
    )
    assert (gap == 0) == (arm in ("none", "meta") or step == 0)


def test_a_task_has_a_mask_of_its_own(figure):
    seen = {}
    for task in range(3):
        choose(figure, arm="meta", task=task)
        seen[task] = [
            re.search("mask (.)", heading)[1]
            for heading in figure.locator("h2").all_inner_texts()[::3]
        ]
    assert all(
        len(set(letters)) == 1 for letters in seen.values()
    )  # support image and last query
    assert len({letters[0] for letters in seen.values()}) == 3
    choose(figure, arm="standard")
    headings = " ".join(figure.locator("h2").all_inner_texts())
    assert len(set(re.findall("mask (.)", headings))) == 3


def test_what_is_seen_changes_with_every_control(figure):
    pictures = [picture(figure, 6)]  # a feature map of the query with the same drawing
    for change in ({"arm": "meta"}, {"task": 1}, {"block": 1}):
        choose(figure, **change)
        pictures.append(picture(figure, 6))
    figure.fill("#rate", "10")
    pictures.append(picture(figure, 6))
    assert len(set(pictures)) == 5
    choose(figure, arm="support")
    assert picture(figure, 1) != picture(figure, 6)
    choose(figure, arm="meta")
    assert picture(figure, 1) == picture(figure, 6)


def test_the_keyboard_is_enough(page, figure):
    page.keyboard.press("Tab")
    if figure.evaluate("document.activeElement === document.body"):
        page.keyboard.press("Tab")
    reached = []
    for _ in range(4):
        reached.append(
            figure.evaluate("document.activeElement.name || document.activeElement.id")
        )
        assert (
            figure.evaluate(
                "parseFloat(getComputedStyle(document.activeElement).outlineWidth)"
            )
            >= 2
        )
        before = figure.inner_text("#summary")
        page.keyboard.press("ArrowRight")
        assert figure.inner_text("#summary") != before
        page.keyboard.press("Tab")
    assert reached == ["arm", "rate", "block", "task"]
    assert (
        figure.is_checked('input[value="meta"]')
        and figure.get_attribute("#rate", "aria-valuetext") == "0.25"
    )


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(page, figure, width, scheme):
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    for arm in ("meta", "standard"):
        choose(figure, arm=arm)
        figure.wait_for_function("document.documentElement.scrollHeight <= innerHeight")
        root = figure.evaluate(
            "(({scrollWidth, clientWidth, scrollHeight, clientHeight}) => "
            "[scrollWidth - clientWidth, scrollHeight - clientHeight])"
            "(document.documentElement)"
        )
        assert root == [0, 0]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    report = Axe().run(figure)
    assert [violation["id"] for violation in report.response["violations"]] == []


SITE = """<!doctype html><html lang="en"><title>Site</title><body>{}
<button onclick="
  const { classList } = document.body, dark = classList.contains('quarto-dark');
  classList.toggle('quarto-dark', !dark);
  classList.toggle('quarto-light', dark);
">Switch</button></body></html>"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["draw", "explorer", "quiz"])
def test_it_follows_the_switch_of_the_site_else_the_system(
    browser, stored, quiz, kind, scheme
):
    "Quarto's switch changes classes of the body, JupyterLab's an attribute."
    frame = {"explorer": stored, "quiz": quiz}.get(kind)
    if kind == "draw":
        frame = draw_your_own(compact=True)._repr_mimebundle_()["text/markdown"]
    page = browser.new_page(color_scheme=scheme)
    page.set_content(SITE.replace("{}", frame, 1))
    figure = page.frames[1]
    figure.locator("main").wait_for()

    def looks(wanted: str) -> bool:
        ground = "getComputedStyle(document.documentElement).backgroundColor"
        red = {"light": 255, "dark": 27}[wanted]
        return figure.evaluate(ground).startswith(f"rgb({red},")

    assert looks(scheme)
    for wanted in ("dark", "light", "dark"):
        page.click("text=Switch")
        assert looks(wanted)
    page.evaluate("document.body.className = ''")
    for theme in ("light", "dark"):
        page.evaluate(f"document.body.dataset.jpThemeLight = '{theme}' === 'light'")
        assert looks(theme)
    page.close()


def test_without_scripts_there_is_a_picture(browser, stored):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_content(stored)
    inside = page.frame_locator("iframe")
    assert (
        inside.locator("noscript img").is_visible()
        and not inside.locator("form").is_visible()
    )
    context.close()


@pytest.mark.parametrize(
    "where, place, told",
    [
        (EXPLORER, "#gap", r"0\.\d*[1-9]\d*|[1-9].*"),
        (("12_people", "lake_quiz("), "#told", "Drawing 1 of 20: .*"),
    ],
)
def test_it_works_in_an_exported_notebook(browser, where, place, told):
    body, _ = HTMLExporter(template_name="lab").from_notebook_node(
        nbformat.v4.new_notebook(cells=[cell(*where)])
    )
    page = browser.new_page()
    page.route("http*://**", lambda route: route.abort())
    page.set_content(body)
    assert re.fullmatch(told, page.frame_locator("iframe").locator(place).inner_text())
    page.close()


def test_a_run_can_be_sorted(browser, quiz):
    "By keyboard, on a telephone: all right but the last, which is counted as wrong."
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_content(SITE.replace("{}", quiz, 1))
    figure = page.frames[1]
    answers = figure.evaluate("data.answers")
    for question, answer in enumerate([*answers[:-1], (answers[-1] + 1) % 20]):
        assert figure.inner_text("#told").startswith(f"Drawing {question + 1} of 20")
        figure.locator("#choices button").nth(answer).press("Enter")
    assert figure.inner_text("#told") == "Of 20 drawings you sorted 1 wrongly, 5 %."
    assert not figure.is_visible("#query")
    figure.wait_for_function("document.documentElement.scrollHeight <= innerHeight")
    root = "document.documentElement"
    spare = f"[{root}.scrollWidth - innerWidth, {root}.scrollHeight - innerHeight]"
    assert figure.evaluate(spare) == [0, 0]
    assert Axe().run(figure).response["violations"] == []
    page.close()
