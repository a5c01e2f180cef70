"""Labelled pictures from a Label Studio export, as JSON or JSON-MIN."""

from __future__ import annotations

import codecs
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from backend.errors import DatasetError
from backend.labelstudio.annotations import labels_of
from backend.labelstudio.choices import Choice, value_of
from backend.labelstudio.config import Control
from backend.simulation.sources import NOT_LOCAL, Picture, Source, Unreadable, is_remote

# What a record of JSON-MIN has besides the task's data and the controls.
_RECORD_FIELDS = frozenset(
    {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}
)

_PICTURE = re.compile(
    r"(?:^data:image/|/data/(?:upload|local-files)/|\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif)$)",
    re.IGNORECASE,
)
_UPLOAD = re.compile(r"^/(?:.*/)?data/upload/(?P<file>.+)$", re.DOTALL)


@dataclass(frozen=True)
class ExportOptions:
    """What an export does not say by itself.

    `root` is the folder of Label Studio's files, by default the export's own; `control` the name
    of the `<Choices>` and `image_key` the field of the task data, needed where there are several.
    """

    root: Path | None = None
    control: str | None = None
    image_key: str | None = None


@dataclass(frozen=True)
class _Task:
    name: str
    data: Mapping[str, object]
    annotations: Sequence[Mapping[str, object]]


def from_export(path: Path, options: ExportOptions) -> Source:
    """Read the pictures and the majority label of each task.

    `/data/upload/…`, `/data/local-files/?d=…` and relative paths are looked up under the root;
    pictures at other addresses are listed as unreadable. Tasks whose annotators disagree evenly,
    with several choices or without an annotation are left out and counted.

    Raises DatasetError for what is no such export, and where the field of the picture or the
    control has to be named.
    """
    records = _records(path)
    if any("data" in record for record in records):
        tasks = [_task(path, number, record) for number, record in enumerate(records, 1)]
        key = _image_key(path, [task.data for task in tasks], options.image_key)
    else:
        key = _image_key(path, records, options.image_key)
        tasks = _tasks_of_json_min(records, key)
    control = _control(path, tasks, key, options.control)
    root = path.parent if options.root is None else options.root
    if not root.is_dir():
        raise DatasetError(f"--root: {root} is not a folder")
    source = Source()
    for task in tasks:
        labels = labels_of(control, {0: task.annotations})
        if labels.ties:
            source.ties += 1
        elif label := "".join(labels.values.get(0, ())).strip():
            _add(source, task, key, label, root)
        elif any(len(_choices(each, control.name)) > 1 for each in task.annotations):
            source.several += 1
        else:
            source.unlabelled += 1
    return source


def _records(path: Path) -> list[dict[str, object]]:
    try:
        parsed = orjson.loads(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise DatasetError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(parsed, list) or not all(isinstance(item, dict) for item in parsed):
        raise DatasetError(
            f"{path} is not a list of tasks: export the project from Label Studio as JSON or "
            "JSON-MIN"
        )
    if not parsed:
        raise DatasetError(f"{path} holds no task")
    return parsed


def _task(path: Path, number: int, record: Mapping[str, object]) -> _Task:
    data = record.get("data")
    annotations = record.get("annotations", [])
    if not isinstance(data, dict):
        raise DatasetError(f"{path}: task number {number} has no object in `data`")
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise DatasetError(
            f"{path}: task number {number} has no list of objects in `annotations`: export the "
            "project from Label Studio as JSON"
        )
    flat = [_with_flat_paths(annotation) for annotation in annotations]
    return _Task(f"task {record.get('id', number)}", data, flat)


def _tasks_of_json_min(records: Sequence[Mapping[str, object]], key: str) -> list[_Task]:
    """Put together the annotations of one task, which are a record each, in JSON's own form."""
    by_task: dict[object, list[Mapping[str, object]]] = defaultdict(list)
    for number, record in enumerate(records, 1):
        task_id = record.get("id")
        by_task[task_id if isinstance(task_id, int) else f"number {number}"].append(record)
    return [
        _Task(
            f"task {name}",
            of_task[0],
            [_with_flat_paths({"result": _result(one, key)}) for one in of_task],
        )
        for name, of_task in by_task.items()
    ]


def _result(record: Mapping[str, object], key: str) -> list[dict[str, object]]:
    result: list[dict[str, object]] = []
    for name, value in record.items():
        if name in _RECORD_FIELDS or name == key:
            continue
        # One choice is written as text, several as an object.
        value = {"choices": [value]} if isinstance(value, str) else value
        # What is chosen of a taxonomy stands in a list.
        kind = "taxonomy" if isinstance(value, list) else "choices"
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict) and kind in each:
                result.append({"from_name": name, "type": kind, "value": each})
    return result


def _with_flat_paths(annotation: Mapping[str, object]) -> Mapping[str, object]:
    """Return an annotation whose paths of a taxonomy are choices, called by their steps."""
    result = annotation.get("result")
    if not isinstance(result, list):
        return annotation
    return {**annotation, "result": [_with_flat_path(item) for item in result]}


