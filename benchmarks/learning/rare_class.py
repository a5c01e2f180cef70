"""How many labels does it take to find 20 pictures of a class that is 0.5 % of the pool?

    python benchmarks/learning/rare_class.py [--seeds 5]

A pool of 8,000 pictures has 40 of the class; each seed takes another class and other pictures. The
queues ask for labels as annotators are asked, and learn from all of them: of the demo's pictures
through the shipped CLIP, and of vectors that are drawn as a large CLIP's lie
(`datasets.py`). The search shows its most alike pictures, 20 at a time: by the class's
text, by one example of it that somebody has found already, and refined by what is found. The
baseline is a random order. Drawing and encoding the demo's pictures takes some minutes, once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from datasets import EmbeddedDataset, Geometry, cached, synthetic
from numpy.typing import NDArray

from backend.clip.encoder import load_encoder
from backend.clip.prompts import prompts
from backend.demo.pictures import CHOICES, render
from backend.learning.strategies import STRATEGIES, Pool
from backend.simulation import dataset as simulation
from backend.simulation.learners import HeadLearner

Indices = NDArray[np.int64]

POOL, MEMBERS, WANTED = 8000, 40, 20
AT_ONCE = 20
# Where a queue is given up.
MOST_LABELS = 1000
# Drawn of each set: the classes that are not looked for must fill the pool.
DRAWN = 9000
PIXELS = 128
SEED = 31


@cached
def demo_9000() -> EmbeddedDataset:
    """The demo's pictures through the shipped CLIP, with seeds that its training has not seen."""
    encoder = load_encoder("tiny", None, "cpu", "float32")
    rng = np.random.default_rng(SEED)
    labels = rng.permutation(np.arange(DRAWN) % len(CHOICES))
    seeds = rng.integers(0, 2**31, DRAWN).tolist()
    vectors = []
    # Memory for a thousand pictures will do.
    for start in range(0, DRAWN, 1000):
        some = range(start, min(start + 1000, DRAWN))
        drawn = [render(CHOICES[labels[index]], seeds[index], PIXELS) for index in some]
        vectors.append(encoder.encode_images(drawn))
    return EmbeddedDataset(
        "demo",
        np.concatenate(vectors),
        labels.astype(np.int64),
        CHOICES,
        encoder.encode_prompts([prompts([choice]) for choice in CHOICES]),
        encoder.logit_scale,
    )


def synthetic_even() -> EmbeddedDataset:
    """20 classes of even size, of which texts know more than half."""
    geometry = Geometry(classes=20, size_ratio=1, pictures=DRAWN)
    return synthetic("synthetic-clip", geometry, seed=3)


def synthetic_hard() -> EmbeddedDataset:
    """40 classes of even size that overlap, so that not even all labels tell them apart."""
    geometry = Geometry(classes=40, size_ratio=1, text_signal=0.13, text_noise=0.1, pictures=DRAWN)
    return synthetic("synthetic-clip-hard", geometry, seed=4)


DATASETS: Mapping[str, Callable[[], EmbeddedDataset]] = {
    "demo": demo_9000,
    "synthetic-clip": synthetic_even,
    "synthetic-clip-hard": synthetic_hard,
}


