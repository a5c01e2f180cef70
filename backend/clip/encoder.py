"""The CLIP model: pictures and sentences to unit vectors."""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backend.clip.hardware import find_device, find_precision, packs_weights
from backend.errors import EncoderError
from backend.processes import give_way

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from backend.clip.preprocessing import Preprocessing

log = logging.getLogger(__name__)

TINY = Path(__file__).parent / "tiny"

# 72.8 % zero-shot on ImageNet at ViT-B/32's cost, against 63.3 % of OpenAI's ViT-B/32
# (Gadre et al. 2023, "DataComp").
DEFAULT_PRETRAINED = {"ViT-B-32-256": "datacomp_s34b_b86k"}

# Large enough to fill the hardware, small enough that activations stay in its caches or memory.
BATCH = {"cuda": 256, "mps": 64, "cpu": 32}

# In characters, well past what a model has tokens for. To tokenize one long word takes time that
# grows with the square of its length.
_LONGEST_TEXT = 1000

# Sets of sentences whose vectors are kept: the prompts of so many labeling configs.
_REMEMBERED = 64


class Encoder:
    """A loaded CLIP; safe to share between threads, whose pictures are encoded together.

    `identity` names everything that a vector depends on: architecture, weights, preprocessing and
    precision. Vectors of different identities must never be compared, so nothing may change
    `model` any more.
    """

    def __init__(
        self,
        model: Any,
        preprocess: Preprocessing,
        tokenize: Callable[[list[str]], torch.Tensor],
        *,
        name: str,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        self.name = name
        self.device = device
        self.precision = precision
        self.identity = "-".join(
            (
                name,
                _digest_of_weights(model)[:12],
                sha256(repr(preprocess).encode()).hexdigest()[:8],
                str(precision).removeprefix("torch."),
            )
        )
        self.model = model.eval().requires_grad_(False).to(device)
        self.preprocess = preprocess
        self.tokenize = tokenize
        self.batch_size = BATCH.get(device.type, BATCH["cpu"])
        self.logit_scale = float(self.model.logit_scale.exp())
        self._prepare()

    def _prepare(self) -> None:
        self._model_for_pictures = _for_pictures(self.model, self.device, self.precision)
        # Always the same: each thread that computes has others of its own to share the work with.
        self._thread = ThreadPoolExecutor(1, "encode", give_way)
        self._waiting: deque[_Waiting] = deque()
        self._vectors_of_texts = lru_cache(_REMEMBERED)(self._encode_texts)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()

    def encode_images(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Return unit vectors [N, D] of RGB pictures."""
        step = self.batch_size
        vectors = [
            self.encode_preprocessed([self.preprocess(image) for image in images[i : i + step]])
            for i in range(0, len(images), step)
        ]
        return np.concatenate(vectors)

    def encode_preprocessed(
        self, images: Sequence[torch.Tensor], encoded: Callable[[int, float], None] | None = None
    ) -> NDArray[np.float32]:
        """Return unit vectors [N, D] of one batch of pixels [3, H, W] that `preprocess` gave.

        What other threads wait for goes into the same batch, as far as it fits. `encoded` of the
        thread that came first is told how many pictures the batch had and how many seconds it took.
        """
        mine = _Waiting(images, Future(), encoded)
        self._waiting.append(mine)
        self._thread.submit(self._encode_waiting)
        return mine.vectors.result()

    def _encode_waiting(self) -> None:
        import torch

        if not self._waiting:
            return
        batch = [self._waiting.popleft()]
        size = len(batch[0].images)
        while self._waiting and size + len(self._waiting[0].images) <= self.batch_size:
            batch.append(self._waiting.popleft())
            size += len(batch[-1].images)
        try:
            pixels = torch.stack([image for waiting in batch for image in waiting.images])
            started = time.perf_counter()
            vectors = self._encode_within_memory(pixels)
            if (encoded := batch[0].encoded) is not None:
                encoded(size, time.perf_counter() - started)
        except Exception as error:  # noqa: BLE001 - raised by each thread that waits
            for waiting in batch:
                waiting.vectors.set_exception(error)
        else:
            ends = np.cumsum([len(waiting.images) for waiting in batch])[:-1]
            for waiting, rows in zip(batch, np.split(vectors, ends), strict=True):
                waiting.vectors.set_result(rows)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors [N, D] of sentences, which are not to be written to."""
        return self._vectors_of_texts(tuple(texts))

    def _encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        step = self.batch_size
        readable = [text[:_LONGEST_TEXT] for text in texts]
        parts = [self.tokenize(readable[i : i + step]) for i in range(0, len(texts), step)]
        encoded = [
            self._thread.submit(self._unit, self.model.encode_text, tokens) for tokens in parts
        ]
        vectors = np.concatenate([each.result() for each in encoded])
        vectors.flags.writeable = False
        return vectors

    def encode_prompts(self, prompts: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """Return a unit vector [K, D] for each class: the normalised mean of its prompts' vectors.

        Radford et al. (2021), section 3.1.4.
        """
        import torch

        each = self.encode_texts([text for of_class in prompts for text in of_class])
        ends = np.cumsum([len(of_class) for of_class in prompts])[:-1]
        means = np.stack([rows.mean(axis=0) for rows in np.split(each, ends)])
        unit: NDArray[np.float32] = torch.nn.functional.normalize(
            torch.from_numpy(means), dim=-1
        ).numpy()
        return unit

    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        images = self.preprocess.normalized(pixels, self.precision)
        vectors: torch.Tensor = self._model_for_pictures.encode_image(images)
        return vectors

    def _encode_within_memory(self, pixels: torch.Tensor) -> NDArray[np.float32]:
        """Return unit vectors [N, D]; in halves, at last on the CPU, where the device is full."""
        import torch

        try:
            return self._unit(self._encode_pixels, pixels)
        except torch.OutOfMemoryError:
            # Left before trying again: the error holds what was allocated on the way.
            pass
        if len(pixels) == 1:
            log.warning("%s is out of memory: a picture is encoded on the CPU", self.device)
            return self._unit_on_cpu(pixels)
        self.batch_size = step = len(pixels) // 2
        log.warning("%s is out of memory: batches of %d from now on", self.device, step)
        parts = [pixels[i : i + step] for i in range(0, len(pixels), step)]
        return np.concatenate([self._encode_within_memory(part) for part in parts])

    def _unit_on_cpu(self, pixels: torch.Tensor) -> NDArray[np.float32]:
        import torch

        ours = self._model_for_pictures
        on_cpu = copy.copy(ours)
        on_cpu._modules = {**ours._modules, "visual": _copied_to_cpu(ours.visual)}
        with torch.inference_mode():
            images = self.preprocess.normalized(pixels, self.precision)
            vectors = on_cpu.encode_image(images).float()
            unit: NDArray[np.float32] = torch.nn.functional.normalize(vectors, dim=-1).numpy()
        return unit

    def _unit(
        self, encode: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor
    ) -> NDArray[np.float32]:
        import torch

        if self.device.type == "cuda":
            batch = batch.pin_memory()
        with torch.inference_mode():
            vectors = encode(batch.to(self.device, non_blocking=True)).float()
            unit: NDArray[np.float32] = torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()
        return unit


@dataclass(frozen=True)
class _Waiting:
    """Preprocessed pictures of a thread, and where their vectors go."""

    images: Sequence[torch.Tensor]
    vectors: Future[NDArray[np.float32]]
    encoded: Callable[[int, float], None] | None


def load_encoder(name: str, pretrained: str | None, device: str, precision: str) -> Encoder:
    """Load a CLIP: `name` an open_clip architecture or `tiny`, `pretrained` a tag or a path.

    Raises EncoderError where weights or architecture cannot be had, SettingsError for a device or
    precision that this machine lacks.
    """
    import open_clip

    from backend.clip.preprocessing import Preprocessing

    pretrained = _find_weights(name, pretrained)
    torch_device = find_device(device)
    torch_precision = find_precision(precision, torch_device)
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        tokenize = open_clip.get_tokenizer(name)
    except Exception as error:  # whatever a download or a broken file can raise
        log.debug("loading failed", exc_info=True)
        raise EncoderError(
            f"The weights {pretrained!r} of {name} cannot be had ({type(error).__name__}): "
            "run `clip-backend download` where there is a network, set CLIP_PRETRAINED to a file "
            "of them, or set CLIP_MODEL=tiny to try things out"
        ) from None
    return Encoder(
        model,
        Preprocessing(preprocess),
        tokenize,
        name=name,
        device=torch_device,
        precision=torch_precision,
    )


def download_weights(name: str, pretrained: str | None) -> Path:
    """Fetch what `load_encoder` needs for these names and lacks; return the file of the weights.

    Raises EncoderError where it cannot be had.
    """
    import open_clip

    # Text towers and tokenizers have files of their own, which are fetched when they are loaded.
    load_encoder(name, pretrained, "cpu", "float32")
    weights = _find_weights(name, pretrained)
    if Path(weights).is_file():
        return Path(weights)
    return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, weights)))


