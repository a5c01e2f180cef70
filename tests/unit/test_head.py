from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional

from backend.learning.head import Head, LabelledSet, fit, zero_shot

CHOICES, SIZE = 6, 32


# What a change of weights counts in where the prior has no scale of its own: CLIP's logit scale.
SCALE = 100.0


@dataclass(frozen=True)
class Pictures:
    """Embeddings in a narrow cone, as CLIP's are, and texts that name their classes badly."""

    embeddings: Tensor
    classes: Tensor
    text: Tensor

    @property
    def prior(self) -> Head:
        return zero_shot(self.text, 30.0)

    def accuracy(self, head: Head) -> float:
        """Share of the last 1,000 pictures, which no test trains on."""
        predicted = head.probabilities(self.embeddings[-1000:]).argmax(dim=1)
        return (predicted == self.classes[-1000:]).float().mean().item()


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    draw = torch.Generator().manual_seed(7)
    means = unit(torch.randn(CHOICES, SIZE, generator=draw))
    shared = unit(torch.randn(SIZE, generator=draw))
    classes = torch.randint(CHOICES, (2000,), generator=draw)
    noise = torch.randn(2000, SIZE, generator=draw) / SIZE**0.5
    misnaming = torch.randn(CHOICES, SIZE, generator=draw) / SIZE**0.5
    return Pictures(
        embeddings=unit(0.7 * shared + 0.35 * means[classes] + 0.6 * noise),
        classes=classes,
        text=unit(0.5 * (means + 1.2 * misnaming) - 0.3 * shared),
    )


@pytest.fixture(scope="module")
def several(pictures: Pictures) -> tuple[Tensor, Tensor, Head]:
    """Embeddings, targets and prior where a picture shows its class and the next one."""
    neighbours = functional.one_hot((pictures.classes + 1) % CHOICES, CHOICES)
    targets = (functional.one_hot(pictures.classes, CHOICES) + neighbours).float()
    neutral = unit(pictures.text.mean(dim=0))
    return pictures.embeddings, targets, zero_shot(pictures.text, 30.0, neutral=neutral)


def test_zero_shot_is_clips_softmax_over_scaled_cosines() -> None:
    text = torch.eye(2)

    head = zero_shot(text, 10.0)

    cosines = torch.tensor([[0.6, 0.8]])
    torch.testing.assert_close(head.probabilities(cosines), (10 * cosines).softmax(dim=1))
    assert not head.multiple


def test_multiple_zero_shot_asks_whether_a_choice_beats_the_neutral_prompt() -> None:
    head = zero_shot(torch.eye(3)[:2], 10.0, neutral=torch.eye(3)[2])

    picture = torch.tensor([[0.5, 0.1, 0.5]])
    against_neutral = torch.tensor([[5.0, 5.0], [1.0, 5.0]]).softmax(dim=1)[:, 0]
    torch.testing.assert_close(head.probabilities(picture)[0], against_neutral)
    assert head.multiple


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_head_takes_embeddings_of_any_precision(pictures: Pictures, dtype: torch.dtype) -> None:
    embeddings = pictures.embeddings[:40].to(dtype)

    head = fit(embeddings, pictures.classes[:40], pictures.prior, pull=50.0)

    probabilities = head.probabilities(embeddings)
    assert probabilities.dtype == head.weights.dtype == head.bias.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(40))


def test_no_label_gives_the_prior_itself(pictures: Pictures) -> None:
    prior = pictures.prior

    assert fit(pictures.embeddings[:0], pictures.classes[:0], prior, pull=50.0) is prior


def test_no_label_gives_the_multiple_prior_itself(several: tuple[Tensor, Tensor, Head]) -> None:
    embeddings, targets, prior = several

    assert fit(embeddings[:0], targets[:0], prior, pull=50.0) is prior


@pytest.mark.parametrize("choice", range(CHOICES))
def test_one_label_even_a_wrong_one_changes_no_prediction(pictures: Pictures, choice: int) -> None:
    head = fit(pictures.embeddings[:1], torch.tensor([choice]), pictures.prior, pull=50.0)

    assert torch.equal(
        head.probabilities(pictures.embeddings), pictures.prior.probabilities(pictures.embeddings)
    )


def test_labels_of_one_choice_alone_do_not_make_it_the_answer_to_everything(
    pictures: Pictures,
) -> None:
    before = pictures.accuracy(pictures.prior)
    for choice in range(CHOICES):
        chosen = (pictures.classes[:1000] == choice).nonzero()[:20, 0]

        head = fit(pictures.embeddings[chosen], pictures.classes[chosen], pictures.prior, pull=50.0)

        assert pictures.accuracy(head) > before - 0.05


