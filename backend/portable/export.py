"""`export`: a stored version to a folder that needs neither database nor Label Studio."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import open_clip
from rich.console import Console

from backend import __version__
from backend.clip.encoder import Encoder
from backend.errors import ModelError
from backend.labelstudio.config import LabelingConfig
from backend.portable import card as cards
from backend.portable import folder as folders
from backend.portable.onnx_model import is_installed, write_onnx
from backend.settings import QueryStrategy, Score
from backend.store.versions import Version


def export(
    version: Version,
    label_config: str,
    config: LabelingConfig,
    encoder: Encoder,
    out: Path,
    *,
    pretrained: str | None,
) -> None:
    """Write a version that fits a labeling config into a new folder, and print what is in it.

    Where the ONNX model cannot be made it is left out, and a sentence says why. `pretrained` is
    the tag or file of the encoder's weights. Raises ModelError where the folder cannot be written.
    """
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    preprocessing = _preprocessing(encoder)
    with folders.new_folder(out) as folder:
        onnx, missing = None, ""
        if is_installed():
            try:
                onnx = write_onnx(folder / folders.ONNX, encoder, version.heads, preprocessing.size)
            except ModelError as error:
                missing = str(error)
                for file in folder.glob(f"{folders.ONNX}*"):
                    file.unlink()
        else:
            missing = "it needs `pip install 'label-studio-clip-backend[onnx]'`"
        card = cards.ModelCard(
            format=cards.FORMAT,
            name=version.name,
            number=version.number,
            fingerprint=version.fingerprint,
            published_at=datetime.fromtimestamp(version.created_at, timezone.utc),
            annotations=version.annotations,
            query_strategy=QueryStrategy(version.query_strategy),
            score=Score(version.score),
            label_config=label_config,
            controls=_controls(version, config),
            encoder=cards.Encoder(
                name=encoder.name,
                # Of a file, its folder is nobody else's business.
                pretrained=pretrained and Path(pretrained).name,
                identity=encoder.identity,
                precision=str(encoder.precision).removeprefix("torch."),
                dimensions=next(iter(version.heads.values())).head.weights.shape[1],
                preprocessing=preprocessing,
            ),
            onnx=onnx,
            written_by=f"label-studio-clip-backend {__version__}",
        )
        folders.write(folder, version.heads, card)
    console.print(f"wrote {out / folders.HEADS} and {folders.CARD}: {version.name}")
    if onnx is None:
        console.print(f"{folders.ONNX} is left out: {missing}")
    else:
        console.print(
            f"wrote {out / onnx.file}: its probabilities differ from ours by "
            f"{onnx.largest_difference:.1g} at most"
        )


def _controls(version: Version, config: LabelingConfig) -> tuple[cards.Control, ...]:
    by_name = {control.name: control for control in config.controls}
    described = []
    for index, (name, head) in enumerate(version.heads.items()):
        # The config may have lost a control that the version still has.
        control = by_name.get(name)
        report = version.report.get(name, {})
        described.append(
            cards.Control(
                name=name,
                to_name=control.to_name if control is not None else "",
                image=control.image if control is not None else "",
                multiple=head.head.multiple,
                choices=head.values,
                weights=f"{index}.weights",
                bias=f"{index}.bias",
                temperature=report.get("temperature"),
                labels=report.get("labels"),
                per_choice=report.get("per_choice"),
                out_of_fold=cards.figures(report, "out_of_fold"),
                pool_accuracy=cards.figures(report, "pool_accuracy"),
            )
        )
    return tuple(described)


def _preprocessing(encoder: Encoder) -> cards.Preprocessing:
    known = open_clip.get_model_preprocess_cfg(encoder.model)
    size = known["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return cards.Preprocessing(
        size=(height, width),
        resize_mode=known["resize_mode"],
        interpolation=known["interpolation"],
        fill_color=known["fill_color"],
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
    )
