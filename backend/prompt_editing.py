"""The prompts that people give to choices: they are kept in Label Studio's extra params."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from backend.api.actions import UNTRAINED
from backend.errors import NotFoundError, RequestError
from backend.labelstudio.client import LabelStudio
from backend.labelstudio.config import Control, LabelingConfig
from backend.settings import parse_extra_params
from backend.store.projects import Project
from backend.store.versions import is_ours

# In characters; CLIP reads a few dozen words.
LONGEST_PROMPT = 300

MOST_PROMPTS = 100

_KEY = "prompts"


def read_prompts(choice: str, text: str) -> list[str]:
    """Return the prompts of a text, one a line; an empty one is the default wording.

    Raises RequestError where they are too long or too many.
    """
    lines = (" ".join(line.split()) for line in text.splitlines())
    prompts = list(dict.fromkeys(line for line in lines if line))
    if len(prompts) > MOST_PROMPTS:
        raise RequestError(f"{choice}: at most {MOST_PROMPTS} prompts, here are {len(prompts)}")
    if any(len(prompt) > LONGEST_PROMPT for prompt in prompts):
        raise RequestError(
            f"{choice}: a prompt has at most {LONGEST_PROMPT} characters; CLIP reads no more than "
            "a sentence or two"
        )
    return prompts


def with_prompts(
    extra_params: Mapping[str, Any], config: LabelingConfig, edited: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Return extra params with other prompts for some choices; all else stays as it is.

    A choice with an empty list gets its default wording back.

    Raises RequestError for a choice that the labeling config does not have, and where the extra
    params are not valid.
    """
    merged = dict(extra_params.get(_KEY) or {})
    unknown = edited.keys() - {value for control in config.controls for value in control.values}
    if unknown:
        raise RequestError(
            f"the labeling config has no choice {min(unknown)!r}: load the page anew"
        )
    for control in config.controls:
        for name in _names_to_clear(control, edited):
            merged.pop(name, None)
    merged |= {value: prompts for value, prompts in edited.items() if prompts}
    others = {name: value for name, value in extra_params.items() if name != _KEY}
    changed = others | ({_KEY: merged} if merged else {})
    parse_extra_params(changed)
    return changed


def save_prompts(
    client: LabelStudio,
    project: Project,
    config: LabelingConfig,
    edited: Mapping[str, list[str]],
) -> None:
    """Keep the prompts of some choices in Label Studio, which then calls `/setup` with them.

    What else is in the extra params stays.

    Raises NotFoundError where Label Studio has no ML backend of ours for the project,
    RequestError where its extra params cannot be read, LabelStudioError.
    """
    ours = _our_backend(client, project)
    extra_params = with_prompts(_parsed(ours.get("extra_params")), config, edited)
    values = {name: ours[name] for name in ("project", "url", "auth_method")}
    if ours.get("basic_auth_pass_is_set"):
        # Label Studio asks for a password whenever anything changes, and takes an empty one for
        # the one that it has.
        values |= {"basic_auth_user": ours["basic_auth_user"], "basic_auth_pass": ""}
    client.update_ml_backend(ours["id"], **values, extra_params=extra_params)


def _our_backend(client: LabelStudio, project: Project) -> dict[str, Any]:
    found = client.ml_backends(project.id)
    connected = (project.connection or {}).get("ml_backend")
    for backend in found:
        if backend["id"] == connected:
            return backend
    for backend in found:
        # One that was added by hand: it tells what we answered to /setup.
        version = str(backend.get("model_version"))
        if version == UNTRAINED or is_ours(version):
            return backend
    raise NotFoundError(
        f"Label Studio has no ML backend of this one for project {project.id}: "
        f"run `clip-backend connect --project {project.id}`"
    )


def _parsed(extra_params: object) -> dict[str, Any]:
    if extra_params in (None, "", {}):
        return {}
    try:
        parsed = json.loads(extra_params) if isinstance(extra_params, str) else extra_params
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict) or not isinstance(parsed.get(_KEY, {}), dict):
        raise RequestError(
            "the extra params in Label Studio are not an object with prompts by choice: "
            "mend them there, in Settings > Model"
        )
    return parsed


def _names_to_clear(control: Control, edited: Iterable[str]) -> set[str]:
    # Prompts may be given under any name of a choice.
    names = {
        name
        for choice in control.choices
        if choice.value in edited
        for name in (choice.value, *choice.names)
    }
    return names - (set(control.values) - set(edited))
