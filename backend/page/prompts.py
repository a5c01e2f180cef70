"""The prompts of choices: edited by people, with their effect shown before they are saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice

from flask import Blueprint, render_template, request
from flask.typing import ResponseReturnValue

from backend.errors import RequestError
from backend.labelstudio.client import RemoteTask
from backend.page import answers
from backend.page.services import ProjectView
from backend.page.wording import shown
from backend.prediction import prompts_of
from backend.prompt_editing import LONGEST_PROMPT, read_prompts, save_prompts, with_prompts
from backend.prompt_effect import Effect, prompt_effect

# Choices that are edited at once.
SHOWN = 20

# Labelled tasks that an effect is judged by: reading them takes Label Studio some seconds.
MOST_LABELLED = 5000

# Tasks that show what the pool is like.
_POOL = 2000

_LONGEST_FILTER = 200


@dataclass(frozen=True)
class EditedChoice:
    """One choice: `given` prompts, one a line, or none; `default` is what it has without.

    `key` stands for its value in the form, whatever signs that is made of.
    """

    key: str
    value: str
    control: str
    given: str
    default: str


@dataclass(frozen=True)
class PromptsForm:
    """The choices that match a filter; of `matching` ones these are the first."""

    choices: list[EditedChoice]
    matching: int
    total: int
    filter: str
    longest_prompt: int = LONGEST_PROMPT


def prompts_form(view: ProjectView) -> PromptsForm:
    """Return the first choices, those with prompts of their own in front."""
    return _form(view, "")


def add_prompts(page: Blueprint, project: str, view_of: Callable[[int], ProjectView]) -> None:
    """Add the addresses of prompts to the page; `project` is where a project's begin."""

    @page.get(f"{project}/prompts")
    def prompts(project_id: int) -> str:
        view = view_of(project_id)
        wanted = request.args.get("filter", "").strip()[:_LONGEST_FILTER]
        return render_template("prompts_form.html", view=view, panel=_form(view, wanted))

    @page.post(f"{project}/prompts-effect")
    def show_effect(project_id: int) -> str:
        view = view_of(project_id)
        edited = _edited(view)
        effects, labelled = _effects(view, edited)
        return render_template(
            "prompts_effect.html",
            view=view,
            effects=effects,
            labelled=labelled,
            most=MOST_LABELLED,
            seen=_digest(edited),
        )

    @page.post(f"{project}/save-prompts")
    def save(project_id: int) -> ResponseReturnValue:
        view = view_of(project_id)
        edited = _edited(view)
        if request.form.get("seen") != _digest(edited):
            raise RequestError(
                "the prompts are not those whose effect was shown: show the effect again"
            )
        save_prompts(view.client, view.project, view.config, edited)
        return answers.done(
            request, project_id, "The prompts are saved. A training follows by itself."
        )


def _form(view: ProjectView, wanted: str) -> PromptsForm:
    learning = view.services.learning.overridden_by(view.project.extra_params)
    without = learning.model_copy(update={"prompts": {}})
    found: dict[str, EditedChoice] = {}
    for control in view.config.controls:
        texts = zip(prompts_of(control, learning), prompts_of(control, without), strict=True)
        for choice, (now, default) in zip(control.choices, texts, strict=True):
            given = "" if now == default else "\n".join(now)
            # Controls with a choice of the same name share its prompts.
            found.setdefault(
                choice.value,
                EditedChoice(
                    _key(choice.value), choice.value, control.name, given, "\n".join(default)
                ),
            )
    matching = [each for each in found.values() if wanted.casefold() in each.value.casefold()]
    matching.sort(key=lambda each: not each.given)
    return PromptsForm(matching[:SHOWN], len(matching), len(found), wanted)


def _edited(view: ProjectView) -> dict[str, list[str]]:
    """Return the prompts of the choices that somebody has changed in the form."""
    by_key = {
        _key(choice.value): choice.value
        for control in view.config.controls
        for choice in control.choices
    }
    columns = [request.form.getlist(name) for name in ("choice", "before", "prompts")]
    if len({len(column) for column in columns}) > 1:
        raise RequestError("the form is not complete: load the page anew")
    edited = {}
    for key, before, text in zip(*columns, strict=True):
        if key not in by_key:
            raise RequestError("the labeling config has changed: load the page anew")
        # What nobody has touched is not written: another may have changed it meanwhile.
        if text.splitlines() != before.splitlines():
            edited[by_key[key]] = read_prompts(shown(by_key[key]), text)
    if not edited:
        raise RequestError("no prompt was changed: edit one first")
    return edited


def _effects(view: ProjectView, edited: dict[str, list[str]]) -> tuple[list[Effect], int]:
    before = view.services.learning.overridden_by(view.project.extra_params)
    after = view.services.learning.overridden_by(
        with_prompts(view.project.extra_params, view.config, edited)
    )
    embedder = view.services.embedder()
    annotated = _annotated(view)
    sample = view.store.tasks.some(view.project.id, _POOL)
    effects = [
        effect
        for control in view.config.controls
        if not edited.keys().isdisjoint(control.values)
        and (effect := prompt_effect(embedder, control, annotated, sample, before, after))
    ]
    return effects, len(annotated)


def _annotated(view: ProjectView) -> Sequence[RemoteTask]:
    # By id: a task that several people annotated is listed several times.
    pages = view.client.annotated_tasks(view.project.id)
    tasks = (task for page in pages for task in page if task.annotation_count)
    return list({task.id: task for task in islice(tasks, MOST_LABELLED)}.values())


def _key(value: str) -> str:
    return sha256(value.encode(errors="surrogatepass")).hexdigest()[:16]


def _digest(edited: dict[str, list[str]]) -> str:
    return _key(repr(sorted(edited.items())))
