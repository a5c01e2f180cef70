"""Outlines of things to wear. Each function draws one specimen: `(rng) -> list[Part]`."""

from __future__ import annotations

from numpy.random import Generator

from backend.demo.geometry import Part, Point, arc, area, box, line, smooth, symmetric


def t_shirt(rng: Generator) -> list[Part]:
    """Short sleeves, round or pointed neck; the long ones reach into a dress's proportions."""
    return _top(rng, sleeve=rng.uniform(0.2, 0.36), length=rng.uniform(0.62, 0.9))


def tank_top(rng: Generator) -> list[Part]:
    """No sleeves, wide arm holes."""
    half, length = rng.uniform(0.38, 0.52), rng.uniform(0.65, 0.9)
    strap, dip = rng.uniform(0.1, 0.16), rng.uniform(0.3, 0.5)
    body = symmetric(
        [
            (0.0, -length + dip),
            (half - 0.12 - strap, -length + dip * 0.6),
            (half - 0.12 - strap, -length),
            (half - 0.12, -length),
            (half - 0.14, -length + 0.3),
            (half, -length + 0.55),
            (half + rng.uniform(-0.05, 0.08), length),
        ]
    )
    return [area(body)]


def sweater(rng: Generator) -> list[Part]:
    """Long sleeves that hang, ribbed hem and cuffs."""
    half, length = rng.uniform(0.42, 0.54), rng.uniform(0.6, 0.75)
    spread, reach = rng.uniform(0.18, 0.42), rng.uniform(0.85, 1.15)
    cuff = half + spread
    parts = []
    for side in (-1, 1):
        sleeve = [
            (side * (half - 0.18), -length),
            (side * (half + 0.06), -length + 0.1),
            (side * (cuff + 0.08), -length + reach),
            (side * (cuff - 0.1), -length + reach + 0.04),
            (side * (half - 0.05), -length + 0.5),
        ]
        end = [
            (side * (cuff + 0.08), -length + reach - 0.02),
            (side * (cuff - 0.1), -length + reach + 0.02),
        ]
        parts += [area(sleeve), line(end, 0.09, "accent")]
    neck = rng.uniform(0.14, 0.22)
    body = symmetric(
        [(0.0, -length + 0.08), (neck, -length), (half, -length + 0.1), (half, length)]
    )
    hem = box(-half, length - 0.12, half, length, 0.02)
    collar = arc((0, -length), (neck, 0.1), 0, 180, 16)
    return [*parts, area(body), area(hem, "accent"), line(collar, 0.08, "accent")]


def polo_shirt(rng: Generator) -> list[Part]:
    """A T-shirt with a collar and a row of buttons."""
    length = rng.uniform(0.62, 0.8)
    shirt = _top(rng, sleeve=rng.uniform(0.2, 0.3), length=length, neck=0.16)
    wing, depth = rng.uniform(0.2, 0.26), rng.uniform(0.16, 0.24)
    for side in (-1, 1):
        shirt.append(
            area(
                [
                    (0, -length + 0.1),
                    (side * 0.15, -length - 0.05),
                    (side * wing, -length + 0.05),
                    (side * 0.1, -length + depth),
                ],
                "accent",
            )
        )
    shirt.append(line([(0, -length + 0.1), (0, -length + 0.5)], 0.05, "accent"))
    for button in (0.22, 0.36):
        shirt.append(area(arc((0, -length + button), (0.03, 0.03), steps=10), "light"))
    return shirt


def trousers(rng: Generator) -> list[Part]:
    """Straight or tapered legs."""
    return _legs(rng, length=rng.uniform(0.8, 0.95), hem=rng.uniform(0.13, 0.24))


def jeans(rng: Generator) -> list[Part]:
    """Flared legs, pockets and a seam."""
    flared = _legs(rng, length=rng.uniform(0.85, 0.95), hem=rng.uniform(0.3, 0.4))
    for side in (-1, 1):
        pocket = arc((side * 0.3, -0.82), (0.16, 0.18), 90 - side * 80, 90 + side * 10, 10)
        flared.append(line(pocket, 0.025, "light"))
    return flared


