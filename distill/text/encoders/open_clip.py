"""The text tower of a model of open_clip (MIT), where that is installed and its weights are at hand."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from augment.base import absolute
from distill.files import sha256_of
from distill.text.encoders.base import TextEncoder
from distill.text.names import TextError

BATCH = 64
INSTALL = "pip install open_clip_torch"


class OpenClip(TextEncoder):
    """CLIP's text tower (arXiv 2103.00020): its embeddings are compared with those of CLIP's image tower.

    timm has the image towers, such as ``vit_base_patch32_clip_224.openai``, with the projection as their classifier.
    Take the same weights for both.
    """

    class Settings(TextEncoder.Settings):
        type: Literal["open_clip"] = "open_clip"
        model: str = Field("ViT-B-32", description="open_clip's name of the architecture")
        pretrained: str = Field("openai", description="open_clip's name of the weights, or a file of them")

    image_text: ClassVar[bool] = True
    paper: ClassVar[str] = "Radford et al. 2021, arXiv 2103.00020"
    settings: Settings

    @classmethod
    def check(cls, settings: TextEncoder.Settings) -> None:
        assert isinstance(settings, cls.Settings)
        if importlib.util.find_spec("open_clip") is None:
            raise TextError(f"text encoder open_clip: the package open_clip_torch is not installed; {INSTALL}")
        import open_clip

        if settings.model not in open_clip.list_models():
            raise TextError(f"text encoder open_clip: it has no model {settings.model!r}; see open_clip.list_models()")
        tags = open_clip.list_pretrained_tags_by_model(settings.model)
        if not _file(settings) and settings.pretrained not in tags:
            raise TextError(
                f"text encoder open_clip: {settings.pretrained!r} is neither a file nor weights of {settings.model}, "
                f"which are {', '.join(tags)}"
            )

    @classmethod
    def identity(cls, settings: TextEncoder.Settings) -> str:
        assert isinstance(settings, cls.Settings)
        file = _file(settings)
        return f"open_clip {settings.model} {sha256_of(file)[:16] if file else settings.pretrained}"

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        import open_clip

        own, file = self.settings, _file(self.settings)
        try:
            model: Any = open_clip.create_model(own.model, pretrained=str(file or own.pretrained)).eval()
        except (OSError, RuntimeError) as error:
            raise TextError(
                f"text encoder open_clip: the weights {own.pretrained} of {own.model} cannot be had: {error}"
            ) from error
        tokenizer = open_clip.get_tokenizer(own.model)
        batches = [tokenizer(list(texts[begin : begin + BATCH])) for begin in range(0, len(texts), BATCH)]
        return torch.cat([F.normalize(model.encode_text(tokens).float(), dim=1) for tokens in batches])


def _file(settings: Any) -> Path | None:
    path = absolute(settings.pretrained)
    return path if path.is_file() else None
