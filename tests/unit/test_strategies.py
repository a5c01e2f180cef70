from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from backend.learning.strategies import STRATEGIES, combine
from backend.learning.uncertainty import entropy, least_certain_label, least_confidence, margin

PROBABILITIES = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [1.0, 0.0, 0.0]])
KEYS = ["task 1, version 3", "task 2, version 3", "task 3, version 3"]
MEASURES = {"margin": margin, "entropy": entropy, "least": least_confidence}


def test_the_strategies_have_the_names_that_users_set() -> None:
    assert set(STRATEGIES) == {"margin", "entropy", "least", "random"}


@pytest.mark.parametrize("name", MEASURES)
def test_a_strategy_is_its_measure_on_one_softmax(name: str) -> None:
    uncertainties = STRATEGIES[name](PROBABILITIES, multiple=False, keys=KEYS)

    assert torch.equal(uncertainties, MEASURES[name](PROBABILITIES))


@pytest.mark.parametrize("name", MEASURES)
def test_a_strategy_takes_the_least_certain_of_multiple_labels(name: str) -> None:
    uncertainties = STRATEGIES[name](PROBABILITIES, multiple=True, keys=KEYS)

    assert torch.equal(uncertainties, least_certain_label(PROBABILITIES, MEASURES[name]))


@pytest.mark.parametrize("multiple", [False, True])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_answers_float32_per_task(name: str, multiple: bool) -> None:
    uncertainties = STRATEGIES[name](PROBABILITIES.double(), multiple=multiple, keys=KEYS)

    assert uncertainties.shape == (3,)
    assert uncertainties.dtype == torch.float32


@pytest.mark.parametrize("multiple", [False, True])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_takes_no_tasks(name: str, multiple: bool) -> None:
    assert STRATEGIES[name](torch.ones(0, 3), multiple=multiple, keys=[]).shape == (0,)


def test_random_depends_on_a_tasks_key_alone() -> None:
    forwards = draw(KEYS)
    backwards = draw(KEYS[::-1])

    assert torch.equal(forwards, backwards.flip(0))
    assert not torch.equal(forwards, draw(["task 1, version 4", *KEYS[1:]]))


def test_random_is_the_same_in_another_process() -> None:
    program = (
        "import torch; from backend.learning.strategies import STRATEGIES;"
        f"print(STRATEGIES['random'](torch.ones(3, 1), multiple=False, keys={KEYS}).tolist())"
    )

    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert other.stdout.strip() == str(draw(KEYS).tolist())


def test_random_is_uniform_below_1() -> None:
    draws = draw([f"task {number}" for number in range(10_000)])

    shares = draws.histc(bins=10, min=0, max=1) / len(draws)
    assert draws.max() < 1
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.015, rtol=0)


def test_random_knows_keys_of_any_script() -> None:
    assert len(set(draw(["tâche 1", "タスク 1", "绘画 1"]).tolist())) == 3


def test_the_least_certain_control_decides() -> None:
    first, second = torch.tensor([0.1, 0.9, 0.5]), torch.tensor([0.3, 0.2, 0.5])

    assert torch.equal(combine([first, second]), torch.tensor([0.3, 0.9, 0.5]))


def test_one_control_decides_alone() -> None:
    only = torch.tensor([0.1, 0.9])

    assert torch.equal(combine([only]), only)


def draw(keys: list[str]) -> Tensor:
    return STRATEGIES["random"](torch.ones(len(keys), 1), multiple=False, keys=keys)
