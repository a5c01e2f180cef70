"""The classifier on embeddings: zero-shot from the choices' texts, then fitted to labels.

Learning is a penalised logistic regression around the zero-shot head. Its units: a change of
weights counts in logit scales (W = W0 + s·V, s the mean norm of the prior's weights), so that
`pull` means the same for CLIPs of any logit scale. The loss is a sum over labels, so that the
pull decides at few labels and fades as they grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor
from torch.nn import functional

_Objective = Callable[[Tensor], tuple[Tensor, Tensor]]

# The scale of a prior that says nothing: CLIP's own logit scale, so that a pull means the same
# with and without text.
_SCALE = 100.0

# The constant feature that carries the bias. Real embeddings share a mean of norm 0.6 to 0.8,
# which a plain regression would use as such a feature; 0.5 learns as much from many labels.
_BIAS_FEATURE = 0.5

# By the prior's certainty, to weigh labels that were picked by it.
_STRATA = 5


@dataclass(frozen=True)
class _Precision:
    """What L-BFGS computes in, how many steps it remembers, and where it stops.

    `gain` is the share of the loss that a step has to be worth: where labels are fitted well, the
    loss is small, and what is left of it decides what is said of pictures that were not seen.
    """

    dtype: torch.dtype
    remembered: int
    gain: float


# For the head that is published, and for one of very many that are compared.
_PRECISE = _Precision(torch.float64, 20, gain=1e-8)
_ROUGH = _Precision(torch.float32, 5, gain=3e-4)

# Logits, from which on they are kept in half the memory, and the published head is fitted in half
# the time. Of so many labels or choices, what rounding moves is far below what labels leave open.
_MANY_LOGITS = 250_000
_PRECISE_OF_MANY = _Precision(torch.float32, 5, gain=1e-6)

# A search that starts from nothing stops here first, to measure how the loss curves from there on.
_FIRST_GAIN = 0.1

# How the loss curves, as a share of the features' second moments times the mean residual where a
# search starts. A softmax's curves by a half of the moments at most (Böhning, 1992, "Multinomial
# Logistic Regression Algorithm"), and by next to nothing where it is sure of all labels. Measured
# with 2 to 1,000 labels of each of 3 to 200 choices: half as much takes about as many steps.
_CURVATURE = 0.1


@dataclass(frozen=True)
class Head:
    """A linear classifier on unit embeddings.

    Attributes
    ----------
    weights : Tensor[K, D] float32
    bias : Tensor[K] float32
    multiple : bool
        An independent sigmoid per choice instead of one softmax over all.

    """

    weights: Tensor
    bias: Tensor
    multiple: bool

    def to(self, device: torch.device | str) -> Head:
        """Return the same head on a device."""
        return replace(self, weights=self.weights.to(device), bias=self.bias.to(device))

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return logits [N, K] float32 of unit embeddings [N, D]."""
        return functional.linear(embeddings.float(), self.weights, self.bias)

    def probabilities(self, embeddings: Tensor) -> Tensor:
        """Return the probability of each choice.

        Parameters
        ----------
        embeddings : Tensor[N, D], any floating dtype
            Unit vectors.

        Returns
        -------
        Tensor[N, K] float32; rows sum to 1 unless `multiple`.

        """
        return probabilities_of(self.logits(embeddings), multiple=self.multiple)


def probabilities_of(logits: Tensor, *, multiple: bool) -> Tensor:
    """Return probabilities [N, K] of logits [N, K]."""
    return logits.sigmoid() if multiple else logits.softmax(dim=1)


def zero_shot(text: Tensor, logit_scale: float, *, neutral: Tensor | None = None) -> Head:
    """Return the head that knows the choices' texts only (Radford et al., 2021, section 3.1).

    Parameters
    ----------
    text : Tensor[K, D], floating
        Unit embeddings of the choices.
    logit_scale : float
        CLIP's own factor from cosine to logit.
    neutral : Tensor[D], floating, optional
        Unit embedding of a prompt that names nothing. With it the head is `multiple`: the
        probability that the choice describes the picture better than this prompt, a softmax
        over the two.

    """
    weights = text.float() if neutral is None else text.float() - neutral.float()
    return Head(
        weights=logit_scale * weights,
        bias=torch.zeros(text.shape[0], dtype=torch.float32, device=text.device),
        multiple=neutral is not None,
    )


