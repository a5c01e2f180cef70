"""Versions that are exported, and run on folders without Label Studio."""

from __future__ import annotations

import base64
import csv
import json
import os
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from backend.cli import app
from backend.clip.encoder import Encoder, load_encoder
from backend.errors import DatasetError, EncoderError, ModelError
from backend.jobs.services import Services
from backend.labelstudio.config import LabelingConfig, parse_labeling_config
from backend.labelstudio.decoding import ImageLimits
from backend.portable import onnx_model
from backend.portable.classify import Model, check, classify
from backend.portable.encoders import load_encoder_of
from backend.portable.export import export
from backend.portable.folder import read
from backend.prediction import Prediction
from backend.store import Store
from backend.store.tasks import Task
from backend.store.versions import Version
from tests.integration.conftest import png
from tests.integration.fake_label_studio import PROJECT

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <Choices name="colour" toName="image">
    <Choice value="red"/><Choice value="green"/><Choice value="blue"/>
  </Choices>
  <Choices name="mood" toName="image" choice="multiple">
    <Choice value="warm"/><Choice value="cold"/><Choice value="dark"/>
  </Choices>
</View>
"""
REPORT = {
    "colour": {
        "labels": 4,
        "per_choice": {"red": 2, "green": 1, "blue": 1},
        "temperature": 0.7,
        "out_of_fold": {"labels": 4, "top1": 0.75, "top5": 1.0, "log_loss": 0.5},
        "suspects": [{"task": 4711}],
        "agreement": {"tasks": 1, "annotators": [{"annotator": 1}]},
    }
}
COLOURS = ("red", "green", "blue", "orange", "#102030", "white")
LIMITS = ImageLimits(max_bytes=50_000_000, max_pixels=100_000_000, timeout=30, attempts=1)

Export = Callable[[], Path]


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    # One database will do: the store's own tests hold both to the same.
    return f"sqlite:///{tmp_path / 'store.sqlite3'}"


@pytest.fixture
def config() -> LabelingConfig:
    return parse_labeling_config(CONFIG)


@pytest.fixture
def version(services: Services, store: Store, config: LabelingConfig) -> Version:
    """A published version, whose heads are no zero-shot ones so that nothing is near certain."""
    store.projects.set_up(PROJECT, label_config=CONFIG)
    zero_shot = services.predictor.zero_shot(PROJECT, config, services.learning)
    heads = {
        name: replace(control, head=replace(control.head, weights=control.head.weights / 4))
        for name, control in zero_shot.heads.items()
    }
    return store.versions.publish(replace(zero_shot, heads=heads, annotations=4, report=REPORT))


@pytest.fixture
def exported(version: Version, config: LabelingConfig, encoder: Encoder, tmp_path: Path) -> Export:
    def run(name: str = "model") -> Path:
        export(version, CONFIG, config, encoder, tmp_path / name, pretrained=None)
        return tmp_path / name

    return run


@pytest.fixture
def model(version: Version, config: LabelingConfig, encoder: Encoder) -> Model:
    return Model(version, config, encoder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of several kinds, sizes and names, some deeper inside."""
    top = tmp_path / "pictures"
    (top / "more of them").mkdir(parents=True)
    for index, colour in enumerate(COLOURS):
        name = f"more of them/{colour} é.png" if index % 2 else f"{index}.png"
        (top / name).write_bytes(png(colour, 40 + 30 * index))
    return top


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "model_card.json").read_text())
    return card


# Export


def test_a_folder_has_the_heads_and_a_card_that_describes_them(
    exported: Export, version: Version, encoder: Encoder
) -> None:
    folder = exported()

    card = card_of(folder)
    assert sorted(os.listdir(folder)) == ["head.safetensors", "model.onnx", "model_card.json"]
    assert (card["name"], card["annotations"]) == (version.name, 4)
    assert card["label_config"] == CONFIG
    assert card["encoder"]["name"] == "tiny"
    assert card["encoder"]["identity"] == encoder.identity
    assert card["encoder"]["preprocessing"]["size"] == [64, 64]
    tensors = load_file(folder / "head.safetensors")
    for control in card["controls"]:
        head = version.heads[control["name"]]
        assert tuple(control["choices"]) == head.values
        assert control["multiple"] == head.head.multiple
        assert torch.equal(tensors[control["weights"]], head.head.weights)
        assert torch.equal(tensors[control["bias"]], head.head.bias)
    colour, mood = card["controls"]
    assert colour["temperature"] == 0.7
    assert colour["out_of_fold"]["top1"] == 0.75
    assert colour["per_choice"] == {"red": 2, "green": 1, "blue": 1}
    assert mood["out_of_fold"] is None


