"""`clip-backend dataset` on real pictures, through the shipped CLIP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.clip.encoder import Encoder
from backend.clip.prompts import prompts
from backend.errors import DatasetError
from backend.labelstudio.decoding import ImageLimits
from backend.simulation.dataset import read_dataset
from backend.simulation.embedded import embed, load_embeddings
from backend.simulation.export import ExportOptions
from backend.simulation.preparation import Files, prepare

LIMITS = ImageLimits(max_bytes=1 << 20, max_pixels=100_000, timeout=5.0, attempts=1)

Prepare = Callable[..., None]


def draw(path: Path, seed: int) -> Path:
    """Draw a picture of coarse noise, which no other seed's resembles."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((64, 64), Image.Resampling.NEAREST).save(path, "PNG")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(20):
        draw(tmp_path / "pictures" / ("cat" if index % 2 else "dog") / f"{index:02}.png", index)
    return tmp_path / "pictures"


@pytest.fixture
def run(encoder: Encoder) -> Prepare:
    def run(source: Path, out: Path, **options: object) -> None:
        files = Files(out, options.pop("report", None), options.pop("embeddings", None))
        defaults = {"share": 0.2, "seed": 0, "export": ExportOptions(), "overwrite": False}
        prepare(
            source,
            files,
            load_encoder=lambda: encoder,
            limits=LIMITS,
            **{**defaults, **options},  # type: ignore[arg-type]
        )

    return run


