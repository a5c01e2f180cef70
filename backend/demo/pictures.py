"""The demo's pictures: things to wear and to have around the house, drawn from a seed.

A choice covers several kinds of thing (a "Shoe" may be a sneaker, a boot, a pump or a sandal), as
in real projects, where one label gathers what language calls by many names. That is what makes the
demo's zero-shot predictions improvable by annotations.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from backend.demo import garments, household
from backend.demo.geometry import Part, Tint

Colour = tuple[int, int, int]
Outline = Callable[[Generator], list[Part]]

KINDS: Mapping[str, Mapping[str, Outline]] = {
    "T-shirt": {
        "t-shirt": garments.t_shirt,
        "tank top": garments.tank_top,
        "sweater": garments.sweater,
        "polo shirt": garments.polo_shirt,
    },
    "Trousers": {
        "trousers": garments.trousers,
        "jeans": garments.jeans,
        "shorts": garments.shorts,
        "dungarees": garments.dungarees,
    },
    "Dress": {"dress": garments.dress, "gown": garments.gown, "sundress": garments.sundress},
    "Shoe": {
        "sneaker": garments.sneaker,
        "boot": garments.boot,
        "high heel": garments.high_heel,
        "sandal": garments.sandal,
    },
    "Hat": {
        "hat": garments.hat,
        "cap": garments.cap,
        "beanie": garments.beanie,
        "top hat": garments.top_hat,
    },
    "Bag": {
        "handbag": household.handbag,
        "backpack": household.backpack,
        "tote": household.tote,
        "satchel": household.satchel,
    },
    "Mug": {"mug": household.mug, "teacup": household.teacup, "tankard": household.tankard},
    "Bottle": {"bottle": household.bottle, "flask": household.flask, "carafe": household.carafe},
    "Umbrella": {
        "umbrella": household.umbrella,
        "parasol": household.parasol,
        "folded umbrella": household.folded_umbrella,
    },
    "Key": {
        "key": household.key,
        "skeleton key": household.skeleton_key,
        "car key": household.car_key,
    },
    "Glasses": {
        "glasses": household.glasses,
        "sunglasses": household.sunglasses,
        "goggles": household.goggles,
    },
    "Chair": {
        "chair": household.chair,
        "stool": household.stool,
        "armchair": household.armchair,
        "office chair": household.office_chair,
    },
}
"""Per choice its kinds by name, the typical one first."""

CHOICES: tuple[str, ...] = tuple(KINDS)

PALETTE: Mapping[str, Colour] = {
    "red": (204, 40, 44),
    "orange": (236, 132, 36),
    "yellow": (240, 208, 62),
    "green": (62, 150, 70),
    "teal": (30, 150, 150),
    "blue": (46, 92, 196),
    "purple": (122, 62, 164),
    "pink": (238, 140, 178),
    "brown": (124, 82, 48),
    "black": (38, 38, 44),
    "white": (244, 243, 238),
    "grey": (142, 146, 152),
}

PATTERNS: tuple[str, ...] = ("striped", "checked", "dotted")

BACKGROUNDS: tuple[str, ...] = ("plain", "gradient", "stripes", "tiles", "clouds", "wood")


@dataclass(frozen=True)
class Style:
    """How scenes vary. Shares are probabilities; lengths are parts of the picture's side."""

    typical: float = 0.1
    """Share of pictures that show a choice's first kind."""
    rotation: float = 12.0
    """Largest tilt in degrees, either way."""
    shear: float = 0.08
    scale: tuple[float, float] = (0.36, 0.46)
    """Range of half the drawn thing's size."""
    shift: float = 0.05
    patterned: float = 0.25
    sketched: float = 0.06
    """Share drawn in outline on a pale body."""
    backgrounds: tuple[float, ...] = (0.4, 0.25, 0.08, 0.09, 0.09, 0.09)
    """Probabilities of `BACKGROUNDS`."""
    contrast: float = 115.0
    """Least distance in RGB between a thing and its background."""
    clutter: float = 0.15
    """Share with scattered confetti behind the thing."""
    occluded: float = 0.05
    shaded: float = 0.3
    blur: float = 0.7
    """Largest blur radius, in pixels of a 224 pixel picture."""
    noise: float = 7.0
    """Largest standard deviation of the grain, in grey levels."""