def test_a_card_says_nothing_of_tasks_and_people(
    exported: Export, store: Store, tmp_path: Path
) -> None:
    store.projects.update(PROJECT, webhook_digest="digest", extra_params={"key": "secret"})

    text = (exported() / "model_card.json").read_text()

    for private in ("4711", 'annotator"', 'digest"', "secret", str(tmp_path)):
        assert private not in text


def test_what_is_read_back_is_the_version(exported: Export, version: Version) -> None:
    _, found, config = read(exported())

    assert found.name == version.name
    assert (found.encoder, found.query_strategy) == (version.encoder, version.query_strategy)
    assert [control.name for control in config.controls] == ["colour", "mood"]
    for name, control in version.heads.items():
        assert torch.equal(found.heads[name].head.weights, control.head.weights)


def test_the_onnx_model_says_what_this_backend_says(
    exported: Export, version: Version, encoder: Encoder
) -> None:
    import onnxruntime

    folder = exported()
    onnx = card_of(folder)["onnx"]
    session = onnxruntime.InferenceSession(
        folder / onnx["file"], providers=["CPUExecutionProvider"]
    )
    images = [Image.open(BytesIO(png(colour, 90))).convert("RGB") for colour in COLOURS]
    pixels = torch.stack([encoder.preprocess(image) for image in images])
    vectors = torch.from_numpy(encoder.encode_images(images))

    assert onnx["largest_difference"] <= 1e-3
    for count in (1, 2, len(images)):
        names = [output["name"] for output in onnx["outputs"]]
        given = {onnx["input"]: encoder.preprocess.normalized(pixels[:count]).numpy()}
        outputs = session.run(names, given)
        for output, theirs in zip(onnx["outputs"], outputs, strict=True):
            ours = version.heads[output["control"]].head.probabilities(vectors[:count])
            np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-3)


