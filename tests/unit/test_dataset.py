from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from backend.errors import DatasetError
from backend.simulation.dataset import (
    EmbeddedDataset,
    labelled_images,
    read_dataset,
    stratified_split,
    write_dataset,
)
from backend.simulation.embedded import duplicates, load_embeddings, save_embeddings
from backend.simulation.export import ExportOptions, from_export
from backend.simulation.sources import Source, from_csv, from_folder


def sentence(error: pytest.ExceptionInfo[DatasetError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def write(path: Path, content: str | bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pairs(source: Source, folder: Path) -> list[tuple[str, str]]:
    return sorted((str(each.path.relative_to(folder)), each.label) for each in source.pictures)


# A folder a class


def test_a_folder_s_name_is_the_class_of_every_picture_below_it(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/indoors/at night/2.JPG", 'dög, "big"/3'):
        write(tmp_path / name)

    source = from_folder(tmp_path)

    assert pairs(source, tmp_path) == [
        ("cat/1.png", "cat"),
        ("cat/indoors/at night/2.JPG", "cat"),
        ('dög, "big"/3', 'dög, "big"'),
    ]


def test_files_beside_the_classes_have_no_label_and_hidden_ones_are_passed_over(
    tmp_path: Path,
) -> None:
    for name in ("readme.md", ".DS_Store", "cat/.DS_Store", ".git/objects/1", "cat/1.png"):
        write(tmp_path / name)

    source = from_folder(tmp_path)

    assert pairs(source, tmp_path) == [("cat/1.png", "cat")]
    assert source.unlabelled == 1


def test_links_to_folders_are_named_and_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "set" / "cat" / "1.png")
    write(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "set" / "cat" / "loop").symlink_to("..")
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "cat" / "3.png").symlink_to(tmp_path / "elsewhere" / "2.png")

    source = from_folder(tmp_path / "set")

    assert pairs(source, tmp_path / "set") == [("cat/1.png", "cat"), ("cat/3.png", "cat")]
    assert sorted(Path(each.name).name for each in source.unreadable) == ["dog", "loop"]
    assert all("not followed" in each.reason for each in source.unreadable)


# A CSV


def test_columns_are_found_by_name_in_any_case_and_paths_are_relative_to_the_csv(
    tmp_path: Path,
) -> None:
    path = write(
        tmp_path / "set.csv",
        '\ufeffID, Label ,PATH\r\n1,cat,a.png\r\n2,"dog, ""big""",=b.png\r\n\r\n3, cat ,"c\nd.png"',
    )

    source = from_csv(path)

    assert pairs(source, tmp_path) == [
        ("=b.png", 'dog, "big"'),
        ("a.png", "cat"),
        ("c\nd.png", "cat"),
    ]


def test_records_without_a_label_are_counted_and_what_is_no_file_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "set.csv",
        "path,label\na.png,cat\nb.png\nc.png,  \n,cat\nhttps://example.org/d.png,cat\n",
    )

    source = from_csv(path)

    assert pairs(source, tmp_path) == [("a.png", "cat")]
    assert source.unlabelled == 2
    assert [(each.name, each.reason) for each in source.unreadable] == [
        ("line 5", "the path is empty"),
        ("https://example.org/d.png", "is not a local file"),
    ]


def test_a_complete_split_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "set.csv", "path,label,Split\na,x,train\nb,y, Validation\n")

    assert [each.split for each in from_csv(path).pictures] == ["train", "validation"]