def shorts(rng: Generator) -> list[Part]:
    """Legs that end above the knee."""
    return _legs(rng, length=rng.uniform(0.05, 0.2), hem=rng.uniform(0.3, 0.42), wide=0.14)


def dungarees(rng: Generator) -> list[Part]:
    """Trousers with a bib and straps."""
    waist, bib = rng.uniform(0.3, 0.38), rng.uniform(0.2, 0.28)
    foot, hem = rng.uniform(0.75, 0.95), rng.uniform(0.14, 0.22)
    parts = [line([(s * bib, -0.45), (s * (bib - 0.04), -0.95)], 0.09) for s in (-1, 1)]
    body: list[Point] = [
        (bib, -0.5),
        (bib + 0.02, -0.12),
        (waist, -0.08),
        (waist + 0.05, 0.2),
        (waist + 0.03, foot),
        (waist + 0.03 - 2 * hem, foot),
        (0.0, 0.22),
    ]
    pocket = box(-0.14, -0.38, 0.14, -0.15, 0.04)
    parts += [area(symmetric(body)), area(pocket, "accent")]
    parts += [area(arc((s * bib, -0.46), (0.05, 0.05), steps=12), "light") for s in (-1, 1)]
    return parts


def dress(rng: Generator) -> list[Part]:
    """Short sleeves and a skirt; the narrow short ones look like a long T-shirt."""
    shoulder, waist = rng.uniform(0.3, 0.42), rng.uniform(0.22, 0.32)
    hem, length = rng.uniform(0.42, 0.78), rng.uniform(0.75, 0.95)
    sleeve = rng.uniform(0.1, 0.24)
    middle = rng.uniform(-0.2, 0.0)
    body = symmetric(
        [
            (0.0, -length + rng.uniform(0.08, 0.3)),
            (0.14, -length),
            (shoulder, -length + 0.06),
            (shoulder + sleeve, -length + 0.3),
            (shoulder + sleeve - 0.16, -length + 0.38),
            (shoulder - 0.06, -length + 0.28),
            (waist, middle),
            (hem, length),
        ]
    )
    return [area(body), *_belt(rng, waist, middle)]


def gown(rng: Generator) -> list[Part]:
    """Bare shoulders, long bell-shaped skirt."""
    bust, waist = rng.uniform(0.22, 0.3), rng.uniform(0.14, 0.2)
    hem, middle = rng.uniform(0.6, 0.85), rng.uniform(-0.35, -0.2)
    body = symmetric(
        [
            (0.0, -0.78),
            (bust * 0.6, -0.9),
            (bust, -0.72),
            (waist, middle),
            (waist + (hem - waist) * rng.uniform(0.5, 0.8), middle + 0.45),
            (hem, 0.95),
        ]
    )
    return [area(body), *_belt(rng, waist, middle)]


def sundress(rng: Generator) -> list[Part]:
    """Thin straps, square neck, short wide skirt with a frill."""
    bust, hem = rng.uniform(0.24, 0.32), rng.uniform(0.5, 0.75)
    length, middle = rng.uniform(0.55, 0.8), rng.uniform(-0.15, 0.05)
    straps = [line([(s * bust * 0.7, -0.5), (s * bust * 0.6, -0.92)], 0.05) for s in (-1, 1)]
    body = symmetric([(bust, -0.55), (bust * 0.85, middle), (hem, length)])
    frill = symmetric([(hem * 0.92, length - 0.12), (hem + 0.04, length + 0.06)])
    return [*straps, area(body), area(frill, "accent")]


