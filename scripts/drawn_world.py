"""The world that the tiny CLIP is trained on: more things than the demo shows, put into words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image

from backend.demo.geometry import Part, arc, area, box, line, smooth, symmetric
from backend.demo.pictures import KINDS, Outline, Scene, Style, compose

TIDY = Style(
    rotation=12.0,
    shear=0.08,
    scale=(0.34, 0.46),
    shift=0.05,
    patterned=0.25,
    sketched=0.06,
    backgrounds=(0.45, 0.25, 0.08, 0.08, 0.08, 0.06),
    contrast=110.0,
    clutter=0.12,
    occluded=0.05,
    shaded=0.3,
    blur=0.8,
    noise=8.0,
)
"""Most of the training pictures: things shown upright, whole and clearly."""

WILD = Style(
    rotation=55.0,
    shear=0.25,
    scale=(0.22, 0.45),
    shift=0.14,
    patterned=0.45,
    sketched=0.15,
    backgrounds=(0.1, 0.15, 0.2, 0.2, 0.2, 0.15),
    contrast=70.0,
    clutter=0.5,
    occluded=0.35,
    shaded=0.5,
    blur=1.6,
    noise=14.0,
)
"""Tilted, small, patterned, half hidden: what training sees rarely."""

WILD_SHARE = 0.2
"""Share of training pictures drawn in the wild style."""

UMBRELLA_TERM_SHARE = 0.02
"""How often a special kind (boot) is called by the name of what it is a kind of (shoe)."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "t-shirt": ("t-shirt", "T-shirt", "tee shirt", "tee"),
    "tank top": ("tank top", "vest top"),
    "sweater": ("sweater", "jumper", "pullover"),
    "polo shirt": ("polo shirt", "polo"),
    "trousers": ("trousers", "pants", "pair of trousers", "slacks"),
    "jeans": ("jeans", "pair of jeans", "flared jeans"),
    "shorts": ("shorts", "pair of shorts"),
    "dungarees": ("dungarees", "overalls"),
    "dress": ("dress", "frock"),
    "gown": ("gown", "ball gown", "evening gown"),
    "sundress": ("sundress", "summer dress"),
    "sneaker": ("shoe", "sneaker", "trainer", "running shoe"),
    "boot": ("boot", "rubber boot"),
    "high heel": ("high heel", "pump", "stiletto"),
    "sandal": ("sandal", "slipper"),
    "hat": ("hat", "fedora", "brimmed hat"),
    "cap": ("cap", "baseball cap"),
    "beanie": ("beanie", "bobble hat", "woolly hat"),
    "top hat": ("top hat", "cylinder"),
    "handbag": ("bag", "handbag", "purse"),
    "backpack": ("backpack", "rucksack"),
    "tote": ("tote", "shopping bag", "carrier"),
    "satchel": ("satchel", "briefcase", "messenger bag"),
    "mug": ("mug", "cup", "coffee mug"),
    "teacup": ("teacup", "cup and saucer", "cup"),
    "tankard": ("tankard", "beer", "pint of beer"),
    "bottle": ("bottle", "wine bottle", "glass bottle"),
    "flask": ("flask", "thermos", "vacuum flask"),
    "carafe": ("carafe", "vase", "decanter"),
    "umbrella": ("umbrella", "brolly", "open umbrella"),
    "parasol": ("parasol", "sunshade", "beach umbrella"),
    "folded umbrella": ("folded umbrella", "closed umbrella", "walking stick"),
    "key": ("key", "door key", "house key"),
    "skeleton key": ("skeleton key", "old key", "antique key"),
    "car key": ("car key", "key fob", "remote control"),
    "glasses": ("glasses", "pair of glasses", "spectacles", "eyeglasses"),
    "sunglasses": ("sunglasses", "shades"),
    "goggles": ("goggles", "ski mask"),
    "chair": ("chair", "kitchen chair", "wooden chair"),
    "stool": ("stool", "bar stool"),
    "armchair": ("armchair", "easy chair"),
    "office chair": ("office chair", "desk chair", "swivel chair"),
    "skirt": ("skirt",),
    "sock": ("sock", "stocking"),
    "house": ("house", "home", "cottage"),
    "tree": ("tree", "fir tree"),
    "star": ("star",),
    "heart": ("heart",),
    "car": ("car", "automobile"),
    "fish": ("fish",),
    "lamp": ("lamp", "table lamp"),
    "table": ("table", "desk"),
    "book": ("book", "open book"),
    "clock": ("clock", "wall clock"),
    "flower": ("flower", "blossom"),
    "boat": ("boat", "sailing boat", "ship"),
    "teapot": ("teapot", "kettle"),
    "padlock": ("padlock", "lock"),
}

COLOUR_NAMES: Mapping[str, tuple[str, ...]] = {
    "grey": ("grey", "gray"),
    "purple": ("purple", "violet"),
    "teal": ("teal", "turquoise"),
}

PATTERN_NAMES: Mapping[str, tuple[str, ...]] = {
    "striped": ("striped", "stripy"),
    "checked": ("checked", "plaid", "checkered"),
    "dotted": ("dotted", "polka dot"),
}