@pytest.mark.parametrize("splits", [("train", ""), ("train", "test"), ("train", "train")])
def test_a_split_that_is_not_complete_is_not_kept_and_that_is_said(
    tmp_path: Path, splits: tuple[str, str]
) -> None:
    path = write(tmp_path / "set.csv", "path,label,split\na,x,{}\nb,y,{}\n".format(*splits))

    source = from_csv(path)

    assert [each.split for each in source.pictures] == [None, None]
    assert "is not kept" in source.notes[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no column 'path'"),
        ("file,label\na,b\n", "no column 'path'"),
        ("path;label\na;b\n", "it has 'path;label'"),
        ("path,label,Path\na,b,c\n", "two columns named 'path'"),
        ("path,label\na,b\n" + "x" * 200_000 + ",c\n", "line 3"),
        ('path,label\na,b\n"c,d\n', "line 3"),
        ("path,label\na,b\n\0,c\n", "line 3"),
        ("path,label\na,ü\n".encode("latin-1"), "UTF-8"),
        ("path,label\na,b\n".encode("utf-16"), "UTF-8"),
    ],
)
def test_what_is_no_such_csv_is_a_sentence(tmp_path: Path, content: str | bytes, says: str) -> None:
    path = write(tmp_path / "set.csv", content)

    for read in (from_csv, read_dataset):
        with pytest.raises(DatasetError) as error:
            read(path)
        assert says in sentence(error)


# The CSV that is written


def test_a_set_reads_back_as_it_was_written(tmp_path: Path) -> None:
    names = ["set/=1+1.png", "set/a\nb.png", 'set/"c", d\r.png', "set/@é.png"]
    paths = [tmp_path / name for name in names]
    images = labelled_images(paths, ["-x", 'y "z", w', "-x", "ünï"], "here")
    validation = np.array([True, False, False, True])

    write_dataset(tmp_path / "out" / "dataset.csv", images, validation)
    read = read_dataset(tmp_path / "out" / "dataset.csv")

    assert [path.resolve() for path in read.paths] == paths
    assert read.classes == ("-x", 'y "z", w', "ünï")
    assert read.labels.tolist() == [0, 1, 0, 2]
    assert read.validation is not None
    assert read.validation.tolist() == validation.tolist()


def test_paths_are_relative_under_the_csv_s_folder_s_parent_and_absolute_elsewhere(
    tmp_path: Path,
) -> None:
    near, far = tmp_path / "work" / "pictures" / "1.png", tmp_path / "archive" / "2.png"
    images = labelled_images([near, far], ["x", "y"], "here")
    out = tmp_path / "work" / "set" / "dataset.csv"

    write_dataset(out, images, np.array([True, False]))

    assert out.read_text().splitlines() == [
        "path,label,split",
        "../pictures/1.png,x,validation",
        f"{far},y,train",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["dataset.csv"]


def test_a_csv_behind_a_link_names_the_same_pictures(tmp_path: Path) -> None:
    picture = write(tmp_path / "real" / "pictures" / "1.png", b"1")
    (tmp_path / "real" / "set").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "set")
    images = labelled_images([picture, picture], ["x", "y"], "here")

    write_dataset(tmp_path / "link" / "dataset.csv", images, np.array([True, False]))

    assert read_dataset(tmp_path / "link" / "dataset.csv").paths[0].read_bytes() == b"1"


def test_a_csv_without_a_split_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "set.csv", "label,path\nx,1.png\ny,2.png\n")

    assert read_dataset(path).validation is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("path,label\n", "no labelled picture"),
        ("path,label\na,x\nb,x\n", "one class only, 'x'"),
        ("path,label\na,x\n\n,y\n", "line 4: the path is empty"),
        ("path,label\na,x\nb, \n", "line 3: the label is empty"),
        ('path,label\n"a\nb",x\nc,\n', "line 4: the label is empty"),
        ("path,label,split\na,x,train\nb,y,test\n", "line 3: the split is 'test'"),
        ("path,label,split\na,x,train\nb,y\n", "line 3: the split is ''"),
        ("path,label,split\na,x,train\nb,y,train\n", "no picture is in the split 'validation'"),
    ],
)
def test_a_set_that_cannot_be_learnt_from_is_a_sentence(
    tmp_path: Path, content: str, says: str
) -> None:
    with pytest.raises(DatasetError) as error:
        read_dataset(write(tmp_path / "set.csv", content))

    assert says in sentence(error)


def test_a_csv_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as error:
        read_dataset(tmp_path / "none.csv")

    assert "No such file" in sentence(error)


# The split


