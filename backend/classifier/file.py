"""A classifier as one safetensors file: tensors, and JSON that describes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from backend.errors import ClassifierError
from backend.learning.evaluation import Evaluation
from backend.learning.head import Head

_FORMAT = "clip-image-classifier"
_VERSION = "1"

# What a fine-tuned CLIP's tensors are called: this, and their names in the model.
_CLIP = "clip."

# Names of classes become an array in which each takes as much as the longest.
_MAX_CHARACTERS = 100_000_000


class Parameters(BaseModel):
    """The estimator's parameters, but for `device`, which is the machine's."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    model: str
    pretrained: str | None
    precision: str
    prompts: dict[str, list[str]] | list[str] | None
    finetune: bool
    batch_size: int
    epochs: int
    learning_rate: float
    random_state: int | None


class EncoderDescription(BaseModel):
    """The CLIP that the head belongs to, and what it really computes in."""

    model_config = ConfigDict(extra="forbid")

    identity: str
    precision: str


class Description(BaseModel):
    """What a file says of its tensors."""

    model_config = ConfigDict(extra="forbid")

    classes: list[str] | list[bool] | list[int] | list[float]
    parameters: Parameters
    encoder: EncoderDescription | None
    evaluation: Evaluation | None

    def class_array(self) -> NDArray[np.generic]:
        """Return the classes [K] as they were fitted."""
        return np.array(self.classes)


def write(
    path: Path, description: Description, head: Head, clip: Mapping[str, Tensor] | None
) -> None:
    """Write a classifier; raises ClassifierError where the file cannot be written."""
    tensors = {"weights": head.weights, "bias": head.bias}
    tensors |= {f"{_CLIP}{name}": tensor for name, tensor in (clip or {}).items()}
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "description": description.model_dump_json(),
    }
    # Written beside it first: whatever happens, there is a whole file, the old or the new one.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(
            {
                # Copies, since the format refuses tensors that share their memory.
                name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in tensors.items()
            },
            partial,
            metadata,
        )
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise ClassifierError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> tuple[Description, Head, dict[str, Tensor]]:
    """Return what `write` was given; the last is empty where CLIP was not fine-tuned.

    Nothing in the file is trusted. Raises ClassifierError for whatever is no such file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise _refusal(path, "it is another kind of safetensors file")
            if (version := metadata.get("version")) != _VERSION:
                raise ClassifierError(
                    f"{path} has version {version!r:.20} of the format and this release reads "
                    f"{_VERSION}: update label-studio-clip-backend, or fit and save again"
                )
            description = Description.model_validate_json(metadata["description"], strict=True)
            _check(path, description, file)
            # Copies, since these tensors are the file itself, which may change.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise ClassifierError(f"{path} cannot be read: {error}") from error
    except (SafetensorError, KeyError) as error:
        raise _refusal(path, str(error)) from error
    except ValidationError as error:
        raise _refusal(path, "its description is not what was written") from error
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise _refusal(path, "some of its weights are no numbers")
    head = Head(tensors.pop("weights"), tensors.pop("bias"), multiple=False)
    return description, head, {name.removeprefix(_CLIP): t for name, t in tensors.items()}


def _check(path: Path, description: Description, file: Any) -> None:
    names = set(file.keys())
    heads = {"weights", "bias"}
    if not heads <= names or not all(name.startswith(_CLIP) for name in names - heads):
        raise _refusal(path, "its tensors are not those of a classifier")
    if (names != heads) != (description.parameters.finetune and description.encoder is not None):
        raise _refusal(path, "it is not whole as to CLIP's weights")
    slices = [file.get_slice(name) for name in ("weights", "bias")]
    (weights, bias), types = (
        [part.get_shape() for part in slices],
        {p.get_dtype() for p in slices},
    )
    classes = len(description.classes)
    if types != {"F32"} or len(weights) != 2 or not all(weights):
        raise _refusal(path, "its head is not one of 32-bit numbers in two dimensions")
    if weights[0] != classes or bias != [classes] or len(set(description.classes)) != classes:
        raise _refusal(path, "its head and its classes differ in number")
    longest = max(len(str(name)) for name in description.classes)
    if longest * classes > _MAX_CHARACTERS:
        raise _refusal(path, "its classes' names are too long")


def _refusal(path: Path, reason: str) -> ClassifierError:
    return ClassifierError(f"{path} was not written by CLIPImageClassifier.save: {reason}")
