"""What a labeling config takes from a task's data: the picture, and choices of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import sha256

import orjson

from backend.errors import TaskError
from backend.labelstudio import choices as choosing
from backend.labelstudio.choices import MAX_OPTIONS, VARIABLE, Choice
from backend.labelstudio.config import Control, LabelingConfig

# Of an address that is put together from several fields of a task.
_MAX_FILLED_IN = 100_000
# Lists of choices that are kept for other tasks with the same.
_LISTS = 1000

_INDEX = re.compile(r"[0-9]{1,9}")


def image_source(control: Control, data: Mapping[str, object]) -> str:
    """Resolve the control's image template against a task's data, as Label Studio's editor does.

    A template that is one variable, such as "$image" or "$pages[0].url", is that field; variables
    within text are filled in; text without variables is taken as it is.

    Raises TaskError if a field is missing, empty, or neither text nor a whole number, or if what
    is put together from text and fields is longer than 100,000 characters.
    """
    template = control.image
    if VARIABLE.fullmatch(template):
        return _field(data, template[1:])
    length = 0

    def fill_in(match: re.Match[str]) -> str:
        nonlocal length
        field = _field(data, match.group()[1:])
        length += len(field)
        if length > _MAX_FILLED_IN:
            raise TaskError(
                f"the task's fields make an address of more than {_MAX_FILLED_IN} characters"
            )
        return field

    return VARIABLE.sub(fill_in, template)


class TaskChoices:
    """What tasks let people choose from: what the config lists and what their data list.

    Most tasks of a project list the same, which is read once.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._known = frozenset(control.values)
        self._read: dict[bytes, tuple[Choice, ...] | TaskError] = {}

    def of(self, data: Mapping[str, object]) -> tuple[Choice, ...]:
        """Return a task's choices; the same object for the same list.

        Raises TaskError where there is nothing to choose from, or far too much.
        """
        options = self._control.options
        if options is None:
            return self._control.choices
        try:
            listed = data[options] if options in data else _at(data, options)
        except TaskError:
            # As in Label Studio.
            if self._control.choices:
                return self._control.choices
            raise
        try:
            digest = sha256(orjson.dumps(listed)).digest()
        except orjson.JSONEncodeError:
            raise TaskError(f"task data field {options!r} is nested too deeply") from None
        if digest not in self._read:
            if len(self._read) >= _LISTS:
                self._read.clear()
            self._read[digest] = self._choices(listed, options)
        found = self._read[digest]
        if isinstance(found, TaskError):
            raise found
        return found

    def _choices(self, listed: object, options: str) -> tuple[Choice, ...] | TaskError:
        control = self._control
        try:
            if control.kind == "taxonomy":
                return choosing.tree_of_options(listed, options, leaves_only=control.leaves_only)
            own = choosing.of_options(listed, options)
        except TaskError as error:
            return error
        return (*control.choices, *(each for each in own if each.value not in self._known))


def with_options(config: LabelingConfig, tasks: Iterable[Mapping[str, object]]) -> LabelingConfig:
    """Return a config whose controls list what any of these tasks' data list, in their order.

    Of each control the first 10,000 choices; tasks' data that cannot be read add none.
    """
    gathered = {
        control.name: {choice.value: choice for choice in control.choices}
        for control in config.controls
        if control.options is not None
    }
    if not gathered:
        return config
    of_tasks = {
        control.name: TaskChoices(control)
        for control in config.controls
        if control.name in gathered
    }
    before: dict[str, tuple[Choice, ...]] = {}
    for data in tasks:
        for name, found in gathered.items():
            try:
                own = of_tasks[name].of(data)
            except TaskError:
                continue
            if own is not before.get(name):
                before[name] = own
                _add(found, own)
    return replace(
        config,
        controls=tuple(
            replace(control, choices=tuple(gathered[control.name].values()))
            if control.name in gathered
            else control
            for control in config.controls
        ),
    )


def _add(found: dict[str, Choice], own: Iterable[Choice]) -> None:
    for choice in own:
        before = found.get(choice.value)
        if before is None:
            is_wanted = len(found) < MAX_OPTIONS
        else:
            is_wanted = choice.is_leaf and not before.is_leaf
        if is_wanted:
            found[choice.value] = choice


def _field(data: Mapping[str, object], path: str) -> str:
    value: object = data[path] if path in data else _at(data, path)
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        raise TaskError(
            f"task data field {path!r} is a list; name one of its images in the labeling config, "
            f'such as value="${path}[0]"'
        )
    if value is None or isinstance(value, str):
        raise TaskError(f"task data field {path!r} is empty")
    raise TaskError(f"task data field {path!r} is not text")


def _at(data: Mapping[str, object], path: str) -> object:
    value: object = data
    for key in re.split(r"[.\[\]]+", path.rstrip("]")):
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list) and _INDEX.fullmatch(key) and int(key) < len(value):
            value = value[int(key)]
        else:
            raise TaskError(f"task data has no field {path!r}")
    return value
