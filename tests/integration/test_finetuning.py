"""The classifier on pictures: from the classes' names, by labels, with CLIP as it is or tuned."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from torch.nn import functional

from backend import CLIPImageClassifier
from backend.clip.encoder import TINY, Encoder
from backend.clip.finetuning import contrastive_loss, finetune
from backend.clip.prompts import prompts
from backend.demo.pictures import collection
from backend.errors import ClassifierError, EncoderError, ImageError, SettingsError
from backend.learning.head import zero_shot

Labelled = tuple[list[Image.Image], list[str]]


def labelled(count: int, seed: int) -> Labelled:
    pictures = collection(count, seed)
    return [picture for _, picture in pictures], [choice for choice, _ in pictures]


@pytest.fixture(scope="module")
def seen() -> Labelled:
    return labelled(150, seed=21)


@pytest.fixture(scope="module")
def held_out() -> Labelled:
    return labelled(150, seed=22)


@pytest.fixture(scope="module")
def frozen(seen: Labelled) -> CLIPImageClassifier:
    return CLIPImageClassifier("tiny", device="cpu", precision="float32").fit(*seen)


def tuning(**parameters: object) -> CLIPImageClassifier:
    return CLIPImageClassifier(
        "tiny",
        **{"device": "cpu", "precision": "float32", "finetune": True, "epochs": 6}
        | {"learning_rate": 3e-4}
        | parameters,
    )


@pytest.fixture(scope="module")
def tuned(seen: Labelled) -> CLIPImageClassifier:
    return tuning().fit(*seen)


def few(seen: Labelled, count: int = 24) -> Labelled:
    pictures, labels = seen
    return pictures[:count], labels[:count]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, seen: Labelled) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    pictures, _ = few(seen)
    for index, picture in enumerate(pictures):
        picture.save(folder / f"{index}.png")
    return [folder / f"{index}.png" for index in range(len(pictures))]


def weights(classifier: CLIPImageClassifier) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = classifier.encoder_.model.state_dict()
    return state


# With CLIP as it is


def test_labels_add_to_what_the_names_say(
    frozen: CLIPImageClassifier, held_out: Labelled, encoder: Encoder
) -> None:
    assert frozen.score(*held_out) > zero_shot_accuracy(encoder, held_out)
    assert frozen.encoder_.identity == encoder.identity


def test_one_label_of_each_class_is_enough_for_what_the_names_say(
    seen: Labelled, held_out: Labelled, encoder: Encoder
) -> None:
    first = {label: picture for picture, label in zip(*seen, strict=True)}

    classifier = CLIPImageClassifier("tiny").fit(list(first.values()), list(first))

    assert classifier.score(*held_out) > zero_shot_accuracy(encoder, held_out) - 0.1


def test_paths_and_pictures_are_the_same(paths: list[Path], seen: Labelled) -> None:
    pictures, labels = few(seen)
    by_picture = CLIPImageClassifier("tiny").fit(pictures, labels).predict_proba(pictures)

    for given in (paths, [str(path) for path in paths], np.array([str(path) for path in paths])):
        by_path = CLIPImageClassifier("tiny").fit(given, np.array(labels)).predict_proba(given)
        np.testing.assert_array_equal(by_path, by_picture)


def test_transparent_and_grey_pictures_are_seen_as_annotators_see_them(
    frozen: CLIPImageClassifier,
) -> None:
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    white = Image.new("RGB", (40, 40), "white")
    deep = Image.fromarray(np.full((40, 40), 65535, dtype=np.uint16))

    probabilities = frozen.predict_proba([clear, deep, Image.new("L", (40, 40), 255), white])

    np.testing.assert_array_equal(probabilities, probabilities[[3, 3, 3, 3]])


def test_embeddings_of_its_own_clip_are_as_good_as_pictures(
    frozen: CLIPImageClassifier, held_out: Labelled
) -> None:
    pictures, _ = held_out
    embeddings = frozen.encoder_.encode_images(pictures)

    np.testing.assert_allclose(
        frozen.predict_proba(embeddings), frozen.predict_proba(pictures), atol=1e-4
    )
    with pytest.raises(ValueError, match="expecting 128 features"):
        frozen.predict(embeddings[:, :-1])


def test_prompts_of_one_class_change_where_it_begins(seen: Labelled) -> None:
    pictures, labels = few(seen)
    plain = CLIPImageClassifier("tiny").fit(pictures, labels)
    own = CLIPImageClassifier("tiny", prompts={"Hat": ["a beanie"], "Unseen": ["a thing"]})

    changed = (own.fit(pictures, labels).head_.weights - plain.head_.weights).norm(dim=1)

    assert changed.argmax() == plain.classes_.tolist().index("Hat")


def test_templates_hold_the_names_of_all_classes(seen: Labelled) -> None:
    pictures, labels = few(seen)
    named = {label: [f"one {label} on a table"] for label in labels}

    by_template = CLIPImageClassifier("tiny", prompts=["one {} on a table"]).fit(pictures, labels)
    by_class = CLIPImageClassifier("tiny", prompts=named).fit(pictures, labels)

    torch.testing.assert_close(by_template.head_.weights, by_class.head_.weights)


def test_numbers_are_names_of_classes_too(seen: Labelled) -> None:
    pictures, labels = few(seen)
    names = sorted(set(labels))
    numbers = [names.index(label) for label in labels]
    described = {names.index(label): prompts([label]) for label in names}

    by_number = CLIPImageClassifier("tiny", prompts=described).fit(pictures, numbers)
    by_name = CLIPImageClassifier("tiny").fit(pictures, labels)

    np.testing.assert_array_equal(
        by_number.predict(pictures) == 3, by_name.predict(pictures) == names[3]
    )
    assert by_number.classes_.tolist() == list(range(len(names)))


@pytest.mark.parametrize("wrong", ["a {}", [], ["a photo"], {"Shoe": "a boot"}, {"Shoe": []}])
def test_prompts_of_another_form_are_a_sentence(seen: Labelled, wrong: object) -> None:
    with pytest.raises(ClassifierError, match=r"^prompts: give a list"):
        CLIPImageClassifier("tiny", prompts=wrong).fit(*few(seen))


def test_a_precision_that_is_none_is_a_sentence(seen: Labelled) -> None:
    with pytest.raises(SettingsError, match="PRECISION: 'half' is none of"):
        CLIPImageClassifier("tiny", precision="half").fit(*few(seen))


@pytest.mark.parametrize("finetune", [False, True])
def test_all_broken_pictures_are_named_at_once(
    paths: list[Path], seen: Labelled, tmp_path: Path, finetune: bool
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(paths[0].read_bytes()[:500])
    (tmp_path / "lazy.png").write_bytes(paths[0].read_bytes()[:500])
    with Image.open(tmp_path / "lazy.png") as lazy:
        given = [*paths, tmp_path / "text.jpg", tmp_path / "cut.png", tmp_path / "none.png", lazy]
        labels = ["a", "b"] * (len(given) // 2)

        with pytest.raises(ImageError) as caught:
            CLIPImageClassifier("tiny", finetune=finetune).fit(given, labels)

    message = str(caught.value)
    assert message.startswith("4 of 28 pictures cannot be used: ")
    for name in ("text.jpg: not a picture", "cut.png: the picture is broken", "none.png: No such"):
        assert str(tmp_path / name) in message
    assert "X[27]: the picture is broken" in message


def test_scikit_learn_s_tools_take_lists_of_pictures(paths: list[Path], seen: Labelled) -> None:
    _, labels = few(seen)
    coarse = [label in {"Shoe", "Hat", "Dress", "T-shirt", "Trousers"} for label in labels]

    scores = cross_val_score(
        CLIPImageClassifier("tiny", prompts={True: ["clothes"], False: ["a thing"]}),
        paths,
        coarse,
        cv=2,
    )

    assert scores.mean() > 0.5


def test_copies_predict_the_same(frozen: CLIPImageClassifier, held_out: Labelled) -> None:
    pictures, _ = few(held_out)
    expected = frozen.predict_proba(pictures)

    for again in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        np.testing.assert_array_equal(again.predict_proba(pictures), expected)
    assert not hasattr(clone(frozen), "head_")


# The loss


def unit(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, 8, generator=generator), dim=1)


def test_without_repeated_labels_the_loss_is_clip_s() -> None:
    images, texts = unit(6, 0), unit(6, 1)
    logits = 20 * images @ texts.T
    target = torch.arange(6)
    expected = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)

    loss = contrastive_loss(images, texts, torch.arange(6) + 3, torch.tensor(20.0))

    torch.testing.assert_close(loss, expected / 2)


def test_pictures_of_one_class_are_not_each_other_s_negatives() -> None:
    # Two classes at right angles, two pictures each, every prompt in its picture's direction.
    vectors = torch.eye(2)[[0, 1, 0, 1]]
    labels = torch.tensor([0, 1, 0, 1])

    loss = contrastive_loss(vectors, vectors, labels, torch.tensor(2.0))

    # Each row's logits are 2, 0, 2, 0, and half of its target is at each 2.
    torch.testing.assert_close(loss, torch.tensor(2 * np.e**2 + 2).log() - 2, check_dtype=False)
    sharp = contrastive_loss(vectors, vectors, labels, torch.tensor(100.0))
    torch.testing.assert_close(sharp, torch.tensor(2.0).log())


# With CLIP tuned


def zero_shot_accuracy(encoder: Encoder, pictures: Labelled) -> float:
    images, labels = pictures
    names = sorted(set(labels))
    text = torch.from_numpy(encoder.encode_prompts([prompts([name]) for name in names]))
    probabilities = zero_shot(text, encoder.logit_scale).probabilities(
        torch.from_numpy(encoder.encode_images(images))
    )
    likeliest = np.array(names)[probabilities.argmax(dim=1).numpy()]
    return float((likeliest == labels).mean())


def test_tuning_helps_on_pictures_that_it_did_not_see(
    tuned: CLIPImageClassifier, held_out: Labelled, encoder: Encoder
) -> None:
    before = zero_shot_accuracy(encoder, held_out)

    assert zero_shot_accuracy(tuned.encoder_, held_out) > before
    assert tuned.score(*held_out) > before


def test_only_pictures_that_clip_did_not_learn_from_evaluate_it(
    frozen: CLIPImageClassifier, tuned: CLIPImageClassifier, held_out: Labelled
) -> None:
    assert frozen.evaluation_.labels == 150
    assert frozen.evaluation_.top1 == pytest.approx(frozen.score(*held_out), abs=0.1)
    assert tuned.evaluation_ is None


def test_tuning_makes_another_clip(tuned: CLIPImageClassifier, encoder: Encoder) -> None:
    assert tuned.encoder_.identity != encoder.identity
    before = encoder.model.state_dict()
    changed = {name for name, tensor in weights(tuned).items() if not tensor.equal(before[name])}
    learnt = {name for name, _ in encoder.model.named_parameters()}
    assert changed == learnt
    assert not any(parameter.requires_grad for parameter in tuned.encoder_.model.parameters())
    assert not tuned.encoder_.model.training


def test_the_same_seed_gives_the_same_weights(tuned: CLIPImageClassifier, seen: Labelled) -> None:
    again = tuning().fit(*seen)

    assert all(tensor.equal(weights(tuned)[name]) for name, tensor in weights(again).items())
    assert again.head_.weights.equal(tuned.head_.weights)


def test_the_seed_decides_and_nobody_else_s_dice_are_thrown(
    encoder: Encoder, seen: Labelled
) -> None:
    pictures, labels = few(seen)
    names = sorted(set(labels))

    def identity(seed: int) -> str:
        return finetune(
            encoder,
            pictures.__getitem__,
            np.array([names.index(label) for label in labels]),
            [prompts([name]) for name in names],
            batch_size=8,
            epochs=1,
            learning_rate=3e-4,
            seed=seed,
        ).identity

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = identity(0)

    assert torch.get_rng_state().equal(before)
    assert identity(1) != first
    torch.manual_seed(6)
    assert identity(0) == first


def test_the_logit_scale_stays_within_clip_s_bound(encoder: Encoder, seen: Labelled) -> None:
    pictures, _ = few(seen, 8)
    steep = copy.deepcopy(encoder)
    steep.model.logit_scale.fill_(np.log(200))

    tuned = finetune(
        steep,
        pictures.__getitem__,
        np.arange(8) % 2,
        [["a thing"], ["a garment"]],
        batch_size=4,
        epochs=1,
        learning_rate=1e-5,
        seed=0,
    )

    assert tuned.logit_scale == pytest.approx(100, rel=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_tuning_works_in_reduced_precision(seen: Labelled, precision: str) -> None:
    classifier = tuning(precision=precision, epochs=2).fit(*few(seen))

    assert np.isfinite(classifier.predict_proba(few(seen)[0])).all()
    assert {tensor.dtype for tensor in weights(classifier).values()} <= {
        torch.float32,
        torch.int64,
    }


@pytest.mark.parametrize("count", [1, 2, 9])
def test_any_number_of_pictures_tunes(seen: Labelled, count: int) -> None:
    classifier = tuning(epochs=1, batch_size=8).fit(*few(seen, count))

    assert np.isfinite(classifier.predict_proba(few(seen)[0])).all()


@pytest.mark.parametrize(
    "parameter", [{"epochs": 0}, {"batch_size": 1}, {"learning_rate": 0.0}], ids=str
)
def test_a_parameter_out_of_range_is_named(seen: Labelled, parameter: dict[str, float]) -> None:
    (name,) = parameter

    with pytest.raises(ValueError, match=f"{name} =="):
        tuning(**parameter).fit(*few(seen))


def test_a_learning_rate_that_is_too_high_is_a_sentence(seen: Labelled) -> None:
    with pytest.raises(ClassifierError, match=r"fine-tuning diverged .* lower learning_rate"):
        tuning(learning_rate=1e30, batch_size=8).fit(*few(seen))


# Files


@pytest.mark.parametrize("kind", ["frozen", "tuned"])
def test_what_is_loaded_predicts_the_same_to_the_last_bit(
    kind: str, request: pytest.FixtureRequest, held_out: Labelled, tmp_path: Path
) -> None:
    classifier: CLIPImageClassifier = request.getfixturevalue(kind)
    pictures, _ = held_out
    classifier.save(tmp_path / "classifier.safetensors")

    loaded = CLIPImageClassifier.load(tmp_path / "classifier.safetensors", device="cpu")

    np.testing.assert_array_equal(
        loaded.predict_proba(pictures), classifier.predict_proba(pictures)
    )
    assert loaded.encoder_.identity == classifier.encoder_.identity
    assert loaded.get_params() == classifier.get_params()


def test_the_precision_that_was_fitted_is_kept_where_another_would_be_chosen(
    seen: Labelled, tmp_path: Path
) -> None:
    classifier = CLIPImageClassifier("tiny", device="cpu", precision="bfloat16").fit(*few(seen))
    classifier.set_params(precision="auto").save(tmp_path / "classifier.safetensors")

    loaded = CLIPImageClassifier.load(tmp_path / "classifier.safetensors", device="cpu")

    assert loaded.encoder_.precision is torch.bfloat16


def other_weights(folder: Path) -> Path:
    tensors = load_file(TINY / "tiny.safetensors")
    tensors["logit_scale"] = tensors["logit_scale"] + 0.5
    save_file(tensors, folder / "clip.safetensors")
    return folder / "clip.safetensors"


def test_other_weights_under_the_same_name_are_refused(seen: Labelled, tmp_path: Path) -> None:
    path = other_weights(tmp_path)
    classifier = CLIPImageClassifier("tiny", str(path), precision="float32").fit(*few(seen))
    classifier.save(tmp_path / "classifier.safetensors")
    path.write_bytes((TINY / "tiny.safetensors").read_bytes())

    with pytest.raises(EncoderError, match="was fitted with the CLIP tiny-"):
        CLIPImageClassifier.load(tmp_path / "classifier.safetensors")


def test_a_tuned_clip_needs_no_other_weights_than_its_file_s(
    seen: Labelled, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = other_weights(tmp_path)
    classifier = tuning(pretrained=str(path), epochs=1).fit(*few(seen))
    classifier.save(tmp_path / "classifier.safetensors")
    path.unlink()

    loaded = CLIPImageClassifier.load(tmp_path / "classifier.safetensors", device="cpu")

    assert loaded.encoder_.identity == classifier.encoder_.identity
    assert "randomly" not in capfd.readouterr().err


@pytest.mark.parametrize("change", ["shape", "missing", "value"])
def test_a_file_whose_clip_was_changed_is_a_sentence(
    tuned: CLIPImageClassifier, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "classifier.safetensors"
    tuned.save(path)
    tensors, metadata = load_file(path), metadata_of(path)
    if change == "missing":
        del tensors["clip.logit_scale"]
    elif change == "shape":
        tensors["clip.ln_final.weight"] = torch.ones(3)
    else:
        tensors["clip.logit_scale"] = tensors["clip.logit_scale"] + 1
    save_file(tensors, path, metadata)

    with pytest.raises(EncoderError) as caught:
        CLIPImageClassifier.load(path)
    assert "\n" not in str(caught.value)


def metadata_of(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata: dict[str, str] = file.metadata()
    return metadata


def test_a_head_that_does_not_fit_its_clip_is_a_sentence(
    frozen: CLIPImageClassifier, tmp_path: Path
) -> None:
    path = tmp_path / "classifier.safetensors"
    frozen.save(path)
    tensors, metadata = load_file(path), metadata_of(path)
    save_file(tensors | {"weights": tensors["weights"][:, :-1].contiguous()}, path, metadata)

    with pytest.raises(ClassifierError, match="the head does not fit the CLIP"):
        CLIPImageClassifier.load(path, device="cpu")
