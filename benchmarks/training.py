"""How long does a training with its cross-validation take, to scikit-learn's?

    python benchmarks/training.py [--labels 10000] [--classes 50] [--turns 3]

10,000 labels of 50 classes, vectors of 512 components. scikit-learn's LogisticRegressionCV tries as
many strengths on as many folds, with all cores, and is measured once, for with thousands of classes
it takes minutes. Ours is on the GPU where there is one, as a worker's trainings are. Both losses
are of pictures that neither has seen.
"""

from __future__ import annotations

import argparse

import numpy as np
import parts
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from torch.nn.functional import normalize

from backend.clip.hardware import device_of_trainings, find_device
from backend.learning.head import Head
from backend.learning.training import FOLDS, train

SIZE, CLASSES, HELD_OUT = 512, 50, 5000
STRENGTHS = 5
# With scikit-learn's own, 1e-4, it stops short of the loss that is reached here.
TOLERANCE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description="trainings compared")
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--turns", type=int, default=3, help="of ours")
    given = parser.parse_args()
    count, classes = given.labels, given.classes
    vectors, targets, prior = labelled(count + HELD_OUT, classes)
    seen, seen_targets = vectors[:count], targets[:count]
    # scikit-learn knows nothing of a class without a label.
    known = torch.isin(targets[count:], seen_targets)
    unseen, truth = vectors[count:][known], targets[count:][known].numpy()
    device = device_of_trainings(find_device("auto"))
    nothing = Head(torch.zeros(classes, SIZE), torch.zeros(classes), multiple=False)

    losses: dict[str, float] = {}

    def ours(name: str, head: Head, pool: torch.Tensor | None) -> None:
        pool = None if pool is None else pool.to(device)
        trained = train(seen.to(device), seen_targets.to(device), head.to(device), pool=pool)
        of_all = trained.head.probabilities(unseen.to(device)).cpu().numpy()
        losses[name] = log_loss(truth, of_all, labels=np.arange(classes))

    def theirs() -> None:
        # The same strengths as ours: a pull p in logit scales of 100 is C = 10,000 / p.
        search = LogisticRegressionCV(
            Cs=np.logspace(1, 5, STRENGTHS),
            cv=StratifiedKFold(FOLDS),
            scoring="neg_log_loss",
            max_iter=1000,
            tol=TOLERANCE,
            n_jobs=-1,
            l1_ratios=(0.0,),
            use_legacy_attributes=False,
        )
        search.fit(seen.numpy(), seen_targets.numpy())
        losses["scikit-learn"] = log_loss(
            truth, search.predict_proba(unseen.numpy()), labels=search.classes_
        )

    works = {
        "ours, with text": lambda: ours("ours, with text", prior, unseen[:2000]),
        "ours, without": lambda: ours("ours, without", nothing, None),
    }
    taken = parts.in_turns(works, given.turns)
    taken["scikit-learn"] = parts.seconds(theirs)
    print(f"{count:,} x {SIZE}, {classes} classes, {device}, {torch.get_num_threads()} threads")
    for name, seconds in taken.items():
        print(f"{name:18} {seconds:8.2f} s   log loss of others {losses[name]:.4f}")
    for name in works:
        ratio = taken["scikit-learn"] / taken[name]
        print(f"{name}: {ratio:.1f} x as fast; {parts.verdict(ratio, 3, at_least=True)}")


def labelled(count: int, classes: int = CLASSES) -> tuple[torch.Tensor, torch.Tensor, Head]:
    """Return unit vectors in a narrow cone as CLIP's are, their classes, and the texts' head."""
    draw = torch.Generator().manual_seed(0)
    common = 0.7 * normalize(torch.randn(SIZE, generator=draw), dim=0)
    means = 0.12 * normalize(torch.randn(classes, SIZE, generator=draw), dim=1)
    targets = torch.randint(classes, (count,), generator=draw)
    noise = 0.6 * torch.randn(count, SIZE, generator=draw) / SIZE**0.5
    text = normalize(means + 0.5 * torch.randn(classes, SIZE, generator=draw) / SIZE**0.5, dim=1)
    vectors = normalize(common + means[targets] + noise, dim=1)
    return vectors, targets, Head(100 * text, torch.zeros(classes), multiple=False)


if __name__ == "__main__":
    main()
