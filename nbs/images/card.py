"""Draw the picture that goes with a shared link, nbs/card.png."""

from pathlib import Path

from matplotlib import pyplot as plt

from metadropout_nb.meta_dropout import draw_mask
from metadropout_nb.omniglot import glyphs
from metadropout_nb.style import BLUE, ORANGE

SIDE, CELLS = 28, 7  # pixels of a drawing, squares of a mask along one side


def draw(axes, image, key, color):
    "A drawing, and the squares that its mask drops."
    dropped = draw_mask((CELLS, CELLS), 0.25, key) == 0
    axes.imshow(
        1 - image.float() / 255,
        cmap="gray",
        extent=(0, CELLS, CELLS, 0),
        vmin=0,
        vmax=1,
    )
    for row, column in dropped.nonzero().tolist():
        axes.add_patch(
            plt.Rectangle(
                (column, row), 1, 1, facecolor=color, edgecolor="white", linewidth=2
            )
        )
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=4)


figure = plt.figure(figsize=(12, 6.3), dpi=100, facecolor="white")
images = glyphs(50, size=SIDE).images
for row, (character, color, name) in enumerate(
    ((13, BLUE, "one task"), (44, ORANGE, "the next"))
):
    bottom = 0.53 - 0.45 * row
    figure.text(
        0.475,
        bottom + 0.19,
        name,
        fontsize=24,
        color=color,
        rotation=90,
        ha="center",
        va="center",
    )
    for column in range(2):
        axes = figure.add_axes((0.5 + 0.235 * column, bottom, 0.215, 0.215 * 12 / 6.3))
        draw(axes, images[character, column], (row,), color)
figure.text(0.05, 0.76, "Meta Dropout", fontsize=38, weight="bold")
figure.text(
    0.05,
    0.58,
    "One mask per task,\nshared by support and query.",
    fontsize=24,
    linespacing=1.5,
)
figure.text(0.05, 0.43, "Does it help?", fontsize=28, color=ORANGE, weight="bold")
figure.text(
    0.05,
    0.08,
    "A course in notebooks\nthat is also a Python package",
    fontsize=22,
    linespacing=1.5,
)
figure.savefig(Path(__file__).parents[1] / "card.png")
