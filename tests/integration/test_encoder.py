from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import VisionTransformer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from backend.clip.background import BackgroundEncoder
from backend.clip.encoder import TINY, Encoder, load_encoder
from backend.clip.hardware import packs_weights
from backend.clip.preprocessing import Preprocessing
from backend.clip.transformer import leave_out_work
from backend.errors import EncoderError, SettingsError
from backend.labelstudio.decoding import ImageLimits, decode
from tests.integration.conftest import wait_until


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


def test_threads_that_wait_are_served_together(encoder: Encoder, monkeypatch) -> None:
    images = [encoder.preprocess(picture) for picture in PICTURES[:8]]
    expected = encoder.encode_preprocessed(images)
    sizes: list[int] = []
    first_is_encoded, others_wait = threading.Event(), threading.Event()
    normalized = encoder.preprocess.normalized

    def slow(pixels: torch.Tensor, precision: torch.dtype) -> torch.Tensor:
        sizes.append(len(pixels))
        first_is_encoded.set()
        others_wait.wait()
        return normalized(pixels, precision)

    monkeypatch.setattr(encoder.preprocess, "normalized", slow)
    with ThreadPoolExecutor(8) as threads:
        results = [threads.submit(encoder.encode_preprocessed, images[:1])]
        first_is_encoded.wait()
        results += [threads.submit(encoder.encode_preprocessed, [image]) for image in images[1:]]
        wait_until(lambda: len(encoder._waiting) == 7, "all others wait")
        others_wait.set()
        vectors = [result.result()[0] for result in results]

    assert sizes == [1, 7]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_what_encodes_gives_way_to_what_people_wait_for(encoder: Encoder) -> None:
    def niceness(*_batch: object) -> None:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    seen: list[int] = []
    niceness()
    encoder.encode_preprocessed([encoder.preprocess(Image.new("RGB", (64, 64)))], niceness)

    assert seen[1] > seen[0]


def test_a_batch_that_fails_fails_for_all_that_are_in_it_and_for_nobody_else(
    encoder: Encoder, monkeypatch
) -> None:
    image = encoder.preprocess(PICTURES[0])
    with pytest.raises(RuntimeError):
        encoder.encode_preprocessed([image, image[:, 1:]])
    assert encoder.encode_preprocessed([image]).shape[0] == 1


