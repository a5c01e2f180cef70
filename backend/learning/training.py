"""Labels to a calibrated head, with what is known about how good it is.

How much to trust the text and how strongly to pull towards it is decided by stratified
cross-validation. Few labels decide little, so no single setting is picked: the likeliest few are
averaged with the weight of their out-of-fold likelihood (pseudo-Bayesian model averaging; Yao et
al., 2018, "Using Stacking to Average Bayesian Predictive Distributions", section 2). The average
of linear heads is a linear head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter

import numpy as np
import torch
from sklearn.metrics import pairwise_distances_argmin_min
from threadpoolctl import threadpool_limits
from torch import Tensor

from backend.learning.calibration import temperature
from backend.learning.evaluation import Evaluation, evaluate
from backend.learning.head import Head, LabelledSet, probabilities_of

FOLDS = 5

# Decades are enough, since neighbours are averaged. A wrong text (digits seen by a CLIP that never
# saw any) costs half the accuracy at 50 labels unless it can be distrusted.
_PULLS = (1000.0, 100.0, 10.0, 1.0, 0.1)
_TRUSTS = (1.0, 0.5, 0.0)

# In nats of tempered log loss: what a setting has to be better by than the usual one, a pull of 100
# with full trust in the text, and than zero-shot, which is what a handful of labels has to beat.
_USUAL_PULL = 100.0
_COST_PER_DECADE = 1.0
_COST_OF_DISTRUST = 2.5

# Out-of-fold losses count half (Grünwald and van Ommen, 2017, "Inconsistency of Bayesian Inference
# for Misspecified Linear Models, and a Proposal for Repairing It"). Labels that were picked to
# differ say little about each other, so that what is out of fold looks harder than the pool is.
_TEMPERING = 0.5

# A distance of unit vectors below which two are of the same picture.
_SAME = 1e-3

# Averaging more changes nothing in the third digit.
_AVERAGED = 4

# Products in a step of L-BFGS. Threads that share fewer wait for each other: on two cores that had
# other work, two threads made trainings of 200 labels more than fifty times as long as one does.
_WORTH_SHARING = 10_000_000

# So many labels decide the settings as well as all would: the loss is a sum over labels, so that
# what holds for these holds for more.
_DECIDING = 250


@dataclass(frozen=True)
class Trained:
    """A head and the evidence for it.

    Attributes
    ----------
    head : Head
        Its probabilities are calibrated.
    out_of_fold : Tensor[N, K] float32, optional
        For each labelled picture, in the order given, the probabilities of a head that was not
        trained on it; None where there are fewer than two labels.
    of_fewer : Tensor[N, K] float32, optional
        The same of heads that were trained on half as many labels as those.
    evaluation : Evaluation, optional
        Of `out_of_fold`.

    """

    head: Head
    out_of_fold: Tensor | None = None
    of_fewer: Tensor | None = None
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class _Setting:
    """One way to learn: a trust in the text, and a pull towards it (None: zero-shot itself)."""

    trust: float
    pull: float | None

    @property
    def cost(self) -> float:
        """What it has to be better by, in nats."""
        if self.pull is None:
            return 0.0
        decades = abs(math.log10(self.pull / _USUAL_PULL))
        return _COST_OF_DISTRUST * (1 - self.trust) + _COST_PER_DECADE * decades


@dataclass(frozen=True)
class _Candidate:
    setting: _Setting
    temperature: float
    loss: float
    out_of_fold: Tensor


def train(
    embeddings: Tensor, targets: Tensor, prior: Head, *, pool: Tensor | None = None
) -> Trained:
    """Return the prior moved to the labels as far as they support it, and calibrated.

    The same labels give the same head to the last bit on one device, in whatever order they come.

    Parameters
    ----------
    embeddings : Tensor[N, D], floating
        Unit vectors of the labelled pictures.
    targets : Tensor[N] int64, or Tensor[N, K] float32 of 0 and 1 with a `multiple` prior
        Index of the choice, or which choices apply.
    prior : Head
        The zero-shot head, of K choices; a head of zeros where there is no text.
    pool : Tensor[M, D], floating, optional
        Unit vectors of a sample of the pictures that the head is for. Labels picked by
        uncertainty are no sample: with it they count as much as they stand for.

    """
    if len(embeddings) < 2:
        return Trained(prior)
    with _threads_for(embeddings, prior):
        return _train(embeddings, targets, prior, pool)


def _threads_for(embeddings: Tensor, prior: Head) -> AbstractContextManager[object]:
    products = embeddings.numel() * len(prior.weights)
    return threadpool_limits(1) if products < _WORTH_SHARING else nullcontext()


def _train(embeddings: Tensor, targets: Tensor, prior: Head, pool: Tensor | None) -> Trained:
    labelled = LabelledSet(embeddings, targets, prior)
    settings = _settings(has_text=labelled.has_text)
    if len(labelled) > _DECIDING:
        parts = stratified_folds(labelled.targets, math.ceil(len(labelled) / _DECIDING))
        deciding = labelled.order[parts == 0]
        some = LabelledSet(embeddings[deciding], targets[deciding], prior)
        with _threads_for(embeddings[deciding], prior):
            decided = _average(some, settings, embeddings[deciding], pool)
        settings = [max(decided, key=itemgetter(1))[0].setting]
    averaged = _average(labelled, settings, embeddings, pool)
    weights = torch.zeros_like(prior.weights)
    bias = torch.zeros_like(prior.bias)
    logits = torch.zeros_like(labelled.prior_logits)
    for candidate, share in averaged:
        factor = share / candidate.temperature
        setting = candidate.setting
        head = (
            prior if setting.pull is None else labelled.fit(pull=setting.pull, trust=setting.trust)
        )
        weights += factor * head.weights
        bias += factor * head.bias
        logits += factor * candidate.out_of_fold
    out_of_fold = _probabilities(labelled, logits, prior)
    return Trained(
        replace(prior, weights=weights, bias=bias),
        out_of_fold,
        _probabilities(labelled, _of_fewer(labelled, averaged[0][0].setting), prior),
        evaluate(out_of_fold, targets),
    )


def _of_fewer(labelled: LabelledSet, setting: _Setting) -> Tensor:
    if setting.pull is None:
        return labelled.prior_logits
    (logits,) = labelled.out_of_fold(
        stratified_folds(labelled.targets),
        pulls=[setting.pull],
        trust=setting.trust,
        seen_folds=(FOLDS - 1) // 2,
    )
    return logits


def _probabilities(labelled: LabelledSet, logits: Tensor, prior: Head) -> Tensor:
    probabilities = probabilities_of(logits, multiple=prior.multiple).float()
    return labelled.in_given_order(probabilities).to(prior.weights.device)


def _settings(*, has_text: bool) -> list[_Setting]:
    if not has_text:
        return [_Setting(1.0, pull) for pull in _PULLS]
    return [
        _Setting(1.0, None),
        *(_Setting(trust, pull) for trust in _TRUSTS for pull in _PULLS),
    ]


def _average(
    labelled: LabelledSet, settings: Sequence[_Setting], embeddings: Tensor, pool: Tensor | None
) -> list[tuple[_Candidate, float]]:
    """Return the likeliest settings with their shares, which sum to 1."""
    weights = labelled.stands_for(pool)
    folds = stratified_folds(labelled.targets)
    remote = remoteness(embeddings[labelled.order], folds, pool).to(weights)
    if not labelled.has_text:
        # Of a class with one label the head that is to judge it knows nothing at all.
        weights = weights * labelled.has_company
    # Nothing is learnt of choices without a label: they are worth what zero-shot has shown to be.
    sharpness, _ = temperature(labelled.prior_logits, labelled.targets, weights)
    labelled.trust_in_others = min(1.0, 1 / sharpness)
    weights = torch.cat([weights * remote, weights * (1 - remote)])
    targets = torch.cat([labelled.targets, labelled.targets])
    candidates = []
    for trust in dict.fromkeys(setting.trust for setting in settings):
        of_trust = [setting for setting in settings if setting.trust == trust]
        pulls = [setting.pull for setting in of_trust if setting.pull is not None]
        fitted = zip(
            labelled.out_of_fold(folds, pulls=pulls, trust=trust),
            labelled.in_sample(pulls=pulls, trust=trust),
            strict=True,
        )
        for setting in of_trust:
            unseen, seen = (
                (labelled.prior_logits, labelled.prior_logits)
                if setting.pull is None
                else next(fitted)
            )
            sharpness, loss = temperature(torch.cat([unseen, seen]), targets, weights)
            candidates.append(
                _Candidate(setting, sharpness, _TEMPERING * loss + setting.cost, unseen)
            )
    candidates.sort(key=attrgetter("loss"))
    best = candidates[:_AVERAGED]
    evidence = [math.exp(best[0].loss - candidate.loss) for candidate in best]
    return [
        (candidate, each / sum(evidence)) for candidate, each in zip(best, evidence, strict=True)
    ]


def remoteness(embeddings: Tensor, folds: Tensor, pool: Tensor | None) -> Tensor:
    """Return how far the pool is from the labels, as a share of how far they are from each other.

    Pictures that were picked to cover the pool are far from each other and near to all of it: a
    head that has not seen a label's fold knows less about it than the head of all labels knows
    about its neighbours. How good a head is there lies between its out-of-fold and its in-sample
    loss, as in the .632 estimator, whose constant is the same share for random draws (Efron, 1983,
    "Estimating the Error Rate of a Prediction Rule: Improvement on Cross-Validation"). Here it is
    measured: the mean squared distance of the pictures to whose nearest label it is, over the
    squared distance of that label to the nearest of another fold.

    Parameters
    ----------
    embeddings : Tensor[N, D], floating
        Of the labelled pictures.
    folds : Tensor[N] int64
    pool : Tensor[M, D], floating, optional
        None: as remote as can be.

    Returns
    -------
    Tensor[N] float64 on the CPU, in [0, 1].

    """
    shares = np.ones(len(embeddings))
    if pool is None or not len(pool):
        return torch.from_numpy(shares)
    labelled, pictures = embeddings.float().cpu().numpy(), pool.float().cpu().numpy()
    apart = np.empty(len(labelled))
    for fold in np.unique(own := folds.cpu().numpy()):
        inside = own == fold
        if inside.all():
            return torch.from_numpy(shares)
        apart[inside] = pairwise_distances_argmin_min(labelled[inside], labelled[~inside])[1]
    nearest, distances = pairwise_distances_argmin_min(pictures, labelled)
    # The labelled pictures may be in the pool, where nothing is to be learnt about them.
    others = distances > _SAME
    counts = np.bincount(nearest[others], minlength=len(labelled))
    sums = np.bincount(nearest[others], weights=distances[others] ** 2, minlength=len(labelled))
    known = (counts > 0) & (apart > _SAME)
    shares[known] = (sums[known] / counts[known] / apart[known] ** 2).clip(max=1)
    return torch.from_numpy(shares)


def stratified_folds(targets: Tensor, count: int = FOLDS) -> Tensor:
    """Return the fold, below `count`, of each label; each fold has its share of each class.

    Parameters
    ----------
    targets : Tensor[N] int64, or Tensor[N, K] of 0 and 1
        In an order that does not depend on how they came: the folds follow it.

    Returns
    -------
    Tensor[N] int64.

    """
    if targets.ndim == 2:
        targets = torch.unique(targets, dim=0, return_inverse=True)[1]
    folds = torch.empty_like(targets)
    folds[targets.argsort(stable=True)] = torch.arange(len(targets), device=targets.device) % count
    return folds
