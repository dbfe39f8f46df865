"""Twenty invented alphabets, drawn with a mouse in the page of `draw_your_own`.

    python benchmarks/draw.py       # to results/draw/trial.json: some minutes

Five characters of random strokes an alphabet, each drawn twice: the second hand
differs in place, angle, length and curvature of each stroke, and in size, angle and
place of the whole. Kept are the box that the page names for each second drawing, the
box that PyTorch names for the same 28x28 pixels, and the one that it names where the
strokes are drawn without the page, by a pen of random thickness. Needs Chromium or
Chrome."""

import shutil
from pathlib import Path

import numpy as np
import torch
from playwright.sync_api import Frame, Page, sync_playwright

from metadropout_nb.draw import draw_your_own
from metadropout_nb.omniglot import _render
from metadropout_nb.runs import write_json
from metadropout_nb.trained import pretrained

OUT = Path(__file__).parents[1] / "results" / "draw" / "trial.json"
HOW_FAR = [0.03, 0.03, 0.2, 0.04, 0.35]  # of a hand, in the columns of a character


def character(rng: np.random.Generator) -> np.ndarray:  # `[strokes, 5]`
    "Two to four strokes: start (x, y), direction, length, and turn along the way."
    n = rng.integers(2, 5)
    low, high = [0.2, 0.2, -np.pi, 0.2, -2], [0.8, 0.8, np.pi, 0.6, 2]
    return rng.uniform(low, high, (n, 5))


def drawing(strokes: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    "A hand's strokes, each ten points inside the unit square."
    curves = []
    for x, y, direction, length, turn in strokes + rng.normal(
        0, HOW_FAR, strokes.shape
    ):
        angles = direction + turn * np.linspace(-0.5, 0.5, 9)[:, None]
        steps = length / 9 * np.hstack([np.cos(angles), np.sin(angles)])
        curves.append(np.vstack([[x, y], [x, y] + steps.cumsum(0)]))
    low, high = np.min(np.vstack(curves), 0), np.max(np.vstack(curves), 0)
    angle, size = rng.normal(0, 0.1), rng.uniform(0.5, 0.8) / (high - low).max()
    turned = size * np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    middle = 0.5 + rng.normal(0, 0.04, 2)
    moved = [(curve - (low + high) / 2) @ turned.T + middle for curve in curves]
    return [curve.clip(0.02, 0.98) for curve in moved]


def draw(page: Page, figure: Frame, box: int, curves: list[np.ndarray]) -> list[float]:
    "Clears a box and draws in it with the mouse; what the network gets of it."
    figure.locator(".box").nth(box).get_by_role("button").last.click()
    pad = figure.locator(".pad").nth(box)
    pad.scroll_into_view_if_needed()
    place = pad.bounding_box()
    assert place is not None
    for curve in curves:
        points = curve * [place["width"], place["height"]] + [place["x"], place["y"]]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point)
        page.mouse.up()
    return figure.evaluate(f"[...boxes[{box}].image]")


def choices(images: np.ndarray) -> list[int]:
    "PyTorch's boxes for the last five of ten images."
    x = torch.as_tensor(images, dtype=torch.float32).reshape(10, 1, 28, 28)
    with torch.no_grad():
        logits = pretrained("proto")[0](x[:5], torch.arange(5), x[5:])
    return logits.argmax(-1).tolist()


def trial(alphabets: int, page: Page) -> dict[str, list[list[int]]]:
    "Boxes named for the second drawings of boxes 0 to 4, for each alphabet."
    page.set_content(draw_your_own()._repr_mimebundle_()["text/markdown"])
    figure = page.frames[1]
    figure.locator("#summary b").wait_for()
    figure.evaluate("draws = 1")  # masks are not what is tried here
    found: dict[str, list[list[int]]] = {"page": [], "pytorch": [], "another_pen": []}
    for seed in range(alphabets):
        rng = np.random.default_rng((18, seed))
        characters = [character(rng) for _ in range(5)]
        drawn = [drawing(one, rng) for one in characters * 2]
        pixels = [draw(page, figure, box, drawn[box]) for box in range(5)]
        named = []
        for curves in drawn[5:]:
            pixels.append(draw(page, figure, 5, curves))
            named.append(int(figure.inner_text("#summary b").removeprefix("Box ")) - 1)
        pens = rng.uniform(0.03, 0.07, 10)
        rendered = [_render(c, p, 28) / 255 for c, p in zip(drawn, pens, strict=True)]
        found["page"].append(named)
        found["pytorch"].append(choices(np.array(pixels)))
        found["another_pen"].append(choices(np.array(rendered)))
    return found


if __name__ == "__main__":
    with sync_playwright() as playwright:
        OUT.parent.mkdir(exist_ok=True)
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path)
        write_json(OUT, trial(20, browser.new_page()))
    print(OUT.read_text())