def split(
    labels: Sequence[int], *, groups: Sequence[int] | None = None, share: float = 0.2, seed: int = 0
) -> NDArray[np.bool_]:
    numbers = np.arange(len(labels)) if groups is None else np.array(groups)
    return stratified_split(np.array(labels, dtype=np.int64), numbers, share, seed)


sets = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), min_size=1, max_size=80)
shares = st.floats(0.01, 0.99)


@given(sets, shares, st.integers(0, 5))
def test_no_group_is_torn_apart_and_each_class_is_in_both_parts_where_it_can_be(
    members: list[tuple[int, int]], share: float, seed: int
) -> None:
    labels, groups = map(list, zip(*members, strict=True))
    validation = split(labels, groups=groups, share=share, seed=seed)

    parts: dict[int, set[bool]] = {}
    of_group: dict[int, set[int]] = {}
    for label, group, part in zip(labels, groups, validation.tolist(), strict=True):
        parts.setdefault(group, set()).add(part)
        of_group.setdefault(group, set()).add(label)
    assert all(len(found) == 1 for found in parts.values())
    assert all(parts[group] == {False} for group, found in of_group.items() if len(found) > 1)
    for label in set(labels):
        own = [parts[group] for group, found in of_group.items() if found == {label}]
        wanted = {False} if len(own) == 1 else {False, True}
        assert not own or set.union(*own) == wanted


@given(st.lists(st.integers(2, 40), min_size=1, max_size=8), shares)
def test_the_share_is_met_as_closely_as_one_of_each_class_in_each_part_allows(
    sizes: list[int], share: float
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    counts = np.bincount(labels[split(labels.tolist(), share=share)], minlength=len(sizes))

    exact = share * np.array(sizes)
    possible = np.clip(exact, 1, np.array(sizes) - 1)
    assert (np.abs(counts - possible) < 1).all()
    if (possible == exact).all():
        assert counts.sum() == round(share * sum(sizes))


def test_it_gives_what_scikit_learn_gives_where_that_leaves_no_class_out() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 17])

    _, expected = train_test_split(labels, test_size=20, stratify=labels, random_state=0)

    assert np.bincount(labels[split(labels.tolist(), share=20 / 97)]).tolist() == (
        np.bincount(expected).tolist()
    )


def test_a_class_of_one_picture_stays_in_train() -> None:
    assert split([0, 1, 1, 1, 1, 1]).tolist()[0] is False


def test_a_seed_chooses_and_chooses_again() -> None:
    labels = [0, 1] * 50

    assert (split(labels, seed=1) == split(labels, seed=1)).all()
    assert (split(labels, seed=1) != split(labels, seed=2)).any()


# Duplicates


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def groups_of(vectors: NDArray[Any]) -> list[list[int]]:
    return [group.tolist() for group in duplicates(unit(vectors))]


def test_the_same_vectors_are_one_group_and_others_none() -> None:
    vectors = np.random.default_rng(0).normal(size=(8, 16))
    vectors[[5, 7]] = vectors[1]
    vectors[3] = vectors[2]

    assert groups_of(vectors) == [[1, 5, 7], [2, 3]]
    assert groups_of(vectors[[0, 4, 6]]) == []
    assert groups_of(vectors[:1]) == []


def test_rounding_to_float16_leaves_a_picture_the_same() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(30, 512)))
    rounded = vectors.astype(np.float16).astype(np.float32)

    assert groups_of(np.concatenate((vectors, rounded))) == [[i, i + 30] for i in range(30)]


def test_what_is_the_same_as_a_member_belongs_to_the_group() -> None:
    angles = np.array([0.0, 0.02, 0.01, 1.0])  # cos 0.01 is above, cos 0.02 below 0.9999

    assert groups_of(np.stack((np.cos(angles), np.sin(angles)), axis=1)) == [[0, 1, 2]]


def test_groups_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    angles = np.sort(random.uniform(0, 3, 400))[random.permutation(400)]
    vectors = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    in_one_block = groups_of(vectors)

    monkeypatch.setattr("backend.simulation.embedded._BLOCK", 4000)

    assert groups_of(vectors) == in_one_block
    assert len(in_one_block) > 1


# The file of embeddings

