"""Train, or measure, the tiny CLIP that is shipped in backend/clip/tiny.

`python scripts/train_tiny_clip.py` trains, writes the weights and measures them;
with `--evaluate` it only measures the weights there are.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import open_clip
import torch
import typer
from drawn_world import example
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import save
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional

from backend.demo.pictures import CHOICES, collection

FOLDER = Path(__file__).resolve().parents[1] / "backend" / "clip" / "tiny"
CAPTIONS = 6
DRAWN_SIZE = 112
PROMPTS = ("a photo of a {}.", "a picture of a {}.", "a drawing of a {}.", "{}")
LABELS = (10, 30, 100, 300)
POOL_SEED, HELD_OUT_SEED = 1001, 1002
console = Console()
Preprocess = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Corpus:
    """Training pictures uint8 [N, 3, S, S] and tokens int32 [N, CAPTIONS, L] of their captions."""

    pictures: Tensor
    tokens: Tensor


def main(
    evaluate: Annotated[bool, typer.Option(help="Only measure the weights there are.")] = False,
    pictures: Annotated[int, typer.Option(help="Training pictures to draw.")] = 24_000,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 8,
    seed: Annotated[int, typer.Option(help="Decides pictures, captions, weights, order.")] = 7,
    threads: Annotated[int, typer.Option(help="CPU threads and drawing processes.")] = 2,
    folder: Annotated[Path, typer.Option(help="Where tiny.json is and the weights go.")] = FOLDER,
) -> None:
    """Train the tiny CLIP on drawn pictures and captions, or measure it on the demo's."""
    torch.set_num_threads(threads)
    open_clip.add_model_config(folder / "tiny.json")
    weights = folder / "tiny.safetensors"
    if not evaluate:
        started = time.monotonic()
        torch.manual_seed(seed)
        model = open_clip.create_model("tiny")
        size = open_clip.get_model_config("tiny")["vision_cfg"]["image_size"]
        corpus = draw_corpus(pictures, seed, threads, size)
        train(model, corpus, epochs, seed)
        half = {name: value.half() for name, value in model.state_dict().items()}
        weights.write_bytes(save(half))
        console.print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes")
    report(weights)


def draw_corpus(count: int, seed: int, processes: int, size: int) -> Corpus:
    """Draw `count` training pictures, shrunk to `size` as open_clip's preprocessing would."""
    tokenizer = open_clip.get_tokenizer("tiny")
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    captions: list[str] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        drawn = pool.map(partial(_draw, seed, size), range(count), chunksize=200)
        for index, (image, texts) in enumerate(track(drawn, "drawing", count, console=console)):
            images[index] = image
            captions.extend(texts)
    tokens = tokenizer(captions).to(torch.int32).view(count, CAPTIONS, -1)
    return Corpus(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), tokens)