def fit(
    embeddings: Tensor, targets: Tensor, prior: Head, *, pull: float, trust: float = 1.0
) -> Head:
    """Return the prior moved to the labels: the maximum a posteriori logistic regression.

    Minimises Σ w·(log loss) + pull/2·(‖V‖² + ‖c‖²) over the changes V and c of the learning
    choices' weights and biases in logit scales, w balancing the classes (King and Zeng, 2001;
    w = N / (classes · class size)). The other choices keep the prior's weights and bias and stay
    competitors in the softmax. A choice learns once it has a label; with `multiple`, once it was
    given to one picture and withheld from another.

    Embeddings are centred on the labelled ones first. CLIP's lie in a narrow cone, so that a
    weight change along one picture would raise its choice for every picture; after centring
    it acts where the picture differs from the others. What all pictures share is then the bias's
    alone, and the bias of K choices is trusted only as labels outnumber the choices, and only
    relative to other labelled ones. One label therefore changes nothing.

    The same labels give the same head to the last bit on one device, in whatever order they come.

    Parameters
    ----------
    embeddings : Tensor[N, D], floating
        Unit vectors of the labelled pictures.
    targets : Tensor[N] int64, or Tensor[N, K] float32 of 0 and 1 with a `multiple` prior
        Index of the choice, or which choices apply.
    prior : Head
        The zero-shot head, of K choices.
    pull : float
        Strength of the penalty; the weight of one label is about 1.
    trust : float
        Factor on the prior's logits of the choices that learn, from 0 (the text says nothing)
        to 1.

    """
    if not len(embeddings):
        return prior
    return LabelledSet(embeddings, targets, prior).fit(pull=pull, trust=trust)


