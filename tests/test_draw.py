"""The figure to draw in, in a real browser: true numbers, mouse, finger, keyboard."""

import json

import draw as benchmark
import nbformat
import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT
from nbconvert import HTMLExporter

from metadropout_nb.draw import draw_your_own
from metadropout_nb.omniglot import glyphs, load_omniglot, resize
from metadropout_nb.trained import pretrained

LABELS = torch.arange(5)


@pytest.fixture(scope="module")
def shown():
    "What a notebook or a site gets, whole and compact."
    return [draw_your_own(size)._repr_mimebundle_() for size in (False, True)]


@pytest.fixture(scope="module")
def learner():
    return pretrained("proto")[0]


def document(output: dict[str, str], look: str = "") -> str:
    (frame,) = output.values()
    head = '<meta name="viewport" content="width=device-width"><title>Figure</title>'
    return f'<!doctype html><html lang="en">{head}<body class="{look}">{frame}</body>'


@pytest.fixture(scope="module")
def page(browser, shown):
    "A narrow page with the whole figure. Errors and requests fail the test."
    errors = []
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True
    )
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route("http*://**", lambda route: errors.append(route.request.url))
    page.set_content(document(shown[0]))
    page.frame_locator("iframe").locator("#summary b").wait_for()
    yield page
    context.close()
    assert errors == []


@pytest.fixture
def figure(page):
    "With the first stored alphabet in it; it stops to answer until it is asked."
    figure = page.frames[1]
    figure.evaluate(
        """() => {
          boxes.forEach((box, i) => Object.assign(box, { character: i, hand: 0 }));
          query.of = undefined;
          boxes.forEach((box) => pick(box, 0));
          turn++;
          draws = 1;
        }"""
    )
    return figure


ANSWER = """(tasks) => tasks.map(([support, queries]) => {
  const fill = (box, image) => {
    box.image = Float32Array.from(image, (v) => v / 255);
    box.embeddings.clear();
  };
  support.forEach((image, i) => fill(boxes[i], image));
  return queries.map((image) => { fill(query, image); return logits(0, 0); });
})"""


def pytorch(learner, support, queries) -> torch.Tensor:
    "Logits of images in bytes."
    support, queries = (
        torch.as_tensor(x).reshape(-1, 1, 28, 28) / 255 for x in (support, queries)
    )
    with torch.no_grad():
        return learner(support, LABELS, queries)


@pytest.mark.parametrize("source", ["glyphs", "omniglot"])
def test_logits_are_those_of_pytorch(figure, learner, source, request):
    "On a hundred drawings: in each of five tasks five characters, four drawings each."
    if source == "omniglot":
        root = request.getfixturevalue("omniglot_root")
        characters = load_omniglot(root, background=False, size=28)
    else:
        characters = glyphs(25)
    images = characters.images[:25, :4].reshape(5, 5, 4, 784)
    tasks = [(task[:, 0], task[:, 1:].flatten(0, 1)) for task in images]
    found = figure.evaluate(ANSWER, [[x.tolist() for x in task] for task in tasks])
    expected = torch.stack([pytorch(learner, *task) for task in tasks])
    assert (torch.tensor(found) - expected).abs().max() < 1e-2
    assert expected.std() > 1


def test_the_trial_of_alphabets_drawn_by_a_script(browser):
    "The first of the stored twenty, drawn again with the mouse."
    page = browser.new_page()
    stored = json.loads(benchmark.OUT.read_text())
    now = benchmark.trial(1, page)
    page.close()
    assert {key: rows[:1] for key, rows in stored.items()} == now
    assert stored["page"] == stored["pytorch"] and len(stored["page"]) == 20


def mulberry32(seed: int, n: int) -> np.ndarray:
    "The page's stream of random numbers, from 0 to below 1."
    word, state = 2**32, seed * 0x9E3779B1
    t = (np.arange(1, n + 1).astype(object) * 0x6D2B79F5 + state) % word
    t = (t ^ (t >> 15)) * (t | 1) % word
    t = ((t + (t ^ (t >> 7)) * (t | 61) % word) ^ t) % word
    return ((t ^ (t >> 14)) / word).astype(float)