def restore_encoder(
    name: str,
    pretrained: str | None,
    device: str,
    precision: str,
    state: Mapping[str, torch.Tensor],
) -> Encoder:
    """Rebuild a CLIP from the `state` of a model that began as `load_encoder`'s of these names.

    The weights of `pretrained` are not needed; it only tells how pictures are prepared.

    Raises EncoderError where the state does not fit, SettingsError as `load_encoder` does.
    """
    import open_clip

    from backend.clip.preprocessing import Preprocessing

    preparation = open_clip.get_pretrained_cfg(name, _resolve(name, pretrained))
    torch_device = find_device(device)
    torch_precision = find_precision(precision, torch_device)
    try:
        with _expecting_random_weights():
            model, _, preprocess = open_clip.create_model_and_transforms(
                name,
                pretrained_hf=False,
                image_mean=preparation.get("mean"),
                image_std=preparation.get("std"),
                image_interpolation=preparation.get("interpolation"),
                image_resize_mode=preparation.get("resize_mode"),
            )
        model.load_state_dict(state)
        tokenize = open_clip.get_tokenizer(name)
    except Exception as error:  # a text tower's config or tokenizer may need the network
        log.debug("restoring failed", exc_info=True)
        raise EncoderError(
            f"{name} cannot be rebuilt from these weights ({type(error).__name__})"
        ) from None
    return Encoder(
        model,
        Preprocessing(preprocess),
        tokenize,
        name=name,
        device=torch_device,
        precision=torch_precision,
    )


