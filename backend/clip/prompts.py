"""Label names to prompts, the sentences that CLIP compares pictures with."""

from __future__ import annotations

from collections.abc import Sequence

# Averaging a few wordings is worth some points of accuracy over one
# (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision").
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a drawing of a {}.", "{}")

# Name nothing: what a choice is measured against where several may apply at once.
NEUTRAL = ("a photo.", "a picture of something.", "a drawing of something.")


def prompts(names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> list[str]:
    """Return the prompts of a choice that goes by `names`; `{}` in a template stands for one."""
    readable = dict.fromkeys(" ".join(name.replace("_", " ").split()) for name in names)
    # Not str.format: a name is a user's text and may hold braces.
    return [template.replace("{}", name) for name in readable for template in templates]