EMBEDDINGS = unit(np.random.default_rng(0).normal(size=(4, 8)))
DATASET = EmbeddedDataset(
    EMBEDDINGS,
    np.array([0, 1, 1, 0]),
    ("cät", 'dog, "big"'),
    unit(np.random.default_rng(1).normal(size=(2, 8))),
    14.5,
    np.array([True, False, False, True]),
)


def test_embeddings_read_back_as_they_were_saved(tmp_path: Path) -> None:
    save_embeddings(tmp_path / "new" / "e.npz", DATASET)
    read = load_embeddings(tmp_path / "new" / "e.npz")

    np.testing.assert_allclose(read.embeddings, DATASET.embeddings, rtol=1e-6)
    np.testing.assert_array_equal(read.labels, DATASET.labels)
    assert read.classes == DATASET.classes
    assert DATASET.text is not None
    assert read.text is not None
    np.testing.assert_allclose(read.text, DATASET.text, rtol=1e-6)
    assert read.logit_scale == 14.5
    np.testing.assert_array_equal(read.validation, DATASET.validation)


def test_what_is_none_is_not_in_the_file(tmp_path: Path) -> None:
    bare = replace(DATASET, text=None, logit_scale=None, validation=None)
    save_embeddings(tmp_path / "e.npz", bare)

    with np.load(tmp_path / "e.npz") as file:
        assert set(file) == {"embeddings", "labels", "classes"}
    read = load_embeddings(tmp_path / "e.npz")
    assert (read.text, read.logit_scale, read.validation) == (None, None, None)


def saved(path: Path, **arrays: object) -> Path:
    arrays = {"embeddings": EMBEDDINGS, "labels": [0, 1, 1, 0], **arrays}
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return path


def test_rows_are_scaled_to_unit_length_whatever_their_type(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "e.npz", embeddings=1e30 * EMBEDDINGS.astype(np.float64), text=[[2.0] * 8] * 2
    )

    read = load_embeddings(path)

    assert read.embeddings.dtype == np.float32
    np.testing.assert_allclose(read.embeddings, EMBEDDINGS, rtol=1e-6)
    np.testing.assert_allclose(read.text, 8**-0.5, rtol=1e-6)


def test_without_names_the_distinct_labels_are_the_classes(tmp_path: Path) -> None:
    read = load_embeddings(saved(tmp_path / "e.npz", labels=np.array([7, -1, 7, 30], np.int16)))

    assert read.classes == ("-1", "7", "30")
    assert read.labels.tolist() == [1, 0, 1, 2]
    assert read.labels.dtype == np.int64


def test_a_text_without_names_numbers_the_classes(tmp_path: Path) -> None:
    read = load_embeddings(saved(tmp_path / "e.npz", labels=[2, 1, 1, 2], text=np.ones((3, 8))))

    assert read.classes == ("0", "1", "2")
    assert read.labels.tolist() == [2, 1, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"embeddings": np.ones(4)}, "`embeddings` must be a matrix"),
        ({"embeddings": np.ones((4, 8), int)}, "`embeddings` must be a matrix"),
        ({"embeddings": np.ones((0, 8)), "labels": np.ones(0, int)}, "`embeddings` must be"),
        ({"embeddings": np.eye(4, 3)}, "row 3 of `embeddings`"),
        ({"embeddings": np.full((4, 8), np.nan)}, "row 0 of `embeddings`"),
        ({"embeddings": np.full((4, 8), np.inf)}, "row 0 of `embeddings`"),
        ({"labels": [0, 1, 1]}, "`labels` must be 4 whole numbers"),
        ({"labels": [0.0, 1.0, 1.0, 0.0]}, "`labels` must be 4 whole numbers"),
        ({"labels": ["a", "b", "b", "a"]}, "`labels` must be 4 whole numbers"),
        ({"labels": [3, 3, 3, 3]}, "one class only"),
        ({"classes": ["a"]}, "`labels` has 1, but the 1 classes are numbered from 0 to 0"),
        ({"classes": ["a", "b"], "labels": [0, -1, 0, 1]}, "`labels` has -1"),
        ({"classes": ["a", "a"]}, "a name twice"),
        ({"classes": [0, 1]}, "`classes` must be a list of text"),
        ({"text": np.ones((2, 7))}, "`text` must be 2 x 8"),
        ({"text": np.ones((3, 8)), "classes": ["a", "b"]}, "`text` must be 2 x 8"),
        ({"text": np.zeros((2, 8))}, "row 0 of `text`"),
        ({"logit_scale": [1.0, 2.0]}, "`logit_scale`"),
        ({"logit_scale": np.nan}, "`logit_scale`"),
        ({"logit_scale": -1.0}, "`logit_scale`"),
        ({"logit_scale": "14"}, "`logit_scale`"),
        ({"validation": [True, False]}, "`validation` must be 4 booleans"),
        ({"validation": [0, 1, 0, 1]}, "`validation` must be 4 booleans"),
        ({"validation": [True] * 4}, "`validation` must be 4 booleans"),
        ({"labels": np.array([0, 1, 1, None], dtype=object)}, "plain arrays"),
    ],
)
def test_arrays_that_do_not_fit_are_a_sentence(
    tmp_path: Path, arrays: dict[str, object], says: str
) -> None:
    with pytest.raises(DatasetError) as error:
        load_embeddings(saved(tmp_path / "e.npz", **arrays))

    assert says in sentence(error)


