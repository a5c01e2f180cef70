"""The shipped CLIP loads as any open_clip model does, and knows the demo's world in part."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import backend.clip
from backend.demo.pictures import CHOICES, collection

open_clip = pytest.importorskip("open_clip")
torch = pytest.importorskip("torch")

FOLDER = Path(backend.clip.__file__).parent / "tiny"
PROMPTS = ("a photo of a {}.", "a picture of a {}.", "a drawing of a {}.", "{}")
HELD_OUT_SEED = 4711


@dataclass(frozen=True)
class Clip:
    model: torch.nn.Module
    preprocess: Callable[..., torch.Tensor]
    tokenizer: Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def clip() -> Clip:
    open_clip.add_model_config(FOLDER / "tiny.json")
    weights = str(FOLDER / "tiny.safetensors")
    model, _, preprocess = open_clip.create_model_and_transforms("tiny", pretrained=weights)
    return Clip(model.eval(), preprocess, open_clip.get_tokenizer("tiny"))


def embed_texts(clip: Clip, texts: list[str]) -> torch.Tensor:
    with torch.inference_mode():
        embeddings: torch.Tensor = clip.model.encode_text(clip.tokenizer(texts), normalize=True)
    return embeddings


def test_the_folder_stays_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 8_000_000


def test_the_weights_load_into_float32_on_the_cpu(clip: Clip) -> None:
    parameters = list(clip.model.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert {parameter.device.type for parameter in parameters} == {"cpu"}


def test_the_tokenizer_honours_the_context_length(clip: Clip) -> None:
    length = json.loads((FOLDER / "tiny.json").read_text())["text_cfg"]["context_length"]
    assert clip.tokenizer(["a very long caption " * 20]).shape == (1, length)


def test_captions_differ_in_meaning_not_in_case(clip: Clip) -> None:
    lower, upper, other = embed_texts(clip, ["a photo of a mug", "A PHOTO OF A MUG", "a key"])
    assert torch.equal(lower, upper)
    assert not torch.allclose(lower, other, atol=0.1)


def test_unknown_and_empty_words_still_give_a_unit_embedding(clip: Clip) -> None:
    embeddings = embed_texts(clip, ["", "zygomorphic quasar", "日本語", "a " * 50])
    assert torch.isfinite(embeddings).all()
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(4))


def test_zero_shot_is_worth_demonstrating_and_leaves_something_to_learn(clip: Clip) -> None:
    pictures = collection(240, seed=HELD_OUT_SEED)
    labels = np.array([CHOICES.index(choice) for choice, _ in pictures])
    batch = torch.stack([clip.preprocess(image) for _, image in pictures])
    texts = embed_texts(clip, [prompt.format(name) for name in CHOICES for prompt in PROMPTS])
    prompts = texts.view(len(CHOICES), len(PROMPTS), -1).mean(dim=1)
    prompts = torch.nn.functional.normalize(prompts, dim=-1)

    with torch.inference_mode():
        embeddings = clip.model.encode_image(batch, normalize=True)

    assert torch.isfinite(embeddings).all()
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(len(pictures)))
    accuracy = ((embeddings @ prompts.T).argmax(dim=1).numpy() == labels).mean()
    assert 0.5 <= accuracy <= 0.9
