"""An exported model as a folder: head.safetensors, model_card.json and, if it could be made, ONNX.

A folder may come from anybody: nothing in it is executed, and nothing trusted.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from backend.errors import LabelingConfigError, ModelError
from backend.labelstudio.choices import Choice, path_of
from backend.labelstudio.config import LabelingConfig, parse_labeling_config
from backend.portable.card import FORMAT, ModelCard
from backend.prediction import fits
from backend.store.versions import ControlHead, Version, heads_from_bytes, heads_to_bytes

HEADS = "head.safetensors"
CARD = "model_card.json"
ONNX = "model.onnx"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder that appears as `path` once the block has ended well.

    Raises ModelError where something is there already, or it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ModelError(f"{path} exists: name a folder that is new or empty")
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write(folder: Path, heads: Mapping[str, ControlHead], card: ModelCard) -> None:
    """Write heads and card."""
    (folder / HEADS).write_bytes(heads_to_bytes(heads))
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> tuple[ModelCard, Version, LabelingConfig]:
    """Return the card of an exported model, the version that it describes, and what that predicts.

    Raises ModelError for a folder that holds no such model, or one of a newer release.
    """
    try:
        card = ModelCard.model_validate_json((folder / CARD).read_bytes())
        heads = heads_from_bytes((folder / HEADS).read_bytes())
        config = parse_labeling_config(card.label_config)
    except OSError as error:
        raise ModelError(
            f"{folder} holds no exported model ({error.strerror}): "
            "give a folder that `clip-backend export` has written"
        ) from error
    except (
        ValidationError,
        SafetensorError,
        LabelingConfigError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise _damaged(folder) from error
    if card.format != FORMAT:
        raise ModelError(
            f"{folder} has format {card.format} and this release reads {FORMAT}: "
            "update label-studio-clip-backend, or export it again"
        )
    described = {control.name: (control.choices, control.multiple) for control in card.controls}
    found = {name: (control.values, control.head.multiple) for name, control in heads.items()}
    if described != found or not all(
        control.head.weights.shape == (len(control.values), card.encoder.dimensions)
        and control.head.bias.shape == (len(control.values),)
        and control.head.weights.dtype == control.head.bias.dtype == torch.float32
        and control.head.weights.isfinite().all()
        and control.head.bias.isfinite().all()
        for control in heads.values()
    ):
        raise _damaged(folder)
    version = Version(
        project_id=0,
        number=card.number,
        fingerprint=card.fingerprint,
        encoder=card.encoder.identity,
        query_strategy=card.query_strategy.value,
        score=card.score.value,
        heads=heads,
        annotations=card.annotations,
        created_at=card.published_at.timestamp(),
    )
    if not config.controls or not fits(version, config, version.encoder):
        raise _damaged(folder)
    return card, version, _without_task_data(config, heads)


def _without_task_data(config: LabelingConfig, heads: Mapping[str, ControlHead]) -> LabelingConfig:
    """Return a config of which each picture may be any choice that the heads know."""
    return replace(
        config,
        controls=tuple(
            control
            if control.options is None
            else replace(
                control,
                options=None,
                choices=tuple(
                    Choice(value, (value,), path_of(value) if control.kind == "taxonomy" else ())
                    for value in heads[control.name].values
                ),
            )
            for control in config.controls
        ),
    )


def _damaged(folder: Path) -> ModelError:
    return ModelError(f"{folder}: {CARD} and {HEADS} are damaged or do not belong together")
