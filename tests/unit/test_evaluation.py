from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score

from backend.learning.calibration import temperature
from backend.learning.evaluation import calibration_error, evaluate


def draw(count: int, choices: int, sharpness: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels that are drawn from their probabilities."""
    generator = torch.Generator().manual_seed(0)
    logits = sharpness * torch.randn(count, choices, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]


def test_figures_are_scikit_learns() -> None:
    logits, labels = draw(300, 8)
    probabilities = logits.softmax(dim=1)

    evaluation = evaluate(probabilities, labels)
    y, p = labels.numpy(), probabilities.numpy()
    assert evaluation.labels == 300
    assert evaluation.top1 == pytest.approx(top_k_accuracy_score(y, p, k=1))
    assert evaluation.top5 == pytest.approx(top_k_accuracy_score(y, p, k=5))
    assert evaluation.log_loss == pytest.approx(log_loss(y, p))


def test_of_few_choices_all_are_among_the_five_likeliest() -> None:
    logits, labels = draw(50, 3)

    assert evaluate(logits.softmax(dim=1), labels).top5 == 1


def test_independent_choices_count_one_by_one() -> None:
    probabilities = torch.tensor([[0.9, 0.2], [0.6, 0.4]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0]])

    evaluation = evaluate(probabilities, targets)
    assert evaluation.labels == 2
    assert evaluation.top1 == evaluation.top5 == pytest.approx(3 / 4)
    expected = -np.log([0.9, 0.8, 0.4, 0.6]).mean()
    assert evaluation.log_loss == pytest.approx(expected, rel=1e-6)


def test_a_label_of_probability_0_costs_a_finite_loss() -> None:
    assert np.isfinite(evaluate(torch.tensor([[1.0, 0.0]]), torch.tensor([1])).log_loss)


def test_calibration_error_by_hand() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.55])
    correct = torch.tensor([1, 1, 1, 0, 1])

    # Of four at 0.95 three are right: 0.2 too sure; the one at 0.55 is right: 0.45 too humble.
    assert calibration_error(confidence, correct) == pytest.approx((4 * 0.2 + 0.45) / 5)


def test_who_draws_labels_from_the_probabilities_is_calibrated() -> None:
    logits, labels = draw(50_000, 5)

    assert evaluate(logits.softmax(dim=1), labels).calibration_error < 0.01
    assert evaluate((3 * logits).softmax(dim=1), labels).calibration_error > 0.1


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_factor_on_the_logits(factor: float) -> None:
    logits, labels = draw(20_000, 5)

    found, _ = temperature(factor * logits, labels, torch.ones(len(labels)).double())
    assert found == pytest.approx(factor, rel=0.03)


def test_few_labels_hardly_move_the_temperature() -> None:
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()

    found, _ = temperature(logits, torch.tensor([0, 1]), torch.ones(2).double())
    assert 1 < found < 1.5


def test_labels_count_by_their_weights() -> None:
    logits, labels = draw(2000, 4)
    wrong = (labels + 1) % 4
    both, all_labels = torch.cat([logits, logits]), torch.cat([labels, wrong])

    weighed, _ = temperature(
        both, all_labels, torch.cat([torch.ones(2000), torch.zeros(2000)]).double()
    )
    alone, _ = temperature(logits, labels, torch.ones(2000).double())
    assert weighed == pytest.approx(alone, rel=1e-3)


def test_independent_choices_have_a_temperature_too() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(5000, 3, generator=generator, dtype=torch.float64)
    targets = torch.bernoulli(logits.sigmoid(), generator=generator)

    found, _ = temperature(2 * logits, targets, torch.ones(5000).double())
    assert found == pytest.approx(2, rel=0.05)
