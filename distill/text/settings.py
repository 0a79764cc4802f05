"""Settings of class texts. Importing this does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from augment.base import Registry, Settings

if TYPE_CHECKING:
    from distill.text.encoders.base import TextEncoder
    from distill.text.knowledge.base import Knowledge

    AnyEncoder = TextEncoder.Settings
    AnyKnowledge = Knowledge.Settings
else:
    AnyEncoder = Annotated[Settings, Registry("distill.text.encoders", "TextEncoder")]
    AnyKnowledge = Annotated[Settings, Registry("distill.text.knowledge", "Knowledge")]

TEMPLATES = {
    "name": ("{}",),
    "simple": ("a photo of a {}.",),
    "several": (  # of open_clip's SIMPLE_IMAGENET_TEMPLATES
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
}
"""Name of a list of templates → the templates."""


def _by_path(entries: Any) -> Any:
    """``classes.tsv`` for ``{type: tsv, path: classes.tsv}``, and likewise for a YAML file and a WordNet folder."""
    if isinstance(entries, list | tuple):
        return [_of_path(entry) for entry in entries]
    if isinstance(entries, str | dict):
        shown = entries if isinstance(entries, str) else "{type: …}"
        raise ValueError(f"a list of sources is expected; write [{shown}]")
    return entries


def _of_path(entry: Any) -> Any:
    if not isinstance(entry, str):
        return entry
    end = entry.lower().rpartition(".")[2]
    if "/" in entry or end in ("tsv", "yaml", "yml"):
        return {"type": {"tsv": "tsv", "yaml": "yaml", "yml": "yaml"}.get(end, "wordnet"), "path": entry}
    return entry


class TextSettings(Settings):
    """How classes become embeddings: encoder, templates, knowledge and which of its senses are meant.

    The embedding of a class is the mean over its texts of normalized embeddings, normalized. ``names`` has the texts
    ``template(name)``; ``definitions`` has ``template(name) ; name , definition`` (K-LITE, arXiv 2204.09222), and the
    names' texts for a class without knowledge; ``both`` is the normalized mean of the two.
    """

    encoder: AnyEncoder = Field("minilm", description="which text encoder", validate_default=True)  # type: ignore[assignment]
    templates: Literal["name", "simple", "several"] | tuple[str, ...] = Field(
        "simple", description="texts with {} in the place of the name, or a list of them by name"
    )
    knowledge: Annotated[tuple[AnyKnowledge, ...], BeforeValidator(_by_path)] = Field(
        ("timm",),  # type: ignore[assignment]
        description="where definitions are from: timm (its synsets), a .tsv or .yaml file, a WordNet folder; the first "
        "that knows a class is used",
        validate_default=True,
    )
    texts: Literal["names", "definitions", "both"] = Field("both", description="which texts of a class are embedded")
    sense: Literal["context", "first", "all"] = Field(
        "context",
        description="of a name with several senses, context: the one that fits the other classes best · first · all",
    )
    parts_of_names: bool = Field(
        False,
        description="for a name that is not known, take what is known about its last words: lily of peruvian lily; on "
        "flowers it covers half of the rest, and is 1 point worse",
    )

    @property
    def formats(self) -> tuple[str, ...]:
        """The templates."""
        return TEMPLATES[self.templates] if isinstance(self.templates, str) else self.templates

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, given: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(given, str):
            return given
        if not given:
            raise ValueError("name one template or more")
        for template in given:
            if template.count("{}") != 1:
                raise ValueError(f"{template!r} must have {{}} once, in the place of the name")
        return given