def test_masks_are_those_of_the_layer(figure, learner):
    "A pass with the page's masks put into the sites of PyTorch's network."
    rate, seed = 0.6, 7
    image = glyphs(1).images[0, 0]
    numbers = mulberry32(seed, 64 * (28**2 + 14**2 + 7**2))
    network, sides = learner.network, (28, 14, 7)
    for site, side in zip(network.sites[:3], sides, strict=True):
        own, numbers = np.split(numbers, [64 * side**2])
        kept = torch.from_numpy(own >= rate).reshape(1, side, side, 64)
        site.p, site.dropout = rate, "meta"
        site.train().start_tasks(1)
        site.mask = kept.movedim(-1, 1) / (1 - rate)
    with torch.no_grad():
        expected = network(image.reshape(1, 1, 28, 28) / 255)[0]
    network.eval()
    found = figure.evaluate(
        "(image) => [...embed(image.map((v) => v / 255), 0.6, 7).at]",
        image.flatten().tolist(),
    )
    assert torch.allclose(torch.tensor(found), expected, atol=2e-3)
    with torch.no_grad():
        unmasked = network(image.reshape(1, 1, 28, 28) / 255)[0]
    assert (unmasked - expected).abs().max() > 0.1


def test_who_shares_a_mask(figure):
    "The same drawing twice: equal embeddings under one mask for all, not under two."
    figure.evaluate("change(query, boxes[2].strokes, true)")
    none, one, each = figure.evaluate("[0, 1, 2].map((mode) => logits(mode, 3)[2])")
    assert none == one == 0 and each < -1
    seeds = figure.evaluate(
        "[0, 1].flatMap((draw) => [0, 1, 2, 3, 4, 5].map((i) => seeds[2](draw, i)))"
    )
    assert len({*seeds, *figure.evaluate("[seeds[1](0, 0), seeds[1](1, 5)]")}) == 14


def test_ink_is_omniglots(figure):
    "Centred, five pixels thick on 105x105, then averaged as `resize` averages."
    stroke = np.array([[0.1, 0.2], [0.3, 0.35], [0.6, 0.2]])
    moved = (stroke - [0.35, 0.275]) * 105 + 52.5  # extent 0.5: no other size
    y, x = np.mgrid[:105, :105] + 0.5
    large = np.zeros((105, 105), bool)
    for t in np.linspace(0, 1, 2000)[:, None]:
        for a, b in zip(moved, moved[1:], strict=False):
            near = a + t * (b - a)
            large |= (x - near[0]) ** 2 + (y - near[1]) ** 2 <= 2.5**2
    expected = resize(torch.from_numpy(large[None, None] * np.uint8(255)), 28)[0, 0]
    found = np.array(figure.evaluate("(s) => [...ink([s])]", stroke.tolist()))
    assert np.abs(255 * found.reshape(28, 28) - expected.numpy()).max() < 20
    assert np.abs(found.sum() - int(expected.sum()) / 255) < 0.5


@pytest.mark.parametrize("size, share", [(0.05, 0.4), (0.6, 0.6), (1.0, 89 / 105)])
def test_place_and_size_hardly_matter(figure, size, share):
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * size
    inks = [
        np.array(figure.evaluate("(s) => [...ink([s])]", (square + at).tolist()))
        for at in (0, (1 - size))
    ]
    assert np.abs(inks[0] - inks[1]).max() < 0.35
    columns = np.flatnonzero(inks[0].reshape(28, 28).max(0) > 0.05)
    assert columns[0] + columns[-1] == pytest.approx(27, abs=1)
    wide = share * 28 + (5 / 3.75 if size == 0.6 else 0)
    assert columns[-1] - columns[0] + 1 == pytest.approx(wide, abs=2)


def test_the_mouse_draws_and_the_network_finds_it(page, figure):
    zed = [(0.2, 0.2), (0.8, 0.2), (0.2, 0.8), (0.8, 0.8)]
    again = [(0.15, 0.25), (0.7, 0.2), (0.25, 0.85), (0.8, 0.75)]
    for box, *strokes in (
        (3, zed, [(0.3, 0.5), (0.7, 0.5)]),
        (5, again, [(0.25, 0.55), (0.7, 0.5)]),
    ):
        benchmark.draw(page, figure, box, [np.array(stroke) for stroke in strokes])
    assert figure.locator(".pad").nth(3).locator("polyline").count() == 2
    label = figure.locator(".pad").nth(3).get_attribute("aria-label")
    assert label == "Box 4: your drawing"
    figure.locator("#summary b", has_text="Box 4").wait_for()
    rows = figure.locator(".panels section").first.locator("li")
    assert rows.nth(3).get_attribute("class") == "best"
    assert figure.locator(".box.best").inner_text().startswith("4")
    assert "box 4" in figure.locator(".map").first.get_attribute("aria-label")
    figure.click("#empty")
    assert figure.inner_text("#summary") == "Fill two boxes or more, and the last one."
    assert figure.locator(".pad polyline").count() == 0