def sneaker(rng: Generator) -> list[Part]:
    """A low shoe from the side, toe to the right."""
    collar, toe = rng.uniform(-0.45, -0.2), rng.uniform(-0.08, 0.12)
    upper = smooth(
        [
            (-0.85, 0.25),
            (-0.82, collar),
            (-0.3, collar + 0.05),
            (0.05, -0.05),
            (0.6, toe),
            (0.9, 0.25),
            (0.0, 0.3),
        ]
    )
    sole = box(-0.9, 0.22, 0.95, rng.uniform(0.36, 0.48), 0.1)
    parts = [area(upper), area(sole, "light" if rng.random() < 0.6 else "accent")]
    for step in range(int(rng.integers(2, 5))):
        x = -0.22 + 0.15 * step
        parts.append(line([(x - 0.06, -0.02), (x + 0.1, -0.12 + 0.08 * step)], 0.045, "light"))
    return parts


def boot(rng: Generator) -> list[Part]:
    """A shaft up to the calf, heel, toe to the right."""
    top, width = rng.uniform(-0.95, -0.65), rng.uniform(0.28, 0.38)
    leg = [
        (-0.5 - 0.05, top),
        (-0.5 + 2 * width, top),
        (-0.48 + 2 * width, 0.15),
        (0.55, 0.32),
        (0.72, 0.55),
        (0.7, 0.7),
        (-0.52, 0.7),
        (-0.46, 0.2),
    ]
    heel = box(-0.52, 0.68, -0.12, rng.uniform(0.85, 0.95))
    cuff = box(-0.58, top - 0.04, -0.48 + 2 * width, top + 0.14, 0.04)
    sole = box(-0.52, 0.66, 0.72, 0.76, 0.03)
    return [area(leg), area(cuff, "accent"), area(sole, "dark"), area(heel, "dark")]


def high_heel(rng: Generator) -> list[Part]:
    """A pump: arched sole on a thin heel."""
    lift = rng.uniform(-0.45, -0.15)
    upper = smooth(
        [
            (-0.8, lift - 0.2),
            (-0.45, lift + 0.05),
            (0.05, 0.3),
            (0.4, 0.22),
            (0.85, 0.55),
            (0.3, 0.58),
            (-0.2, 0.4),
            (-0.72, lift + 0.25),
        ]
    )
    heel = [(-0.84, lift - 0.05), (-0.5, lift + 0.25), (-0.7, 0.62), (-0.8, 0.62)]
    return [area(heel, "dark"), area(upper)]


def sandal(rng: Generator) -> list[Part]:
    """A thick sole with straps."""
    rise = rng.uniform(0.3, 0.55)
    sole = smooth([(-0.9, 0.2), (-0.3, 0.25), (0.4, 0.3), (0.92, 0.26), (0.85, 0.5), (-0.85, 0.5)])
    back = arc((-0.5, 0.22), (0.32, rise), 180, 360, 20)
    front = arc((0.4, 0.3), (0.3, rise * 0.7), 180, 360, 20)
    width = rng.uniform(0.09, 0.15)
    return [line(back, width), line(front, width), area(sole, "accent")]


def hat(rng: Generator) -> list[Part]:
    """A brimmed hat with a dented crown and a band."""
    crown, brim = rng.uniform(0.38, 0.5), rng.uniform(0.75, 0.95)
    top = rng.uniform(-0.6, -0.35)
    dome = smooth(
        symmetric([(0.0, top + 0.12), (crown * 0.55, top), (crown * 0.9, top + 0.25), (crown, 0.3)])
    )
    edge = arc((0, 0.32), (brim, rng.uniform(0.12, 0.22)))
    band = symmetric([(crown * 0.97, 0.05), (crown * 1.0, 0.28)])
    return [area(edge), area(dome), area(band, "dark" if rng.random() < 0.5 else "accent")]