class Rare:
    """A pool with few pictures of one class, and one more picture of it that is known."""

    def __init__(self, dataset: EmbeddedDataset, seed: int) -> None:
        self.rng = np.random.default_rng([seed, SEED])
        self.seed = seed
        self.wanted = seed % len(dataset.classes)
        others = self.rng.permutation(np.flatnonzero(dataset.labels != self.wanted))
        members = self.rng.permutation(np.flatnonzero(dataset.labels == self.wanted))
        self.example: NDArray[np.float32] = dataset.embeddings[members[MEMBERS]]
        pool = np.concatenate([members[:MEMBERS], others[: POOL - MEMBERS]])
        pool = self.rng.permutation(pool)
        assert len(pool) == POOL
        self.embeddings = dataset.embeddings[pool]
        self.labels = dataset.labels[pool]
        self.found = self.labels == self.wanted
        assert dataset.text is not None
        self.text: NDArray[np.float32] = dataset.text[self.wanted]
        self._dataset = dataset

    def queue(self, strategy: str) -> Iterator[Indices]:
        """Yield what our queue asks for, in batches; it has learnt from all before."""
        learner = HeadLearner(
            simulation.EmbeddedDataset(
                self.embeddings,
                self.labels,
                self._dataset.classes,
                self._dataset.text,
                self._dataset.logit_scale,
                None,
            )
        )
        everything = np.arange(POOL)
        labelled = everything[:0]
        while len(labelled) < MOST_LABELS:
            head = learner.learn(labelled, everything).head
            rest = np.setdiff1d(everything, labelled)
            pool = Pool(
                torch.from_numpy(self.embeddings[rest]),
                head,
                torch.from_numpy(self.embeddings[labelled]),
                [f"{self.seed} {index}" for index in rest],
            )
            order = STRATEGIES[strategy](pool).argsort(descending=True, stable=True).numpy()
            # As many as come in between two trainings where the labels are many already.
            batch = rest[order[: max(AT_ONCE, len(labelled) // 10)]]
            yield batch
            labelled = np.concatenate([labelled, batch])

    def search(self, query: NDArray[np.float32], *, refine: str | None = None) -> Iterator[Indices]:
        """Yield the most alike pictures, in batches; what is found refines the query or not."""
        examples = [self.example] if refine == "example" else []
        seen = np.zeros(POOL, dtype=bool)
        while not seen.all():
            similarity = np.where(seen, -np.inf, self.embeddings @ query)
            batch = np.argsort(-similarity, kind="stable")[: min(AT_ONCE, int((~seen).sum()))]
            yield batch
            seen[batch] = True
            examples += [*self.embeddings[batch[self.found[batch]]]]
            if refine is not None and examples:
                mean = unit(np.mean(examples, axis=0))
                query = unit(self.text + mean) if refine == "text" else mean


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


METHODS: Mapping[str, Callable[[Rare], Iterator[Indices]]] = {
    "random order": lambda rare: iter([rare.rng.permutation(POOL)]),
    "search: the class's text": lambda rare: rare.search(rare.text),
    "search: text, refined": lambda rare: rare.search(rare.text, refine="text"),
    "search: like one example": lambda rare: rare.search(rare.example),
    "search: example, refined": lambda rare: rare.search(rare.example, refine="example"),
    "queue: auto": lambda rare: rare.queue("auto"),
    "queue: margin": lambda rare: rare.queue("margin"),
}


def labels_needed(rare: Rare, method: str) -> tuple[float, int]:
    """Return after how many labels 20 are found, and how many are after 100."""
    order: list[int] = []
    for batch in METHODS[method](rare):
        order += batch.tolist()
        if rare.found[order].sum() >= WANTED:
            break
    found = rare.found[order].cumsum()
    within = int(found[min(100, len(found)) - 1])
    return (float(np.argmax(found >= WANTED) + 1) if found[-1] >= WANTED else np.inf), within


def main() -> None:
    parser = argparse.ArgumentParser(description="a rare class, looked for")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=DATASETS, default=[*DATASETS])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    given = parser.parse_args()
    print("| set | method | labels for 20: median (range) | random order / this | found in 100 |")
    print("| --- | --- | --- | --- | --- |")
    for name in given.sets:
        dataset = DATASETS[name]()

        baseline = 0.0
        for method in given.methods:
            runs = [labels_needed(Rare(dataset, seed), method) for seed in range(given.seeds)]
            needed = np.array([labels for labels, _ in runs])
            baseline = baseline or float(np.median(needed))
            print(
                f"| {name} | {method} | {_labels(np.median(needed))} "
                f"({_labels(needed.min())} to {_labels(needed.max())}) | "
                f"{_ratio(baseline, float(np.median(needed)))} | "
                f"{np.mean([within for _, within in runs]):.1f} |",
                flush=True,
            )


def _labels(count: float) -> str:
    return f"{count:,.0f}" if np.isfinite(count) else f"> {MOST_LABELS:,}"


def _ratio(baseline: float, needed: float) -> str:
    if np.isfinite(needed):
        return f"{baseline / needed:.1f}"
    return f"< {baseline / MOST_LABELS:.1f}"


if __name__ == "__main__":
    main()