def test_a_finger_draws(page, figure):
    pad = figure.locator(".pad").nth(1)
    pad.scroll_into_view_if_needed()
    at = pad.bounding_box()
    session = page.context.new_cdp_session(page)
    for kind, share in (("Start", 0.3), ("Move", 0.5), ("Move", 0.7), ("End", None)):
        points = share and [{"x": at["x"] + share * at["width"], "y": at["y"] + 40}]
        event = {"type": f"touch{kind}", "touchPoints": points or []}
        session.send("Input.dispatchTouchEvent", event)
    drawn = "boxes[1].own && boxes[1].strokes[0].at(-1)[0] > 0.6"
    figure.wait_for_function(drawn)
    figure.evaluate("turn++")
    (stroke,) = figure.evaluate("boxes[1].strokes")
    assert stroke[0][0] == pytest.approx(0.3, abs=0.05)
    assert stroke[-1][0] == pytest.approx(0.7, abs=0.05)


def test_the_keyboard_picks_stored_drawings(page, figure):
    first = figure.locator("button").first
    first.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    outline = "parseFloat(getComputedStyle(document.activeElement).outlineWidth)"
    assert figure.evaluate(outline) >= 2
    label = figure.locator(".pad").first
    for character in (6, 11, 1):
        page.keyboard.press("Enter")
        told = f"Box 1: example {character}, hand 1"
        assert label.get_attribute("aria-label") == told
    reached = []
    for _ in range(15):
        reached.append(figure.evaluate("document.activeElement.ariaLabel"))
        page.keyboard.press("Tab")
    figure.evaluate("turn++")
    assert len({*reached}) >= 13 and "Clear query" in reached
    figure.evaluate("pick(query)")
    told = figure.locator(".pad").last.get_attribute("aria-label")
    assert told == "Query: example 2, hand 3"


@pytest.mark.parametrize("compact", [False, True])
def test_it_fits_and_can_be_read(browser, shown, compact):
    page = browser.new_page()
    for width, look in ((340, "quarto-light"), (1280, "quarto-dark")):
        page.set_viewport_size({"width": width, "height": 844})
        page.set_content(document(shown[compact], look))
        figure = page.frames[1]
        figure.locator("#summary b").wait_for()
        figure.evaluate("turn++")
        figure.wait_for_function("document.documentElement.scrollHeight <= innerHeight")
        spare = figure.evaluate(
            "[scrollX + document.documentElement.scrollWidth - innerWidth, "
            "document.documentElement.scrollHeight - innerHeight]"
        )
        assert spare == [0, 0]
        assert figure.is_visible("#rate") != compact
        for _ in ("full", "empty"):
            report = Axe().run(figure).response["violations"]
            assert [violation["id"] for violation in report] == []
            figure.click("#empty")
    page.close()


def test_without_scripts_there_is_a_picture(browser, shown):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_content(document(shown[0]))
    inside = page.frame_locator("iframe")
    assert inside.locator("noscript img").is_visible()
    assert not inside.locator("main").is_visible()
    context.close()


def test_it_works_in_an_exported_notebook(browser):
    notebook = nbformat.read(ROOT / "nbs" / "draw.ipynb", 4)
    (cell,) = (c for c in notebook.cells if c.source.endswith("figure"))
    assert "text/html" not in json.dumps(cell.outputs)  # or Quarto loads jQuery
    body, _ = HTMLExporter(template_name="lab").from_notebook_node(
        nbformat.v4.new_notebook(cells=[cell])
    )
    page = browser.new_page()
    page.route("http*://**", lambda route: route.abort())
    page.set_content(body)
    page.frame_locator("iframe").locator("#summary b").wait_for()
    page.close()
