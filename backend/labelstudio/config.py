from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from backend.errors import LabelingConfigError, TaskError

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 200
# Far above what people can choose from, and few enough for CLIP to read their names in minutes.
_MAX_CHOICES = 20_000
_MAX_CONTROLS = 500
# Values, aliases and predicted_values.
_MAX_NAMES = 2 * _MAX_CHOICES
# Of an address that is put together from several fields of a task.
_MAX_FILLED_IN = 100_000
# Controls that a sentence for people names.
_NAMED = 20

# Label Studio's editor finds task fields in a tag's value with exactly this pattern; as there,
# `\w` means ASCII, so "$my-image" reads the field "my" and leaves "-image" as text.
_VARIABLE = re.compile(r"\$[\w\[\].{}]+", re.ASCII)
_INDEX = re.compile(r"[0-9]{1,9}")

_NOT_CONTROLS = frozenset({"filter"})


@dataclass(frozen=True)
class Choice:
    """One `<Choice>`: `value` as annotations store it, `names` as prompts may call it."""

    value: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Control:
    """One `<Choices>` over an `<Image>` that can be predicted.

    `name` and `to_name` are an annotation result's from_name and to_name, `image` is the
    template in the Image tag's value. A `conditional` control may have been hidden from the
    annotator, so its absence in an annotation says nothing.
    """

    name: str
    to_name: str
    image: str
    choices: tuple[Choice, ...]
    multiple: bool
    conditional: bool

    @property
    def values(self) -> tuple[str, ...]:
        """The stored values of all choices, in the config's order."""
        return tuple(choice.value for choice in self.choices)


@dataclass(frozen=True)
class LabelingConfig:
    """What a labeling config asks for; `left_alone` has a sentence a control not predicted."""

    controls: tuple[Control, ...]
    left_alone: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """One sentence for people: what is predicted, or why nothing is and what to do."""
        if self.controls:
            return f"Predicts {_some([_summary(control) for control in self.controls], '; ')}."
        reasons = _some(self.left_alone, " ") or "The labeling config has no <Choices>."
        return (
            f"Nothing is predicted: {reasons} "
            'Add <Choices name="…" toName="…"> over an <Image> to the labeling config.'
        )


class _NotPredictedError(Exception):
    """Carries the reason why a control tag is left alone."""


@dataclass(frozen=True)
class _Tag:
    element: Element
    kind: str
    conditional: bool
    repeated: bool

    def __str__(self) -> str:
        return f'<{self.element.tag} name="{self.element.get("name", "")}">'


class _BoundedTree(TreeBuilder):
    """Refuses deep nesting while parsing, before anything recursive can meet it."""

    _depth = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise LabelingConfigError(
                f"the labeling config is nested deeper than {_MAX_DEPTH} tags"
            )
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        self._depth -= 1
        return super().end(tag)


def parse_labeling_config(xml: str) -> LabelingConfig:
    """Find the controls to predict in a labeling config.

    An empty config is one with nothing to predict.

    Raises LabelingConfigError for text that is not XML, that declares a DTD or entities, that is
    larger than 1 MiB, that nests deeper than 200 tags, or that has more than 500 controls to
    predict, 20,000 choices or 40,000 names of them.
    """
    if not xml.strip():
        return LabelingConfig(controls=(), left_alone=())
    tags = list(_walk(_parse(xml)))
    named = Counter(name for tag in tags if (name := tag.element.get("name")))
    objects = {
        name: tag
        for tag in tags
        if (name := tag.element.get("name", ""))
        and named[name] == 1
        and "toName" not in tag.element.attrib
    }
    controls: list[Control] = []
    left_alone: list[str] = []
    for tag in tags:
        is_control = tag.kind == "choices" or "toName" in tag.element.attrib
        if not is_control or tag.kind in _NOT_CONTROLS:
            continue
        try:
            if named[tag.element.get("name", "")] > 1:
                raise _NotPredictedError("its name is used by more than one tag")
            controls.append(_control(tag, objects))
        except _NotPredictedError as reason:
            left_alone.append(f"{tag} is left alone: {reason}.")
    _check_size(controls)
    return LabelingConfig(controls=tuple(controls), left_alone=tuple(left_alone))


def image_source(control: Control, data: Mapping[str, object]) -> str:
    """Resolve the control's image template against a task's data, as Label Studio's editor does.

    A template that is one variable, such as "$image" or "$pages[0].url", is that field; variables
    within text are filled in; text without variables is taken as it is.

    Raises TaskError if a field is missing, empty, or neither text nor a whole number, or if what
    is put together from text and fields is longer than 100,000 characters.
    """
    template = control.image
    if _VARIABLE.fullmatch(template):
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

    return _VARIABLE.sub(fill_in, template)


def _parse(xml: str) -> Element:
    try:
        if len(xml.encode()) > _MAX_BYTES:
            raise LabelingConfigError(f"the labeling config is larger than {_MAX_BYTES} bytes")
        parser = DefusedXMLParser(target=_BoundedTree(), forbid_dtd=True)
        parser.feed(xml.strip())
        root: Element = parser.close()
    except DefusedXmlException as error:
        raise LabelingConfigError(
            "the labeling config declares a DTD or entities, which are not allowed"
        ) from error
    except (ParseError, ValueError) as error:
        raise LabelingConfigError(f"the labeling config is not valid XML: {error}") from error
    return root