class LabelledSet:
    """Labelled pictures along their own principal axes, for many fits of the same ones.

    The change that labels bring to a weight is a sum of their pictures' embeddings, less a mean of
    them. N labelled pictures have N axes instead of D, along which it has the same norm, and the
    loss of labels curves along each nearly by itself.

    Attributes
    ----------
    order : Tensor[N] int64
        Where each picture was among those given: the set has an order of its own.
    targets : Tensor[N] int64, or Tensor[N, K] of 0 and 1
    prior_logits : Tensor[N, K] float64, or float32 where they are very many
    trust_in_others : float
        Factor on the prior's logits of the choices that do not learn.

    """

    def __init__(self, embeddings: Tensor, targets: Tensor, prior: Head) -> None:
        """Take N > 0 labelled pictures; see `fit` for the parameters."""
        self.order = _canonical_order(embeddings, targets)
        features = embeddings[self.order].double()
        self.targets = targets[self.order]
        self.trust_in_others = 1.0
        self._prior = prior
        self._weights = prior.weights.double()
        self._bias = prior.bias.double()
        self._has_many_logits = len(features) * len(self._weights) > _MANY_LOGITS
        if self._has_many_logits:
            self.prior_logits = prior.logits(features)
        else:
            self.prior_logits = features @ self._weights.T + self._bias
        self._scale = self._weights.norm(dim=1).mean().item() or _SCALE
        self._mean = features.mean(dim=0)
        features = features - self._mean
        self._axes = _principal_axes(features)
        self._features = features @ self._axes
        # By trust and pull, where the rough search among all labels ended.
        self._in_sample: dict[tuple[float, float], Tensor] = {}

    def __len__(self) -> int:
        return len(self._features)

    def fit(self, *, pull: float, trust: float) -> Head:
        """Return the head fitted to all; see `fit`."""
        everything = torch.arange(len(self), device=self.targets.device)
        precision = _PRECISE_OF_MANY if self._has_many_logits else _PRECISE
        start = self._in_sample.get((trust, pull))
        (change,) = self._changes(everything, trust, [pull], precision, start)
        shift = change.weights.to(self._weights) @ self._axes.T
        learning = change.learning
        weights, bias = self.trust_in_others * self._weights, self.trust_in_others * self._bias
        weights[learning] = trust * self._weights[learning] + shift
        bias[learning] = trust * self._bias[learning] + change.bias - shift @ self._mean
        return replace(
            self._prior, weights=weights.to(self._prior.weights), bias=bias.to(self._prior.bias)
        )

    @property
    def has_text(self) -> bool:
        """Whether the prior says anything."""
        return bool(self._weights.any())

    @property
    def has_company(self) -> Tensor:
        """Whether another picture [N] bool has the same label."""
        kinds: Tensor = torch.unique(self.targets, dim=0, return_inverse=True)[1]
        alone: Tensor = kinds.bincount()[kinds] == 1
        return ~alone

    def stands_for(self, pool: Tensor | None) -> Tensor:
        """Return how much each label counts [N] float64 as one of a sample of the pool.

        Where the prior is as certain as of these labelled pictures lies some share of the pool; a
        larger share of the labels counts no more than that. A label never counts twice: where
        there are few, they say little.

        Parameters
        ----------
        pool : Tensor[M, D], floating, optional
            None: the labels are a sample.

        """
        if pool is None or not len(pool):
            return torch.ones_like(self.prior_logits[:, 0], dtype=torch.float64)
        certainty = _certainty(self.prior_logits, multiple=self._prior.multiple)
        of_pool = _certainty(
            self._prior.logits(pool).to(self.prior_logits), multiple=self._prior.multiple
        )
        quantiles = torch.arange(1, _STRATA, dtype=torch.float64, device=certainty.device) / _STRATA
        edges = of_pool.quantile(quantiles.to(of_pool))
        stratum = torch.bucketize(certainty, edges)
        labels = stratum.bincount(minlength=_STRATA)
        pictures = torch.bucketize(of_pool, edges).bincount(minlength=_STRATA)
        shares = pictures.double() / len(of_pool) * len(certainty) / labels
        return shares[stratum].clamp_max(1)

    def out_of_fold(
        self,
        folds: Tensor,
        *,
        pulls: Sequence[float],
        trust: float,
        seen_folds: int | None = None,
    ) -> list[Tensor]:
        """Return for each pull the logits of heads that have not seen the picture's fold.

        Parameters
        ----------
        folds : Tensor[N] int64
            The fold of each picture, in the order of `targets`.
        pulls : sequence of float
            Strengths of the penalty; from strong to weak is fastest.
        trust : float
            See `fit`.
        seen_folds : int, optional
            How many of the other folds a head sees; None is all of them.

        Returns
        -------
        list of Tensor[N, K] float64, in the order of `targets`.

        """
        count = int(folds.max()) + 1
        logits = [self.trust_in_others * self.prior_logits for _ in pulls]
        for fold in range(count):
            distance = (folds - fold) % count
            seen = ((distance > 0) & (distance <= (seen_folds or count))).nonzero()[:, 0]
            self._learn(seen, (distance == 0).nonzero()[:, 0], logits, pulls, trust)
        return logits

    def in_sample(self, *, pulls: Sequence[float], trust: float) -> list[Tensor]:
        """Return the same as `out_of_fold` of heads that have seen every picture."""
        everything = torch.arange(len(self), device=self.targets.device)
        logits = [self.trust_in_others * self.prior_logits for _ in pulls]
        changes = self._learn(everything, everything, logits, pulls, trust)
        for pull, change in zip(pulls, changes, strict=True):
            self._in_sample[trust, pull] = change.point
        return logits

    def _learn(
        self,
        seen: Tensor,
        rows: Tensor,
        logits: Sequence[Tensor],
        pulls: Sequence[float],
        trust: float,
    ) -> list[_Change]:
        """Set these rows of each pull's logits to those of the head that has seen `seen`."""
        changes = list(self._changes(seen, trust, pulls, _ROUGH))
        for of_pull, change in zip(logits, changes, strict=True):
            place = rows[:, None], change.learning
            weights = change.weights.to(of_pull)
            learnt = self._features[rows].to(of_pull) @ weights.T + change.bias.to(of_pull)
            of_pull[place] = trust * self.prior_logits[place] + learnt
        return changes

    def in_given_order(self, rows: Tensor) -> Tensor:
        """Return rows [N, …] that follow `targets` in the order in which pictures were given."""
        return rows[self.order.argsort().to(rows.device)]

    def _changes(
        self,
        seen: Tensor,
        trust: float,
        pulls: Sequence[float],
        precision: _Precision,
        start: Tensor | None = None,
    ) -> Iterator[_Change]:
        """Yield what the labels of the rows `seen` change, for each pull, looked for from `start`.

        `start` is the `point` of another search among the same labels.
        """
        count, choices = len(seen), len(self._weights)
        multiple = self._prior.multiple
        dtype = precision.dtype
        x = self._features[seen].to(dtype)
        y = self.targets[seen]
        if multiple:
            y = y.to(dtype)
            sizes = y.sum(dim=0)
            mask = (sizes > 0) & (sizes < count)
        else:
            sizes = y.bincount(minlength=choices).to(dtype)
            mask = sizes > 0
        learning = mask.nonzero()[:, 0]
        if not len(learning):
            none = x.new_zeros(0, x.shape[1])
            nothing = _Change(learning, none, x.new_zeros(0), functional.pad(none, (0, 1)))
            yield from (nothing for _ in pulls)
            return
        axes = None
        if count < x.shape[1]:
            # Off their own axes, a search among few labels would leave what they span.
            axes = _principal_axes(x - x.mean(dim=0))
            x = x @ axes
        of_prior = self.prior_logits[seen].to(dtype)
        prior_logits = trust * of_prior[:, mask]
        rivals = self.trust_in_others * of_prior[:, ~mask]
        rivals = rivals.logsumexp(dim=1, keepdim=True)
        sizes = sizes[mask]
        if multiple:
            y = y[:, mask]
            balance = count / 2 * (y / sizes + (1 - y) / (count - sizes))
            centre = x.mean(dim=0)
            classes = 2
        else:
            # Each label's column among those that learn, and the 1 there: of thousands of choices
            # the zeros beside it would take more memory than all else.
            y = torch.searchsorted(learning, y)[:, None]
            ones = x.new_ones(count, 1)
            balance = (1 / sizes)[y] * (count / len(sizes))
            centre = balance[:, 0] @ x / count
            classes = choices
        constant = _BIAS_FEATURE * ((count - 1) / (count - 1 + classes)) ** 0.5
        features = self._scale * functional.pad(x - centre, (0, 1), value=constant)
        moments = features.square().sum(dim=0)

        def losses_at(change: Tensor) -> tuple[Tensor, Tensor]:
            """Return the labels' losses [N, 1 or K] at a change [K, R], and residuals [N, K]."""
            logits = torch.addmm(prior_logits, features, change.T)
            if multiple:
                losses = balance * (functional.softplus(logits) - y * logits)
                return losses, balance * (logits.sigmoid() - y)
            # Biases count relative to their mean.
            logits -= self._scale * constant * change[:, -1].mean()
            partition = logits.logsumexp(dim=1, keepdim=True).logaddexp(rivals)
            losses = balance * (partition - logits.gather(1, y))
            residuals = logits.sub_(partition).exp_().scatter_add_(1, y, -ones)
            return losses, residuals.mul_(balance)

        def units_at(change: Tensor, pull: float) -> Tensor:
            """Return lengths [R] along the axes, in which the loss there curves alike along all.

            L-BFGS takes as many steps as curvatures differ.
            """
            residuals = losses_at(change)[1]
            residual = torch.linalg.vector_norm(residuals, ord=1) / residuals.numel()
            return torch.rsqrt((_CURVATURE * residual * moments + pull) / count)

        if start is None:
            change = features.new_zeros(len(sizes), features.shape[1])
            gains = [_FIRST_GAIN, precision.gain]
        else:
            change = start.to(dtype)
            gains = [precision.gain]
        for pull in pulls:
            for gain in gains:
                units = units_at(change, pull)

                def objective(
                    steps: Tensor, units: Tensor = units, pull: float = pull
                ) -> tuple[Tensor, Tensor]:
                    change = steps * units
                    losses, residuals = losses_at(change)
                    slope = torch.addmm(pull * change, residuals.T, features)
                    if not multiple:
                        slope[:, -1] -= self._scale * constant * residuals.sum() / len(sizes)
                    loss = losses.sum() + pull / 2 * change.square().sum()
                    return loss / count, slope * units / count

                change = units * _minimise(objective, change / units, precision.remembered, gain)
            gains = [precision.gain]
            weights, of_constant = self._scale * change[:, :-1], self._scale * change[:, -1]
            if not multiple:
                of_constant -= of_constant.mean()
            bias = constant * of_constant - weights @ centre
            yield _Change(learning, weights if axes is None else weights @ axes.T, bias, change)


