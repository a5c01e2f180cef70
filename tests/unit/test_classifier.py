"""The classifier on embeddings: scikit-learn's conventions, and files that nobody vouches for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save, save_file
from sklearn.utils.estimator_checks import parametrize_with_checks

from backend import CLIPImageClassifier
from backend.errors import ClassifierError

NAMES = ["Bag", "Hat", "Shoe", "Tee"]


def vectors(count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return vectors around a direction for each of four classes, and the classes."""
    rng = np.random.default_rng(seed)
    classes = np.arange(count) % len(NAMES)
    directions = np.random.default_rng(0).normal(size=(len(NAMES), 16))
    return directions[classes] + 0.5 * rng.normal(size=(count, 16)), classes


X, CLASSES = vectors(80, seed=1)
Y = np.array(NAMES)[CLASSES]
UNSEEN, UNSEEN_CLASSES = vectors(200, seed=2)


@pytest.fixture(scope="module")
def fitted() -> CLIPImageClassifier:
    return CLIPImageClassifier().fit(X, Y)


@parametrize_with_checks([CLIPImageClassifier()])
def test_it_keeps_scikit_learn_s_conventions(
    estimator: CLIPImageClassifier, check: Callable[[CLIPImageClassifier], None]
) -> None:
    check(estimator)


@pytest.mark.parametrize("heavy", ["torch", "sklearn", "numpy"])
def test_the_package_is_imported_without_what_the_class_needs(heavy: str) -> None:
    code = f"import sys, backend; sys.exit({heavy!r} in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_has_no_other_names_by_chance() -> None:
    import backend

    with pytest.raises(AttributeError, match="CLIPClassifier"):
        _ = backend.CLIPClassifier


# On embeddings


def test_it_learns_from_embeddings(fitted: CLIPImageClassifier) -> None:
    assert fitted.score(UNSEEN, np.array(NAMES)[UNSEEN_CLASSES]) > 0.95
    assert fitted.encoder_ is None


def test_only_the_direction_of_an_embedding_counts(fitted: CLIPImageClassifier) -> None:
    lengths = np.linspace(0.1, 1000, len(UNSEEN))[:, None]

    np.testing.assert_allclose(
        fitted.predict_proba(UNSEEN * lengths), fitted.predict_proba(UNSEEN), atol=1e-6
    )


def test_probabilities_sum_to_one_and_have_a_column_for_each_class(
    fitted: CLIPImageClassifier,
) -> None:
    probabilities = fitted.predict_proba(UNSEEN)

    assert probabilities.shape == (len(UNSEEN), len(NAMES))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert fitted.classes_.tolist() == NAMES


def test_a_second_fit_gives_the_same_classifier_to_the_last_bit(
    fitted: CLIPImageClassifier,
) -> None:
    again = CLIPImageClassifier().fit(X, Y)

    np.testing.assert_array_equal(again.predict_proba(UNSEEN), fitted.predict_proba(UNSEEN))


def test_the_likeliest_classes_come_first(fitted: CLIPImageClassifier) -> None:
    labels, probabilities = fitted.predict_top_k(UNSEEN, k=3)

    assert labels.shape == probabilities.shape == (len(UNSEEN), 3)
    np.testing.assert_array_equal(labels[:, 0], fitted.predict(UNSEEN))
    everything = fitted.predict_proba(UNSEEN)
    np.testing.assert_array_equal(probabilities, -np.sort(-everything, axis=1)[:, :3])
    columns = np.searchsorted(fitted.classes_, labels)
    np.testing.assert_array_equal(np.take_along_axis(everything, columns, axis=1), probabilities)


def test_there_are_no_more_likeliest_classes_than_classes(fitted: CLIPImageClassifier) -> None:
    labels, _ = fitted.predict_top_k(UNSEEN, k=50)

    assert labels.shape == (len(UNSEEN), len(NAMES))
    with pytest.raises(ValueError, match="k == 0"):
        fitted.predict_top_k(UNSEEN, k=0)


def test_embeddings_cannot_fine_tune_clip() -> None:
    with pytest.raises(ClassifierError, match="finetune=True needs pictures"):
        CLIPImageClassifier(finetune=True).fit(X, Y)


def test_what_was_fitted_on_embeddings_says_that_it_cannot_see(
    fitted: CLIPImageClassifier,
) -> None:
    with pytest.raises(ClassifierError, match="cannot see pictures"):
        fitted.predict([Image.new("RGB", (8, 8))])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("one.png", "X is one picture"),
        (Image.new("RGB", (8, 8)), "X is one picture"),
        (["one.png", 3.5], r"X\[1\] is neither a path nor a picture of Pillow, but a float"),
    ],
)
def test_what_is_not_a_list_of_pictures_is_a_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(ClassifierError, match=sentence):
        CLIPImageClassifier("tiny").fit(given, ["a", "b"])


# Files


@pytest.mark.parametrize(
    "kind", [str, int, float, bool, object], ids=["str", "int", "float", "bool", "object"]
)
def test_what_is_loaded_predicts_the_same_to_the_last_bit(tmp_path: Path, kind: type) -> None:
    labels = {
        str: Y,
        object: Y.astype(object),
        int: CLASSES - 7,
        float: CLASSES.astype(float),
        bool: CLASSES > 1,
    }[kind]
    classifier = CLIPImageClassifier(prompts=["a {}"], random_state=5).fit(X, labels)
    classifier.save(tmp_path / "classifier.safetensors")

    loaded = CLIPImageClassifier.load(tmp_path / "classifier.safetensors")

    np.testing.assert_array_equal(loaded.predict_proba(UNSEEN), classifier.predict_proba(UNSEEN))
    np.testing.assert_array_equal(loaded.predict(UNSEEN), classifier.predict(UNSEEN))
    assert loaded.classes_.dtype == classifier.classes_.dtype
    assert loaded.get_params() == classifier.get_params()
    assert loaded.evaluation_ == classifier.evaluation_
    assert loaded.n_features_in_ == 16