def train(model: open_clip.CLIP, corpus: Corpus, epochs: int, seed: int, batch: int = 128) -> None:
    """Fit by the symmetric InfoNCE loss of CLIP (Radford et al. 2021, figure 3) with AdamW."""
    shuffler = torch.Generator().manual_seed(seed)
    steps = epochs * (len(corpus.pictures) // batch)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    free = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, steps, pct_start=0.1, cycle_momentum=False
    )
    target = torch.arange(batch)
    smoothed = math.log(batch)
    model.train()
    for step, chosen in enumerate(
        track(
            _batches(len(corpus.pictures), batch, epochs, shuffler),
            "training",
            steps,
            console=console,
        )
    ):
        spoken = torch.randint(CAPTIONS, (batch,), generator=shuffler)
        seen = _normalise(corpus.pictures[chosen])
        images, texts, scale = model(seen, corpus.tokens[chosen, spoken].long())
        logits = scale * images @ texts.T
        loss = (
            functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
        ) / 2
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        smoothed += 0.02 * (loss.item() - smoothed)
        if (step + 1) % (steps // epochs) == 0:
            console.print(f"step {step + 1}: loss {smoothed:.3f}, logit scale {scale.item():.1f}")
    model.eval()


def report(weights: Path) -> None:
    """Print zero-shot top-1 and linear-probe accuracy on pictures that no training has seen."""
    model, _, preprocess = open_clip.create_model_and_transforms("tiny", pretrained=str(weights))
    model.eval()
    pool, pool_labels = embed(model, preprocess, collection(1200, POOL_SEED))
    held_out, labels = embed(model, preprocess, collection(1200, HELD_OUT_SEED))
    predicted = (held_out @ prompt_embeddings(model).T).argmax(axis=1)

    table = Table("choice", "pictures", "zero-shot top-1", "mostly taken for")
    for index, choice in enumerate(CHOICES):
        of_choice = predicted[labels == index]
        wrong = np.bincount(of_choice[of_choice != index], minlength=len(CHOICES))
        taken = CHOICES[wrong.argmax()] if wrong.any() else "-"
        table.add_row(choice, str(len(of_choice)), f"{(of_choice == index).mean():.3f}", taken)
    table.add_row("all", str(len(labels)), f"{(predicted == labels).mean():.3f}", "")
    console.print(table)

    probes = Table("labels", "linear-probe top-1", "spread of 10 draws")
    for count in LABELS:
        scores = [
            probe(pool, pool_labels, held_out, labels, count, np.random.default_rng(draw))
            for draw in range(10)
        ]
        probes.add_row(str(count), f"{np.mean(scores):.3f}", f"{np.std(scores):.3f}")
    console.print(probes)
    size = sum(path.stat().st_size for path in weights.parent.iterdir() if path.is_file())
    console.print(f"{weights.parent.name}: {size / 1e6:.2f} MB")


@torch.inference_mode()
def embed(
    model: open_clip.CLIP, preprocess: Preprocess, pictures: Iterable[tuple[str, Image.Image]]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Unit embeddings [N, D] of pictures and the positions [N] of their choices in CHOICES."""
    rows, labels = [], []
    for choice, image in pictures:
        rows.append(preprocess(image))
        labels.append(CHOICES.index(choice))
    embeddings = model.encode_image(torch.stack(rows), normalize=True)
    return embeddings.numpy(), np.array(labels)


@torch.inference_mode()
def prompt_embeddings(model: open_clip.CLIP) -> npt.NDArray[np.float32]:
    """Unit vectors [K, D]: per choice the normalised mean of its prompts' unit embeddings."""
    tokenizer = open_clip.get_tokenizer("tiny")
    texts = tokenizer([prompt.format(choice) for choice in CHOICES for prompt in PROMPTS])
    each = model.encode_text(texts, normalize=True).view(len(CHOICES), len(PROMPTS), -1)
    vectors: npt.NDArray[np.float32] = functional.normalize(each.mean(dim=1), dim=-1).numpy()
    return vectors


def probe(
    pool: npt.NDArray[np.float32],
    pool_labels: npt.NDArray[np.int64],
    held_out: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
) -> float:
    """Held-out top-1 of a logistic regression on `count` embeddings drawn at random from a pool."""
    chosen = rng.permutation(len(pool))[:count]
    classifier = LogisticRegression(C=100.0, max_iter=2000)
    classifier.fit(pool[chosen], pool_labels[chosen])
    return float(classifier.score(held_out, labels))


def _draw(seed: int, size: int, index: int) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    drawn = example(seed, index, DRAWN_SIZE, CAPTIONS)
    small = drawn.image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(small), drawn.captions


def _batches(count: int, batch: int, epochs: int, shuffler: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        order = torch.randperm(count, generator=shuffler)
        yield from order[: count // batch * batch].view(-1, batch)


def _normalise(pictures: Tensor) -> Tensor:
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    spread = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    return (pictures.float() / 255 - mean) / spread


if __name__ == "__main__":
    typer.run(main)