def test_a_choice_without_a_label_keeps_its_weights_exactly(pictures: Pictures) -> None:
    labelled = (pictures.classes[:300] != 2).nonzero()[:, 0]
    prior = pictures.prior

    head = fit(pictures.embeddings[labelled], pictures.classes[labelled], prior, pull=50.0)

    assert torch.equal(head.weights[2], prior.weights[2])
    assert torch.equal(head.bias[2], prior.bias[2])
    others = [0, 1, 3, 4, 5]
    assert bool((head.weights[others] != prior.weights[others]).any(dim=1).all())


def test_a_choice_without_a_label_is_still_predicted(pictures: Pictures) -> None:
    labelled = (pictures.classes[:300] != 2).nonzero()[:, 0]
    head = fit(pictures.embeddings[labelled], pictures.classes[labelled], pictures.prior, pull=50.0)

    of_choice = pictures.embeddings[-1000:][pictures.classes[-1000:] == 2]

    def recall(head: Head) -> float:
        return (head.probabilities(of_choice).argmax(dim=1) == 2).float().mean().item()

    assert recall(head) > recall(pictures.prior) / 2


def test_a_multiple_choice_learns_only_from_pictures_with_and_without_it(
    several: tuple[Tensor, Tensor, Head],
) -> None:
    embeddings, targets, prior = several
    targets = targets[:200].clone()
    targets[:, 0], targets[:, 1] = 0, 1

    head = fit(embeddings[:200], targets, prior, pull=50.0)

    assert torch.equal(head.weights[:2], prior.weights[:2])
    assert torch.equal(head.bias[:2], prior.bias[:2])
    assert bool((head.weights[2:] != prior.weights[2:]).any(dim=1).all())


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_multiple_labels_of_any_number_give_finite_heads(
    several: tuple[Tensor, Tensor, Head], count: int
) -> None:
    embeddings, targets, prior = several

    head = fit(embeddings[:count], targets[:count], prior, pull=50.0)

    assert head.multiple
    assert bool(head.weights.isfinite().all() and head.bias.isfinite().all())


def test_a_fit_that_starts_from_a_rough_one_ends_where_others_do(pictures: Pictures) -> None:
    embeddings, targets = pictures.embeddings[:60], pictures.classes[:60]
    alone = fit(embeddings, targets, pictures.prior, pull=10.0, trust=0.5)
    labelled = LabelledSet(embeddings, targets, pictures.prior)

    labelled.in_sample(pulls=[100.0, 10.0], trust=0.5)
    first, second = (labelled.fit(pull=10.0, trust=0.5) for _ in range(2))

    assert torch.allclose(first.weights, alone.weights, atol=1e-2)
    assert torch.allclose(
        first.logits(pictures.embeddings), alone.logits(pictures.embeddings), atol=1e-3
    )
    # What was fitted before is no part of what the labels say.
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(first.bias, second.bias)


@pytest.mark.parametrize("multiple", [False, True])
def test_the_same_labels_give_the_same_head_to_the_last_bit_in_any_order(
    pictures: Pictures, several: tuple[Tensor, Tensor, Head], multiple: bool
) -> None:
    embeddings = pictures.embeddings[:100]
    targets = several[1][:100] if multiple else pictures.classes[:100]
    prior = several[2] if multiple else pictures.prior
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(0))

    first = fit(embeddings, targets, prior, pull=50.0)
    again = fit(embeddings, targets, prior, pull=50.0)
    reordered = fit(embeddings[shuffled], targets[shuffled], prior, pull=50.0)

    for other in (again, reordered):
        assert torch.equal(first.weights, other.weights)
        assert torch.equal(first.bias, other.bias)


@pytest.mark.parametrize("pull", [0.03, 1.0])
def test_without_a_prior_it_is_scikit_learns_balanced_logistic_regression(
    pictures: Pictures, pull: float
) -> None:
    # Unequal classes, so that the balance matters.
    embeddings, classes = pictures.embeddings[:300], pictures.classes[:300]
    kept = (classes != 0) | (torch.arange(300) < 40)
    embeddings, classes = embeddings[kept], classes[kept]
    means = torch.stack([embeddings[classes == k].mean(dim=0) for k in range(CHOICES)])
    features = with_constant(embeddings - means.mean(dim=0), classes=CHOICES)

    head = fit(embeddings, classes, nothing(multiple=False), pull=pull * SCALE**2)

    theirs = LogisticRegression(
        C=1 / pull, class_weight="balanced", fit_intercept=False, tol=1e-8, max_iter=10_000
    ).fit(features, classes.numpy())
    np.testing.assert_allclose(
        head.probabilities(embeddings).numpy(), theirs.predict_proba(features), atol=2e-4
    )