def test_a_classifier_is_saved_over_the_file_that_it_came_from(
    fitted: CLIPImageClassifier, tmp_path: Path
) -> None:
    path = tmp_path / "classifier.safetensors"
    fitted.save(path)
    loaded = CLIPImageClassifier.load(path)
    loaded.save(path)

    np.testing.assert_array_equal(
        CLIPImageClassifier.load(path).predict_proba(UNSEEN), fitted.predict_proba(UNSEEN)
    )
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_loaded_does_not_change_with_its_file(
    fitted: CLIPImageClassifier, tmp_path: Path
) -> None:
    path = tmp_path / "classifier.safetensors"
    fitted.save(path)
    loaded = CLIPImageClassifier.load(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))

    np.testing.assert_array_equal(loaded.predict_proba(UNSEEN), fitted.predict_proba(UNSEEN))


def test_a_place_that_cannot_be_written_is_a_sentence(
    fitted: CLIPImageClassifier, tmp_path: Path
) -> None:
    with pytest.raises(ClassifierError, match="cannot be written"):
        fitted.save(tmp_path / "none" / "classifier.safetensors")


def described(**changes: object) -> dict[str, str]:
    """Return a valid file's metadata with changes to its description."""
    description = {
        "classes": ["a", "b"],
        "parameters": {
            "model": "tiny",
            "pretrained": None,
            "precision": "auto",
            "prompts": None,
            "finetune": False,
            "batch_size": 64,
            "epochs": 10,
            "learning_rate": 1e-5,
            "random_state": 0,
        },
        "encoder": None,
        "evaluation": None,
    }
    return {
        "format": "clip-image-classifier",
        "version": "1",
        "description": json.dumps(description | changes),
    }


HEAD = {"weights": torch.zeros(2, 16), "bias": torch.zeros(2)}


def test_a_file_is_what_these_tests_take_it_for(tmp_path: Path) -> None:
    save_file(HEAD, tmp_path / "file", described())

    loaded = CLIPImageClassifier.load(tmp_path / "file")

    np.testing.assert_array_equal(loaded.predict_proba(UNSEEN), np.full((200, 2), 0.5))


@pytest.mark.parametrize(
    ("tensors", "metadata", "sentence"),
    [
        (HEAD, None, "another kind of safetensors file"),
        (HEAD, {"format": "pt"}, "another kind of safetensors file"),
        (HEAD, described() | {"version": "2"}, "version '2' of the format and this release reads"),
        (HEAD, described() | {"description": "no JSON"}, "description"),
        (HEAD, described() | {"description": "[" * 100_000}, "description"),
        (HEAD, {"format": "clip-image-classifier", "version": "1"}, "description"),
        (HEAD, described(parameters={"model": "tiny"}), "description"),
        (HEAD, described(more=1), "description"),
        (HEAD, described(classes=["a", 1]), "description"),
        (HEAD, described(classes="ab"), "description"),
        (HEAD, described(classes=["a", "b", "c"]), "differ in number"),
        (HEAD, described(classes=["a", "a"]), "differ in number"),
        (HEAD, described(classes=["a", "b" * 50_000_001]), "too long"),
        (HEAD, described(encoder={"identity": "x"}), "description"),
        ({"weights": HEAD["weights"]}, described(), "tensors are not those"),
        (HEAD | {"more": torch.zeros(1)}, described(), "tensors are not those"),
        (HEAD | {"clip.logit_scale": torch.zeros(1)}, described(), "as to CLIP's weights"),
        (HEAD | {"bias": torch.zeros(3)}, described(), "differ in number"),
        (HEAD | {"bias": torch.zeros(2, 1)}, described(), "differ in number"),
        (HEAD | {"weights": torch.zeros(2)}, described(), "two dimensions"),
        (HEAD | {"weights": torch.zeros(2, 0)}, described(), "two dimensions"),
        (HEAD | {"weights": torch.zeros(2, 16).double()}, described(), "32-bit"),
        (HEAD | {"weights": torch.zeros(2, 16, dtype=torch.int32)}, described(), "32-bit"),
        (HEAD | {"weights": torch.full((2, 16), torch.nan)}, described(), "no numbers"),
    ],
)
def test_a_file_that_was_not_saved_by_it_is_a_sentence(
    tmp_path: Path,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str] | None,
    sentence: str,
) -> None:
    path = tmp_path / "hostile.safetensors"
    save_file(tensors, path, metadata)

    with pytest.raises(ClassifierError, match=sentence) as caught:
        CLIPImageClassifier.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


WHOLE = save(HEAD, described())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a pickle",
        WHOLE[:-1],
        WHOLE[:100],
        b"\xff" * 8 + WHOLE[8:],
        WHOLE.replace(b"[2,16]", b"[9,16]"),
        WHOLE.replace(b'"F32"', b'"F64"', 1),
        WHOLE.replace(b"data_offsets", b"data_0ffsets", 1),
        (2**40).to_bytes(8, "little") + b"{}",
    ],
    ids=["empty", "zip", "short", "cut", "header", "shape", "dtype", "offsets", "huge"],
)
def test_a_file_that_is_broken_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)

    with pytest.raises(ClassifierError, match=r"broken\.safetensors"):
        CLIPImageClassifier.load(path)


@pytest.mark.parametrize("name", ["none.safetensors", "."])
def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(ClassifierError):
        CLIPImageClassifier.load(tmp_path / name)
