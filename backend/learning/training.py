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
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances_argmin_min
from threadpoolctl import ThreadpoolController, threadpool_limits
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
    temperature : float
        What the logits of `head` were divided by to calibrate it, already in its weights. `head`
        may be the mean of several, each with its own: the harmonic mean of those.

    """

    head: Head
    out_of_fold: Tensor | None = None
    of_fewer: Tensor | None = None
    evaluation: Evaluation | None = None
    temperature: float = 1.0


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
    in_sample: Tensor


@dataclass(frozen=True)
class _Judge:
    """What says how good logits are: labels, each with its weight and its `remoteness`."""

    targets: Tensor
    weights: Tensor
    remote: Tensor

    @property
    def looks_in_sample(self) -> bool:
        """Whether anything but out-of-fold logits counts."""
        return bool((self.remote < 1).any())

    def temperature(
        self, out_of_fold: Tensor, in_sample: Tensor, doubt: float = 1.0
    ) -> tuple[float, float]:
        """Return `calibration.temperature` of what lies between these logits, and its loss.

        The smaller `doubt` is, the nearer to `in_sample` (`relative_doubt`).
        """
        unseen = doubt * self.remote
        return temperature(
            torch.cat([out_of_fold, in_sample]),
            torch.cat([self.targets, self.targets]),
            torch.cat([self.weights * unseen, self.weights * (1 - unseen)]),
        )


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
        The zero-shot head, of K choices; a head of zeros where there is no text. On the device of
        the embeddings, as is the head that is returned.
    pool : Tensor[M, D], floating, optional
        Unit vectors of a sample of the pictures that the head is for. Labels picked by
        uncertainty are no sample: with it they count as much as they stand for.

    """
    if len(embeddings) < 2:
        return Trained(prior)
    with _threads_for(embeddings, prior):
        return _train(embeddings, targets, prior, pool)


def _threads_for(embeddings: Tensor, prior: Head) -> AbstractContextManager[object]:
    limits: AbstractContextManager[object]
    if embeddings.numel() * len(prior.weights) < _WORTH_SHARING:
        limits = threadpool_limits(1)
    else:
        # SciPy's threads and torch's take turns and wait for each other in busy loops: on two
        # cores, trainings of 10,000 labels took nearly three times as long as with one of SciPy's.
        limits = ThreadpoolController().select(threading_layer="pthreads").limit(limits=1)
    return limits