def _with_flat_path(item: object) -> object:
    if not isinstance(item, dict) or item.get("type") != "taxonomy":
        return item
    value = item.get("value")
    paths = value.get("taxonomy") if isinstance(value, dict) else None
    if not isinstance(paths, list):
        return item
    choices = [
        value_of(path, ())
        for path in paths
        if isinstance(path, list) and path and all(isinstance(step, str) for step in path)
    ]
    return {**item, "type": "choices", "value": {"choices": choices}}


def _image_key(path: Path, rows: Iterable[Mapping[str, object]], wanted: str | None) -> str:
    texts: dict[str, bool] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str) and name not in _RECORD_FIELDS:
                texts[name] = texts.get(name, False) or _looks_like_picture(value)
    pictures = [name for name, looks in texts.items() if looks] or list(texts)
    if wanted is not None and wanted in texts:
        return wanted
    if wanted is None and len(pictures) == 1:
        return pictures[0]
    names = ", ".join(sorted(pictures)) or "none"
    if wanted is not None:
        raise DatasetError(f"--image-key: {path} has no field {wanted!r} with text; it has {names}")
    raise DatasetError(
        f"{path}: name the task data's field of the picture with --image-key; there are {names}"
    )


def _looks_like_picture(value: str) -> bool:
    place = value if value.startswith("data:") else value.partition("?")[0]
    return _PICTURE.search(place) is not None


def _control(path: Path, tasks: Iterable[_Task], key: str, wanted: str | None) -> Control:
    choices: dict[str, set[str]] = defaultdict(set)
    to_names: dict[str, Counter[str]] = defaultdict(Counter)
    for task in tasks:
        for annotation in task.annotations:
            for item in _items(annotation):
                name, to_name = item["from_name"], item.get("to_name", "")
                if isinstance(name, str) and isinstance(to_name, str):
                    to_names[name][to_name] += 1
                    choices[name].update(_choices(annotation, name))
    names = ", ".join(sorted(choices)) or "none"
    if wanted is not None and wanted not in choices:
        raise DatasetError(f"--control: {path} has no choices of {wanted!r}; there are {names}")
    if not choices:
        raise DatasetError(f"{path} has no annotation of a <Choices> or <Taxonomy> control")
    if wanted is None and len(choices) > 1:
        raise DatasetError(f"{path}: name one control with --control; there are {names}")
    name = wanted if wanted is not None else next(iter(choices))
    (to_name, _), *_ = to_names[name].most_common(1)
    return Control(
        name=name,
        to_name=to_name,
        image=f"${key}",
        choices=tuple(Choice(value, (value,)) for value in sorted(choices[name])),
        multiple=False,
        conditional=False,
    )


def _items(annotation: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    result = annotation.get("result")
    for item in result if isinstance(result, list) else ():
        if isinstance(item, dict) and item.get("type") == "choices" and "from_name" in item:
            yield item


def _choices(annotation: Mapping[str, object], control: str) -> set[str]:
    chosen: set[str] = set()
    for item in _items(annotation):
        value = item.get("value")
        choices = value.get("choices") if isinstance(value, dict) else None
        if item["from_name"] == control and isinstance(choices, list):
            chosen.update(choice for choice in choices if isinstance(choice, str))
    return chosen


def _add(source: Source, task: _Task, key: str, label: str, root: Path) -> None:
    name = task.data.get(key)
    if not isinstance(name, str) or not name.strip():
        source.unreadable.append(Unreadable(task.name, f"its field {key!r} is empty"))
        return
    found = _find(name.strip(), root)
    if isinstance(found, Path):
        source.pictures.append(Picture(found, label))
    else:
        source.unreadable.append(Unreadable(name[:500], found))


def _find(name: str, root: Path) -> Path | str:
    """Return the file that a task's data means, or why there is none."""
    top = os.path.abspath(root)
    places = _places(name)
    if not places:
        return NOT_LOCAL
    outside = True
    for place in places:
        path = os.path.normpath(os.path.join(top, place.lstrip("/")))
        if os.path.commonpath((top, path)) != top:
            continue
        outside = False
        # isfile is false, and raises nothing, for a name that no file can have.
        if os.path.isfile(path):
            return Path(path)
    if outside:
        return "lies outside --root"
    return f"is not under {root}: say with --root where Label Studio's files lie"


def _places(name: str) -> list[str]:
    """Return where under the root a file may be, the likeliest first."""
    try:
        parts = urlsplit(name)
    except ValueError:  # brackets that do not match
        return [name]
    # With LABEL_STUDIO_HOST set, Label Studio writes its own address before these.
    if parts.path.rstrip("/").endswith("/data/local-files"):
        return parse_qs(parts.query).get("d", [])[-1:]
    if is_remote(name):
        return []
    upload = _UPLOAD.match(name)
    if upload is None:
        return [name]
    # `root` may be Label Studio's data folder, its media folder, the uploads' folder, the
    # project's, or wherever somebody has gathered the files. URLs are percent-encoded.
    return [
        folder + file
        for file in dict.fromkeys((upload["file"], unquote(upload["file"])))
        for folder in ("media/upload/", "upload/", "data/upload/", "")
    ] + [os.path.basename(unquote(upload["file"]))]
