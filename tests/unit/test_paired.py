from __future__ import annotations

import pytest
import torch

from backend.learning.paired import paired_difference


def outcomes(
    both: int, only_before: int, only_after: int, neither: int
) -> tuple[torch.Tensor, ...]:
    before = [1.0] * (both + only_before) + [0.0] * (only_after + neither)
    after = [1.0] * both + [0.0] * only_before + [1.0] * only_after + [0.0] * neither
    return torch.tensor(before), torch.tensor(after), torch.ones(len(before))


def test_the_interval_is_that_of_agresti_and_min() -> None:
    # By hand: 30 pictures, of which 2 are lost and 9 won; 32 with half a picture in each cell.
    found = paired_difference(*outcomes(10, 2, 9, 9))

    shrunk = (9.5 - 2.5) / 32
    half = 1.959964 * ((12 / 32 - shrunk**2) / 32) ** 0.5
    assert found.value == pytest.approx(7 / 30)
    assert (found.low, found.high) == pytest.approx((shrunk - half, shrunk + half))


def test_a_few_pictures_show_nothing() -> None:
    found = paired_difference(*outcomes(2, 0, 2, 0))

    assert found.value == 0.5
    assert found.low < 0 < found.high


def test_many_pictures_show_a_small_difference() -> None:
    found = paired_difference(*outcomes(500, 20, 60, 200))

    assert 0 < found.low < found.value < found.high


def test_the_same_decisions_do_not_differ_and_still_have_an_interval() -> None:
    found = paired_difference(*outcomes(5, 0, 0, 5))

    assert found.value == 0
    assert found.low == -found.high
    assert found.high > 0.05


def test_a_weight_counts_as_that_many_pictures() -> None:
    before, after = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])

    found = paired_difference(before, after, torch.tensor([3.0, 1.0]))

    assert found.value == pytest.approx(0.75)
    even = paired_difference(before.repeat(50), after.repeat(50), torch.ones(100))
    uneven = paired_difference(before.repeat(50), after.repeat(50), torch.tensor([3.0, 1.0] * 50))
    assert uneven.high - uneven.low > (even.high - even.low) * 0.8
    assert uneven.value == pytest.approx(0.75)


def test_shares_of_several_decisions_of_a_picture_are_compared() -> None:
    before, after = torch.full((40,), 0.5), torch.full((40,), 0.75)

    found = paired_difference(before, after, torch.ones(40))

    assert found.value == pytest.approx(0.25)
    assert found.low > 0
