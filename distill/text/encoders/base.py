"""The base class of text encoders: texts give embeddings of length 1."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

import augment.base
from augment.base import Component


class TextEncoder(Component):
    """Embeds texts. It is made when texts are embedded, and not kept.

    Class attributes:
        image_text: whether its embeddings are compared with those of images that a network gives (CLIP).
    """

    class Settings(augment.base.Settings):
        type: str

    image_text: ClassVar[bool] = False
    settings: Settings

    def __init__(self, settings: Settings):
        self.settings = settings

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Raise ``TextError`` if the encoder cannot be made here, with what installs it; nothing is loaded."""
        return None

    @classmethod
    def identity(cls, settings: Settings) -> str:
        """Changes when its embeddings change: by default with the settings and the file that defines the class."""
        source = inspect.getsourcefile(cls)
        content = repr(settings).encode()
        if source is not None:
            with open(source, "rb") as file:
                content += file.read()
        return f"{settings.type} {hashlib.sha256(content).hexdigest()[:16]}"

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [N, E] float32 on the CPU, normalized."""
        raise NotImplementedError


def component_of(settings: Any) -> type[TextEncoder]:
    """The class that these settings configure."""
    cls = settings.component
    assert issubclass(cls, TextEncoder)
    return cls