TEMPLATES: tuple[str, ...] = (
    "a photo of {}.",
    "a photo of {}",
    "a picture of {}.",
    "a picture of {}",
    "a drawing of {}.",
    "an illustration of {}",
    "an image of {}",
    "a sketch of {}",
    "this is {}",
    "{}",
)

UNSPECIFIC: tuple[str, ...] = ("a photo of something", "a picture", "a drawing of an object", "")


def _skirt(rng: Generator) -> list[Part]:
    waist, hem = rng.uniform(0.25, 0.35), rng.uniform(0.55, 0.8)
    return [
        area(symmetric([(waist, -0.5), (hem, rng.uniform(0.3, 0.7))])),
        area(box(-waist, -0.58, waist, -0.45), "accent"),
    ]


def _sock(rng: Generator) -> list[Part]:
    top = rng.uniform(-0.9, -0.6)
    leg = smooth(
        [(-0.4, top), (0.1, top), (0.1, 0.2), (0.6, 0.5), (0.5, 0.85), (-0.3, 0.7)], steps=5
    )
    return [area(leg), area(box(-0.45, top - 0.05, 0.14, top + 0.15, 0.03), "accent")]


def _house(rng: Generator) -> list[Part]:
    half, eaves = rng.uniform(0.5, 0.7), rng.uniform(-0.25, 0.0)
    return [
        area(box(-half, eaves, half, 0.85)),
        area([(-half - 0.15, eaves), (0, -0.9), (half + 0.15, eaves)], "accent"),
        area(box(-0.12, 0.35, 0.15, 0.85), "dark"),
        area(box(half * 0.4, 0.1, half * 0.8, 0.4), "light"),
    ]


def _tree(rng: Generator) -> list[Part]:
    parts = [area(box(-0.1, 0.5, 0.1, 0.95), "dark")]
    for level in (0.6, 0.15, -0.3):
        half = rng.uniform(0.35, 0.45) + 0.25 * level
        parts.append(area([(-half, level), (0, level - 0.6), (half, level)]))
    return parts


def _star(rng: Generator) -> list[Part]:
    radius = np.where(np.arange(10) % 2, rng.uniform(0.3, 0.45), 0.9)[:, None]
    return [area(arc((0, 0), (1, 1), -90, 234, 10) * radius)]


def _heart(rng: Generator) -> list[Part]:
    t = np.linspace(0, 2 * np.pi, 60)
    across = 0.85 * np.sin(t) ** 3
    down = -0.06 * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [area(np.stack([across, down * rng.uniform(0.85, 1.1)], axis=1))]


def _car(rng: Generator) -> list[Part]:
    roof = rng.uniform(-0.55, -0.35)
    body = [(-0.95, -0.05), (-0.6, -0.1), (-0.4, roof), (0.3, roof), (0.6, -0.08), (0.95, 0.05)]
    parts = [area([*body, (0.95, 0.35), (-0.95, 0.35)])]
    parts.append(
        area([(-0.45, -0.1), (-0.32, roof + 0.1), (0.25, roof + 0.1), (0.42, -0.1)], "glass")
    )
    for x in (-0.5, 0.55):
        parts += [
            area(arc((x, 0.37), (0.22, 0.22)), "dark"),
            area(arc((x, 0.37), (0.1, 0.1)), "light"),
        ]
    return parts


def _fish(rng: Generator) -> list[Part]:
    height = rng.uniform(0.3, 0.5)
    return [
        area([(0.4, 0), (0.95, -0.4), (0.85, 0), (0.95, 0.4)], "accent"),
        area(arc((-0.15, 0), (0.7, height))),
        area(arc((-0.5, -0.1), (0.07, 0.07), steps=16), "dark"),
        line(arc((-0.4, 0), (0.25, height * 0.8), -70, 70, 12), 0.03, "dark"),
    ]


def _lamp(rng: Generator) -> list[Part]:
    top, rim = rng.uniform(0.2, 0.35), rng.uniform(0.5, 0.7)
    return [
        line([(0, -0.3), (0, 0.8)], rng.uniform(0.08, 0.16), "dark"),
        area(arc((0, 0.82), (0.4, 0.12)), "dark"),
        area(symmetric([(top, -0.9), (rim, -0.15)])),
    ]


def _table(rng: Generator) -> list[Part]:
    half, top = rng.uniform(0.75, 0.95), rng.uniform(-0.3, -0.1)
    legs = [line([(s * half * 0.85, top), (s * half * 0.9, 0.75)], 0.1) for s in (-1, 1)]
    return [*legs, area(box(-half, top - 0.1, half, top + 0.08, 0.03), "accent")]


def _book(rng: Generator) -> list[Part]:
    half, sag = rng.uniform(0.75, 0.9), rng.uniform(0.08, 0.2)
    pages = [(0.0, -0.4 + sag), (half, -0.5), (half, 0.45), (0.0, 0.5 + sag)]
    parts = [area(symmetric(pages))]
    for y in (-0.2, 0.0, 0.2):
        for side in (-1, 1):
            parts.append(line([(side * 0.15, y + sag), (side * half * 0.85, y)], 0.04, "dark"))
    return [*parts, line([(0, -0.4 + sag), (0, 0.5 + sag)], 0.04, "dark")]


