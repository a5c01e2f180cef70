"""How a simulation learns from labels: as the backend does, or by fine-tuning CLIP as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from torch import Tensor

from backend.classifier import CLIPImageClassifier
from backend.clip.finetuning import finetune
from backend.clip.prompts import prompts
from backend.errors import DatasetError
from backend.labelstudio.decoding import ImageLimits, decode
from backend.learning.head import Head, zero_shot
from backend.learning.training import train
from backend.simulation.dataset import EmbeddedDataset
from backend.simulation.embedded import encode_files

if TYPE_CHECKING:
    from PIL.Image import Image

    from backend.clip.encoder import Encoder

Indices = NDArray[np.int64]

# Where a file of embeddings has texts but no scale: what CLIP's own grows to in training and is
# capped at (Radford et al., 2021, section 2.5).
_LOGIT_SCALE = 100.0


class Model(Protocol):
    """What was learnt from some labels."""

    @property
    def head(self) -> Head:
        """The classifier on this model's own embeddings."""
        ...

    @property
    def encoder(self) -> Encoder | None:
        """What makes this model's embeddings; None where nothing but embeddings is known."""
        ...

    def embeddings(self, images: Indices) -> Tensor:
        """Return the unit vectors [N, D] of pictures given by their positions in the data."""
        ...


class Learner(Protocol):
    """Turns labels into a model."""

    @property
    def knows_names(self) -> bool:
        """Whether a model of no labels is better than a guess."""
        ...

    def learn(self, images: Indices, pool: Indices) -> Model:
        """Return the model of the labels of these pictures, which may be none.

        `pool` are the pictures that they were picked from, themselves included.
        """
        ...


@dataclass(frozen=True)
class _HeadOnFrozen:
    head: Head
    encoder: Encoder | None
    vectors: Tensor

    def embeddings(self, images: Indices) -> Tensor:
        return self.vectors[torch.from_numpy(images)]


class HeadLearner:
    """Learns as the backend does: a head on embeddings that stay as they are."""

    def __init__(self, dataset: EmbeddedDataset, encoder: Encoder | None = None) -> None:
        self._encoder = encoder
        self._vectors = torch.from_numpy(dataset.embeddings)
        self._labels = torch.from_numpy(dataset.labels)
        self.knows_names = dataset.text is not None
        if dataset.text is not None:
            scale = dataset.logit_scale or _LOGIT_SCALE
            self._prior = zero_shot(torch.from_numpy(dataset.text), scale)
        else:
            k, d = len(dataset.classes), self._vectors.shape[1]
            self._prior = Head(torch.zeros(k, d), torch.zeros(k), multiple=False)

    def learn(self, images: Indices, pool: Indices) -> Model:
        """Return the head of the labels of these pictures."""
        head = train(
            self._vectors[torch.from_numpy(images)],
            self._labels[torch.from_numpy(images)],
            self._prior,
            pool=self._vectors[torch.from_numpy(pool)],
        ).head
        return _HeadOnFrozen(head, self._encoder, self._vectors)


class FinetuningLearner:
    """Trains a fresh copy of CLIP on the labels, and then a head on what that makes of pictures.

    As a `CLIPImageClassifier` with the same parameters does, but with all classes of the data from
    the beginning: names are known before there are labels.
    """

    knows_names = True

    def __init__(
        self,
        dataset: EmbeddedDataset,
        paths: Sequence[Path],
        encoder: Encoder,
        classifier: CLIPImageClassifier,
        seed: int,
        limits: ImageLimits,
    ) -> None:
        self._frozen = HeadLearner(dataset, encoder)
        self._labels = dataset.labels
        self._prompts = [prompts([name]) for name in dataset.classes]
        self._pictures = _Pictures(paths, limits)
        self._encoder = encoder
        self._classifier = classifier
        self._seed = seed

    def learn(self, images: Indices, pool: Indices) -> Model:
        """Return a CLIP and a head of the labels of these pictures; of none, the frozen one."""
        if len(images) == 0:
            return self._frozen.learn(images, pool)
        encoder = finetune(
            self._encoder,
            lambda position: self._pictures.read(int(images[position])),
            self._labels[images],
            self._prompts,
            batch_size=self._classifier.batch_size,
            epochs=self._classifier.epochs,
            learning_rate=self._classifier.learning_rate,
            seed=self._seed,
        )
        model = _Finetuned(encoder, self._pictures)
        prior = zero_shot(
            torch.from_numpy(encoder.encode_prompts(self._prompts)), encoder.logit_scale
        )
        model.head = train(
            model.embeddings(images), torch.from_numpy(self._labels[images]), prior
        ).head
        return model


def save(model: Model, classes: Sequence[str], classifier: CLIPImageClassifier, path: Path) -> None:
    """Write a model as a `CLIPImageClassifier` with the parameters of another one.

    Raises ClassifierError where the file cannot be written.
    """
    fitted = clone(classifier)
    fitted.classes_ = np.array(classes)
    fitted.head_ = model.head
    fitted.encoder_ = model.encoder
    fitted.evaluation_ = None
    fitted.save(path)


@dataclass(frozen=True)
class _Pictures:
    paths: Sequence[Path]
    limits: ImageLimits

    def read(self, index: int) -> Image:
        path = self.paths[index]
        try:
            return decode(path.read_bytes(), self.limits)
        except OSError as error:
            raise DatasetError(f"{path} cannot be read any more: {error.strerror}") from None

    def encode(self, images: Indices, encoder: Encoder) -> Tensor:
        paths = [self.paths[index] for index in images]
        vectors, unreadable = encode_files(
            paths, encoder, self.limits, on_progress=lambda _done, _total: None
        )
        for index, reason in unreadable.items():
            raise DatasetError(f"{paths[index]}: {reason}")
        return torch.from_numpy(vectors)


class _Finetuned:
    """A model whose embeddings are made when they are asked for, each once."""

    head: Head

    def __init__(self, encoder: Encoder, pictures: _Pictures) -> None:
        self.encoder = encoder
        self._pictures = pictures
        self._vectors: dict[int, Tensor] = {}

    def embeddings(self, images: Indices) -> Tensor:
        missing = np.array([index for index in images if index not in self._vectors], dtype=int)
        if len(missing):
            made = self._pictures.encode(missing, self.encoder)
            self._vectors |= zip(missing.tolist(), made, strict=True)
        return torch.stack([self._vectors[index] for index in images.tolist()])
