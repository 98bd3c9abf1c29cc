"""Glyphs, the built-in dataset: symbols of many scripts, drawn with the fonts that matplotlib carries.

Every symbol is a class. Its images differ in typeface, rotation, shear, shift, scale, colour and texture, so that the
pixels alone say little about the class. Nothing is downloaded, and the same recipe and seed give the same bytes.
"""

import functools
import hashlib
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dml.common.checks import at_least
from dml.common.randomness import numpy_generator
from dml.data.base import DatasetError, Source, Task

FONT_FOLDER = Path(matplotlib.get_data_path(), "fonts", "ttf")
FACES = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono.ttf",
)
CANVAS = 96  # symbols are drawn at this size and shrunk, which smooths their edges


def read_glyphs(recipe: Path, *, images_per_class: int, size: int, seed: int) -> Source:
    """Draw the dataset that a recipe file describes.

    Args:
        recipe: JSON with ``symbols``, the list of characters in class order.
        images_per_class: images drawn for each symbol.
        size: side of an image, pixels.
        seed: of every random draw.

    Raises:
        DatasetError: the recipe is missing or holds something else.
        ValueError: fewer than two images per class, or images below 8 pixels.
    """
    try:
        text = recipe.read_text(encoding="utf-8")
        symbols = json.loads(text)["symbols"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{recipe} must be a JSON file with a list named `symbols`: {error}") from error
    at_least("images_per_class", images_per_class, 2)
    at_least("size", size, 8)
    if not all(isinstance(symbol, str) and len(symbol) == 1 for symbol in symbols):
        raise DatasetError(f"{recipe}: every entry of `symbols` must be one character")
    labels = np.repeat(np.arange(len(symbols)), images_per_class)

    def drawn(row: int) -> Image.Image:
        label, copy = divmod(row, images_per_class)
        return draw(symbols[label], size, numpy_generator(seed, "glyph", symbols[label], copy))

    def tasks(rows: np.ndarray) -> Iterator[Task]:
        for row in rows.tolist():
            yield row, lambda wanted, row=row: drawn(row)

    digest = hashlib.sha256(f"{text}|{images_per_class}|{size}|{seed}".encode()).hexdigest()
    names = [f"{symbol} {unicodedata.name(symbol).lower()}" for symbol in symbols]
    return Source(class_names=names, labels=labels, tasks=tasks, digest=digest)


def draw(symbol: str, size: int, generator: np.random.Generator) -> Image.Image:
    """One image of a symbol, ``size`` pixels square, with random changes that keep its identity."""
    face = FACES[generator.integers(len(FACES))]
    mask = np.asarray(_warp(_stencil(symbol, face, CANVAS), generator).resize((size, size), Image.Resampling.BOX))
    ink = (mask.astype(np.float32) / 255.0)[..., None]
    ground = _texture(size, generator)
    # Light ink on darker ground, both tinted at random, so that hue says nothing about the class.
    ground_color = generator.uniform(0.05, 0.35, 3)
    ink_color = np.clip(ground_color.mean() + generator.uniform(0.45, 0.70) + generator.uniform(-0.10, 0.10, 3), 0, 1)
    pixels = (1 - ink) * np.clip(ground_color + ground, 0, 1) + ink * np.clip(ink_color + 0.5 * ground, 0, 1)
    pixels += generator.normal(0.0, 0.02, pixels.shape)
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))


@functools.cache
def _font(face: str, height: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT_FOLDER / face), height)


@functools.lru_cache(maxsize=4096)
def _stencil(symbol: str, face: str, canvas: int) -> Image.Image:
    """The symbol in white on black, centred and scaled to seven tenths of the canvas."""
    font = _font(face, canvas)
    left, top, right, bottom = font.getbbox(symbol)
    scale = 0.7 * canvas / max(right - left, bottom - top, 1)
    font = _font(face, max(8, round(canvas * scale)))
    left, top, right, bottom = font.getbbox(symbol)
    stencil = Image.new("L", (canvas, canvas))
    corner = ((canvas - (left + right)) / 2, (canvas - (top + bottom)) / 2)
    ImageDraw.Draw(stencil).text(corner, symbol, fill=255, font=font)
    return stencil


