"""What people can choose from: `<Choice>` tags, and the options in a task's data."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from xml.etree.ElementTree import Element

from backend.errors import TaskError

# As Label Studio shows a path, unless it is told otherwise.
SEPARATOR = " / "

# Far above what people can choose from, and few enough for CLIP to read their names in minutes.
MAX_OPTIONS = 10_000
MAX_LEVELS = 200

# Characters of all paths of a tree: few tags can make very long ones.
_MAX_CHARACTERS = 4_000_000

# Label Studio's editor finds task fields in a tag's value with exactly this pattern; as there,
# `\w` means ASCII, so "$my-image" reads the field "my" and leaves "-image" as text.
VARIABLE = re.compile(r"\$[\w\[\].{}]+", re.ASCII)

_SUCH_AS = 'such as [{"value": "Tee"}, {"value": "Shoe"}]'

_Node = TypeVar("_Node")


@dataclass(frozen=True)
class Choice:
    """What can be chosen.

    Attributes
    ----------
    value : str
        What it is called in reports and by heads: as annotations store it, or of a path its steps.
    names : tuple of str
        As prompts may call it.
    path : tuple of str
        Of a `<Taxonomy>`, as annotations store it; otherwise empty.
    within : tuple of str
        Names of the steps that lead to it, as people see them.
    is_leaf : bool
        Whether the path leads no further.

    """

    value: str
    names: tuple[str, ...]
    path: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    is_leaf: bool = True

    @property
    def shown(self) -> str:
        """What people see that they choose."""
        return SEPARATOR.join((*self.within, self.names[0] if self.names else self.value))


class TreeTooLargeError(Exception):
    """Says in which way a tree of choices is too large."""


@dataclass(frozen=True)
class _Step:
    """One step of a path, however it is written down."""

    shown: str
    alias: str = ""
    other_names: str = ""

    @property
    def stored(self) -> str:
        return self.alias or self.shown

    @property
    def names(self) -> tuple[str, ...]:
        names = (self.shown, self.alias, *self.other_names.split(","))
        return tuple(dict.fromkeys(name for each in names if (name := each.strip())))


def of_tag(choice: Element) -> Choice | None:
    """Return what a `<Choice>` of `<Choices>` stands for; None where it has no name."""
    step = _step_of_tag(choice)
    return None if step is None else Choice(step.stored, step.names)


def tree_of_tags(taxonomy: Element, *, leaves_only: bool, most: int) -> tuple[Choice, ...]:
    """Return the paths of a `<Taxonomy>`; raises TreeTooLargeError for more than `most`."""
    return _tree(taxonomy, _children_of_tag, _step_of_tag, leaves_only=leaves_only, most=most)


def of_options(options: object, field_name: str) -> tuple[Choice, ...]:
    """Return the choices that a field of a task's data lists.

    Label Studio shows objects with a text in `value`; plain texts become boxes without a name,
    and a `$` in a value reads another field. What it does not show as it is counts for nothing.
    Raises TaskError where nothing is left, or far too much.
    """
    listed = _listed(options, field_name)
    found: dict[str, Choice] = {}
    for option in listed:
        step = _step_of_option(option)
        if step is not None and not VARIABLE.search(step.shown):
            found.setdefault(step.stored, Choice(step.stored, step.names))
    return _usable(tuple(found.values()), field_name)


def tree_of_options(options: object, field_name: str, *, leaves_only: bool) -> tuple[Choice, ...]:
    """Return the paths that a field of a task's data lists, nested in `children`.

    Raises TaskError where there is none, or far too much.
    """
    root: object = {"children": _listed(options, field_name)}
    try:
        found = _tree(
            root,
            _children_of_option,
            _step_of_option,
            leaves_only=leaves_only,
            most=MAX_OPTIONS,
        )
    except TreeTooLargeError as error:
        raise TaskError(f"the choices in task data field {field_name!r}: {error}") from None
    return _usable(found, field_name)


def value_of(path: Sequence[str], others: Container[str]) -> str:
    """Return what to call a path: its steps, or where others are called so, its JSON."""
    joined = SEPARATOR.join(path)
    return json.dumps(path, ensure_ascii=False) if joined in others else joined


def path_of(value: str) -> tuple[str, ...]:
    """Return the path that `value_of` has called so, if no step of it has the separator in it."""
    return tuple(value.split(SEPARATOR))


def wordings(choices: Sequence[Choice]) -> list[tuple[str, ...]]:
    """Return by which names to describe each choice.

    A name that several paths share, such as "other", says little: it has as many of the steps
    before it beside it, as an adjective has its noun, as make it differ.
    """
    sharing: dict[str, list[int]] = defaultdict(list)
    for index, choice in enumerate(choices):
        for name in choice.names:
            sharing[name].append(index)
    contexts = {
        name: dict(zip(indices, _contexts([choices[i] for i in indices]), strict=True))
        for name, indices in sharing.items()
    }
    return [
        tuple(" ".join((name, *contexts[name][index])) for name in choice.names)
        for index, choice in enumerate(choices)
    ]


def _contexts(choices: Sequence[Choice]) -> list[tuple[str, ...]]:
    """Return the fewest steps before each, the nearest first, by which they differ."""
    nearest_first = [choice.within[::-1] for choice in choices]
    contexts: list[tuple[str, ...]] = [()] * len(choices)
    pending = [(0, [*range(len(choices))])]
    while pending:
        count, group = pending.pop()
        if len(group) < 2:
            continue
        by_step: dict[str | None, list[int]] = defaultdict(list)
        for index in group:
            steps = nearest_first[index]
            by_step[steps[count] if count < len(steps) else None].append(index)
        for step, indices in by_step.items():
            if step is not None:
                for index in indices:
                    contexts[index] = nearest_first[index][: count + 1]
                pending.append((count + 1, indices))
    return contexts


def _tree(
    root: _Node,
    children_of: Callable[[_Node], Iterable[_Node]],
    step_of: Callable[[_Node], _Step | None],
    *,
    leaves_only: bool,
    most: int,
) -> tuple[Choice, ...]:
    """Return the paths below a root, in the order in which they are written.

    As in Label Studio, of siblings that look the same only the first counts.
    """
    found: dict[tuple[str, ...], Choice] = {}
    values: set[str] = set()
    characters = 0
    pending: list[tuple[_Node, _Step | None, tuple[str, ...], tuple[str, ...]]]
    pending = [(root, None, (), ())]
    while pending:
        node, step, path, within = pending.pop()
        children: dict[str, tuple[_Step, _Node]] = {}
        for child in children_of(node):
            step_there = step_of(child)
            if step_there is not None:
                children.setdefault(step_there.shown, (step_there, child))
        if step is not None:
            path = (*path, step.stored)
            characters += len(path) + sum(map(len, path))
            if len(path) > MAX_LEVELS or len(found) >= most or characters > _MAX_CHARACTERS:
                raise TreeTooLargeError(
                    f"more than {MAX_LEVELS} levels, {most} paths, or {_MAX_CHARACTERS} "
                    "characters in all paths"
                )
            if path not in found and not (children and leaves_only):
                value = value_of(path, values)
                values.add(value)
                found[path] = Choice(value, step.names, path, within, is_leaf=not children)
            within = (*within, step.shown)
        pending.extend((node, step, path, within) for step, node in reversed(children.values()))
    return tuple(found.values())


def _children_of_tag(tag: Element) -> Iterator[Element]:
    return (child for child in tag if child.tag.lower() == "choice")


def _step_of_tag(choice: Element) -> _Step | None:
    step = _Step(
        choice.get("value", ""), choice.get("alias", ""), choice.get("predicted_values", "")
    )
    return step if step.stored.strip() else None


def _children_of_option(option: object) -> Iterable[object]:
    children = option.get("children") if isinstance(option, Mapping) else None
    return children if isinstance(children, list) else ()


def _step_of_option(option: object) -> _Step | None:
    if not isinstance(option, Mapping):
        return None
    shown, alias = option.get("value"), option.get("alias") or ""
    others = option.get("predicted_values") or ""
    if not isinstance(shown, str) or not shown.strip() or not isinstance(alias, str):
        return None
    return _Step(shown, alias, others if isinstance(others, str) else "")


def _listed(options: object, name: str) -> list[object]:
    if not isinstance(options, list):
        raise TaskError(f"task data field {name!r} is no list of choices, {_SUCH_AS}")
    if len(options) > MAX_OPTIONS:
        raise TaskError(f"task data field {name!r} lists more than {MAX_OPTIONS} choices")
    return options


def _usable(choices: tuple[Choice, ...], name: str) -> tuple[Choice, ...]:
    if not choices:
        raise TaskError(f"task data field {name!r} lists nothing to choose from, {_SUCH_AS}")
    return choices