def _clock(rng: Generator) -> list[Part]:
    parts = [area(arc((0, 0), (0.85, 0.85))), area(arc((0, 0), (0.7, 0.7)), "light")]
    for reach in (0.4, 0.6):
        angle = rng.uniform(0, 2 * np.pi)
        hand = (reach * np.cos(angle), reach * np.sin(angle))
        parts.append(line([(0, 0), hand], 0.07, "dark"))
    return parts


def _flower(rng: Generator) -> list[Part]:
    parts = [line([(0, -0.3), (0.05, 0.95)], 0.08, "dark")]
    count = int(rng.integers(5, 8))
    for x, y in arc((0, -0.35), (0.36, 0.36), 0, 360 * (1 - 1 / count), count):
        parts.append(area(arc((x, y), (0.24, 0.24), steps=20)))
    return [*parts, area(arc((0, -0.35), (0.2, 0.2)), "accent")]


def _boat(rng: Generator) -> list[Part]:
    mast = rng.uniform(-0.95, -0.7)
    return [
        line([(0, mast), (0, 0.4)], 0.06, "dark"),
        area([(0.06, mast), (0.7, 0.25), (0.06, 0.25)], "light"),
        area([(-0.06, mast + 0.2), (-0.55, 0.25), (-0.06, 0.25)], "accent"),
        area(symmetric([(0.9, 0.35), (0.6, 0.8)])),
    ]


def _teapot(rng: Generator) -> list[Part]:
    wide, high = rng.uniform(0.5, 0.6), rng.uniform(0.45, 0.55)
    return [
        line(arc((-wide, 0.1), (0.32, 0.32), 90, 270, 20), 0.1),
        line(smooth([(wide - 0.1, 0.3), (wide + 0.15, 0.1), (0.95, -0.35)], closed=False), 0.15),
        area(arc((0, 0.15), (wide, high))),
        area(arc((0, 0.18 - high), (0.28, 0.1)), "accent"),
        area(arc((0, 0.05 - high), (0.08, 0.08), steps=16), "dark"),
    ]


def _padlock(rng: Generator) -> list[Part]:
    half = rng.uniform(0.5, 0.62)
    return [
        line(arc((0, -0.15), (half * 0.65, rng.uniform(0.55, 0.7)), 180, 360), 0.15, "dark"),
        area(box(-half, -0.15, half, 0.8, 0.12)),
        area(arc((0, 0.25), (0.12, 0.12), steps=20), "dark"),
        line([(0, 0.3), (0, 0.52)], 0.1, "dark"),
    ]


OUTLINES: Mapping[str, Outline] = {
    **{kind: outline for kinds in KINDS.values() for kind, outline in kinds.items()},
    "skirt": _skirt,
    "sock": _sock,
    "house": _house,
    "tree": _tree,
    "star": _star,
    "heart": _heart,
    "car": _car,
    "fish": _fish,
    "lamp": _lamp,
    "table": _table,
    "book": _book,
    "clock": _clock,
    "flower": _flower,
    "boat": _boat,
    "teapot": _teapot,
    "padlock": _padlock,
}

CHOICE_OF: Mapping[str, str] = {
    kind: choice for choice, kinds in KINDS.items() for kind in list(kinds)[1:]
}
"""The choice that a special kind belongs to."""


@dataclass(frozen=True)
class Example:
    """A training picture and some of the captions that fit it."""

    image: Image.Image
    captions: tuple[str, ...]


def example(seed: int, index: int, size: int, captions: int) -> Example:
    """Draw training picture number `index`, `size` pixels a side, with that many captions."""
    rng = np.random.default_rng([seed, index])
    kind = list(OUTLINES)[rng.integers(len(OUTLINES))]
    style = WILD if rng.random() < WILD_SHARE else TIDY
    scene = compose(OUTLINES[kind], rng, size, style)
    talk = np.random.default_rng([seed, index, 1])  # the words do not depend on the size
    return Example(scene.image, tuple(_caption(kind, scene, talk) for _ in range(captions)))


def _caption(kind: str, scene: Scene, rng: Generator) -> str:
    if rng.random() < 0.03:
        return _pick(UNSPECIFIC, rng)
    noun = _pick(NAMES[kind], rng)
    if kind in CHOICE_OF and rng.random() < UMBRELLA_TERM_SHARE:
        noun = CHOICE_OF[kind]
    words = [noun]
    if scene.pattern is not None and rng.random() < 0.25:
        words.insert(0, _pick(PATTERN_NAMES[scene.pattern], rng))
    if rng.random() < 0.2:
        words.insert(0, _pick(COLOUR_NAMES.get(scene.colour, (scene.colour,)), rng))
    phrase = " ".join(words)
    if rng.random() < 0.7:
        phrase = f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"
    return _pick(TEMPLATES, rng).format(phrase)


def _pick(options: tuple[str, ...], rng: Generator) -> str:
    return options[rng.integers(len(options))]
