"""The model card: everything that is known of an exported version, as JSON, and no secret."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from backend.settings import QueryStrategy, Score

# Of the card and of the files that it describes.
FORMAT = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Preprocessing(_Part):
    """What is done to an upright RGB picture before the encoder sees it, in this order.

    Resized by `resize_mode`: `shortest` makes the shorter side `size` and crops the centre,
    `longest` makes the longer side `size` and pads with `fill_color`, `squash` ignores the aspect
    ratio. Then scaled to [0, 1], and normalised as (x − mean) / std by channel.
    """

    size: tuple[int, int]
    resize_mode: str
    interpolation: str
    fill_color: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Encoder(_Part):
    """The CLIP that the heads belong to.

    `name` is an open_clip architecture, `pretrained` its weights: a tag, the name of a file, or
    None for the default of `name`. `identity` is a digest of all that its vectors depend on.
    """

    name: str
    pretrained: str | None
    identity: str
    precision: str
    dimensions: int
    preprocessing: Preprocessing


class Control(_Part):
    """One `<Choices>` and its head: tensors of head.safetensors, rows in the order of `choices`.

    A head gives `weights @ vector + bias`; then a softmax, or with `multiple` a sigmoid of each.
    `temperature` is in the weights already. `out_of_fold` are figures of labelled pictures that
    the head was not trained on; None where there were too few labels.
    """

    name: str
    to_name: str
    image: str
    multiple: bool
    choices: tuple[str, ...]
    weights: str
    bias: str
    temperature: float | None
    labels: int | None
    per_choice: dict[str, int] | None
    out_of_fold: dict[str, float] | None
    pool_accuracy: dict[str, float] | None


class Output(_Part):
    """An output of the ONNX model: the probabilities [N, K] of a control's choices."""

    name: str
    control: str


class Onnx(_Part):
    """The ONNX model: encoder and heads, from `input` [N, 3, height, width] float32.

    `largest_difference` is between its probabilities and this backend's in float32, as measured
    when it was written.
    """

    file: str
    input: str
    outputs: tuple[Output, ...]
    opset: int
    largest_difference: float


class ModelCard(_Part):
    """A version of a project's heads."""

    format: int
    name: str
    number: int
    fingerprint: str
    published_at: datetime
    annotations: int
    query_strategy: QueryStrategy
    score: Score
    label_config: str
    controls: tuple[Control, ...]
    encoder: Encoder
    onnx: Onnx | None
    written_by: str


def figures(report: dict[str, Any], name: str) -> dict[str, float] | None:
    """Return one group of a control's figures, None where the version came without."""
    found = report.get(name)
    return None if found is None else {key: float(value) for key, value in found.items()}
