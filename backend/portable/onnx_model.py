"""Encoder and heads as one ONNX model, held against what this backend computes itself."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from backend.clip.encoder import Encoder
from backend.errors import ModelError
from backend.learning.head import probabilities_of
from backend.portable.card import Onnx, Output
from backend.store.versions import ControlHead

NEEDED = ("onnx", "onnxruntime", "onnxscript")

# What ONNX Runtime and the other runtimes have read for years.
_OPSET = 18

# Between probabilities of ours and of the ONNX model.
TOLERANCE = 1e-3

_INPUT = "pixels"


def is_installed() -> bool:
    """Tell whether the packages of the extra `onnx` are there."""
    return all(find_spec(name) is not None for name in NEEDED)


def write_onnx(
    path: Path, encoder: Encoder, heads: Mapping[str, ControlHead], size: tuple[int, int]
) -> Onnx:
    """Write the model for pictures of a size (height, width), and return what its card says.

    It computes in float32, whatever the encoder does. Raises ModelError where torch cannot export
    the encoder, or what comes of it differs from what this backend computes by more than 1e-3.
    """
    model = _EncoderAndHeads(encoder, heads)
    names = [f"probabilities_{index}" for index in range(len(heads))]
    pixels = _pictures(size)
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (encoder.preprocess.normalized(pixels),),
                dynamo=True,
                opset_version=_OPSET,
                input_names=[_INPUT],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim("pictures")},),
                verbose=False,
            )
            if program is None:
                raise ModelError(f"torch {torch.__version__} exports no ONNX")
            program.save(path)
    except ModelError:
        raise
    except Exception as error:  # whatever an architecture has that the exporter cannot express
        raise ModelError(
            f"torch {torch.__version__} cannot export {encoder.name} to ONNX "
            f"({type(error).__name__})"
        ) from error
    return Onnx(
        file=path.name,
        input=_INPUT,
        outputs=tuple(
            Output(name=name, control=control) for name, control in zip(names, heads, strict=True)
        ),
        opset=_OPSET,
        largest_difference=_compare(path, encoder, heads, names, pixels),
    )


class _EncoderAndHeads(nn.Module):
    """Normalised pixels [N, 3, H, W] to the probabilities [N, K] of each control."""

    def __init__(self, encoder: Encoder, heads: Mapping[str, ControlHead]) -> None:
        super().__init__()
        # The image tower alone, which is all that `encode_image` uses.
        self.clip = copy.copy(encoder.model)
        self.clip._parameters, self.clip._buffers = {}, {}
        self.clip._modules = {"visual": copy.deepcopy(encoder.model.visual).cpu().float()}
        self.multiple = [control.head.multiple for control in heads.values()]
        for index, control in enumerate(heads.values()):
            self.register_buffer(f"weights_{index}", control.head.weights.detach().cpu().float())
            self.register_buffer(f"bias_{index}", control.head.bias.detach().cpu().float())
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        vectors = functional.normalize(self.clip.encode_image(pixels), dim=-1)
        return tuple(
            probabilities_of(
                functional.linear(
                    vectors,
                    self.get_buffer(f"weights_{index}"),
                    self.get_buffer(f"bias_{index}"),
                ),
                multiple=multiple,
            )
            for index, multiple in enumerate(self.multiple)
        )


def _compare(
    path: Path,
    encoder: Encoder,
    heads: Mapping[str, ControlHead],
    names: Sequence[str],
    pixels: Tensor,
) -> float:
    """Return the largest difference of a probability; raises ModelError where it is too large."""
    import onnxruntime

    precise = encoder
    if encoder.precision is not torch.float32:
        precise = Encoder(
            encoder.model,
            encoder.preprocess,
            encoder.tokenize,
            name=encoder.name,
            device=encoder.device,
            precision=torch.float32,
        )
    vectors = torch.from_numpy(precise.encode_preprocessed([*pixels]))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    normalized = encoder.preprocess.normalized(pixels).numpy()
    largest = 0.0
    # One alone, too: the number of pictures is free.
    for some in (slice(0, 1), slice(None)):
        outputs: list[NDArray[np.float32]] = session.run(names, {_INPUT: normalized[some]})
        for control, theirs in zip(heads.values(), outputs, strict=True):
            ours = control.head.probabilities(vectors[some]).numpy()
            largest = max(largest, float(np.abs(ours - theirs).max()))
    if not largest <= TOLERANCE:
        raise ModelError(
            f"the ONNX model's probabilities differ from ours by {largest:.2g}, more than "
            f"{TOLERANCE:g}"
        )
    return largest


def _pictures(size: tuple[int, int]) -> Tensor:
    """Return a few pictures [N, 3, H, W] uint8 of soft colours, always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((4, 3, 4, 4), generator=generator)
    pixels = functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    return (pixels.clamp(0, 1) * 255).to(torch.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    # The exporter tells its developers what it tries.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