@pytest.mark.parametrize(
    ("fits", "tried", "said"),
    [
        (2, [8, 4, 2, 2, 4, 2, 2], "batches of 2 from now on"),
        (0, [2, 1, 1], "a picture is encoded on the CPU"),
    ],
)
def test_a_full_device_gets_half_a_batch_and_at_last_the_cpu_does_it(
    fits: int, tried: list[int], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = load_encoder("tiny", None, "cpu", "float32")
    images = [encoder.preprocess(PICTURES[0]) for _ in range(tried[0])]
    expected = encoder.encode_preprocessed(images)
    sizes: list[int] = []
    on_device = encoder._model_for_pictures.visual

    def allocate(module: torch.nn.Module, pixels: tuple[torch.Tensor]) -> None:
        if module is on_device:
            sizes.append(len(pixels[0]))
            if sizes[-1] > fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    on_device.register_forward_pre_hook(allocate)

    np.testing.assert_allclose(encoder.encode_preprocessed(images), expected, atol=1e-5)

    assert sizes == tried
    assert said in caplog.text
    assert encoder.batch_size == max(fits, 1)


# The same as open_clip's own


def photograph(seed: int, size: tuple[int, int]) -> Image.Image:
    """Return a picture with detail of all scales, as photographs have."""
    draw = np.random.default_rng(seed)
    image = np.full((size[1], size[0], 3), 128.0)
    for scale in (1, 2, 4, 8, 16, 32, 64):
        coarse = draw.normal(128, 60, (size[1] // scale + 1, size[0] // scale + 1, 3))
        layer = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
        image += np.asarray(layer.resize(size, Image.Resampling.BICUBIC)) - 128.0
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


SIZES = [(1024, 768), (768, 1024), (1000, 333), (300, 300), (31, 500), (3000, 2000)]


@pytest.mark.parametrize("size", [*SIZES, (2900, 80), (20, 15), (1, 1)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_pixels_are_open_clip_s_within_a_level(
    size: tuple[int, int], interpolation: str, mode: str
) -> None:
    picture = photograph(0, size)
    plain = open_clip.image_transform(
        64, is_train=False, resize_mode=mode, interpolation=interpolation
    )
    ours = Preprocessing(plain)

    pixels = ours(picture)

    assert pixels.dtype == torch.uint8
    expected = plain(picture)
    levels = torch.tensor(open_clip.OPENAI_DATASET_STD).reshape(3, 1, 1) * 255
    difference = (ours.normalized(pixels[None])[0] - expected).abs() * levels
    # What is stretched one way and shrunk the other shows in which order it is rounded.
    stretched = mode == "squash" and size in ((31, 500), (2900, 80))
    # So do far ends that are cut off.
    is_long = mode == "shortest" and size == (2900, 80)
    assert difference.max() < (5.01 if stretched else 2.01 if is_long else 1.01)
    assert difference.mean() < (0.5 if stretched else 0.1 if is_long else 0.05)


def test_a_picture_of_one_row_takes_no_more_than_another(encoder: Encoder) -> None:
    row = Image.new("RGB", (100_000_000, 1), "red")

    pixels = encoder.preprocess(row)

    assert torch.equal(pixels, encoder.preprocess(Image.new("RGB", (64, 64), "red")))


@pytest.mark.parametrize("size", [(1648, 1648), (824, 1000), (416, 416)])
@pytest.mark.parametrize("noise", [False, True])
def test_a_jpeg_that_is_decoded_smaller_is_the_same_to_the_encoder(
    size: tuple[int, int], noise: bool, encoder: Encoder
) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = BytesIO()
    (Image.fromarray(levels) if noise else photograph(0, size)).save(file, "JPEG", quality=90)
    limits = ImageLimits(max_bytes=10**8, max_pixels=10**8, timeout=1.0, attempts=1)
    smaller = decode(file.getvalue(), limits, encoder.preprocess.enough)
    whole = decode(file.getvalue(), limits)
    assert smaller.size[0] < whole.size[0]

    vectors = encoder.encode_images([smaller, whole])

    assert vectors[0] @ vectors[1] >= 0.999


@pytest.mark.parametrize("name", ["tiny", "ViT-B-32", "coca_ViT-B-32"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_vectors_are_open_clip_s(name: str, precision: torch.dtype, encoder: Encoder) -> None:
    weights = str(TINY / "tiny.safetensors") if name == "tiny" else None
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(
        name, pretrained=weights, pretrained_text=False, pretrained_hf=False
    )
    plain = copy.deepcopy(model).eval()
    texts = encoder.encode_texts(["a photo of a mug", "a photo of a shirt", "a photo of a lamp"])
    pictures = [photograph(seed, size) for seed, size in enumerate(SIZES[:4])]

    ours = Encoder(
        model,
        Preprocessing(transform),
        encoder.tokenize,
        name=name,
        device=torch.device("cpu"),
        precision=precision,
    ).encode_images(pictures)

    with torch.inference_mode():
        images = torch.stack([transform(picture) for picture in pictures])
        expected = normalize(plain.encode_image(images)).numpy()
    assert (ours * expected).sum(axis=1).min() >= 0.999
    if name == "tiny":
        assert ((ours @ texts.T).argmax(axis=1) == (expected @ texts.T).argmax(axis=1)).all()
    # open_clip leaves CoCa's untrained text projection as the memory was, which may be NaN.
    for now, before in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(now, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pool_type", ["tok", "avg"])
@pytest.mark.parametrize(("size", "count"), [(32, 1), (70, 5), (224, 33)])
def test_a_transformer_without_needless_work_is_as_near_to_float32_as_open_clip_s(
    packed: bool, pool_type: str, size: int, count: int
) -> None:
    if packed and not packs_weights(torch.device("cpu"), torch.bfloat16):
        pytest.skip("this CPU or torch lacks what packs weights")
    torch.manual_seed(0)
    visual = VisionTransformer(
        size, 16, width=96, layers=3, heads=4, mlp_ratio=4, pool_type=pool_type, output_dim=64
    ).eval()
    with torch.inference_mode():
        for weights in visual.parameters():
            weights += 0.1 * torch.randn_like(weights)
        pixels = torch.randn(count, 3, size, size)
        expected = visual(pixels)
        reduced = visual.to(torch.bfloat16)
        plain = reduced(pixels.bfloat16()).float()
        ours = copy.deepcopy(reduced)
        leave_out_work(ours, packed=packed)
        vectors = ours(pixels.bfloat16()).float()

    off = (plain - expected).norm()
    assert 0 < off < 0.1 * expected.norm()
    assert (vectors - expected).norm() < 1.5 * off


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_pixels_are_rounded_once(precision: torch.dtype, encoder: Encoder) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)

    normalized = encoder.preprocess.normalized(levels, precision)

    assert normalized.dtype == precision
    assert torch.equal(normalized, encoder.preprocess.normalized(levels).to(precision))


# Sentences


def test_sentences_are_encoded_once(encoder: Encoder, monkeypatch) -> None:
    texts = ["a photo of a kettle", "a drawing of a kettle"]
    first = encoder.encode_texts(texts)
    monkeypatch.setattr(encoder, "tokenize", None)

    assert (encoder.encode_texts(texts) == first).all()
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0


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
