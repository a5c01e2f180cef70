"""The estimator."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import normalize
from sklearn.utils import check_random_state, check_scalar, check_X_y
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from backend.classifier import file
from backend.classifier.pictures import Picture, as_pictures, embed, read, refuse_broken
from backend.clip.encoder import Encoder, load_encoder, restore_encoder
from backend.clip.finetuning import finetune
from backend.clip.hardware import device_of_trainings
from backend.clip.prompts import TEMPLATES, prompts
from backend.errors import ClassifierError, EncoderError
from backend.learning.head import Head, zero_shot
from backend.learning.training import train

Wordings: TypeAlias = Mapping[Any, Sequence[str]] | Sequence[str]


class CLIPImageClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of pictures that starts from the names of the classes and learns from labels.

    CLIP turns each picture into a vector; a linear head on these vectors starts as the zero-shot
    one, made of the classes' prompts, and is fitted to the labels by
    `backend.learning.training.train`. With `finetune=True` CLIP itself is first trained on pairs
    of picture and prompt, see `backend.clip.finetuning.finetune`.

    Wherever a method takes `X`, it is one of

    - a sequence of N pictures: paths, or PIL images, which are taken as they are;
    - an array [N, D] of embeddings, whose rows need not have unit length. A classifier that was
      fitted on embeddings knows nothing but them: CLIP is not loaded, and the prior is no text
      but all classes alike. One that was fitted on pictures takes embeddings of its `encoder_`
      as well.

    The same data give the same classifier; on a GPU, and fine-tuned, up to rounding.

    Parameters
    ----------
    model : str
        An open_clip architecture, or `tiny` for the small CLIP that is shipped here.
    pretrained : str, optional
        Its weights: an open_clip tag or the path of a file. Needed but for the default `model`
        and `tiny`.
    device : str
        `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
    precision : str
        What CLIP computes in: `auto`, `float32`, `bfloat16` or `float16`; `auto` is bfloat16 where
        the hardware computes in it.
    prompts : mapping of class to sentences, or sequence of templates, optional
        Sentences that describe a class, for those classes that need them; or templates in which
        `{}` stands for the name of the class.
    finetune : bool
        Whether CLIP learns as well; it needs pictures.
    batch_size, epochs, learning_rate : int, int, float
        Of the fine-tuning alone. The default rate suits CLIPs that were trained on millions of
        pictures; `tiny` learns best at about 3e-4.
    random_state : int, RandomState or None
        Decides the order and the prompts of the fine-tuning.

    Attributes
    ----------
    classes_ : NDArray[K]
        The classes in order, which is that of the columns of `predict_proba`.
    head_ : Head
        On the CPU.
    evaluation_ : Evaluation, optional
        By cross-validation, of labelled pictures that the head did not see. None where there are
        too few labels, and after a fine-tuning, since CLIP has then seen them all.
    encoder_ : Encoder, optional
        The CLIP, fine-tuned if that was asked for; None after a fit on embeddings.
    n_features_in_ : int
        D, the size of an embedding.

    """

    def __init__(
        self,
        model: str = "ViT-B-32-256",
        pretrained: str | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        prompts: Wordings | None = None,
        finetune: bool = False,
        batch_size: int = 64,
        epochs: int = 10,
        learning_rate: float = 1e-5,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.model = model
        self.pretrained = pretrained
        self.device = device
        self.precision = precision
        self.prompts = prompts
        self.finetune = finetune
        self.batch_size = batch_size
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: Sequence[Picture] | ArrayLike, y: ArrayLike) -> CLIPImageClassifier:
        """Learn from labelled pictures or embeddings.

        Parameters
        ----------
        X : sequence of N pictures, or array [N, D] of embeddings
        y : array [N] of str or int
            Classes. Their names are the prompts, underscores read as spaces.

        Raises
        ------
        ImageError
            Where pictures cannot be read; it names all of them.
        EncoderError, SettingsError
            Where CLIP cannot be loaded as asked.
        ClassifierError, ValueError, TypeError
            Where data or parameters cannot be used.

        """
        pictures = as_pictures(X)
        if pictures is None:
            if self.finetune:
                raise ClassifierError("finetune=True needs pictures; X holds embeddings")
            embeddings, labels = validate_data(self, X, y, dtype=np.float64)
            targets = self._learn_classes(labels)
            encoder = None
            vectors = _unit(embeddings)
            prior = Head(
                weights=torch.zeros(len(self.classes_), vectors.shape[1]),
                bias=torch.zeros(len(self.classes_)),
                multiple=False,
            )
        else:
            # For its checks of y and of lengths.
            _, labels = check_X_y(np.zeros((len(pictures), 1)), y)
            targets = self._learn_classes(labels)
            wordings = self._wordings()
            encoder = load_encoder(self.model, self.pretrained, self.device, self.precision)
            if self.finetune:
                encoder = self._finetuned(encoder, pictures, targets, wordings)
            vectors = embed(encoder, pictures)
            text = torch.from_numpy(encoder.encode_prompts(wordings))
            text = text.to(device_of_trainings(encoder.device))
            prior = zero_shot(text, encoder.logit_scale)
            self.n_features_in_ = vectors.shape[1]
        device = prior.weights.device
        trained = train(vectors.to(device), torch.from_numpy(targets).to(device), prior)
        self.encoder_ = encoder
        self.head_ = trained.head.to("cpu")
        self.evaluation_ = None if self.finetune else trained.evaluation
        return self

    def predict(self, X: Sequence[Picture] | ArrayLike) -> NDArray[Any]:
        """Return the likeliest class [N] of each picture or embedding."""
        probabilities = self.predict_proba(X)
        likeliest: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return likeliest

    def predict_proba(self, X: Sequence[Picture] | ArrayLike) -> NDArray[np.float32]:
        """Return calibrated probabilities [N, K], columns as in `classes_`.

        Raises ImageError for pictures that cannot be read, naming all of them.
        """
        check_is_fitted(self)
        pictures = as_pictures(X)
        if pictures is None:
            vectors = _unit(validate_data(self, X, reset=False, dtype=np.float64))
        elif self.encoder_ is None:
            raise ClassifierError(
                "this classifier was fitted on embeddings and cannot see pictures: "
                "embed them, or fit it on pictures"
            )
        else:
            vectors = embed(self.encoder_, pictures)
        probabilities: NDArray[np.float32] = self.head_.probabilities(vectors).numpy()
        return probabilities

    def predict_top_k(
        self, X: Sequence[Picture] | ArrayLike, k: int = 5
    ) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Return the likeliest classes and their probabilities, likeliest first.

        Returns
        -------
        NDArray[N, k], NDArray[N, k] float32
            `k` is at most the number of classes.

        """
        check_scalar(k, "k", numbers.Integral, min_val=1)
        probabilities = self.predict_proba(X)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
        return self.classes_[order], np.take_along_axis(probabilities, order, axis=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted classifier to a safetensors file.

        It holds the head and what describes it as JSON, and with `finetune=True` the whole CLIP;
        otherwise `load` needs the weights that the classifier was fitted with. `device` is not
        kept, nor a `random_state` that is no number.
        """
        check_is_fitted(self)
        clip = None
        if self.finetune and self.encoder_ is not None:
            clip = self.encoder_.model.state_dict()
        file.write(Path(path), self._description(), self.head_, clip)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "auto") -> CLIPImageClassifier:
        """Return the classifier that `save` wrote; it predicts the same, to the last bit on a CPU.

        CLIP computes in the precision that the classifier was fitted with, whatever `device` would
        have chosen by itself.

        Raises
        ------
        ClassifierError
            Where the file is no such classifier.
        EncoderError
            Where the CLIP that it was fitted with cannot be had.
        SettingsError
            Where this machine lacks the device.

        """
        description, head, clip = file.read(Path(path))
        parameters = description.parameters
        classifier = cls(**dict(parameters), device=device)
        classifier.classes_ = description.class_array()
        classifier.head_ = head
        classifier.evaluation_ = description.evaluation
        classifier.n_features_in_ = head.weights.shape[1]
        classifier.encoder_ = None
        if description.encoder is not None:
            names = (parameters.model, parameters.pretrained, device, description.encoder.precision)
            encoder = restore_encoder(*names, clip) if clip else load_encoder(*names)
            if encoder.identity != description.encoder.identity:
                raise EncoderError(
                    f"{path} was fitted with the CLIP {description.encoder.identity}, and what "
                    f"{parameters.model} with {parameters.pretrained or 'its default weights'} "
                    f"gives here is {encoder.identity}: get the weights that it was fitted with"
                )
            if encoder.encode_texts([""]).shape[1] != classifier.n_features_in_:
                raise ClassifierError(f"{path}: the head does not fit the CLIP")
            classifier.encoder_ = encoder
        return classifier

    def _learn_classes(self, y: NDArray[Any]) -> NDArray[np.int64]:
        """Set `classes_` and return the index of each label's."""
        check_classification_targets(y)
        classes, inverse = np.unique(y, return_inverse=True)
        # An array of objects becomes one of strings or numbers.
        self.classes_ = np.array(classes.tolist())
        targets: NDArray[np.int64] = inverse.astype(np.int64)
        return targets

    def _wordings(self) -> list[Sequence[str]]:
        """Return the prompts of each class."""
        own: dict[str, Sequence[str]] = {}
        templates: Sequence[str] = TEMPLATES
        if isinstance(self.prompts, Mapping):
            own = {str(name): sentences for name, sentences in self.prompts.items()}
            for name, sentences in own.items():
                if isinstance(sentences, str) or not sentences:
                    raise ClassifierError(f"prompts: give a list of sentences for {name!r}")
        elif self.prompts is not None:
            templates = self.prompts
            if isinstance(templates, str) or not templates or any("{}" not in t for t in templates):
                raise ClassifierError(
                    "prompts: give a list of templates that hold {} where the name of a class is "
                    "to stand, or a mapping of classes to lists of sentences"
                )
        names = [str(name) for name in self.classes_.tolist()]
        return [own.get(name) or prompts([name], templates) for name in names]

    def _finetuned(
        self,
        encoder: Encoder,
        pictures: Sequence[Picture],
        targets: NDArray[np.int64],
        wordings: Sequence[Sequence[str]],
    ) -> Encoder:
        check_scalar(self.batch_size, "batch_size", numbers.Integral, min_val=2)
        check_scalar(self.epochs, "epochs", numbers.Integral, min_val=1)
        check_scalar(
            self.learning_rate,
            "learning_rate",
            numbers.Real,
            min_val=0,
            include_boundaries="neither",
        )
        # Better now, and all at once, than one after hours of training.
        refuse_broken(pictures)
        return finetune(
            encoder,
            partial(read, pictures),
            targets,
            wordings,
            batch_size=self.batch_size,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            seed=check_random_state(self.random_state).randint(np.iinfo(np.int32).max),
        )

    def _description(self) -> file.Description:
        encoder = self.encoder_
        parameters = self.get_params()
        del parameters["device"]
        if not isinstance(self.random_state, numbers.Integral):
            parameters["random_state"] = None
        return file.Description(
            classes=self.classes_.tolist(),
            parameters=file.Parameters(**parameters),
            encoder=encoder
            and file.EncoderDescription(
                identity=encoder.identity,
                precision=str(encoder.precision).removeprefix("torch."),
            ),
            evaluation=self.evaluation_,
        )


def _unit(embeddings: NDArray[np.float64]) -> Tensor:
    """Return the rows [N, D] float32 at unit length; those of zeros stay so."""
    return torch.from_numpy(normalize(embeddings).astype(np.float32))
