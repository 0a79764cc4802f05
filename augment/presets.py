"""Well-known recipes by name.

A preset is a whole recipe or a part of one::

    student: simclr
    student: [dino, {type: RandomErasing, p: 0.25}]
    student: [{preset: dino}, {type: RandomErasing, p: 0.25}]

A run's stored config lists the operations of the preset. Names of presets have no capital letters.

Some of the papers' code crops with bicubic interpolation; here it is always bilinear. Blurs have 23 taps, a tenth of
224 pixels as in SimCLR, at every size: they need images of 12 pixels or more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from augment import other_names
from augment.base import did_you_mean, error_at
from augment.base.suggestions import table
from augment.recipe import Op


def weak() -> list[Op]:
    """A mild crop, 0.8 … 1 of the area, and a flip: the teacher's default."""
    return [_crop(0.8), _FLIP]


def strong() -> list[Op]:
    """Crop, 0.3 … 1 of the area, flip, color jitter 0.4 / 0.4 / 0.4 / 0.1, gray 0.2: the student's default."""
    return [_crop(0.3), _FLIP, _jitter(0.4, 0.4, 0.4, 0.1), _GRAY]


def simclr() -> list[Op]:
    """SimCLR, ImageNet (arXiv 2002.05709): crop 0.08 … 1, flip, jitter 0.8 / 0.8 / 0.8 / 0.2, gray 0.2, blur 0.5."""
    return [_crop(0.08), _FLIP, _jitter(0.8, 0.8, 0.8, 0.2), _GRAY, _blur(0.5)]


def mocov2() -> list[Op]:
    """MoCo v2 (arXiv 2003.04297): crop 0.2 … 1, jitter 0.4 / 0.4 / 0.4 / 0.1, gray 0.2, blur 0.5, flip."""
    return [_crop(0.2), _jitter(0.4, 0.4, 0.4, 0.1), _GRAY, _blur(0.5), _FLIP]


def dino() -> list[Op]:
    """DINO, first global view (arXiv 2104.14294): crop 0.4 … 1, flip, jitter 0.4 / 0.4 / 0.2 / 0.1, gray 0.2, blur."""
    return [_crop(0.4), _FLIP, _jitter(0.4, 0.4, 0.2, 0.1), _GRAY, _blur(1.0)]


def dino_second() -> list[Op]:
    """DINO, second global view: as the first, but blur 0.1, and solarized with probability 0.2."""
    solarize = Op.of("RandomSolarize", thresholds=[0.5, 0.5], additions=[0.0, 0.0], p=0.2)
    return [*dino()[:-1], _blur(0.1), solarize]


def dino_local() -> list[Op]:
    """DINO, local crops: crop 0.05 … 0.4 (unless multicrop says otherwise), else as the first view, blur 0.5."""
    return [_crop(0.05, 0.4), *dino()[1:-1], _blur(0.5)]


def deit3() -> list[Op]:
    """DeiT III (arXiv 2204.07118): crop 0.08 … 1, flip, one of gray / solarized / blurred, jitter 0.3 / 0.3 / 0.3."""
    jitter = Op.of("ColorJitter", brightness=0.3, contrast=0.3, saturation=0.3, p=1.0)
    return [_crop(0.08), _FLIP, Op.of("ThreeAugment"), jitter]


def cifar() -> list[Op]:
    """CIFAR since ResNet (arXiv 1512.03385): four pixels of padding, a crop of the network's size, a flip."""
    return [Op.of("PadCrop", pixels=4), _FLIP]


_FLIP = Op.of("RandomHorizontalFlip")
_GRAY = Op.of("RandomGrayscale", p=0.2)


def _crop(smallest: float, largest: float = 1.0) -> Op:
    return Op.of("RandomResizedCrop", scale=[smallest, largest])


def _jitter(brightness: float, contrast: float, saturation: float, hue: float) -> Op:
    return Op.of("ColorJitter", brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, p=0.8)


def _blur(p: float) -> Op:
    return Op.of("RandomGaussianBlur", kernel_size=[23, 23], sigma=[0.1, 2.0], p=p)


PRESETS: dict[str, Callable[[], list[Op]]] = {
    preset.__name__: preset for preset in (cifar, deit3, dino, dino_local, dino_second, mocov2, simclr, strong, weak)
}


def _mark(entry: Any) -> Any:
    """An entry of a recipe; one that names a preset becomes an Op of that name until :func:`_expanded`."""
    if isinstance(entry, str) and entry.islower() and ":" not in entry:
        name = entry
    elif isinstance(entry, dict) and "preset" in entry:
        name = str(entry["preset"])
        if len(entry) > 1:
            raise _error(f"preset {name!r} has no settings of its own; to change it, write its operations out")
    else:
        return entry
    if name not in PRESETS:
        hint = did_you_mean(name, PRESETS, table(other_names.PRESETS))
        if "did you mean" not in hint:  # an operation in small letters, which only a preset may have
            operations = [operation for operation in other_names.OPERATIONS if not operation.endswith(".")]
            of_operations = did_you_mean(name, operations, table(other_names.OPERATIONS))
            hint = of_operations if "did you mean" in of_operations else hint
        raise _error(f"no preset is called {name!r}{hint}")
    return Op.of(name)


def _error(text: str) -> PydanticCustomError:
    return PydanticCustomError("preset", "{text}", {"text": text})


def _marked(given: Any) -> Any:
    # Presets are expanded after all entries are read, so that an error names the index in the config.
    if isinstance(given, str):
        return [_mark({"preset": given})]
    if isinstance(given, dict) and "preset" in given:
        return [_mark(given)]
    if not isinstance(given, list | tuple):
        return given
    marked = []
    for index, entry in enumerate(given):
        try:
            marked.append(_mark(entry))
        except PydanticCustomError as error:
            raise error_at(str(index), error.message()) from error
    return marked


def _expanded(marked: list[Op]) -> list[Op]:
    return [op for entry in marked for op in (PRESETS[entry.type]() if entry.type in PRESETS else [entry])]


class _Expanding:
    """How pydantic reads a recipe."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        plain = core_schema.no_info_after_validator_function(_expanded, handler(source))
        return core_schema.no_info_before_validator_function(_marked, plain)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        plain = handler(schema)
        name = {"enum": sorted(PRESETS)}
        entry = {"type": "object", "properties": {"preset": name}, "required": ["preset"]}
        return {"anyOf": [name, {**plain, "items": {"anyOf": [plain["items"], name, entry]}}]}


Recipe = Annotated[list[Op], _Expanding()]
"""The operations of a chain, in order; in a config also presets by name."""
