"""The classifier on embeddings: zero-shot from the choices' texts, then fitted to labels.

Learning is a penalised logistic regression around the zero-shot head. Its units: a change of
weights counts in logit scales (W = W0 + s·V, s the mean norm of the prior's weights), so that
`pull` means the same for CLIPs of any logit scale. The loss is a sum over labels, so that the
pull decides at few labels and fades as they grow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# On scikit-learn's digits and on synthetic CLIP-like vectors, 30 learns faster from 100 labels
# on, 60 to 100 is safer below 5; 50 gives most of both.
_PULL = 50.0

# The constant feature that carries the bias. Real embeddings share a mean of norm 0.6 to 0.8,
# which a plain regression would use as such a feature; 0.5 learns as much from many labels.
_BIAS_FEATURE = 0.5

_MAX_ITERATIONS = 1000


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
        logits = functional.linear(embeddings.float(), self.weights, self.bias)
        return logits.sigmoid() if self.multiple else logits.softmax(dim=1)


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


def fit(embeddings: Tensor, targets: Tensor, prior: Head, *, pull: float = _PULL) -> Head:
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

    """
    count, choices = len(embeddings), len(prior.weights)
    if count == 0:
        return prior
    # L-BFGS needs float64 to converge fully, which Apple's GPUs lack.
    device = torch.device("cpu") if embeddings.device.type == "mps" else embeddings.device
    order = _canonical_order(embeddings, targets)
    x = embeddings[order].to(device, torch.float64)
    y = targets[order].to(device)
    y = y.double() if prior.multiple else functional.one_hot(y, choices).double()
    weights, bias = prior.weights.to(device, torch.float64), prior.bias.to(device, torch.float64)

    sizes = y.sum(dim=0)
    learning = (sizes > 0) & (sizes < count) if prior.multiple else sizes > 0
    if not learning.any():
        return prior
    prior_logits = x @ weights.T + bias
    rivals = prior_logits[:, ~learning].logsumexp(dim=1, keepdim=True)
    prior_logits, y, sizes = prior_logits[:, learning], y[:, learning], sizes[learning]
    if prior.multiple:
        balance = count / 2 * (y / sizes + (1 - y) / (count - sizes))
        centre = x.mean(dim=0)
        classes = 2
    else:
        balance = (y / sizes).sum(dim=1) * (count / len(sizes))
        centre = balance @ x / count
        classes = choices
    # A prior of zeros has no scale of its own.
    scale = weights.norm(dim=1).mean().item() or 1.0
    constant = _BIAS_FEATURE * ((count - 1) / (count - 1 + classes)) ** 0.5
    features = functional.pad(x - centre, (0, 1), value=constant)

    def relative(change: Tensor) -> Tensor:
        if prior.multiple:
            return change
        return torch.cat([change[:, :-1], change[:, -1:] - change[:, -1:].mean()], dim=1)

    def objective(change: Tensor) -> Tensor:
        logits = prior_logits + scale * (features @ relative(change).T)
        if prior.multiple:
            losses = balance * functional.binary_cross_entropy_with_logits(
                logits, y, reduction="none"
            )
        else:
            partition = torch.cat([logits, rivals], dim=1).logsumexp(dim=1)
            losses = balance * (partition - (y * logits).sum(dim=1))
        return (losses.sum() + pull / 2 * change.square().sum()) / count

    change = scale * relative(
        _minimise(objective, features.new_zeros(len(sizes), features.shape[1]))
    )
    weights[learning] += change[:, :-1]
    bias[learning] += constant * change[:, -1] - change[:, :-1] @ centre
    return Head(
        weights=weights.to(prior.weights), bias=bias.to(prior.bias), multiple=prior.multiple
    )


def _canonical_order(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Return the permutation [N] int64 that sorts pictures by the bytes of embedding and target.

    Floating-point sums depend on their order, and labels come in any.
    """
    rows = torch.cat([embeddings.double(), targets.double().reshape(len(targets), -1)], dim=1)
    keys = [row.tobytes() for row in rows.cpu().numpy()]
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), device=embeddings.device)


def _minimise(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    point = start.clone().requires_grad_()
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        [point],
        max_iter=_MAX_ITERATIONS,
        history_size=20,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        value = objective(point)
        (point.grad,) = torch.autograd.grad(value, point)
        return value.item()

    optimizer.step(closure)
    return point.detach()
