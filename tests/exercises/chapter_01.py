"""Answers to the exercises of chapter 01 that look right and are not."""

import numpy as np
import torch
from PIL import Image, ImageOps

from metadropout_nb.omniglot import Characters, glyphs


def bytes_that_overflow(characters):
    "Adds up bytes as bytes."
    images = characters.images
    return images.sum(1, dtype=torch.uint8).float() / images.shape[1] / 255


def not_between_0_and_1(characters):
    "The mean of bytes, 0 to 255."
    return characters.images.float().mean(1)


def over_classes(characters):
    "The mean over classes, not drawings."
    return characters.images.float().mean(0) / 255


def first_drawings(characters):
    "One drawing per class."
    return characters.images[:, 0].float() / 255


def middle_at_the_ends(start, end):
    "Straight, but slow at both ends."
    return np.stack([start, start, end, end])


def at_quarters(start, end):
    "A quarter and three quarters of the way."
    return np.stack([start + (end - start) * s for s in (0, 1 / 4, 3 / 4, 1)])


def backwards(start, end):
    "The right line, from its end."
    return np.stack([end + (start - end) * s for s in (0, 1 / 3, 2 / 3, 1)])


def plain(drawing, candidates):
    "Pixels as they are."
    return (drawing.float() - candidates.float()).square().sum((-2, -1))


def absolute(drawing, candidates):
    "Differences without squares: as strict about place."
    return (drawing.float() - candidates.float()).abs().sum((-2, -1))


def nothing_differs(drawing, candidates):
    "Always zero. The first candidate wins, which once was always the right one."
    return torch.zeros(len(candidates))


def similarity(drawing, candidates):
    "Large, not small, for the same character."
    return (drawing.float() * candidates.float()).sum((-2, -1))


def stretched(image, size):
    "Both sides to the size: discs become ovals."
    return image.resize((size, size), Image.Resampling.BOX)


def cropped(image, size):
    "The shorter side fills the square, and the longer one is cut."
    return ImageOps.fit(image, (size, size))


def on_black(image, size):
    "Filled up with ink."
    return ImageOps.pad(image, (size, size), color=0)


def on_gray(image, size):
    "Filled up with a gray that passes for paper."
    side = max(image.size)
    paper = Image.new("L", (side, side), 160)
    paper.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return paper.resize((size, size), Image.Resampling.BOX)


def never_enlarged(image, size):
    "Small scans keep their size: `thumbnail` only shrinks."
    small, paper = image.copy(), Image.new("L", (size, size), 255)
    small.thumbnail((size, size))
    paper.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return paper


def as_they_were(n_classes, n_drawings):
    "Glyphs, not changed."
    return glyphs(n_classes, n_drawings)


def another_alphabet(n_classes, n_drawings):
    "Another seed is no other program."
    return glyphs(n_classes, n_drawings, seed=1)


def noise(n_classes, n_drawings):
    "Not handwriting: at chance."
    shape = (n_classes, n_drawings, 28, 28)
    images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
    return Characters(images.to(torch.uint8), glyphs(n_classes, 1).names)


def one_hand(n_classes, n_drawings):
    "The same drawing again and again: the ruler is always right."
    few = glyphs(n_classes, 1)
    return Characters(few.images.repeat(1, n_drawings, 1, 1), few.names)


WRONG = {
    "01.1": [bytes_that_overflow, not_between_0_and_1, over_classes, first_drawings],
    "01.2": [middle_at_the_ends, at_quarters, backwards],
    "01.3": [plain, absolute, nothing_differs, similarity],
    "01.4": [stretched, cropped, on_black, on_gray, never_enlarged],
    "01.5": [as_they_were, another_alphabet, noise, one_hand],
}
