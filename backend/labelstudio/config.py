from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from backend.errors import LabelingConfigError
from backend.labelstudio import choices as choosing
from backend.labelstudio.choices import VARIABLE, Choice

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 200
# Far above what people can choose from, and few enough for CLIP to read their names in minutes.
_MAX_CHOICES = 20_000
_MAX_CONTROLS = 500
# Of those whose choices come with the tasks: each reads up to 10,000 choices of every task.
_MAX_WITH_OPTIONS = 10
# Fields that a picture's address is put together from, for each control and task.
_MAX_FIELDS = 20
# Values, aliases and predicted_values.
_MAX_NAMES = 2 * _MAX_CHOICES
# Controls that a sentence for people names.
_NAMED = 20


_CONTROLS = frozenset({"choices", "taxonomy"})
_NOT_CONTROLS = frozenset({"filter"})

_LEFT_ALONE = (
    ("perregion", "it labels regions, not the whole image (perRegion)"),
    ("peritem", "it labels single items of a list (perItem)"),
    ("labeling", "it labels regions of text (labeling)"),
    ("allownested", "it allows nested choices (allowNested); use <Taxonomy>"),
)
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Shortlist:
    """A `<TextArea shortlistOf="…">`, in which the likeliest choices of a control are shown."""

    name: str
    to_name: str


@dataclass(frozen=True)
class Control:
    """One `<Choices>` or `<Taxonomy>` over an `<Image>` that can be predicted.

    Attributes
    ----------
    name, to_name : str
        An annotation result's from_name and to_name.
    image : str
        The template in the Image tag's value.
    choices : tuple of Choice
        Those that the labeling config has; with `options` more are added by `with_options`.
    multiple : bool
        Whether several may be chosen.
    conditional : bool
        It may have been hidden from the annotator, so its absence in an annotation says nothing.
    kind : {"choices", "taxonomy"}
        An annotation result's type, and the key of its value.
    options : str, optional
        The field of a task's data that has its own choices.
    leaves_only : bool
        Of a taxonomy, whether only paths that lead no further can be chosen.
    shortlist : Shortlist, optional
        Where to show the likeliest choices.

    """

    name: str
    to_name: str
    image: str
    choices: tuple[Choice, ...]
    multiple: bool
    conditional: bool
    kind: Literal["choices", "taxonomy"] = "choices"
    options: str | None = None
    leaves_only: bool = False
    shortlist: Shortlist | None = None

    @property
    def values(self) -> tuple[str, ...]:
        """What reports and heads call all choices, in the config's order."""
        return tuple(choice.value for choice in self.choices)

    @cached_property
    def _values_by_path(self) -> Mapping[tuple[str, ...], str]:
        return {choice.path: choice.value for choice in self.choices}

    @cached_property
    def _distinct_values(self) -> frozenset[str]:
        return frozenset(self.values)

    def value_of(self, path: Sequence[str]) -> str:
        """Return what reports and heads call a path of a taxonomy, whether it has it or not."""
        known = self._values_by_path.get(tuple(path))
        return choosing.value_of(path, self._distinct_values) if known is None else known

    @property
    def tag(self) -> str:
        """The control as a sentence for people names it."""
        return f'<{self.kind.capitalize()} name="{self.name}">'


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

    @property
    def attributes(self) -> dict[str, str]:
        """Its attributes, whose names Label Studio reads in any case."""
        return {name.lower(): value for name, value in self.element.items()}

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
    shortlists: dict[str, Shortlist] = {}
    for tag in tags:
        is_control = tag.kind in _CONTROLS or "toName" in tag.element.attrib
        if not is_control or tag.kind in _NOT_CONTROLS:
            continue
        if (of_control := tag.attributes.get("shortlistof")) and tag.kind == "textarea":
            shortlists[of_control] = Shortlist(
                tag.element.get("name", ""), tag.element.get("toName", "")
            )
            continue
        try:
            if named[tag.element.get("name", "")] > 1:
                raise _NotPredictedError("its name is used by more than one tag")
            controls.append(_control(tag, objects))
        except _NotPredictedError as reason:
            left_alone.append(f"{tag} is left alone: {reason}.")
    controls = [replace(each, shortlist=shortlists.pop(each.name, None)) for each in controls]
    left_alone += [
        f'<TextArea name="{each.name}"> is left alone: shortlistOf="{of_control}" is no control '
        "that is predicted."
        for of_control, each in shortlists.items()
    ]
    _check_size(controls)
    return LabelingConfig(controls=tuple(controls), left_alone=tuple(left_alone))


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
    if tag.kind not in _CONTROLS:
        raise _NotPredictedError("only <Choices> and <Taxonomy> are predicted")
    attributes = tag.attributes
    name = tag.element.get("name")
    if not name:
        raise _NotPredictedError("it has no name")
    if tag.repeated:
        raise _NotPredictedError("it is repeated by a <Repeater>")
    for attribute, meaning in _LEFT_ALONE:
        if attributes.get(attribute, "").lower() == "true":
            raise _NotPredictedError(meaning)
    image = _image(tag.element.get("toName", ""), objects)
    build = _taxonomy if tag.kind == "taxonomy" else _choices
    control = build(
        tag,
        Control(
            name=name,
            to_name=image.element.get("name", ""),
            image=image.element.get("value", ""),
            choices=(),
            multiple=False,
            conditional=tag.conditional,
        ),
    )
    leaves = sum(choice.is_leaf for choice in control.choices)
    if control.options is None and leaves < (1 if control.multiple else 2):
        raise _NotPredictedError("it has too few distinct choices")
    return control


