"""What do thousands of choices cost, against 50, in scoring and in training?

    python benchmarks/many_choices.py [--choices 1000 5000] [--labels 10000] [--pictures 100000]

Vectors of 512 components. Scoring: uncertainties by margin of 100,000 pictures, the time for each
choice against that of 50, and against the bare product of pictures and weights, without which none
is known. Training: the time and memory of 10,000 labels with the cross-validation, two a choice at
5,000 (against scikit-learn's: `training.py --classes 5000`). Each size in a process of its own, so
that the memory is its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import parts
import torch
import training

from backend.learning.strategies import STRATEGIES, Pool
from backend.learning.training import train

FEW = 50
# Rows of the bare product at a time: all at once would take gigabytes.
AT_ONCE = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="thousands of choices")
    parser.add_argument("--choices", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        (choices,) = given.choices
        print(*score(choices, given.pictures), learn(choices, given.labels), memory(), flush=True)
        return
    few: float | None = None
    print(
        f"{given.pictures:,} pictures, {given.labels:,} labels, {torch.get_num_threads()} threads"
    )
    for choices in (FEW, *given.choices):
        command = [sys.executable, __file__, "--alone", "--choices", str(choices)]
        command += ["--labels", str(given.labels), "--pictures", str(given.pictures)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        scoring, product, training_time, gigabytes = map(float, done.stdout.split())
        few = few or scoring / choices
        print(
            f"{choices:,} choices: scoring {scoring:.2f} s, {scoring / product:.1f} x the product; "
            f"training {training_time:.1f} s; at most {gigabytes:.1f} GB",
            flush=True,
        )
        if choices != FEW:
            ratio = scoring / choices / few
            verdict = parts.verdict(ratio, 1, at_least=False)
            print(f"scoring a choice: {ratio:.2f} x that of {FEW}; {verdict}")


def score(choices: int, pictures: int) -> tuple[float, float]:
    """Return the seconds of scoring, and of the product alone."""
    vectors, _, head = training.labelled(pictures, choices)
    pool = Pool(vectors, head, vectors[:0], [""] * pictures)
    taken = parts.in_turns(
        {
            "scoring": lambda: STRATEGIES["margin"](pool),
            "product": lambda: [part @ head.weights.T for part in vectors.split(AT_ONCE)],
        },
        2,
    )
    return taken["scoring"], taken["product"]


def learn(choices: int, labels: int) -> float:
    """Return the seconds of a training."""
    vectors, targets, prior = training.labelled(labels + 2000, choices)
    seen, pool = vectors[:labels], vectors[labels:]
    return parts.seconds(lambda: train(seen, targets[:labels], prior, pool=pool))


def memory() -> float:
    """Return the most memory, in GB, that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