def _train(embeddings: Tensor, targets: Tensor, prior: Head, pool: Tensor | None) -> Trained:
    labelled = LabelledSet(embeddings, targets, prior)
    settings = _settings(has_text=labelled.has_text)
    if len(labelled) > _DECIDING:
        parts = stratified_folds(labelled.targets, math.ceil(len(labelled) / _DECIDING))
        deciding = labelled.order[parts == 0]
        some = LabelledSet(embeddings[deciding], targets[deciding], prior)
        with _threads_for(embeddings[deciding], prior):
            beside = nearest_labels(pool, embeddings[deciding][some.order])
            decided = _average(some, settings, _judge(some, embeddings[deciding], pool, beside))
        settings = [max(decided, key=itemgetter(1))[0].setting]
    nearest = nearest_labels(pool, embeddings[labelled.order])
    judge = _judge(labelled, embeddings, pool, nearest)
    averaged = _average(labelled, settings, judge)
    pool = embeddings[:0] if pool is None else pool
    is_new = torch.from_numpy(nearest.distances > _SAME)
    weights = torch.zeros_like(prior.weights)
    bias = torch.zeros_like(prior.bias)
    logits = torch.zeros_like(labelled.prior_logits)
    inverse_temperature = 0.0
    for candidate, share in averaged:
        setting = candidate.setting
        head = (
            prior if setting.pull is None else labelled.fit(pull=setting.pull, trust=setting.trust)
        )
        doubt = relative_doubt(
            head.logits(pool) / candidate.temperature,
            is_new,
            candidate.out_of_fold / candidate.temperature,
            multiple=prior.multiple,
        )
        sharpness, _ = judge.temperature(candidate.out_of_fold, candidate.in_sample, doubt)
        factor = share / sharpness
        inverse_temperature += factor
        weights += factor * head.weights
        bias += factor * head.bias
        logits += factor * candidate.out_of_fold
    out_of_fold = _probabilities(labelled, logits, prior)
    return Trained(
        replace(prior, weights=weights, bias=bias),
        out_of_fold,
        _probabilities(labelled, _of_fewer(labelled, averaged[0][0].setting), prior),
        evaluate(out_of_fold, targets),
        1 / inverse_temperature,
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


def _judge(
    labelled: LabelledSet, embeddings: Tensor, pool: Tensor | None, nearest: Nearest
) -> _Judge:
    weights = labelled.stands_for(pool)
    folds = stratified_folds(labelled.targets)
    remote = remoteness(embeddings[labelled.order], folds, nearest).to(weights)
    if not labelled.has_text:
        # Of a class with one label the head that is to judge it knows nothing at all.
        weights = weights * labelled.has_company
    return _Judge(labelled.targets, weights, remote)


def _average(
    labelled: LabelledSet, settings: Sequence[_Setting], judge: _Judge
) -> list[tuple[_Candidate, float]]:
    """Return the likeliest settings with their shares, which sum to 1."""
    # Nothing is learnt of choices without a label: they are worth what zero-shot has shown to be.
    sharpness, _ = judge.temperature(labelled.prior_logits, labelled.prior_logits)
    labelled.trust_in_others = min(1.0, 1 / sharpness)
    folds = stratified_folds(labelled.targets)
    candidates = []
    for trust in dict.fromkeys(setting.trust for setting in settings):
        of_trust = [setting for setting in settings if setting.trust == trust]
        pulls = [setting.pull for setting in of_trust if setting.pull is not None]
        out_of_fold = labelled.out_of_fold(folds, pulls=pulls, trust=trust)
        in_sample = (
            labelled.in_sample(pulls=pulls, trust=trust) if judge.looks_in_sample else out_of_fold
        )
        fitted = zip(out_of_fold, in_sample, strict=True)
        for setting in of_trust:
            unseen, seen = (
                (labelled.prior_logits, labelled.prior_logits)
                if setting.pull is None
                else next(fitted)
            )
            sharpness, loss = judge.temperature(unseen, seen)
            candidates.append(
                _Candidate(setting, sharpness, _TEMPERING * loss + setting.cost, unseen, seen)
            )
    candidates.sort(key=attrgetter("loss"))
    best = candidates[:_AVERAGED]
    evidence = [math.exp(best[0].loss - candidate.loss) for candidate in best]
    return [
        (candidate, each / sum(evidence)) for candidate, each in zip(best, evidence, strict=True)
    ]


@dataclass(frozen=True)
class Nearest:
    """Of each picture of a pool the nearest label: its row [M] int64, and how far it is [M]."""

    rows: NDArray[np.int64]
    distances: NDArray[np.float64]


def nearest_labels(pool: Tensor | None, embeddings: Tensor) -> Nearest:
    """Return the labelled picture that is nearest to each of the pool, of none where it is None.

    Parameters
    ----------
    pool : Tensor[M, D], floating, optional
    embeddings : Tensor[N, D], floating
        Of the labelled pictures.

    """
    if pool is None or not len(pool):
        return Nearest(np.zeros(0, np.int64), np.zeros(0))
    pictures, labelled = pool.float().cpu().numpy(), embeddings.float().cpu().numpy()
    return Nearest(*pairwise_distances_argmin_min(pictures, labelled))


def remoteness(embeddings: Tensor, folds: Tensor, nearest: Nearest) -> Tensor:
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
    nearest : Nearest
        Of these pictures to those of the pool. Of no pool: as remote as can be.

    Returns
    -------
    Tensor[N] float64 on the CPU, in [0, 1].

    """
    shares = np.ones(len(embeddings))
    own = folds.cpu().numpy()
    if not len(nearest.rows) or not (own != own[0]).any():
        return torch.from_numpy(shares)
    labelled = embeddings.float().cpu().numpy()
    # The labelled pictures may be in the pool, where nothing is to be learnt about them.
    others = nearest.distances > _SAME
    rows, distances = nearest.rows[others], nearest.distances[others]
    counts = np.bincount(rows, minlength=len(labelled))
    sums = np.bincount(rows, weights=distances**2, minlength=len(labelled))
    near = counts > 0
    apart = np.zeros(len(labelled))
    for fold in np.unique(own[near]):
        inside = near & (own == fold)
        apart[inside] = pairwise_distances_argmin_min(labelled[inside], labelled[own != fold])[1]
    known = apart > _SAME
    shares[known] = (sums[known] / counts[known] / apart[known] ** 2).clip(max=1)
    return torch.from_numpy(shares)


def relative_doubt(
    pool_logits: Tensor, is_new: Tensor, out_of_fold: Tensor, *, multiple: bool
) -> float:
    """Return how doubtful the pool is, as a share of how doubtful the labels were.

    Labels that were picked by uncertainty are harder than the pool, so that a temperature fitted
    to them as they are out of fold leaves the head under-confident about the pool. In-sample they
    are settled. As many as this share count out of fold and the others in-sample, and what counts
    is then as doubtful as the pool: a calibration estimator, whose weights reproduce for the sample
    what is known of the population (Deville and Särndal, 1992, "Calibration Estimators in Survey
    Sampling"), were the settled without any doubt. Reckoned with the doubt that they do have, the
    share comes out too small: measured, heads are over-confident then.

    Parameters
    ----------
    pool_logits : Tensor[M, K], floating
        Of the head of all labels.
    is_new : Tensor[M] bool
        Which of them have no label. The others count as doubtful as labels are out of fold.
    out_of_fold : Tensor[N, K], floating
        Logits of the labelled pictures, by heads that have not seen them.
    multiple : bool
        See `Head`.

    Returns
    -------
    float in [0, 1]; 1 where there is no pool.

    """
    before = _doubts(out_of_fold, multiple=multiple).mean()
    of_pool = _doubts(pool_logits.to(before), multiple=multiple)
    now = torch.where(is_new.to(before.device), of_pool, before).mean()
    return (now / before).item() if now < before else 1.0


def _doubts(logits: Tensor, *, multiple: bool) -> Tensor:
    """Return how likely each decision [N] is wrong, were the probabilities true."""
    probabilities = probabilities_of(logits, multiple=multiple)
    if multiple:
        return torch.minimum(probabilities, 1 - probabilities).mean(dim=1)
    return 1 - probabilities.amax(dim=1)


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
