from __future__ import annotations

import numpy as np
import pytest

from backend.learning.extrapolation import Measured, extrapolate

SIZES = (10, 15, 20, 30, 40, 60, 80, 120, 160)


def curve(labels: float, level: float = 0.05, slope: float = 2.0, exponent: float = 0.7) -> float:
    return 1 - level - slope * labels**-exponent


def measured(labels: int, value: float, spread: float = 0.04) -> Measured:
    return Measured(labels, value, value - spread, value + spread)


def test_a_curve_is_followed_to_where_it_leads() -> None:
    outlook = extrapolate([measured(n, curve(n)) for n in SIZES], more=50)

    assert outlook.expected is not None
    assert [point.labels for point in outlook.expected] == [160, 170, 180, 190, 200, 210]
    for point in outlook.expected:
        assert point.value == pytest.approx(curve(point.labels), abs=0.005)
        assert point.low < point.value < point.high


def test_the_interval_is_never_narrower_than_that_of_the_last_version() -> None:
    outlook = extrapolate([measured(n, curve(n), 0.001 * n**0.5) for n in SIZES], more=50)

    assert outlook.expected is not None
    assert outlook.expected[-1].high - outlook.expected[-1].low >= 2 * 0.001 * 160**0.5


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = shown = 0
    for _ in range(200):
        level, slope = generator.uniform(0, 0.2), generator.uniform(0.8, 2)
        exponent, spread = generator.uniform(0.3, 0.8), generator.uniform(0.01, 0.05)
        shared = generator.normal()
        history = []
        for size in SIZES:
            noise = 0.7 * shared + 0.7 * generator.normal()
            value = curve(size, level, slope, exponent) + spread / 1.96 * noise
            history.append(measured(size, float(np.clip(value, 0, 1)), spread))
        expected = extrapolate(history, more=50).expected
        if expected is None:
            continue
        shown += 1
        truth = curve(expected[-1].labels, level, slope, exponent)
        held += expected[-1].low <= truth <= expected[-1].high

    assert shown > 150
    assert held / shown >= 0.93


def test_versions_that_share_nearly_all_labels_count_as_one() -> None:
    history = [measured(n, 0.5 + n / 1000) for n in range(100, 109)]

    assert extrapolate(history, more=50).expected is None


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ([], "versions whose labels differ"),
        ([measured(n, curve(n)) for n in SIZES[:4]], "versions whose labels differ"),
        ([measured(n, 0.5 + n / 1000) for n in (100, 115, 130, 150, 170)], "doubled"),
        ([measured(n, 0.7) for n in SIZES], "not clearly risen"),
        ([measured(n, 0.9 - n / 1000) for n in SIZES], "not clearly risen"),
        ([measured(n, curve(n), 0.5) for n in SIZES], "not clearly risen"),
        ([measured(0, 0.1)] * 20, "versions whose labels differ"),
    ],
)
def test_nothing_is_shown_where_the_history_does_not_support_it(
    history: list[Measured], reason: str
) -> None:
    outlook = extrapolate(history, more=50)

    assert outlook.expected is None
    assert reason in outlook.reason


def test_accuracies_stay_between_nothing_and_all() -> None:
    outlook = extrapolate([measured(n, 1 - 3 / n, 0.02) for n in SIZES], more=1000)

    assert outlook.expected is not None
    for point in outlook.expected:
        assert 0 <= point.low <= point.value <= point.high <= 1


def test_the_same_history_leads_to_the_same_place() -> None:
    history = [measured(n, curve(n)) for n in SIZES]

    assert extrapolate(history, more=50) == extrapolate(history[::-1], more=50)