def cap(rng: Generator) -> list[Part]:
    """A baseball cap from the side, visor to the right."""
    height, radius = rng.uniform(0.55, 0.75), rng.uniform(0.5, 0.6)
    dome = arc((-0.2, 0.25), (radius, height), 180, 360)
    reach = rng.uniform(0.8, 0.98)
    visor = smooth([(radius - 0.45, 0.1), (reach, 0.24), (reach, 0.36), (-0.1, 0.3)])
    seam = arc((-0.2, 0.25), (radius * 0.4, height), 270, 360, 16)
    knob = arc((-0.2, 0.25 - height), (0.06, 0.05), steps=12)
    return [area(dome), line(seam, 0.03, "dark"), area(visor, "accent"), area(knob, "accent")]


def beanie(rng: Generator) -> list[Part]:
    """A knitted cap with a folded rim, mostly with a pompom."""
    width, height = rng.uniform(0.5, 0.65), rng.uniform(0.75, 0.95)
    parts = [area(arc((0, 0.35), (width, height), 180, 360))]
    for share in (-0.6, -0.2, 0.2, 0.6):
        rib = [(share * width, 0.3), (share * width * 0.6, 0.35 - height * 0.75)]
        parts.append(line(rib, 0.025, "dark"))
    parts.append(area(box(-width - 0.05, 0.28, width + 0.05, 0.58, 0.1), "accent"))
    if rng.random() < 0.8:
        parts.append(area(arc((0, 0.3 - height), (0.17, 0.17)), "light"))
    return parts


def top_hat(rng: Generator) -> list[Part]:
    """A tall cylinder on a narrow brim."""
    foot, head = rng.uniform(0.36, 0.44), rng.uniform(0.38, 0.52)
    top = rng.uniform(-0.9, -0.65)
    crown = symmetric([(head, top), (foot, 0.5)])
    band = symmetric([(foot + 0.01, 0.24), (foot + 0.01, 0.46)])
    lid = arc((0, top), (head, 0.09))
    brim = arc((0, 0.5), (rng.uniform(0.65, 0.8), 0.13))
    return [area(brim), area(crown), area(lid, "dark"), area(band, "accent")]


def _top(rng: Generator, sleeve: float, length: float, neck: float | None = None) -> list[Part]:
    half = rng.uniform(0.38, 0.54)
    opening = rng.uniform(0.13, 0.24) if neck is None else neck
    drop = rng.uniform(0.22, 0.4)
    body = symmetric(
        [
            (0.0, -length + rng.uniform(0.06, 0.3)),
            (opening, -length),
            (half, -length + 0.08),
            (half + sleeve, -length + 0.08 + drop),
            (half + sleeve - 0.18, -length + 0.2 + drop),
            (half - 0.02, -length + 0.12 + drop * 0.7),
            (half + rng.uniform(-0.06, 0.1), length),
        ]
    )
    shirt = [area(body)]
    if rng.random() < 0.4:
        for side in (-1, 1):
            cuff = [
                (side * (half + sleeve - 0.01), -length + 0.07 + drop),
                (side * (half + sleeve - 0.17), -length + 0.17 + drop),
            ]
            shirt.append(line(cuff, 0.06, "accent"))
    return shirt


def _legs(rng: Generator, length: float, hem: float, wide: float = 0.0) -> list[Part]:
    waist = rng.uniform(0.3, 0.42)
    hip = waist + rng.uniform(0.03, 0.1) + wide / 2
    knee_out = hip + wide + (hem - 0.2) * 0.5
    gap = max(0.03, knee_out - 2 * hem)
    body = symmetric(
        [
            (waist, -0.92),
            (hip, -0.5),
            (knee_out, length),
            (gap, length),
            (0.0, -0.3 + rng.uniform(-0.08, 0.08)),
        ]
    )
    band = box(-waist, -0.94, waist, -0.8)
    return [area(body), area(band, "accent" if rng.random() < 0.5 else "dark")]


def _belt(rng: Generator, waist: float, height: float) -> list[Part]:
    if rng.random() < 0.4:
        return []
    return [area(box(-waist - 0.03, height - 0.05, waist + 0.03, height + 0.06), "accent")]