def test_the_card_is_enough_to_prepare_a_picture(exported: Export, encoder: Encoder) -> None:
    described = card_of(exported())["encoder"]["preprocessing"]
    noise = np.random.default_rng(0).integers(0, 255, (9, 13, 3), np.uint8)
    picture = Image.fromarray(noise).resize((130, 90), Image.Resampling.BICUBIC)

    # As the card's description says, with Pillow and NumPy alone.
    assert (described["resize_mode"], described["interpolation"]) == ("shortest", "bicubic")
    height, width = described["size"]
    scale = height / min(picture.size)
    resized = picture.resize(
        (int(picture.width * scale), int(picture.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
    cropped = np.asarray(resized.crop((left, top, left + width, top + height)), np.float32) / 255
    normalized = (cropped - described["mean"]) / described["std"]

    ours = encoder.preprocess.normalized(encoder.preprocess(picture)[None])[0]
    # Within two of 255 levels.
    np.testing.assert_allclose(normalized.transpose(2, 0, 1), ours.numpy(), atol=2 / 255 / 0.26)


def test_the_onnx_model_holds_the_image_tower_alone(exported: Export, encoder: Encoder) -> None:
    tower = sum(tensor.numel() * 4 for tensor in encoder.model.visual.parameters())
    whole = sum(tensor.numel() * 4 for tensor in encoder.model.parameters())

    size = (exported() / "model.onnx").stat().st_size

    assert size < tower + 1_000_000 < whole


def test_without_the_extra_onnx_is_left_out_and_that_is_said(
    exported: Export, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_model, "NEEDED", ("onnx", "a_package_that_nobody_has"))

    folder = exported()

    assert sorted(os.listdir(folder)) == ["head.safetensors", "model_card.json"]
    assert card_of(folder)["onnx"] is None
    said = capsys.readouterr().out
    assert (
        "model.onnx is left out: it needs `pip install 'label-studio-clip-backend[onnx]'`" in said
    )


def test_an_onnx_model_that_says_something_else_is_left_out(
    exported: Export, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = onnx_model._EncoderAndHeads.forward
    monkeypatch.setattr(
        onnx_model._EncoderAndHeads,
        "forward",
        lambda self, pixels: tuple(each * 0.99 for each in forward(self, pixels)),
    )

    folder = exported()

    assert "model.onnx" not in os.listdir(folder)
    assert (
        "model.onnx is left out: the ONNX model's probabilities differ" in capsys.readouterr().out
    )


def test_nothing_is_overwritten(exported: Export) -> None:
    exported()

    with pytest.raises(ModelError, match="exists: name a folder that is new or empty"):
        exported()


# A folder that comes from anybody


def damage_card(folder: Path, **changes: Any) -> None:
    (folder / "model_card.json").write_text(json.dumps(card_of(folder) | changes))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model_card.json").write_text("{"),
        lambda folder: (folder / "model_card.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "head.safetensors").write_bytes(b"short"),
        lambda folder: (folder / "head.safetensors").write_bytes(b"\xff" * 100),
        lambda folder: save_file({"a": torch.zeros(1)}, folder / "head.safetensors"),
        lambda folder: damage_card(folder, controls=card_of(folder)["controls"][:1]),
        lambda folder: damage_card(folder, query_strategy="__class__"),
        lambda folder: damage_card(folder, label_config="<View/>"),
        lambda folder: damage_card(folder, label_config="<View>"),
        lambda folder: damage_card(folder, encoder=card_of(folder)["encoder"] | {"dimensions": 3}),
        lambda folder: damage_card(folder, unknown=1),
    ],
)
def test_a_damaged_model_is_refused_in_a_sentence(
    exported: Export, damage: Callable[[Path], object]
) -> None:
    folder = exported()
    damage(folder)

    with pytest.raises(ModelError, match="are damaged or do not belong together"):
        read(folder)


def test_a_folder_without_a_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no exported model"):
        read(tmp_path)


def test_a_model_of_a_newer_release_is_refused_in_a_sentence(exported: Export) -> None:
    folder = exported()
    damage_card(folder, format=2)

    with pytest.raises(ModelError, match=r"format 2 .* update label-studio-clip-backend"):
        read(folder)


def test_another_clip_is_refused_in_a_sentence(version: Version, encoder: Encoder) -> None:
    assert load_encoder_of(version, "tiny", None, "cpu").identity == encoder.identity
    other = replace(version, encoder="tiny-000000000000-00000000-float32")

    with pytest.raises(EncoderError, match="was made with the CLIP tiny-000000000000"):
        load_encoder_of(other, "tiny", None, "cpu")


def test_a_version_is_run_in_its_own_precision(version: Version) -> None:
    narrow = load_encoder("tiny", None, "cpu", "bfloat16")
    made_on_a_gpu = replace(version, encoder=narrow.identity)

    assert load_encoder_of(made_on_a_gpu, "tiny", None, "cpu").precision is torch.bfloat16


# Classify


def test_a_table_says_what_label_studio_would_be_told(
    model: Model, services: Services, folder: Path, tmp_path: Path
) -> None:
    classify(folder, model, tmp_path / "out.csv", LIMITS)

    rows = rows_of(tmp_path / "out.csv")
    assert {row["path"] for row in rows} == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*.png")
    }
    for path in folder.rglob("*.png"):
        colour = COLOURS[int(path.stem)] if path.stem.isdigit() else path.stem.split()[0]
        size = 40 + 30 * COLOURS.index(colour)
        task = Task(1, {"image": data_uri_of(png(colour, size))})
        (told,) = services.predictor.predict([task], model.config, model.version)
        assert isinstance(told, Prediction)
        name = path.relative_to(folder).as_posix()
        of_colour, *of_mood = [row for row in rows if row["path"] == name]
        assert of_colour["control"] == "colour"
        assert [of_colour["choice"]] == told.result[0]["value"]["choices"]  # type: ignore[index]
        # Encoded in another batch, a vector is stored with other last bits.
        assert float(of_colour["probability"]) == pytest.approx(told.result[0]["score"], abs=1e-3)
        chosen = [row["choice"] for row in of_mood if row["choice"]]
        assert chosen == (told.result[1]["value"]["choices"] if len(told.result) > 1 else [])  # type: ignore[index]
        uncertainty = max(float(row["uncertainty"]) for row in (of_colour, *of_mood))
        assert uncertainty == pytest.approx(1 - told.score, abs=1e-3)


def data_uri_of(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def test_a_picture_to_which_no_choice_applies_has_a_row(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    mood = model.version.heads["mood"]
    unlikely = replace(mood, head=replace(mood.head, bias=torch.full_like(mood.head.bias, -50.0)))
    version = replace(model.version, heads={**model.version.heads, "mood": unlikely})

    classify(folder, replace(model, version=version), tmp_path / "out.csv", LIMITS)

    of_mood = [row for row in rows_of(tmp_path / "out.csv") if row["control"] == "mood"]
    assert len(of_mood) == len(COLOURS)
    assert {(row["choice"], row["probability"], row["error"]) for row in of_mood} == {("", "", "")}


def test_json_is_what_label_studio_imports(
    model: Model, services: Services, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"

    classify(folder, model, out, LIMITS)

    tasks = json.loads(out.read_text(encoding="utf-8"))
    assert len(tasks) == len(COLOURS)
    first = next(task for task in tasks if task["data"]["image"].endswith("/0.png"))
    assert first["data"] == {"image": "/data/local-files/?d=pictures/0.png"}
    assert any(
        task["data"]["image"] == "/data/local-files/?d=pictures/more%20of%20them/green%20%C3%A9.png"
        for task in tasks
    )
    told = services.predictor.predict(
        [Task(0, {"image": data_uri_of(png("red", 40))})], model.config, model.version
    )[0]
    assert isinstance(told, Prediction)
    (prediction,) = first["predictions"]
    assert prediction["model_version"] == model.version.name
    assert prediction["score"] == pytest.approx(told.score, abs=1e-3)
    assert [item | {"score": None} for item in prediction["result"]] == [
        item | {"score": None} for item in told.result
    ]


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_unreadable_pictures_are_listed_and_cost_nothing_else(
    model: Model,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    (folder / "notes.txt").write_text("<html>")
    (folder / "cut.png").write_bytes(png("red", 300)[:80])
    (folder / "linked").symlink_to(tmp_path)
    (folder / ".hidden").write_text("no picture")
    out = tmp_path / f"out.{suffix}"

    classify(folder, model, out, LIMITS)

    said = capsys.readouterr().out
    assert "Left out, unreadable: 3" in said
    assert f"{folder / 'notes.txt'}: not a picture: the file is text" in said
    assert f"{folder / 'cut.png'}: the picture is broken or cut off" in said
    assert f"{folder / 'linked'}: is a link to a folder" in said
    assert f"wrote {out}: {len(COLOURS)} pictures by {model.version.name}" in said
    if suffix == "csv":
        errors = {row["path"]: row["error"] for row in rows_of(out) if row["error"]}
        assert errors.keys() == {"notes.txt", "cut.png"}
    else:
        assert len(json.loads(out.read_text())) == len(COLOURS)


def test_a_folder_without_a_readable_picture_gives_an_empty_list(
    model: Model, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")

    classify(tmp_path / "pictures", model, tmp_path / "out.json", LIMITS)

    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_more_pictures_than_fit_at_once_are_all_there(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backend.portable import classify as module

    monkeypatch.setattr(module, "_PICTURES_AT_ONCE", 1)
    folder = tmp_path / "pictures"
    folder.mkdir()
    count = model.encoder.batch_size + 3
    for index in range(count):
        (folder / f"{index:03}.png").write_bytes(png((index, 0, 255 - index)))

    # Into the folder itself: the second time the file is there.
    for _ in range(2):
        classify(folder, model, folder / "out.csv", LIMITS)

    rows = [row for row in rows_of(folder / "out.csv") if row["control"] == "colour"]
    assert [row["path"] for row in rows] == [f"{index:03}.png" for index in range(count)]


def test_what_cannot_work_is_refused_in_a_sentence(
    folder: Path, tmp_path: Path, model: Model
) -> None:
    with pytest.raises(ModelError, match="is no folder"):
        check(tmp_path / "nothing", tmp_path / "out.csv")
    with pytest.raises(ModelError, match=r"name a \.csv, or a \.json"):
        check(folder, tmp_path / "out.txt")
    nested = parse_labeling_config(CONFIG.replace("$image", "$pages[0].url"))
    with pytest.raises(ModelError, match=r"write a \.csv"):
        classify(folder, replace(model, config=nested), tmp_path / "out.json", LIMITS)
    classify(folder, replace(model, config=nested), tmp_path / "nested.csv", LIMITS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="has no pictures"):
        classify(tmp_path / "empty", model, tmp_path / "out.csv", LIMITS)
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(DatasetError, match="cannot be written"):
        classify(folder, model, tmp_path / "out.csv", LIMITS)


# The commands


def test_the_commands_export_a_version_and_run_it(
    version: Version,
    store: Store,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'store.sqlite3'}")
    monkeypatch.setenv("CLIP_MODEL", "tiny")
    monkeypatch.setenv("DEVICE", "cpu")
    store.versions.publish(replace(version, fingerprint="f" * 64))

    def run(*arguments: object) -> str:
        outcome = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
        assert outcome.exit_code == 0, outcome.output
        return outcome.output

    model = tmp_path / "model"
    said = run("export", "--project", PROJECT, "--version", 1, "--out", model)
    assert f"wrote {model}/head.safetensors and model_card.json: {version.name}" in said
    # Neither database nor settings are needed any more.
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'another.sqlite3'}")
    monkeypatch.delenv("CLIP_MODEL")
    run("classify", folder, "--model", model, "--out", tmp_path / "exported.csv")
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'store.sqlite3'}")
    monkeypatch.setenv("CLIP_MODEL", "tiny")
    run("classify", folder, "--project", PROJECT, "--out", tmp_path / "stored.csv")

    assert rows_of(tmp_path / "exported.csv") == rows_of(tmp_path / "stored.csv")


def test_classify_wants_one_model(tmp_path: Path) -> None:
    arguments = ["classify", str(tmp_path), "--out", "out.csv"]

    for more in ([], ["--model", "m", "--project", "7"]):
        outcome = CliRunner().invoke(app, [*arguments, *more])
        assert outcome.exit_code == 2
        assert "--model or --project" in outcome.output
