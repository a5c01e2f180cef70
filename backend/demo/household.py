"""Outlines of things around the house. Each function draws one specimen: `(rng) -> list[Part]`."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.random import Generator

from backend.demo.geometry import Part, Tint, arc, area, box, line, smooth, symmetric


def handbag(rng: Generator) -> list[Part]:
    """A trapezoid under an arched handle, with a clasp."""
    top, foot = rng.uniform(0.45, 0.65), rng.uniform(0.6, 0.85)
    rim, bottom = rng.uniform(-0.2, 0.0), rng.uniform(0.6, 0.85)
    handle = arc((0, rim), (top * rng.uniform(0.5, 0.8), rng.uniform(0.4, 0.7)), 180, 360)
    body = smooth(symmetric([(top, rim), (foot, bottom - 0.1), (foot - 0.12, bottom)]), steps=4)
    flap = symmetric(
        [(top * 1.0, rim), (top * 0.95, rim + 0.2), (0.0, rim + rng.uniform(0.3, 0.4))]
    )
    clasp = box(-0.07, rim + 0.25, 0.07, rim + 0.4, 0.03)
    return [
        line(handle, rng.uniform(0.07, 0.12), "dark"),
        area(body),
        area(flap, "accent"),
        area(clasp, "light"),
    ]


def backpack(rng: Generator) -> list[Part]:
    """A tall rounded sack with a pocket, straps at its sides and a loop on top."""
    half, top = rng.uniform(0.42, 0.55), rng.uniform(-0.75, -0.6)
    parts = [line(arc((0, top), (0.16, 0.18), 180, 360, 16), 0.07, "dark")]
    for side in (-1, 1):
        strap = arc((side * half, 0.1), (0.2, 0.55), 90 - side * 90 - 70, 90 - side * 90 + 70, 16)
        parts.append(line(strap, 0.1, "dark"))
    parts.append(area(box(-half, top, half, 0.88, 0.35)))
    parts.append(line(arc((0, -0.05), (half, 0.28), 200, 340, 16), 0.03, "dark"))
    pocket = box(-half * 0.75, rng.uniform(0.15, 0.3), half * 0.75, 0.78, 0.1)
    parts.append(area(pocket, "accent"))
    return parts


def tote(rng: Generator) -> list[Part]:
    """An open square bag with two long loops."""
    half, top = rng.uniform(0.5, 0.65), rng.uniform(-0.2, 0.0)
    loop = rng.uniform(0.6, 0.85)
    parts = []
    for shift in (-0.05, 0.06):
        handle = arc((shift, top + 0.05), (half * 0.5, loop), 180, 360)
        parts.append(line(handle, 0.06, "accent"))
    parts.append(area(symmetric([(half, top), (half * rng.uniform(0.9, 1.1), 0.9)])))
    if rng.random() < 0.6:
        parts.append(area(arc((0, 0.45), (0.22, 0.22)), "light"))
    return parts


def satchel(rng: Generator) -> list[Part]:
    """A wide school bag with a deep flap, two buckles and a shoulder strap."""
    half, top = rng.uniform(0.65, 0.85), rng.uniform(-0.35, -0.2)
    bottom = top + rng.uniform(0.8, 1.0)
    strap = arc((0, top + 0.1), (half * 0.95, rng.uniform(0.5, 0.65)), 180, 360)
    flap = box(-half - 0.02, top - 0.03, half + 0.02, top + 0.5, 0.12)
    parts = [
        line(strap, 0.06, "dark"),
        area(box(-half, top, half, bottom, 0.08)),
        area(flap, "accent"),
    ]
    for side in (-0.5, 0.5):
        parts.append(line([(side * half, top + 0.3), (side * half, bottom - 0.15)], 0.1, "dark"))
        middle = side * half
        parts.append(area(box(middle - 0.08, top + 0.48, middle + 0.08, top + 0.6), "light"))
    return parts


def mug(rng: Generator) -> list[Part]:
    """A straight cup with a round handle."""
    half, taper = rng.uniform(0.4, 0.55), rng.uniform(0.82, 1.02)
    top, bottom = rng.uniform(-0.7, -0.5), rng.uniform(0.6, 0.8)
    handle = arc((half - 0.02, (top + bottom) / 2), (rng.uniform(0.26, 0.36), 0.36), -95, 95)
    body = symmetric([(half, top), (half * taper, bottom - 0.06), (half * taper - 0.08, bottom)])
    return [
        line(handle, rng.uniform(0.1, 0.16)),
        area(body),
        area(arc((0, top), (half, rng.uniform(0.08, 0.15))), "dark"),
    ]


def teacup(rng: Generator) -> list[Part]:
    """A shallow bowl with a small handle on a saucer."""
    half, depth = rng.uniform(0.5, 0.65), rng.uniform(0.6, 0.75)
    top = -0.25
    handle = arc((half - 0.02, top + 0.22), (0.22, 0.18), -100, 100, 20)
    return [
        area(arc((0, top + depth), (rng.uniform(0.75, 0.95), 0.13)), "accent"),
        line(handle, 0.08),
        area(arc((0, top), (half, depth), 0, 180)),
        area(arc((0, top), (half, 0.12)), "dark"),
    ]


def tankard(rng: Generator) -> list[Part]:
    """A tall beer glass with facets, a square handle and foam."""
    half, top = rng.uniform(0.36, 0.44), rng.uniform(-0.65, -0.5)
    handle = [(half, top + 0.2), (half + 0.3, top + 0.25), (half + 0.3, 0.4), (half, 0.5)]
    parts = [line(smooth(handle, closed=False), 0.12), area(box(-half, top, half, 0.88, 0.08))]
    for share in (-0.5, 0.0, 0.5):
        parts.append(line([(share * half, top + 0.25), (share * half, 0.75)], 0.07, "light"))
    for share in (-0.8, -0.3, 0.25, 0.8):
        bubble = arc((share * half, top), (0.2, rng.uniform(0.14, 0.22)), steps=20)
        parts.append(area(bubble, "light"))
    return parts


def bottle(rng: Generator) -> list[Part]:
    """Shoulders, a narrow neck, a cap and a label."""
    half, neck = rng.uniform(0.22, 0.36), rng.uniform(0.08, 0.13)
    shoulder = rng.uniform(-0.4, -0.05)
    body = symmetric(
        [
            (neck, -0.9),
            (neck, shoulder - 0.2),
            (half * 0.85, shoulder),
            (half, shoulder + 0.15),
            (half, 0.88),
            (half - 0.06, 0.94),
        ]
    )
    label = box(-half, rng.uniform(0.15, 0.3), half, rng.uniform(0.55, 0.75))
    lid = box(-neck - 0.03, -0.95, neck + 0.03, -0.78)
    return [area(body), area(label, "light" if rng.random() < 0.6 else "accent"), area(lid, "dark")]


def flask(rng: Generator) -> list[Part]:
    """A thermos: a cylinder with bands under a cup for a lid."""
    half, lid = rng.uniform(0.28, 0.38), rng.uniform(-0.55, -0.4)
    return [
        area(box(-half, lid, half, 0.92, 0.08)),
        area(box(-half + 0.03, -0.92, half - 0.03, lid, 0.08), "accent"),
        area(box(-half, lid - 0.02, half, lid + 0.08), "dark"),
        area(box(-half, 0.72, half, 0.8), "dark"),
    ]


def carafe(rng: Generator) -> list[Part]:
    """A round belly, a slim waist and a flared lip."""
    belly, lip = rng.uniform(0.48, 0.62), rng.uniform(0.2, 0.3)
    throat = rng.uniform(0.1, 0.15)
    body = smooth(
        symmetric(
            [(lip, -0.9), (throat, -0.5), (throat + 0.05, -0.2), (belly, 0.4), (belly * 0.7, 0.88)]
        )
    )
    return [area(body), line([(-lip, -0.9), (lip, -0.9)], 0.07, "accent")]


def umbrella(rng: Generator) -> list[Part]:
    """An open canopy with a scalloped edge over a hooked stick."""
    half, rim = rng.uniform(0.75, 0.95), rng.uniform(-0.1, 0.1)
    height, count = rng.uniform(0.55, 0.8), int(rng.integers(3, 6))
    scallops = [
        arc((half - (2 * i + 1) * half / count, rim), (half / count, 0.1), 0, -180, 10)
        for i in range(count)
    ]
    canopy = np.concatenate([arc((0, rim), (half, height), 180, 360), *scallops])
    parts = [line([(0, rim - height - 0.1), (0, 0.75)], 0.06, "dark")]
    parts.append(line(arc((-0.13, 0.75), (0.13, 0.17), 0, 180, 16), 0.06, "dark"))
    parts.append(area(canopy))
    for i in range(1, count):
        x = -half + 2 * i * half / count
        rib = [(0, rim - height), (x * 0.6, rim - height * 0.62), (x, rim)]
        parts.append(line(smooth(rib, closed=False), 0.025, "dark"))
    return parts


def parasol(rng: Generator) -> list[Part]:
    """A flat beach canopy of two colours on a straight pole."""
    half, height = rng.uniform(0.85, 0.98), rng.uniform(0.3, 0.45)
    parts = [line([(0, -0.8), (0, 0.95)], 0.07, "light")]
    apex = (0.0, -0.3 - height)
    edges = np.linspace(-half, half, 7)
    for i, (left, right) in enumerate(pairwise(edges)):
        wedge = [apex, (right, -0.3), (right, -0.18), (left, -0.18), (left, -0.3)]
        parts.append(area(wedge, "body" if i % 2 == 0 else "accent"))
    return parts


def folded_umbrella(rng: Generator) -> list[Part]:
    """Furled cloth, tip down, hooked handle up."""
    half, top = rng.uniform(0.13, 0.22), rng.uniform(-0.45, -0.3)
    cloth = symmetric([(half * 0.7, top), (half, top + 0.25), (0.02, 0.85)])
    return [
        line([(0, -0.75), (0, 0.97)], 0.05, "dark"),
        line(arc((0.15, -0.75), (0.15, 0.17), 180, 360, 16), 0.08, "accent"),
        area(cloth),
        line([(-half * 0.9, top + 0.35), (half * 0.9, top + 0.3)], 0.05, "dark"),
    ]


def key(rng: Generator) -> list[Part]:
    """A round or square bow, a blade and a row of teeth, lying flat."""
    radius = rng.uniform(0.22, 0.32)
    bow = arc((-0.6, 0), (radius, radius * rng.uniform(0.85, 1.2)))
    thick = rng.uniform(0.1, 0.16)
    parts = [line(bow, thick), line([(-0.6 + radius, 0), (0.9, 0)], thick)]
    for _ in range(int(rng.integers(2, 5))):
        x = rng.uniform(0.25, 0.85)
        parts.append(line([(x, 0), (x, rng.uniform(0.14, 0.28))], 0.09))
    return parts


def skeleton_key(rng: Generator) -> list[Part]:
    """A cloverleaf bow, a long thin shaft with collars and one square bit."""
    radius = rng.uniform(0.12, 0.16)
    parts = []
    for x, y in ((-0.82, 0.0), (-0.62, -0.17), (-0.62, 0.17)):
        parts.append(line(arc((x, y), (radius, radius), steps=24), 0.07))
    parts.append(line([(-0.55, 0), (0.92, 0)], 0.08))
    parts += [line([(x, -0.1), (x, 0.1)], 0.06, "accent") for x in (-0.38, 0.35)]
    depth = rng.uniform(0.24, 0.34)
    parts.append(area([(0.55, 0), (0.85, 0), (0.85, depth), (0.72, depth * 0.6), (0.55, depth)]))
    return parts


def car_key(rng: Generator) -> list[Part]:
    """A dark fob with buttons and a short blade."""
    half = rng.uniform(0.26, 0.36)
    parts = [
        area(box(0.0, -0.08, rng.uniform(0.75, 0.95), 0.1), "light"),
        area(box(-0.85, -half, 0.1, half, 0.2)),
    ]
    for x in (-0.6, -0.35, -0.12):
        parts.append(area(arc((x, 0), (0.08, 0.1), steps=16), "accent"))
    return parts


def glasses(rng: Generator) -> list[Part]:
    """Two clear lenses, a bridge and folded-out temples."""
    return _spectacles(rng, "glass", rng.uniform(0.05, 0.09))


def sunglasses(rng: Generator) -> list[Part]:
    """Two dark lenses."""
    return _spectacles(rng, "dark", rng.uniform(0.06, 0.1))


def goggles(rng: Generator) -> list[Part]:
    """One wide mask of glass on a strap."""
    height = rng.uniform(0.28, 0.4)
    mask = smooth(
        symmetric(
            [(0.0, -height), (0.5, -height), (0.65, 0.0), (0.45, height), (0.12, height * 0.6)]
        )
    )
    return [
        line([(-0.95, -0.05), (-0.6, 0), (0.6, 0), (0.95, -0.05)], rng.uniform(0.2, 0.3), "accent"),
        area(mask),
        area(mask * 0.78, "glass"),
    ]


def chair(rng: Generator) -> list[Part]:
    """A kitchen chair, seen a little from the side."""
    half, seat = rng.uniform(0.34, 0.45), rng.uniform(0.0, 0.15)
    lean, leg = rng.uniform(0.0, 0.12), rng.uniform(0.07, 0.11)
    back = rng.uniform(-0.95, -0.75)
    parts = [
        line([(-half, seat), (-half - lean, back)], leg),
        line([(half * 0.5, seat - 0.1), (half * 0.5 - lean, back)], leg),
    ]
    for share in np.linspace(0.4, 0.92, int(rng.integers(2, 4))):
        y = seat + (back - seat) * share
        parts.append(line([(-half - lean * share, y), (half * 0.5 - lean * share, y - 0.02)], 0.1))
    for x, foot in ((-half, 0.92), (half, 0.92), (half * 0.6, 0.8), (-half * 0.5, 0.8)):
        parts.append(line([(x, seat), (x, foot)], leg))
    cushion = [(-half - 0.06, seat), (-half * 0.4, seat - 0.14), (half + 0.12, seat - 0.14)]
    cushion += [(half + 0.05, seat + 0.08), (-half - 0.06, seat + 0.08)]
    return [*parts, area(cushion, "accent")]


def stool(rng: Generator) -> list[Part]:
    """A round seat on three or four splayed legs."""
    half, seat = rng.uniform(0.4, 0.55), rng.uniform(-0.5, -0.2)
    splay = rng.uniform(0.0, 0.15)
    parts = [line([(x * half, seat), (x * (half + splay), 0.92)], 0.09) for x in (-0.8, 0.8, 0.15)]
    parts.append(line([(-half * 0.8, 0.45), (half * 0.8, 0.45)], 0.06))
    parts.append(area(box(-half, seat - 0.02, half, seat + 0.14, 0.06), "dark"))
    parts.append(area(arc((0, seat), (half, 0.15)), "accent"))
    return parts


def armchair(rng: Generator) -> list[Part]:
    """Upholstered, with thick arms and short feet."""
    half, back = rng.uniform(0.5, 0.6), rng.uniform(-0.8, -0.55)
    parts = [line([(s * half, 0.7), (s * half, 0.92)], 0.1, "dark") for s in (-1, 1)]
    parts.append(area(box(-half, back, half, 0.6, 0.25)))
    parts.append(area(box(-half, 0.1, half, 0.45, 0.1), "accent"))
    parts.append(area(box(-half - 0.1, 0.4, half + 0.1, 0.8, 0.08)))
    for side in (-1, 1):
        x = side * (half + 0.1)
        parts.append(area(box(x - 0.17, -0.1, x + 0.17, 0.8, 0.16)))
    return parts


def office_chair(rng: Generator) -> list[Part]:
    """A padded seat on a column with five castors."""
    half, back = rng.uniform(0.38, 0.46), rng.uniform(-0.9, -0.75)
    parts = [line([(0, 0.15), (0, 0.7)], 0.11, "dark")]
    for x in (-0.55, -0.28, 0.28, 0.55):
        parts.append(line([(0, 0.65), (x, 0.82)], 0.08, "dark"))
        parts.append(area(arc((x, 0.87), (0.07, 0.07), steps=14), "dark"))
    parts.append(line([(0, -0.2), (0, 0.15)], 0.1, "dark"))
    parts.append(area(box(-half, back, half, -0.1, rng.uniform(0.1, 0.25))))
    parts.append(area(box(-half - 0.08, 0.03, half + 0.08, 0.22, 0.1), "accent"))
    return parts


def _spectacles(rng: Generator, lens: Tint, rim: float) -> list[Part]:
    wide, high = rng.uniform(0.26, 0.36), rng.uniform(0.18, 0.32)
    gap = rng.uniform(0.08, 0.14)
    corner = rng.uniform(0.05, 0.36)
    parts: list[Part] = []
    for side in (-1, 1):
        middle = side * (gap + wide)
        outline = box(middle - wide, -high, middle + wide, high, corner)
        parts.append(area(outline, lens))
        closed = np.concatenate([outline, outline[:2]])
        parts.append(line(closed, rim))
        temple = [(side * (gap + 2 * wide), -high * 0.5), (side * 0.97, -high * 0.5 - 0.15)]
        parts.append(line(temple, rim))
    parts.append(line(arc((0, -high * 0.1), (gap, 0.1), 180, 360, 12), rim))
    return parts
