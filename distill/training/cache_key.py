"""The key of a teacher cache: plain values of everything that the teacher's outputs depend on.

Two groups of settings are not in the key. Some change the outputs only by rounding: the device, where the views are
made, compilation, and the batch size unless samples are mixed. Others concern only the student.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from sys import modules
from typing import Any

from augment.dual import DualAugment
from augment.names import find_class
from augment.policy import ViewSpec
from distill.data.base import DataError
from distill.data.experiment_data import ExperimentData
from distill.models.fingerprint import fingerprint
from distill.models.teacher import Teacher

PROBES = 8
"""The pixels of about this many training images are hashed; ids and file sizes are hashed of all."""
_NOT_OF_THE_TEACHER = {"policy", "student", "teacher", "local", "placement", "compile"}


def cache_key_of(teacher: Teacher, dual: DualAugment, data: ExperimentData) -> dict[str, Any]:
    """The key of the cache of a teacher's outputs.

    Args:
        teacher: its weights, structure and input sizes are in the key.
        dual: makes the views; the recipes and draws of the teacher's views are in the key.
        data: the ids of its training samples and a hash of some of their pixels are in the key.

    Returns:
        Name → plain values that JSON can hold.
    """
    networks = {
        str(n): {
            "weights": fingerprint(network.state_dict()).sha256[:16],
            "structure": _short(repr(network)),
            "input": [*spec.size, *spec.mean, *spec.std],
        }
        for n, (network, spec) in enumerate(zip(teacher.networks, teacher.inputs, strict=True))
    }
    own = dual.settings.model_dump(mode="json", exclude=_NOT_OF_THE_TEACHER)
    views = {str(v): _view(view_spec) for v, view_spec in enumerate(dual.view_plan.teacher)}
    return {
        "seed": dual.seed,
        "teacher": networks,
        "views": {**views, **own, "version": version("delta-distill"), "kornia": version("kornia")},
        "data": _data(data),
        # Mixing takes partners from the batch of a rank, so the size of that batch matters.
        "batch": data.settings.batch_size // data.world_size if dual.mix else None,
    }


def _view(view_spec: ViewSpec) -> dict[str, Any]:
    return {
        "recipe": [op.model_dump(mode="json") for op in view_spec.recipe],
        "code": {op.type: _source_of(find_class(op.type)) for op in view_spec.recipe},
        "draws": [view_spec.key, view_spec.geometry],
        "size": view_spec.size,
    }


def _source_of(cls: type) -> str:
    """Hash of the file that defines a class (a user's own operation has no version), else its package's version."""
    file = modules[cls.__module__].__file__
    return _short(Path(file).read_bytes()) if file is not None else version(cls.__module__.partition(".")[0])


def _data(data: ExperimentData) -> dict[str, Any]:
    settings, part = data.settings, data.subset("train")
    pixels = hashlib.sha256()
    for index in range(0, len(part), max(1, len(part) // PROBES)):
        try:
            pixels.update(part[index].image.tobytes())
        except DataError:
            pixels.update(b"unreadable")
    return {
        "source": data.fingerprint()[:16],
        "samples": _short("\0".join(part.ids)),
        "pixels": pixels.hexdigest()[:16],
        "canvas": [settings.size, settings.fit, data.source.depth],
        "loader_ops": [op.model_dump(mode="json") for op in settings.loader_ops],
    }


def _short(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]