def _warp(stencil: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Rotation (up to 20 degrees), shear, scale (0.85 to 1.15) and shift (up to a tenth), about the centre."""
    angle = np.deg2rad(generator.uniform(-20, 20))
    shear = generator.uniform(-0.2, 0.2)
    scale = generator.uniform(0.85, 1.15, 2)
    shift = generator.uniform(-0.1, 0.1, 2) * CANVAS
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(rotation @ np.array([[1, shear], [0, 1]]) @ np.diag(scale))
    centre = np.full(2, CANVAS / 2)
    offset = centre - inverse @ (centre + shift)
    coefficients = (*inverse[0], offset[0], *inverse[1], offset[1])
    return stencil.transform((CANVAS, CANVAS), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def _texture(size: int, generator: np.random.Generator) -> np.ndarray:
    """A smooth random pattern of zero mean, (size, size, 3)."""
    coarse = generator.normal(0.0, 1.0, (4, 4, 3)).astype(np.float32)
    channels = [
        np.asarray(Image.fromarray(coarse[..., channel]).resize((size, size), Image.Resampling.BICUBIC))
        for channel in range(3)
    ]
    pattern = np.stack(channels, axis=-1)
    return (pattern - pattern.mean()) * generator.uniform(0.02, 0.08)


# ---------------------------------------------------------------------------------------------------------------
# How the recipe in data/glyphs was made. `python -m dml.data.sources.glyphs` prints one anew; where another version of
# Pillow renders a little differently, some of its symbols are others.

SCRIPTS = {
    "latin": range(0x41, 0x7B),
    "digits": range(0x30, 0x3A),
    "greek": range(0x391, 0x3CA),
    "cyrillic": range(0x410, 0x450),
    "cyrillic more": range(0x460, 0x530),
    "armenian": range(0x531, 0x587),
    "georgian": range(0x10D0, 0x10F1),
    "latin more": range(0x180, 0x250),
    "phonetic": range(0x250, 0x2B0),
    "arrows": range(0x2190, 0x2200),
    "mathematics": range(0x2200, 0x2300),
    "shapes": range(0x25A0, 0x2600),
    "pictographs": range(0x2600, 0x2670),
    "letterlike": range(0x2100, 0x2150),
}
LOOKALIKE = 0.86  # two symbols whose renderings correlate more than this are too similar to be two classes


def choose_symbols(count: int, seed: int = 0) -> list[str]:
    """Symbols that every face has, from each script in turn, none too similar to one chosen before.

    Raises:
        DatasetError: fewer than ``count`` distinct symbols exist in the fonts.
    """
    shuffled = {
        script: list(numpy_generator(seed, "symbols", script).permutation(np.array(codes)))
        for script, codes in SCRIPTS.items()
    }
    chosen: list[str] = []
    looks: list[np.ndarray] = []
    while len(chosen) < count and any(shuffled.values()):
        for codes in shuffled.values():
            if not codes or len(chosen) == count:
                continue
            symbol = chr(codes.pop())
            if unicodedata.category(symbol) not in {"Lu", "Ll", "Lo", "Nd", "Sm", "So"}:
                continue
            look = _look(symbol)
            if look is None or any(_similarity(look, other) > LOOKALIKE for other in looks):
                continue
            chosen.append(symbol)
            looks.append(look)
    if len(chosen) < count:
        raise DatasetError(f"the fonts hold {len(chosen)} distinct symbols, fewer than the {count} asked for")
    numpy_generator(seed, "order").shuffle(chosen)
    return chosen


def _look(symbol: str) -> np.ndarray | None:
    """Small renderings in a sans and a serif face, (2, 24, 24), or None where a face lacks the symbol."""
    renderings = []
    for face in FACES:
        font = _font(face, 48)
        if bytes(font.getmask(symbol)) == bytes(font.getmask("\U0010ffff")):  # the face's box for a missing symbol
            return None
    for face in (FACES[0], FACES[3]):
        small = _stencil(symbol, face, 48).resize((24, 24), Image.Resampling.BOX)
        renderings.append(np.asarray(small, dtype=np.float32))
    return np.stack(renderings)


def _similarity(first: np.ndarray, second: np.ndarray) -> float:
    """The highest correlation of two looks under shifts of up to two pixels, over the faces."""
    best = 0.0
    for rows in range(-2, 3):
        for columns in range(-2, 3):
            moved = np.roll(second, (rows, columns), axis=(1, 2))
            for a, b in zip(first, moved, strict=True):
                a0, b0 = a - a.mean(), b - b.mean()
                best = max(best, float((a0 * b0).sum() / (np.linalg.norm(a0) * np.linalg.norm(b0) + 1e-9)))
    return best


if __name__ == "__main__":
    print(json.dumps({"symbols": choose_symbols(200)}, ensure_ascii=False, indent=0))