def reported(out: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads(out.with_name("dataset-report.json").read_text())
    return content


def parts(out: Path) -> dict[str, str]:
    images = read_dataset(out)
    assert images.validation is not None
    return {
        path.name: "validation" if validates else "train"
        for path, validates in zip(images.paths, images.validation, strict=True)
    }


def test_a_folder_becomes_a_sorted_stratified_set_of_its_pictures(
    folder: Path, tmp_path: Path, run: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, tmp_path / "dataset.csv")

    images = read_dataset(tmp_path / "dataset.csv")
    assert list(images.paths) == sorted(folder.rglob("*.png"))
    assert images.classes == ("cat", "dog")
    assert reported(tmp_path / "dataset.csv")["classes"] == [
        {"name": "cat", "train": 8, "validation": 2},
        {"name": "dog", "train": 8, "validation": 2},
    ]
    output = capsys.readouterr()
    assert "cat" in output.out
    assert "20/20" in output.err


def test_the_same_seed_gives_the_same_files_and_another_seed_another_split(
    folder: Path, tmp_path: Path, run: Prepare
) -> None:
    out, embeddings = tmp_path / "dataset.csv", tmp_path / "embeddings.npz"
    files = [out, embeddings, tmp_path / "dataset-report.json"]
    run(folder, out, embeddings=embeddings)
    first = [path.read_bytes() for path in files]

    run(folder, out, embeddings=embeddings, overwrite=True)
    assert [path.read_bytes() for path in files] == first
    run(folder, out, embeddings=embeddings, overwrite=True, seed=1)
    assert out.read_bytes() != first[0]


def test_unreadable_pictures_are_left_out_and_listed_with_the_reason(
    folder: Path, tmp_path: Path, run: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    cat = folder / "cat"
    (cat / "cut.png").write_bytes((cat / "01.png").read_bytes()[:100])
    (cat / "empty.png").touch()
    (cat / "gone.png").symlink_to("nowhere")
    (cat / "notes.xml").write_text("<cat/>")
    (cat / "large.png").write_bytes(bytes(LIMITS.max_bytes + 1))
    os.mkfifo(cat / "pipe.png")
    draw(folder / os.fsdecode(b"b\xff") / "1.png", 1)

    run(folder, tmp_path / "dataset.csv")

    assert len(read_dataset(tmp_path / "dataset.csv").paths) == 20
    unreadable = reported(tmp_path / "dataset.csv")["unreadable"]
    assert isinstance(unreadable, list)
    reasons = {Path(each["path"]).name: each["reason"] for each in unreadable}
    assert reasons.pop("cut.png").startswith("the picture is broken or cut off")
    assert reasons == {
        "1.png": "its name or label has characters that no CSV can hold",
        "empty.png": "not a picture: the file is empty",
        "gone.png": "does not exist",
        "large.png": "larger than the limit of 1048576 bytes",
        "notes.xml": "not a picture: the file is text",
        "pipe.png": "is not a file",
    }
    assert "pipe.png: is not a file" in capsys.readouterr().out


def test_duplicates_are_reported_and_kept_in_one_part(
    folder: Path, tmp_path: Path, run: Prepare
) -> None:
    for copy in range(6):
        draw(folder / "dog" / f"copy {copy}.png", 0)
    draw(folder / "dog" / "mistaken.png", 1)

    for seed in range(5):
        run(folder, tmp_path / "dataset.csv", seed=seed, share=0.5, overwrite=True)

        part = parts(tmp_path / "dataset.csv")
        assert len({part["00.png"], *(part[f"copy {copy}.png"] for copy in range(6))}) == 1
        assert part["01.png"] == part["mistaken.png"] == "train"

    contradictory, agreeing = reported(tmp_path / "dataset.csv")["duplicates"]  # type: ignore[misc]
    assert contradictory == {
        "contradictory": True,
        "split": "train",
        "pictures": [
            {"path": "pictures/cat/01.png", "label": "cat"},
            {"path": "pictures/dog/mistaken.png", "label": "dog"},
        ],
    }
    assert not agreeing["contradictory"]
    assert len(agreeing["pictures"]) == 7


def test_a_split_of_the_source_is_kept_but_for_duplicates_on_both_sides(
    folder: Path, tmp_path: Path, run: Prepare
) -> None:
    draw(folder / "dog" / "copy.png", 0)
    source = tmp_path / "source.csv"
    kept = {"00": "train", "01": "train", "02": "validation", "03": "validation"}
    rows = [
        f"pictures/{'cat' if int(name) % 2 else 'dog'}/{name}.png,{int(name) % 2},{part}"
        for name, part in kept.items()
    ]
    source.write_text("\n".join(["path,label,split", *rows, "pictures/dog/copy.png,0,validation"]))

    run(source, tmp_path / "dataset.csv")

    assert parts(tmp_path / "dataset.csv") == {
        **{f"{name}.png": part for name, part in kept.items()},
        "copy.png": "train",
    }
    assert reported(tmp_path / "dataset.csv")["notes"] == [
        "The source's own split is kept.",
        "Moved from its validation to train, where their duplicates are: 1.",
    ]


def test_an_export_becomes_a_set(folder: Path, tmp_path: Path, run: Prepare) -> None:
    def task(number: int, image: str) -> dict[str, object]:
        choices = {"choices": ["cat" if number % 2 else "dog"]}
        item = {"from_name": "kind", "to_name": "img", "type": "choices", "value": choices}
        return {"id": number, "data": {"image": image}, "annotations": [{"result": [item]}]}

    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    tasks = [task(n, f"/data/local-files/?d={name}") for n, name in enumerate(names)]
    tasks.append(task(99, "https://example.org/cat.png"))
    (tmp_path / "export.json").write_text(json.dumps(tasks))

    run(tmp_path / "export.json", tmp_path / "dataset.csv", export=ExportOptions(root=folder))

    images = read_dataset(tmp_path / "dataset.csv")
    assert [images.classes[label] for label in images.labels] == ["dog", "cat"] * 10
    assert reported(tmp_path / "dataset.csv")["unreadable"] == [
        {"path": "https://example.org/cat.png", "reason": "is not a local file"}
    ]


def test_embeddings_are_kept_in_the_csv_s_order_with_the_classes_texts(
    folder: Path, tmp_path: Path, run: Prepare, encoder: Encoder
) -> None:
    run(folder, tmp_path / "dataset.csv", embeddings=tmp_path / "embeddings.npz")

    kept = load_embeddings(tmp_path / "embeddings.npz")
    images = read_dataset(tmp_path / "dataset.csv")
    progress: list[tuple[int, int]] = []
    again = embed(images, encoder, LIMITS, on_progress=lambda *done: progress.append(done))

    np.testing.assert_allclose(kept.embeddings, again.embeddings, atol=1e-6)
    np.testing.assert_array_equal(kept.labels, images.labels)
    np.testing.assert_array_equal(kept.validation, images.validation)
    assert kept.classes == images.classes
    assert kept.logit_scale == pytest.approx(encoder.logit_scale)
    text = encoder.encode_texts(prompts(["dog"])).mean(axis=0)
    assert kept.text is not None
    np.testing.assert_allclose(kept.text[1], text / np.linalg.norm(text), atol=1e-6)
    assert progress[-1] == (20, 20)


def test_a_picture_that_went_away_since_is_a_sentence(
    folder: Path, tmp_path: Path, run: Prepare, encoder: Encoder
) -> None:
    run(folder, tmp_path / "dataset.csv")
    (folder / "cat" / "01.png").unlink()

    with pytest.raises(DatasetError, match=r"01\.png: does not exist"):
        embed(read_dataset(tmp_path / "dataset.csv"), encoder, LIMITS, on_progress=lambda *_: None)


def test_existing_files_are_replaced_only_when_that_is_asked_for(
    folder: Path, tmp_path: Path, run: Prepare
) -> None:
    for option in ("embeddings", "report"):
        existing = tmp_path / option
        existing.write_text("precious")
        with pytest.raises(DatasetError, match="--overwrite"):
            run(folder, tmp_path / "dataset.csv", **{option: existing})
        assert existing.read_text() == "precious"
    assert not (tmp_path / "dataset.csv").exists()

    (tmp_path / "dataset.csv").write_text("precious")
    with pytest.raises(DatasetError, match="--overwrite"):
        run(folder, tmp_path / "dataset.csv")
    run(folder, tmp_path / "dataset.csv", overwrite=True)
    assert len(read_dataset(tmp_path / "dataset.csv").paths) == 20


def test_the_source_is_never_replaced(folder: Path, tmp_path: Path, run: Prepare) -> None:
    source = tmp_path / "set.csv"
    source.write_text("path,label\na,x\nb,y\n")

    with pytest.raises(DatasetError, match="the source itself"):
        run(source, source, overwrite=True)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no labelled picture"),
        ({"readme.md": ""}, "no labelled picture"),
        ({"cat/1.png": ""}, "one class only, 'cat'"),
        ({"cat/1.png": "", "dog/2.png": ""}, "no labelled picture"),
    ],
)
def test_a_folder_that_cannot_be_learnt_from_is_a_sentence(
    tmp_path: Path, run: Prepare, files: dict[str, str], says: str
) -> None:
    (tmp_path / "set").mkdir()
    for name, content in files.items():
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_text(content)

    with pytest.raises(DatasetError, match=says):
        run(tmp_path / "set", tmp_path / "dataset.csv")
    assert not (tmp_path / "dataset.csv").exists()