def _walk(root: Element) -> Iterator[_Tag]:
    pending = [(root, False, False)]
    while pending:
        element, conditional, repeated = pending.pop()
        attributes = {name.lower() for name in element.attrib}
        conditional = conditional or not attributes.isdisjoint({"visiblewhen", "whenchoicevalue"})
        kind = element.tag.lower()
        yield _Tag(element, kind, conditional, repeated)
        repeated = repeated or kind == "repeater"
        pending.extend((child, conditional, repeated) for child in reversed(element))


def _control(tag: _Tag, objects: Mapping[str, _Tag]) -> Control:
    if tag.kind != "choices":
        raise _NotPredictedError("only <Choices> is predicted")
    attributes = {name.lower(): value for name, value in tag.element.items()}
    name = tag.element.get("name")
    if not name:
        raise _NotPredictedError("it has no name")
    if tag.repeated:
        raise _NotPredictedError("it is repeated by a <Repeater>")
    for attribute, meaning in (
        ("perregion", "it labels regions, not the whole image (perRegion)"),
        ("peritem", "it labels single items of a list (perItem)"),
        ("allownested", "it allows nested choices (allowNested)"),
    ):
        if attributes.get(attribute, "").lower() == "true":
            raise _NotPredictedError(meaning)
    if attributes.get("value"):
        raise _NotPredictedError("its choices come from the task data (value)")
    kind = attributes.get("choice", "single")
    if kind not in {"single", "single-radio", "multiple"}:
        raise _NotPredictedError(f'choice="{kind}" is not known')
    multiple = kind == "multiple"
    image = _image(tag.element.get("toName", ""), objects)
    choices = tuple(_choices(tag.element))
    if len(choices) < (1 if multiple else 2):
        raise _NotPredictedError("it has too few distinct choices")
    return Control(
        name=name,
        to_name=image.element.get("name", ""),
        image=image.element.get("value", ""),
        choices=choices,
        multiple=multiple,
        conditional=tag.conditional,
    )


def _image(to_name: str, objects: Mapping[str, _Tag]) -> _Tag:
    if not to_name:
        raise _NotPredictedError("it has no toName")
    targets = [objects[name] for name in to_name.split(",") if name in objects]
    if not targets:
        raise _NotPredictedError(f"its toName={to_name!r} does not name one object tag")
    image = next((target for target in targets if target.kind == "image"), None)
    if image is None:
        raise _NotPredictedError(f"it labels {targets[0]}, which is not an <Image>")
    if image.repeated:
        raise _NotPredictedError(f"{image} is repeated by a <Repeater>")
    if any(name.lower() == "valuelist" for name in image.element.attrib):
        raise _NotPredictedError(f"{image} shows a list of images (valueList)")
    if not image.element.get("value"):
        raise _NotPredictedError(f"{image} has no value")
    return image


def _check_size(controls: Sequence[Control]) -> None:
    choices = [choice for control in controls for choice in control.choices]
    for count, limit, what in (
        (len(controls), _MAX_CONTROLS, "<Choices> to predict"),
        (len(choices), _MAX_CHOICES, "choices to predict"),
        (sum(len(choice.names) for choice in choices), _MAX_NAMES, "names of choices"),
    ):
        if count > limit:
            raise LabelingConfigError(f"the labeling config has more than {limit} {what}")


def _choices(element: Element) -> Iterator[Choice]:
    stored: set[str] = set()
    for choice in element.iter():
        if choice is not element and choice.tag.lower() == "choices":
            raise _NotPredictedError("it holds another <Choices>")
        if choice.tag.lower() != "choice":
            continue
        if any(inner is not choice and inner.tag.lower() == "choice" for inner in choice.iter()):
            raise _NotPredictedError("its choices are nested; put them into one flat list")
        shown = choice.get("value", "")
        alias = choice.get("alias", "")
        if not alias and _VARIABLE.search(shown):
            raise _NotPredictedError(f"its choice {shown!r} takes its text from the task data")
        value = alias or shown
        if not value.strip() or value in stored:
            continue
        stored.add(value)
        names = [shown, alias, *choice.get("predicted_values", "").split(",")]
        stripped = (name.strip() for name in names)
        yield Choice(value, tuple(dict.fromkeys(name for name in stripped if name)))


def _field(data: Mapping[str, object], path: str) -> str:
    value: object = data[path] if path in data else _follow(data, path)
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


def _follow(data: Mapping[str, object], path: str) -> object:
    value: object = data
    for key in re.split(r"[.\[\]]+", path.rstrip("]")):
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list) and _INDEX.fullmatch(key) and int(key) < len(value):
            value = value[int(key)]
        else:
            raise TaskError(f"task data has no field {path!r}")
    return value


def _some(sentences: Sequence[str], separator: str) -> str:
    rest = len(sentences) - _NAMED
    return separator.join(sentences[:_NAMED]) + (f" (and {rest} more)" if rest > 0 else "")


def _summary(control: Control) -> str:
    kind = "any of" if control.multiple else "one of"
    return (
        f'<Choices name="{control.name}"> ({kind} {len(control.choices)} choices) '
        f'for <Image name="{control.to_name}">'
    )