def test_multiple_without_a_prior_is_one_balanced_regression_a_choice(
    several: tuple[Tensor, Tensor, Head],
) -> None:
    embeddings, targets = several[0][:200], several[1][:200]
    features = with_constant(embeddings - embeddings.mean(dim=0), classes=2)

    head = fit(embeddings, targets, nothing(multiple=True), pull=0.1 * SCALE**2)

    for choice in range(CHOICES):
        theirs = LogisticRegression(
            C=10, class_weight="balanced", fit_intercept=False, tol=1e-8, max_iter=10_000
        ).fit(features, targets[:, choice].numpy())
        np.testing.assert_allclose(
            head.probabilities(embeddings)[:, choice].numpy(),
            theirs.predict_proba(features)[:, 1],
            atol=2e-4,
        )


def test_with_a_prior_and_an_unlabelled_choice_no_change_of_weights_lowers_the_loss(
    pictures: Pictures,
) -> None:
    labelled = (pictures.classes[:120] != 2).nonzero()[:, 0]
    embeddings = pictures.embeddings[labelled].double()
    classes = pictures.classes[labelled]
    prior = pictures.prior
    head = fit(embeddings, classes, prior, pull=50.0)

    sizes = classes.bincount(minlength=CHOICES)
    balance = (len(classes) / ((sizes > 0).sum() * sizes.double()))[classes]
    centre = balance @ embeddings / balance.sum()

    def slope(of: Head) -> Tensor:
        """Steepest slope of the loss in the learning weights, the logits at the centre held."""
        weights = of.weights.double().requires_grad_()
        level = of.bias.double() + of.weights.double() @ centre
        logits = (embeddings - centre) @ weights.T + level
        losses = balance * functional.cross_entropy(logits, classes, reduction="none")
        penalty = 50.0 / 2 * ((weights - prior.weights) / 30.0).square().sum()
        (gradient,) = torch.autograd.grad(losses.sum() + penalty, weights)
        return gradient[sizes > 0].abs().max()

    assert slope(head) < 1e-4 * slope(prior)


def test_a_strong_pull_keeps_the_prior_and_a_weak_one_fits_the_labels(pictures: Pictures) -> None:
    embeddings, classes, prior = pictures.embeddings[:60], pictures.classes[:60], pictures.prior

    strong, weak = (fit(embeddings, classes, prior, pull=pull) for pull in (1e9, 1e-3))

    torch.testing.assert_close(strong.weights, prior.weights, atol=1e-3, rtol=0)
    assert torch.equal(weak.probabilities(embeddings).argmax(dim=1), classes)


def test_accuracy_rises_with_labels_and_never_falls_clearly_below_zero_shot(
    pictures: Pictures,
) -> None:
    zero = pictures.accuracy(pictures.prior)

    accuracies = [
        pictures.accuracy(
            fit(pictures.embeddings[:n], pictures.classes[:n], pictures.prior, pull=50.0)
        )
        for n in (1, 3, 10, 30, 100, 300, 1000)
    ]

    assert min(accuracies) > zero - 0.02
    assert accuracies[2:] == sorted(accuracies[2:])
    assert accuracies[-1] > zero + 0.2


def test_digits_with_badly_worded_texts_are_learned() -> None:
    digits = load_digits()
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(digits.target), generator=draw)
    embeddings = unit(torch.from_numpy(digits.data).float())[order]
    classes = torch.from_numpy(digits.target)[order]
    means = torch.stack([embeddings[classes == k].mean(dim=0) for k in range(10)])
    text = unit(means + 0.6 * torch.randn(10, 64, generator=draw) / 8)
    learner = Pictures(embeddings, classes, text)

    zero, few, some, many = (
        learner.accuracy(fit(embeddings[:n], classes[:n], learner.prior, pull=50.0))
        for n in (0, 10, 100, 700)
    )

    assert few > zero - 0.02
    assert zero + 0.05 < some < many


def unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors, dim=-1)


def nothing(*, multiple: bool) -> Head:
    return Head(torch.zeros(CHOICES, SIZE), torch.zeros(CHOICES), multiple=multiple)


def with_constant(embeddings: Tensor, *, classes: int) -> np.ndarray:
    """Append the bias's feature, whose size grows to 0.5 as labels outnumber the classes."""
    others = len(embeddings) - 1
    constant = 0.5 * (others / (others + classes)) ** 0.5
    return functional.pad(embeddings.double(), (0, 1), value=constant).numpy()
