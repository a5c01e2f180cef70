from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from backend.clip.encoder import TINY, BackgroundEncoder, Encoder, load_encoder
from backend.errors import EncoderError, SettingsError


def picture(colour: object) -> Image.Image:
    return Image.new("RGB", (40, 30), colour)  # type: ignore[arg-type]


PICTURES = [picture((index * 6, 100, 255 - index * 6)) for index in range(40)]


def test_the_shipped_clip_turns_pictures_into_unit_vectors(encoder: Encoder) -> None:
    vectors = encoder.encode_images(PICTURES)

    assert vectors.dtype == np.float32
    assert vectors.shape[0] == len(PICTURES)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_shipped_clip_turns_sentences_into_unit_vectors_of_the_same_size(
    encoder: Encoder,
) -> None:
    texts = ["a photo of a mug", "", "日本", "long " * 500, *(f"number {n}" for n in range(60))]

    vectors = encoder.encode_texts(texts)

    assert vectors.shape == (len(texts), encoder.encode_images(PICTURES[:1]).shape[1])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_vectors_come_in_the_pictures_order_whatever_batch_they_are_in(encoder: Encoder) -> None:
    together = encoder.encode_images(PICTURES)

    for index in (0, 1, 31, 32, 39):
        (alone,) = encoder.encode_images([PICTURES[index]])
        np.testing.assert_allclose(together[index], alone, atol=1e-5)
    assert len(np.unique(together.round(4), axis=0)) > 1


def test_threads_that_share_an_encoder_get_their_own_vectors(encoder: Encoder) -> None:
    expected = encoder.encode_images(PICTURES)
    results: dict[int, object] = {}

    def encode(index: int) -> None:
        results[index] = encoder.encode_images([PICTURES[index]])[0]

    threads = [threading.Thread(target=encode, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for index in range(12):
        np.testing.assert_allclose(results[index], expected[index], atol=1e-5)


def test_the_logit_scale_is_clip_s_own(encoder: Encoder) -> None:
    scale = load_file(TINY / "tiny.safetensors")["logit_scale"].float().exp().item()

    assert encoder.logit_scale == pytest.approx(scale)


# Identity


def test_the_same_clip_has_the_same_identity(encoder: Encoder) -> None:
    assert load_encoder("tiny", None, "auto", "float32").identity == encoder.identity
    by_path = load_encoder("tiny", str(TINY / "tiny.safetensors"), "cpu", "float32")
    assert by_path.identity == encoder.identity


def test_other_weights_are_another_identity(encoder: Encoder, tmp_path: Path) -> None:
    weights = load_file(TINY / "tiny.safetensors")
    weights["logit_scale"] = weights["logit_scale"] + 1
    save_file(weights, tmp_path / "other.safetensors")

    other = load_encoder("tiny", str(tmp_path / "other.safetensors"), "cpu", "float32")

    assert other.identity != encoder.identity


def test_another_precision_is_another_identity_and_nearly_the_same_vectors(
    encoder: Encoder,
) -> None:
    reduced = load_encoder("tiny", None, "cpu", "bfloat16")

    assert reduced.identity != encoder.identity
    cosines = (reduced.encode_images(PICTURES) * encoder.encode_images(PICTURES)).sum(axis=1)
    np.testing.assert_allclose(cosines, 1, atol=0.02)


def test_an_identity_fits_the_database_s_column(encoder: Encoder) -> None:
    assert len(encoder.identity) <= 128
    assert encoder.identity.startswith("tiny-")


# What cannot be had


def sentence(load: Callable[[], object], error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_architecture_that_open_clip_lacks_is_a_sentence() -> None:
    message = sentence(lambda: load_encoder("ViT-Z", None, "cpu", "float32"), EncoderError)

    assert message.startswith("CLIP_MODEL: ")
    assert "'ViT-Z'" in message


def test_an_architecture_without_weights_asks_for_them() -> None:
    message = sentence(lambda: load_encoder("ViT-B-16", None, "cpu", "float32"), EncoderError)

    assert message.startswith("CLIP_PRETRAINED is not set")


@pytest.mark.parametrize("weights", ["no-such-tag", "/no/such/file.safetensors", "/"])
def test_weights_that_are_neither_known_nor_a_file_are_a_sentence(weights: str) -> None:
    message = sentence(lambda: load_encoder("ViT-B-16", weights, "cpu", "float32"), EncoderError)

    assert message.startswith("CLIP_PRETRAINED: ")
    assert "laion2b_s34b_b88k" in message


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pt", "broken.bin"])
def test_a_broken_file_is_a_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"not weights")

    message = sentence(lambda: load_encoder("tiny", str(path), "cpu", "float32"), EncoderError)

    assert "CLIP_PRETRAINED" in message


def test_weights_of_another_architecture_are_a_sentence() -> None:
    weights = str(TINY / "tiny.safetensors")

    message = sentence(lambda: load_encoder("ViT-S-32", weights, "cpu", "float32"), EncoderError)

    assert "CLIP_PRETRAINED" in message


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta?", "", "cpu:x"])
def test_a_device_that_this_machine_lacks_is_a_sentence(device: str) -> None:
    message = sentence(lambda: load_encoder("tiny", None, device, "float32"), SettingsError)

    assert message.startswith("DEVICE: ")


# In the background


def test_a_background_encoder_is_had_once_it_is_loaded(encoder: Encoder) -> None:
    go_on = threading.Event()

    def load() -> Encoder:
        go_on.wait()
        return encoder

    background = BackgroundEncoder(load)
    background.start()

    assert not background.loaded
    with pytest.raises(EncoderError, match="still being loaded"):
        background.wait(0)
    go_on.set()
    assert background.wait(60) is encoder
    assert background.loaded


@pytest.mark.parametrize("error", [EncoderError, SettingsError])
def test_a_background_encoder_that_cannot_be_had_says_why_each_time(
    error: type[Exception],
) -> None:
    def load() -> Encoder:
        raise error("DEVICE: this machine has none")

    background = BackgroundEncoder(load)
    background.start()

    for _ in range(2):
        with pytest.raises(EncoderError, match="DEVICE: this machine has none"):
            background.wait(60)
    assert not background.loaded