@dataclass(frozen=True)
class _Change:
    """What labels add to the learning choices' logits: features [N, R] · weightsᵀ + bias.

    `point` [K, R + 1] is where the search for it ended.
    """

    learning: Tensor
    weights: Tensor
    bias: Tensor
    point: Tensor


def _certainty(logits: Tensor, *, multiple: bool) -> Tensor:
    probabilities = probabilities_of(logits, multiple=multiple)
    if multiple:
        return (probabilities - 0.5).abs().amin(dim=1)
    return probabilities.amax(dim=1)


def _canonical_order(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Return the permutation [N] int64 that sorts pictures by the bytes of target and embedding.

    Floating-point sums depend on their order, and labels come in any.
    """
    rows = torch.cat([targets.double().reshape(len(targets), -1), embeddings.double()], dim=1)
    keys = [row.tobytes() for row in rows.cpu().numpy()]
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), device=embeddings.device)


def _principal_axes(features: Tensor) -> Tensor:
    """Return the directions [D, R] in which features [N, D] vary, R the lesser of N and D."""
    if len(features) < features.shape[1]:
        span: Tensor = torch.linalg.qr(features.T)[0]
        return span @ _principal_axes(features @ span)
    moments = features.T @ features
    try:
        axes: Tensor = torch.linalg.eigh(moments)[1]
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # Of pictures that are nearly the same: LAPACK's divide and conquer sometimes gives up where
        # its slower QR iterations do not.
        found = eigh(moments.double().cpu().numpy(), driver="ev")[1]
        axes = torch.from_numpy(found).to(moments)
    return axes


def _minimise(objective: _Objective, start: Tensor, remembered: int, gain: float) -> Tensor:
    """Return the point [K, R] from which on a step of L-BFGS gains less than `gain` of the loss."""

    def point(values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).to(start).reshape(start.shape)

    losses: list[float] = []

    def on_numpy(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, gradient = objective(point(values))
        if not losses:
            losses.append(value.item())
        return value.item(), gradient.double().cpu().numpy().ravel()

    def after_step(intermediate_result: OptimizeResult) -> None:
        losses.append(intermediate_result.fun)
        before, after = losses[-2:]
        if before - after <= gain * after:
            raise StopIteration

    result = minimize(
        on_numpy,
        start.double().cpu().numpy().ravel(),
        jac=True,
        method="L-BFGS-B",
        callback=after_step,
        options={"maxiter": 1000, "maxcor": remembered, "gtol": 0, "ftol": 0},
    )
    return point(result.x)
