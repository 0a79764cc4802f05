"""The text tower of a model of open_clip (MIT), where that is installed and its weights are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import safetensors
import safetensors.torch
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
WEIGHTS = "open_clip_model.safetensors"
"""Name of a model's weights on the hub."""


class OpenClip(TextEncoder):
    """CLIP's text tower (arXiv 2103.00020): its embeddings are compared with those of CLIP's image tower.

    timm has the image towers, such as ``vit_base_patch32_clip_224.openai``, with the projection as their classifier.
    Take the same weights for both.
    """

    class Settings(TextEncoder.Settings):
        type: Literal["open_clip"] = "open_clip"
        model: str = Field("ViT-B-32", description="open_clip's name of the architecture")
        pretrained: str = Field(
            "openai",
            description="a .safetensors file of the weights, or open_clip's name of weights in the hub's local cache",
        )

    image_text: ClassVar[bool] = True
    paper: ClassVar[str] = "Radford et al. 2021, arXiv 2103.00020"
    settings: Settings

    @classmethod
    def check(cls, settings: TextEncoder.Settings) -> None:
        assert isinstance(settings, cls.Settings)
        if settings.model not in _package().list_models():
            raise TextError(f"text encoder open_clip: it has no model {settings.model!r}; see open_clip.list_models()")
        weights_file(settings)

    @classmethod
    def identity(cls, settings: TextEncoder.Settings) -> str:
        assert isinstance(settings, cls.Settings)
        return f"open_clip {settings.model} {settings.pretrained} {sha256_of(weights_file(settings))[:16]}"

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        open_clip, own, file = _package(), self.settings, weights_file(self.settings)
        # open_clip's loader is not used: it downloads, and it may unpickle.
        model: Any = open_clip.create_model(own.model, pretrained=None, force_quick_gelu=_quick_gelu(own)).eval()
        try:
            model.load_state_dict(safetensors.torch.load_file(file))
        except (OSError, safetensors.SafetensorError, RuntimeError) as error:
            raise TextError(f"text encoder open_clip: {file} has no weights of {own.model}: {error}") from error
        tokenizer = open_clip.get_tokenizer(own.model)
        batches = [tokenizer(list(texts[begin : begin + BATCH])) for begin in range(0, len(texts), BATCH)]
        return torch.cat([F.normalize(model.encode_text(tokens).float(), dim=1) for tokens in batches])


def weights_file(settings: OpenClip.Settings) -> Path:
    """The file of the weights: the given one, or that of open_clip's name in the local cache of the hub.

    Raises:
        TextError: it is neither a file nor a name, or the named weights are not in the cache, or open_clip is not
            installed.
    """
    open_clip = _package()
    if (path := absolute(settings.pretrained)).is_file():
        if path.suffix != ".safetensors":
            raise TextError(
                f"text encoder open_clip: {path} is no .safetensors file, and others may hold code; write its tensors "
                "into one"
            )
        return path
    tags = open_clip.list_pretrained_tags_by_model(settings.model)
    if settings.pretrained not in tags:
        raise TextError(
            f"text encoder open_clip: {settings.pretrained!r} is neither a file nor weights of {settings.model}, "
            f"which are {', '.join(tags)}"
        )
    from huggingface_hub import try_to_load_from_cache

    repository = "/".join(str(_config(settings).get("hf_hub") or "").split("/")[:2])  # owner/name/, or owner/name/file
    cached = try_to_load_from_cache(repository, WEIGHTS) if repository else None
    if not isinstance(cached, str):
        hint = f"download {WEIGHTS} of {repository} once, or give" if repository else "give"
        raise TextError(
            f"text encoder open_clip: the weights {settings.pretrained} of {settings.model} are not in the local cache "
            f"of the hub, and nothing is downloaded; {hint} pretrained: FILE.safetensors"
        )
    return Path(cached)


def _package() -> Any:
    """The package open_clip. Raises ``TextError`` if it is not installed."""
    try:
        import open_clip
    except ImportError as error:
        raise TextError(f"text encoder open_clip: the package open_clip_torch is not installed; {INSTALL}") from error
    return open_clip


def _config(settings: OpenClip.Settings) -> dict[str, Any]:
    return _package().get_pretrained_cfg(settings.model, settings.pretrained) or {}


def _quick_gelu(settings: OpenClip.Settings) -> bool:
    """Whether the named weights were trained with the activation QuickGELU."""
    return not absolute(settings.pretrained).is_file() and bool(_config(settings).get("quick_gelu"))
