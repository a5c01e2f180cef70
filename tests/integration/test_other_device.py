"""What goes to a GPU and comes back, on a stand-in: what mixes devices fails there.

How fast it is there, `make bench-gpu` tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from backend.classifier import CLIPImageClassifier
from backend.clip.encoder import Encoder, load_encoder
from backend.jobs.services import Services
from backend.learning.head import Head
from backend.learning.strategies import STRATEGIES, Pool
from backend.store import Store
from tests.integration.conftest import data_uri
from tests.integration.fake_label_studio import PROJECT, FakeLabelStudio
from tests.integration.test_jobs import active, predicted_and_settled, shades
from tests.other_device import other_device


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    with other_device(monkeypatch) as device:
        yield device


@pytest.fixture
def encoder(device: torch.device) -> Encoder:
    return load_encoder("tiny", None, device.type, "float32")


def test_the_stand_in_refuses_what_a_gpu_refuses(device: torch.device) -> None:
    there = torch.ones(2, device=device)

    assert there.device.type == device.type
    assert (there + torch.ones(2).to(device)).cpu().tolist() == [2, 2]
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(2)
    with pytest.raises(RuntimeError, match="elsewhere"):
        torch.ones(2)[torch.zeros(1, dtype=torch.int64, device=device)]
    with pytest.raises(TypeError, match="no array"):
        there.numpy()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["tiny", "ViT-S-32"])
def test_pictures_and_texts_are_encoded_as_on_the_cpu(
    name: str, precision: str, device: torch.device, tmp_path: Path
) -> None:
    weights = None
    if name != "tiny":
        weights = str(tmp_path / "weights.pt")
        torch.manual_seed(0)
        torch.save(open_clip.create_model(name).state_dict(), weights)
    draw = np.random.default_rng(0)
    pictures = [
        Image.fromarray(draw.integers(0, 256, (90, 120, 3), dtype=np.uint8)) for _ in range(3)
    ]
    there = load_encoder(name, weights, device.type, precision)
    here = load_encoder(name, weights, "cpu", precision)

    assert there.device.type == device.type
    cosines = (there.encode_images(pictures) * here.encode_images(pictures)).sum(axis=1)
    assert cosines.min() > 0.9995
    texts = ["a photo of a cat", "a drawing"]
    assert (there.encode_texts(texts) * here.encode_texts(texts)).sum(axis=1).min() > 0.9995


def test_a_picture_for_which_the_device_is_full_is_encoded_without_it(
    encoder: Encoder, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    )
    on_device = encoder._model_for_pictures.visual
    copied = torch.Tensor.__deepcopy__

    def run(module: torch.nn.Module, _pixels: object) -> None:
        if module is on_device:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def copy(tensor: torch.Tensor, known: dict[int, object]) -> torch.Tensor:
        if tensor.device.type == device.type:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return copied(tensor, known)

    expected = encoder.encode_images([picture])
    on_device.register_forward_pre_hook(run)
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", copy)

    np.testing.assert_allclose(encoder.encode_images([picture]), expected, atol=1e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_pick_as_on_the_cpu(name: str, device: torch.device) -> None:
    draw = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(120, 16, generator=draw), dim=1)
    head = Head(5 * torch.randn(3, 16, generator=draw), torch.zeros(3), multiple=False)
    keys = [f"task {number}" for number in range(100)]

    here = STRATEGIES[name](Pool(vectors[:100], head, vectors[100:], keys))
    there = STRATEGIES[name](
        Pool(vectors[:100].to(device), head.to(device), vectors[100:].to(device), keys)
    )

    assert torch.allclose(there.cpu(), here, atol=1e-6)


def test_a_worker_learns_and_looks_ahead(
    store: Store, label_studio: FakeLabelStudio, services: Services, device: torch.device
) -> None:
    reds = [data_uri((200 + 5 * n, 10, 10)) for n in range(8)]
    blues = [data_uri((10, 10, 200 + 5 * n)) for n in range(8)]
    ids = label_studio.add_tasks(*reds, *blues, *shades(20))
    predicted_and_settled(store)
    for index, task_id in enumerate(ids[:16]):
        label_studio.annotate(task_id, "red" if index < 8 else "blue")

    predicted_and_settled(store)

    assert services.predictor.encoder.device.type == device.type
    version = active(store)
    report = version.report["colour"]
    assert report["out_of_fold"]["labels"] == 16
    assert report["out_of_fold"]["top1"] == 1
    assert 0 < report["pool_accuracy"]["value"] <= 1
    assert version.heads["colour"].head.weights.device.type == "cpu"
    assert len(store.tasks.predicted(PROJECT, version.name)) == 20


def test_a_classifier_learns(device: torch.device) -> None:
    pictures = [
        Image.new("RGB", (32, 32), (200 + 5 * n, 10, 10) if n % 2 else (10, 10, 200 + 5 * n))
        for n in range(10)
    ]
    names = ["red" if n % 2 else "blue" for n in range(10)]

    classifier = CLIPImageClassifier(model="tiny", device=device.type).fit(pictures, names)

    assert classifier.predict(pictures).tolist() == names