def _choices(tag: _Tag, control: Control) -> Control:
    kind = tag.attributes.get("choice", "single")
    if kind not in {"single", "single-radio", "multiple"}:
        raise _NotPredictedError(f'choice="{kind}" is not known')
    return replace(
        control,
        choices=tuple(_flat_choices(tag.element)),
        multiple=kind == "multiple",
        options=_options(tag),
    )


def _taxonomy(tag: _Tag, control: Control) -> Control:
    attributes = tag.attributes
    if attributes.get("apiurl"):
        raise _NotPredictedError(
            "its choices come from another server (apiUrl), which is not asked; list them in the "
            'config or, with value="$…", in the task data'
        )
    leaves_only = attributes.get("leafsonly", "").lower() == "true"
    try:
        choices = choosing.tree_of_tags(tag.element, leaves_only=leaves_only, most=_MAX_CHOICES)
    except choosing.TreeTooLargeError as error:
        raise LabelingConfigError(f"the <Taxonomy> of the labeling config has {error}") from None
    most = attributes.get("maxusages", "")
    return replace(
        control,
        kind="taxonomy",
        choices=choices,
        multiple=_NUMBER.fullmatch(most) is not None and int(most) > 1,
        # Label Studio shows those of the task only where the config has none.
        options=None if choices else _options(tag),
        leaves_only=leaves_only,
    )


def _options(tag: _Tag) -> str | None:
    value = tag.attributes.get("value")
    if not value:
        return None
    if VARIABLE.fullmatch(value) is None:
        raise _NotPredictedError(f'value="{value}" is not one field of the task data')
    return value[1:]


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
    if len(VARIABLE.findall(image.element.get("value", ""))) > _MAX_FIELDS:
        raise _NotPredictedError(f"{image} is put together from more than {_MAX_FIELDS} fields")
    return image


def _check_size(controls: Sequence[Control]) -> None:
    choices = [choice for control in controls for choice in control.choices]
    for count, limit, what in (
        (len(controls), _MAX_CONTROLS, "<Choices> to predict"),
        (
            sum(control.options is not None for control in controls),
            _MAX_WITH_OPTIONS,
            "<Choices> whose choices come with the tasks",
        ),
        (len(choices), _MAX_CHOICES, "choices to predict"),
        (sum(len(choice.names) for choice in choices), _MAX_NAMES, "names of choices"),
    ):
        if count > limit:
            raise LabelingConfigError(f"the labeling config has more than {limit} {what}")


def _flat_choices(element: Element) -> Iterator[Choice]:
    stored: set[str] = set()
    for tag in element.iter():
        if tag is not element and tag.tag.lower() == "choices":
            raise _NotPredictedError("it holds another <Choices>")
        if tag.tag.lower() != "choice":
            continue
        if any(inner is not tag and inner.tag.lower() == "choice" for inner in tag.iter()):
            raise _NotPredictedError("its choices are nested; put them into one flat list")
        shown = tag.get("value", "")
        if not tag.get("alias") and VARIABLE.search(shown):
            raise _NotPredictedError(f"its choice {shown!r} takes its text from the task data")
        choice = choosing.of_tag(tag)
        if choice is not None and choice.value not in stored:
            stored.add(choice.value)
            yield choice


def _some(sentences: Sequence[str], separator: str) -> str:
    rest = len(sentences) - _NAMED
    return separator.join(sentences[:_NAMED]) + (f" (and {rest} more)" if rest > 0 else "")


def _summary(control: Control) -> str:
    kind = "any of" if control.multiple else "one of"
    what = f"{len(control.choices)} choices"
    if control.options is not None:
        more = f"the choices in each task's {control.options!r}"
        what = f"{what} and {more}" if control.choices else more
    elif control.kind == "taxonomy":
        what = f"{len(control.choices)} paths"
    return f'{control.tag} ({kind} {what}) for <Image name="{control.to_name}">'