def test_an_array_that_is_missing_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", embeddings=EMBEDDINGS)

    with pytest.raises(DatasetError, match="no array `labels`"):
        load_embeddings(tmp_path / "e.npz")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + bytes(100)])
def test_bytes_that_are_no_npz_are_a_sentence(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DatasetError) as error:
        load_embeddings(write(tmp_path / "e.npz", content))

    assert "numpy.savez" in sentence(error)


def test_a_single_array_and_a_damaged_file_are_sentences(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", EMBEDDINGS)
    damaged = bytearray(saved(tmp_path / "e.npz").read_bytes())
    damaged[200] ^= 0xFF
    write(tmp_path / "e.npz", bytes(damaged))

    for name in ("e.npy", "e.npz"):
        with pytest.raises(DatasetError, match=r"numpy\.savez"):
            load_embeddings(tmp_path / name)


# A Label Studio export


def item(*choices: str, name: str = "kind") -> dict[str, object]:
    return {
        "from_name": name,
        "to_name": "img",
        "type": "choices",
        "value": {"choices": list(choices)},
    }


def task(image: object, *annotations: dict[str, object], **data: object) -> dict[str, object]:
    return {"data": {"image": image, **data}, "annotations": list(annotations)}


def annotation(*items: dict[str, object], cancelled: bool = False) -> dict[str, object]:
    return {"result": list(items), "was_cancelled": cancelled}


CAT, DOG = annotation(item("cat")), annotation(item("dog"))


def exported(folder: Path, tasks: Iterable[object], **options: Any) -> Source:
    path = write(folder / "export.json", json.dumps(list(tasks)))
    return from_export(path, ExportOptions(**options))


def test_the_majority_of_a_task_s_finished_annotations_is_its_label(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        write(tmp_path / name)

    source = exported(
        tmp_path,
        [
            task("1.png", CAT, DOG, CAT),
            task("2.png", annotation(item("cat"), cancelled=True), DOG),
            task("3.png", CAT, DOG),
            task("4.png"),
            task("5.png", annotation()),
            task("6.png", annotation(item("cat", "dog"))),
        ],
    )

    assert pairs(source, tmp_path) == [("1.png", "cat"), ("2.png", "dog")]
    assert (source.ties, source.unlabelled, source.several) == (1, 2, 1)
    assert source.unreadable == []


@pytest.mark.parametrize(
    ("value", "file"),
    [
        ("/data/upload/3/ab12-cat.png", "upload/3/ab12-cat.png"),
        ("/data/upload/3/ab12-cat.png", "media/upload/3/ab12-cat.png"),
        ("/data/upload/3/ab12-cat.png", "3/ab12-cat.png"),
        ("/data/upload/3/ab12-cat.png", "ab12-cat.png"),
        ("/sub/data/upload/3/ab12-cat.png", "3/ab12-cat.png"),
        ("/data/upload/3/k%C3%A4t.png", "3/kät.png"),
        ("/data/upload/3/100%25.png", "3/100%.png"),
        ("/data/local-files/?d=pets/black%20cat.png", "pets/black cat.png"),
        ("http://localhost:8080/data/local-files/?d=pets/cat.png", "pets/cat.png"),
        ("pets/cat.png", "pets/cat.png"),
        ("pets/a\nb.png", "pets/a\nb.png"),
    ],
)
def test_label_studio_s_paths_are_looked_up_under_the_root(
    tmp_path: Path, value: str, file: str
) -> None:
    write(tmp_path / "files" / file)

    source = exported(tmp_path, [task(value, CAT)], root=tmp_path / "files")

    assert pairs(source, tmp_path / "files") == [(file, "cat")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("https://example.org/cat.png", "is not a local file"),
        ("s3://bucket/cat.png", "is not a local file"),
        ("data:image/png;base64,AAAA", "is not a local file"),
        ("gone.png", "is not under"),
        ("/data/upload/3/gone.png", "is not under"),
        ("nul\0.png", "is not under"),
        ("../secret.png", "lies outside --root"),
        ("/data/local-files/?d=../secret.png", "lies outside --root"),
        ("/data/local-files/?e=1", "is not a local file"),
        ("http://[broken", "is not under"),
    ],
)
def test_a_picture_that_cannot_be_had_is_listed_with_the_reason(
    tmp_path: Path, value: str, reason: str
) -> None:
    write(tmp_path / "secret.png")
    (tmp_path / "files").mkdir()

    source = exported(tmp_path, [task(value, CAT)], root=tmp_path / "files")

    assert source.pictures == []
    assert [each.name for each in source.unreadable] == [value]
    assert source.unreadable[0].reason.startswith(reason)


def test_a_task_without_a_picture_is_listed(tmp_path: Path) -> None:
    source = exported(tmp_path, [task("1.png", CAT), {**task(None, CAT), "id": 7}])

    assert ("task 7", "its field 'image' is empty") in [
        (each.name, each.reason) for each in source.unreadable
    ]


def test_several_controls_are_listed_until_one_is_named(tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    tasks = [task("1.png", annotation(item("cat"), item("red", name="colour")))]

    with pytest.raises(DatasetError) as error:
        exported(tmp_path, tasks)
    assert sentence(error).endswith("name one control with --control; there are colour, kind")
    with pytest.raises(DatasetError, match="there are colour, kind"):
        exported(tmp_path, tasks, control="color")

    source = exported(tmp_path, tasks, control="colour")
    assert pairs(source, tmp_path) == [("1.png", "red")]


def test_several_picture_fields_are_listed_until_one_is_named(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        write(tmp_path / name)
    tasks = [task("1.png", CAT, back="2.png", caption="a cat", size=3)]

    with pytest.raises(DatasetError) as error:
        exported(tmp_path, tasks)
    assert "--image-key; there are back, image" in sentence(error)
    with pytest.raises(DatasetError, match="no field 'front'"):
        exported(tmp_path, tasks, image_key="front")

    assert pairs(exported(tmp_path, tasks, image_key="back"), tmp_path) == [("2.png", "cat")]


def test_json_min_has_a_record_an_annotation(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        write(tmp_path / name)
    about = {"annotator": 1, "created_at": "2024-01-01T00:00:00Z", "lead_time": 2.5}

    source = exported(
        tmp_path,
        [
            {"id": 1, "image": "/data/upload/1/1.png", "kind": "dog", **about},
            {"id": 1, "image": "/data/upload/1/1.png", "kind": "cat", **about},
            {"id": 1, "image": "/data/upload/1/1.png", "kind": "cat", **about},
            {"id": 2, "image": "2.png", "kind": "dog", **about},
            {"id": 3, "image": "3.png", "kind": {"choices": ["cat", "dog"]}, **about},
            {"id": 4, "image": "4.png", **about},
        ],
    )

    assert pairs(source, tmp_path) == [("1.png", "cat"), ("2.png", "dog")]
    assert (source.several, source.unlabelled) == (1, 1)


def test_paths_of_a_taxonomy_are_labels_in_both_exports(tmp_path: Path) -> None:
    def chosen(*paths: list[str]) -> dict[str, object]:
        return item() | {"type": "taxonomy", "value": {"taxonomy": [*paths]}}

    for name in ("1.png", "2.png", "3.png"):
        write(tmp_path / name)
    coat, red = ["Clothes", "Coat"], ["Cars", "Red"]

    of_json = exported(
        tmp_path,
        [
            task("1.png", annotation(chosen(coat))),
            task("2.png", annotation(chosen(red))),
            task("3.png", annotation(chosen(coat, red))),
        ],
    )
    of_json_min = exported(
        tmp_path,
        [
            {"id": 1, "image": "1.png", "kind": [{"taxonomy": [coat]}]},
            {"id": 2, "image": "2.png", "kind": [{"taxonomy": [red]}]},
            {"id": 3, "image": "3.png", "kind": [{"taxonomy": [coat, red]}]},
        ],
    )

    for source in (of_json, of_json_min):
        assert pairs(source, tmp_path) == [("1.png", "Clothes / Coat"), ("2.png", "Cars / Red")]
        assert source.several == 1


def test_in_json_min_text_of_the_task_may_be_a_control_so_it_is_asked(tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    records = [{"id": 1, "image": "1.png", "caption": "in a garden", "kind": "cat"}]

    with pytest.raises(DatasetError, match="there are caption, kind"):
        exported(tmp_path, records)

    assert pairs(exported(tmp_path, records, control="kind"), tmp_path) == [("1.png", "cat")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (b"\xff\xfe[]", "not valid JSON"),
        ("{}", "not a list of tasks"),
        ("[1, 2]", "not a list of tasks"),
        ("[]", "no task"),
        ('[{"data": 3}]', "task number 1 has no object in `data`"),
        ('[{"data": {"image": "1.png"}, "annotations": [12]}]', "in `annotations`"),
        ('[{"data": {"image": "1.png"}}]', "no annotation of a <Choices>"),
        ('[{"data": {"n": 1}}]', "--image-key; there are none"),
        ('[{"id": 1}]', "--image-key; there are none"),
    ],
)
def test_what_is_no_export_is_a_sentence(tmp_path: Path, content: str | bytes, says: str) -> None:
    with pytest.raises(DatasetError) as error:
        from_export(write(tmp_path / "export.json", content), ExportOptions())

    assert says in sentence(error)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    path = write(tmp_path / "export.json", "\ufeff" + json.dumps([task("1.png", CAT)]))

    assert pairs(from_export(path, ExportOptions()), tmp_path) == [("1.png", "cat")]


KEYS = "data annotations result from_name to_name type value choices image id was_cancelled"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["1.png", "kind", "choices"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(st.lists(json_values, max_size=4))
def test_no_result_however_malformed_breaks_the_rest(
    tmp_path_factory: pytest.TempPathFactory, items: list[object]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    write(folder / "1.png")

    source = exported(
        folder, [task("1.png", CAT), task("2.png", {"result": items})], control="kind"
    )

    assert pairs(source, folder)[0] == ("1.png", "cat")


@given(st.lists(json_values, max_size=4))
def test_no_json_however_malformed_is_worse_than_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, items: list[object]
) -> None:
    with contextlib.suppress(DatasetError):
        source = exported(tmp_path_factory.getbasetemp(), items)
        assert isinstance(source, Source)


def test_a_root_that_is_no_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="--root"):
        exported(tmp_path, [task("1.png", CAT)], root=tmp_path / "none")


def test_a_folder_that_may_not_be_listed_is_a_sentence() -> None:
    # Not in tmp_path, which is root's alone where root runs this: root may read everything.
    with TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "cat").mkdir(mode=0)

        with as_nobody(), pytest.raises(DatasetError, match=r"cat.*cannot be listed"):
            from_folder(root)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