def test_classes_of_one_picture_each_leave_nothing_for_validation(
    tmp_path: Path, run: Prepare
) -> None:
    for index, name in enumerate(("cat", "dog", "eel")):
        draw(tmp_path / "set" / name / "1.png", index)

    with pytest.raises(DatasetError, match="nothing can be set aside for validation"):
        run(tmp_path / "set", tmp_path / "dataset.csv")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("none", {}, "does not exist"),
        ("set.txt", {}, "neither a folder"),
        ("set.csv", {"export": ExportOptions(control="kind")}, "--control"),
        ("set.csv", {"share": 0.0}, "--validation"),
        ("set.csv", {"share": float("nan")}, "--validation"),
    ],
)
def test_what_is_asked_for_wrongly_is_a_sentence(
    tmp_path: Path, run: Prepare, name: str, options: dict[str, object], says: str
) -> None:
    for present in ("set.csv", "set.txt"):
        (tmp_path / present).write_text("path,label\na,x\nb,y\n")

    with pytest.raises(DatasetError, match=says):
        run(tmp_path / name, tmp_path / "dataset.csv", **options)


def test_the_command_writes_the_set_and_fails_with_one_line(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "backend.cli", "dataset", str(folder), "--out", "new/set.csv"]
    settings = {"CLIP_MODEL": "tiny", "DEVICE": "cpu"}
    environment = {**os.environ, **settings, "PYTHONPATH": str(Path(__file__).parents[2])}

    first, second = (
        subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        for _ in range(2)
    )

    assert first.returncode == 0, first.stderr
    assert len(read_dataset(tmp_path / "new" / "set.csv").paths) == 20
    assert (second.returncode, second.stderr) == (
        1,
        "Error: new/set.csv exists: name another file, or say --overwrite\n",
    )