DEMO = Style()


@dataclass(frozen=True)
class Scene:
    """A picture and what can be said about it."""

    image: Image.Image
    colour: str
    pattern: str | None


def render(choice: str, seed: int, size: int = 224, style: Style = DEMO) -> Image.Image:
    """Draw a picture of `choice` as RGB, `size` pixels a side; same arguments, same pixels."""
    rng = np.random.default_rng([zlib.crc32(choice.encode()), seed])
    kinds = list(KINDS[choice].values())
    rest = (1 - style.typical) / (len(kinds) - 1)
    outline = kinds[rng.choice(len(kinds), p=[style.typical] + [rest] * (len(kinds) - 1))]
    return compose(outline, rng, size, style).image


def collection(count: int, seed: int) -> list[tuple[str, Image.Image]]:
    """Draw `count` pictures with their choices, shuffled, the choices mildly uneven in number."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.7, 1.3, len(CHOICES))
    shares = np.floor(count * weights / weights.sum()).astype(int)
    for position in rng.permutation(len(CHOICES))[: count - int(shares.sum())]:
        shares[position] += 1
    order = rng.permutation(np.repeat(np.arange(len(CHOICES)), shares))
    seeds = rng.integers(0, 2**31, count)
    return [
        (CHOICES[choice], render(CHOICES[choice], int(picture)))
        for choice, picture in zip(order, seeds, strict=True)
    ]


def compose(outline: Outline, rng: Generator, size: int, style: Style) -> Scene:
    """Draw one specimen of `outline` into a scene of the given style."""
    canvas = 2 * size  # ImageDraw has no antialiasing: draw twice as large, then shrink
    sketched = rng.random() < style.sketched
    colour, body, ground = _colours(rng, style.contrast)
    if sketched:
        colour, body = "white", _mix(PALETTE["white"], body, 0.12)
    image = _background(rng, canvas, ground, style)
    if rng.random() < style.clutter:
        _scatter(ImageDraw.Draw(image), rng, canvas, ground)
    pattern = None
    if not sketched and rng.random() < style.patterned:
        pattern = PATTERNS[rng.integers(len(PATTERNS))]
    parts = _place(outline(rng), rng, canvas, style)
    _paint(image, parts, rng, body, pattern, edge=sketched or rng.random() < 0.5)
    if rng.random() < style.occluded:
        _occlude(ImageDraw.Draw(image), rng, canvas, ground)
    image = image.resize((size, size), Image.Resampling.BOX)
    return Scene(_expose(image, rng, style), colour, pattern)


def _colours(rng: Generator, contrast: float) -> tuple[str, Colour, Colour]:
    names = list(PALETTE)
    name = names[rng.integers(len(names))]
    body = _jitter(PALETTE[name], rng, 18)
    while True:
        other = PALETTE[names[rng.integers(len(names))]]
        ground = _mix(_jitter(other, rng, 25), PALETTE["white"], rng.uniform(0, 0.7))
        if np.linalg.norm(np.subtract(ground, body)) >= contrast:
            return name, body, ground


def _background(rng: Generator, canvas: int, ground: Colour, style: Style) -> Image.Image:
    kind = BACKGROUNDS[rng.choice(len(BACKGROUNDS), p=style.backgrounds)]
    other = _mix(ground, _jitter(ground, rng, 90), rng.uniform(0.3, 0.8))
    if kind == "plain":
        return Image.new("RGB", (canvas, canvas), ground)
    if kind == "gradient":
        return _blend(ground, other, _ramp(rng, canvas))
    if kind == "clouds":
        coarse = rng.uniform(0, 255, (int(rng.integers(4, 20)),) * 2).astype(np.uint8)
        weights = Image.fromarray(coarse).resize((canvas, canvas), Image.Resampling.BICUBIC)
        return _blend(ground, other, weights)
    image = Image.new("RGB", (canvas, canvas), ground)
    draw = ImageDraw.Draw(image)
    step = canvas * rng.uniform(0.06, 0.2)
    for i in range(int(canvas / step) + 1):
        if kind == "stripes":
            draw.rectangle((i * step, 0, (i + 0.5) * step, canvas), fill=other)
        elif kind == "wood":
            plank = _mix(ground, other, rng.uniform(0, 1))
            draw.rectangle((0, i * step, canvas, (i + 1) * step), fill=plank)
            draw.line((0, i * step, canvas, i * step), fill=_mix(ground, (0, 0, 0), 0.4), width=3)
        else:
            for j in range(i % 2, int(canvas / step) + 1, 2):
                draw.rectangle((i * step, j * step, (i + 1) * step, (j + 1) * step), fill=other)
    turned = rng.random() < 0.5
    return image.transpose(Image.Transpose.ROTATE_90) if turned else image


def _scatter(draw: ImageDraw.ImageDraw, rng: Generator, canvas: int, ground: Colour) -> None:
    for _ in range(int(rng.integers(4, 14))):
        x, y = rng.uniform(0, canvas, 2)
        radius = canvas * rng.uniform(0.01, 0.06)
        fill = _mix(ground, _jitter(ground, rng, 120), 0.8)
        if rng.random() < 0.5:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        else:
            sides, turn = int(rng.integers(3, 6)), float(rng.uniform(0, 360))
            draw.regular_polygon((x, y, radius), sides, rotation=turn, fill=fill)


def _place(parts: list[Part], rng: Generator, canvas: int, style: Style) -> list[Part]:
    angle = np.deg2rad(rng.uniform(-style.rotation, style.rotation))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    lean = np.array([[1.0, rng.uniform(-style.shear, style.shear)], [0.0, 1.0]])
    stretch = np.diag([rng.uniform(0.85, 1.15) * rng.choice([-1, 1]), 1.0])
    scale = canvas * rng.uniform(*style.scale)
    matrix = scale * turn @ lean @ stretch
    centre = canvas * (0.5 + rng.uniform(-style.shift, style.shift, 2))
    return [
        Part(
            part.points @ matrix.T + centre,
            part.tint,
            None if part.stroke is None else part.stroke * scale,
        )
        for part in parts
    ]


def _paint(
    image: Image.Image,
    parts: list[Part],
    rng: Generator,
    body: Colour,
    pattern: str | None,
    edge: bool,
) -> None:
    draw = ImageDraw.Draw(image)
    canvas = image.width
    red, green, blue = np.asarray(image)[canvas // 2, canvas // 2].tolist()
    accent = _mix(body, _jitter(body, rng, 110), 0.7)
    tints: dict[Tint, Colour] = {
        "body": body,
        "accent": accent,
        "dark": _mix(body, (20, 20, 24), rng.uniform(0.55, 0.9)),
        "light": _mix(body, (250, 250, 246), rng.uniform(0.55, 0.9)),
        "glass": _mix((red, green, blue), (225, 238, 248), 0.5),
    }
    ink = _mix(body, (15, 15, 20), 0.75)
    cloth = None if pattern is None else _cloth(rng, canvas, body, pattern)
    width = max(2, round(canvas * rng.uniform(0.006, 0.014)))
    for part in parts:
        points = [(float(x), float(y)) for x, y in part.points]
        if part.stroke is not None:
            _brush(draw, points, tints[part.tint], ink if edge else None, part.stroke, width)
            continue
        if cloth is not None and part.tint == "body":
            mask = Image.new("L", image.size)
            ImageDraw.Draw(mask).polygon(points, fill=255)
            image.paste(cloth, mask=mask)
        else:
            draw.polygon(points, fill=tints[part.tint])
        if edge:
            draw.line([*points, points[0], points[1]], fill=ink, width=width, joint="curve")


def _brush(
    draw: ImageDraw.ImageDraw,
    points: list[tuple[float, float]],
    fill: Colour,
    ink: Colour | None,
    stroke: float,
    width: int,
) -> None:
    layers = [(fill, max(2.0, stroke))]
    if ink is not None:
        layers.insert(0, (ink, stroke + width))
    for colour, thickness in layers:
        draw.line(points, fill=colour, width=round(thickness), joint="curve")
        for x, y in (points[0], points[-1]):
            r = thickness / 2 - 1
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _cloth(rng: Generator, canvas: int, body: Colour, pattern: str) -> Image.Image:
    other = _mix(body, _jitter(body, rng, 140), 0.9)
    big = canvas * 3 // 2
    cloth = Image.new("RGB", (big, big), body)
    draw = ImageDraw.Draw(cloth)
    step = canvas * rng.uniform(0.035, 0.09)
    for i in range(int(big / step) + 1):
        if pattern == "dotted":
            for j in range(int(big / step) + 1):
                x, y, r = (i + j % 2 / 2) * step, j * step, step * 0.25
                draw.ellipse((x - r, y - r, x + r, y + r), fill=other)
            continue
        draw.rectangle((i * step, 0, (i + 0.45) * step, big), fill=other)
        if pattern == "checked":
            draw.rectangle((0, i * step, big, (i + 0.2) * step), fill=_mix(body, other, 0.6))
    cloth = cloth.rotate(float(rng.choice([0, 90, 45, rng.uniform(0, 180)])))
    margin = (big - canvas) // 2
    return cloth.crop((margin, margin, margin + canvas, margin + canvas))


def _occlude(draw: ImageDraw.ImageDraw, rng: Generator, canvas: int, ground: Colour) -> None:
    for _ in range(int(rng.integers(1, 4))):
        middle = canvas * (0.5 + rng.uniform(-0.3, 0.3, 2))
        angle = rng.uniform(0, np.pi)
        reach = canvas * np.array([np.cos(angle), np.sin(angle)])
        width = round(canvas * rng.uniform(0.02, 0.07))
        fill = _mix(ground, _jitter(ground, rng, 80), 0.6)
        draw.line([tuple(middle - reach), tuple(middle + reach)], fill=fill, width=width)


def _expose(image: Image.Image, rng: Generator, style: Style) -> Image.Image:
    size = image.width
    if rng.random() < style.shaded:
        light = Image.new("RGB", image.size, (255, 250, 235) if rng.random() < 0.5 else (0, 0, 12))
        ramp = _ramp(rng, size).point([round(level * 0.45) for level in range(256)])
        image = Image.composite(light, image, ramp)
    blur = rng.uniform(0, style.blur) * size / 224
    if blur > 0.3:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    grain = rng.standard_normal((size, size, 1), dtype=np.float32) * rng.uniform(0, style.noise)
    noisy = np.clip(np.asarray(image, dtype=np.float32) + grain, 0, 255)
    return Image.fromarray(noisy.astype(np.uint8))


def _ramp(rng: Generator, size: int) -> Image.Image:
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-1, 1, size)
    slope = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    return Image.fromarray(np.clip(127.5 + 90 * slope, 0, 255).astype(np.uint8))


def _blend(first: Colour, second: Colour, weights: Image.Image) -> Image.Image:
    size = weights.size
    return Image.composite(Image.new("RGB", size, second), Image.new("RGB", size, first), weights)


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    r, g, b = (round(a + (z - a) * share) for a, z in zip(first, second, strict=True))
    return r, g, b


def _jitter(colour: Colour, rng: Generator, reach: float) -> Colour:
    r, g, b = np.clip(np.add(colour, rng.uniform(-reach, reach, 3)), 0, 255).astype(int).tolist()
    return r, g, b
