"""Settings of the map of a teacher's classes to the student's. This module does not import torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator

from distill.text.settings import TextSettings


def _name(key: Any) -> Any:
    """A class's name as a string: YAML reads a class called 0 as a number."""
    return str(key) if isinstance(key, int) and not isinstance(key, bool) else key


Class = Annotated[int, Field(ge=0)] | str
"""A class of the teacher by its number, or by its name where the network has names."""


class TextLabels(TextSettings):
    """A map of the teacher's classes to the student's by their texts, so that no label of the data is read.

    See :class:`distill.models.soft_label_map.SoftLabelMap`.
    """

    by: Literal["text"]
    method: Literal["conse", "map"] = Field(
        "conse", description="conse: cosines with the mean embedding of the likely classes · map: p M, softmax rows"
    )
    temperature: float = Field(0.05, gt=0, description="τ, which cosines are divided by")
    top: int = Field(10, ge=1, description="conse: number of the teacher's likeliest classes that are read")
    teacher_texts: Literal["names", "definitions", "both"] = Field(
        "definitions",
        description="which texts of the teacher's classes are embedded; of ImageNet's, the sense is known, and with "
        "definitions 20 % of CIFAR-100's training images are right instead of 17 %",
    )
    balance: bool = Field(
        False, description="lower the logits of classes whose texts are near to those of most of the teacher's classes"
    )


ClassLabels = (
    Literal["same", "names", "numbers"] | dict[Annotated[str, BeforeValidator(_name)], Class | tuple[Class, ...]]
)
_CLASS_LABELS: TypeAdapter[Any] = TypeAdapter(ClassLabels)


def _by_text(labels: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """A mapping with ``by: text`` is one of settings, all else one of classes; an error is about one of them."""
    if isinstance(labels, TextLabels):
        return labels
    if isinstance(labels, dict) and labels.get("by") == "text":
        return TextLabels.model_validate(labels, context=info.context)
    return _CLASS_LABELS.validate_python(labels, context=info.context)


Labels = Annotated[ClassLabels | TextLabels, WrapValidator(_by_text)]