def _resolve(name: str, pretrained: str | None) -> str:
    """Return what weights `name` is to have; raises EncoderError for unknown architectures."""
    import open_clip

    if name == "tiny":
        open_clip.add_model_config(TINY)
        pretrained = pretrained or str(TINY / "tiny.safetensors")
    if name not in open_clip.list_models():
        raise EncoderError(f"CLIP_MODEL: open_clip has no architecture {name!r}")
    pretrained = pretrained or DEFAULT_PRETRAINED.get(name)
    if pretrained is None:
        raise EncoderError(f"CLIP_PRETRAINED is not set: name the weights of {name}")
    return pretrained


def _find_weights(name: str, pretrained: str | None) -> str:
    """Return a tag that open_clip knows or a file; raises EncoderError where it is neither."""
    import open_clip

    pretrained = _resolve(name, pretrained)
    known = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in known and not Path(pretrained).is_file():
        raise EncoderError(
            f"CLIP_PRETRAINED: {pretrained!r} is neither a file nor weights known for {name} "
            f"({', '.join(known) or 'none are'})"
        )
    return pretrained


@contextmanager
def _expecting_random_weights() -> Iterator[None]:
    # open_clip warns on the root logger of what is meant here.
    def other(record: logging.LogRecord) -> bool:
        return "Model initialized randomly" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)


def _for_pictures(model: Any, device: torch.device, precision: torch.dtype) -> Any:
    """Return a model that encodes pictures in a precision, and shares what need not differ.

    Its weights are of that precision: to convert them for each batch, as autocast does, takes
    longer on a CPU than is won.
    """
    import torch

    from backend.clip.transformer import leave_out_work

    visual = model.visual
    tensors = (*visual.parameters(), *visual.buffers())
    shared = {id(tensor): tensor for tensor in tensors} if precision is torch.float32 else {}
    visual = copy.deepcopy(visual, shared).to(precision)
    leave_out_work(visual, packed=packs_weights(device, precision))
    ours = copy.copy(model)
    ours._modules = {**model._modules, "visual": visual}
    return ours


def _copied_to_cpu(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a module, whose device may be full and is asked for nothing."""
    import torch

    copies: dict[int, Any] = {
        id(weights): torch.nn.Parameter(weights.cpu(), requires_grad=False)
        for weights in module.parameters()
    }
    copies |= {id(buffer): buffer.cpu() for buffer in module.buffers()}
    return copy.deepcopy(module, copies)


def _digest_of_weights(model: torch.nn.Module) -> str:
    import torch

    digest = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()
