"""Contrastive fine-tuning of CLIP on labelled pictures and the prompts of their labels."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from backend.clip.encoder import Encoder
from backend.clip.reading import read_ahead
from backend.errors import ClassifierError

# CLIP's own for its largest models (Radford et al., 2021, table 18), and its cap on the logit
# scale (section 2.5).
_BETAS, _EPSILON = (0.9, 0.98), 1e-6
_WEIGHT_DECAY = 0.2
_MAX_LOGIT_SCALE = 100.0

_WARM_UP = 0.1
_MAX_GRADIENT_NORM = 1.0


def finetune(
    encoder: Encoder,
    read: Callable[[int], Image],
    targets: NDArray[np.int64],
    prompts: Sequence[Sequence[str]],
    *,
    batch_size: int,
    epochs: int,
    learning_rate: float,
    seed: int,
) -> Encoder:
    """Return a copy of the encoder that is trained on pairs of picture and prompt.

    Each step shows a batch of pictures, each with a prompt drawn from those of its class, and
    minimises `contrastive_loss` by AdamW. The learning rate rises over the first tenth of the
    steps and falls along a cosine. Weight decay leaves norms, biases and the logit scale alone.

    Pictures are prepared as for a prediction, without augmentation: whether a crop or a mirror
    image still deserves the label is for the labels' author to know. Statistics of batch norms
    stay as they are, since a few labelled pictures estimate them worse than pre-training did.

    The same seed gives the same weights on a CPU.

    Parameters
    ----------
    encoder : Encoder
        Where training starts; it does not change.
    read : callable
        The RGB picture of a position in `targets`; it is called by several threads, once for each
        picture and epoch.
    targets : NDArray[N] of int64
        Index of each picture's class.
    prompts : sequence of K sequences of str
        Sentences of each class.
    batch_size : int
        Most pictures of one step; an epoch's batches are of equal size, but for one picture.
    epochs : int
        How often each picture is shown.
    learning_rate : float
        The highest.
    seed : int
        Decides order and prompts.

    Raises
    ------
    ClassifierError
        Where the learning rate is so high that the loss is no number any more.

    """
    device = encoder.device
    model = copy.deepcopy(encoder.model).requires_grad_(True)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.eval()

    tokens = encoder.tokenize([text for of_class in prompts for text in of_class])
    counts = torch.tensor([len(of_class) for of_class in prompts])
    starts = counts.cumsum(0) - counts
    labels = torch.as_tensor(targets)

    optimizer = _optimizer(model)
    # Gradients in float16 underflow without.
    scaler = torch.amp.GradScaler(device.type, enabled=encoder.precision is torch.float16)
    autocast = torch.autocast(
        device.type, dtype=encoder.precision, enabled=encoder.precision is not torch.float32
    )
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        batches = _batches(len(labels), batch_size, epochs)
        pictures = read_ahead(
            lambda position: encoder.preprocess(read(position)),
            (batch.tolist() for batch in batches),
        )
        steps = track(
            zip(batches, pictures, strict=True),
            "fine-tuning CLIP",
            total=len(batches),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        for step, (batch, preprocessed) in enumerate(steps):
            of_batch = labels[batch]
            drawn = (torch.rand(len(batch)) * counts[of_batch]).long()
            distinct, places = torch.unique(starts[of_batch] + drawn, return_inverse=True)
            with autocast:
                pixels = torch.stack(preprocessed).to(device)
                images = model.encode_image(encoder.preprocess.normalized(pixels))
                texts = model.encode_text(tokens[distinct].to(device))
            loss = contrastive_loss(
                functional.normalize(images.float(), dim=1),
                functional.normalize(texts.float(), dim=1)[places.to(device)],
                of_batch.to(device),
                model.logit_scale.exp(),
            )
            if not loss.isfinite():
                raise ClassifierError(
                    f"fine-tuning diverged in step {step + 1} of {len(batches)}: lower "
                    f"learning_rate, which is {learning_rate:g}"
                )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(step, len(batches))
            optimizer.zero_grad()
            torch.autograd.backward(scaler.scale(loss))
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
            scaler.step(optimizer)
            scaler.update()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(_MAX_LOGIT_SCALE))
    return Encoder(
        model,
        encoder.preprocess,
        encoder.tokenize,
        name=encoder.name,
        device=device,
        precision=encoder.precision,
    )


def contrastive_loss(images: Tensor, texts: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss in which all pairs of one label are positives.

    CLIP's loss (Radford et al., 2021, figure 3) takes every other pair of a batch as a negative,
    which is wrong where classes repeat. As in UniCL (Yang et al., 2022, "Unified Contrastive
    Learning in Image-Text-Label Space"), the target of a picture is spread
    evenly over the texts of its label, and that of a text over the pictures of its label. Where
    no label repeats the two are the same.

    Parameters
    ----------
    images, texts : Tensor[N, D], floating
        Unit vectors of pictures and of the prompts shown with them.
    labels : Tensor[N] int64
    scale : Tensor[], floating
        The factor from cosine to logit.

    Returns
    -------
    Tensor[]

    """
    positive = (labels[:, None] == labels).to(images)
    target = positive / positive.sum(dim=1, keepdim=True)
    logits = scale * images @ texts.T
    from_images = functional.cross_entropy(logits, target)
    from_texts = functional.cross_entropy(logits.T, target)
    return (from_images + from_texts) / 2


def _optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    free = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": _WEIGHT_DECAY},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=_BETAS, eps=_EPSILON)


def _batches(count: int, size: int, epochs: int) -> list[Tensor]:
    """Return each step's positions; a rest of one picture would have nothing to contrast with."""
    parts = math.ceil(count / size)
    return [batch for _ in range(epochs) for batch in torch.randperm(count).tensor_split(parts)]


def _schedule(step: int, steps: int) -> float:
    """Return the share of the highest learning rate: a linear rise, then half a cosine."""
    rise = max(1, round(_WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2
