"""Networks that stay frozen: no gradient, and an eval mode that a stray ``.train()`` cannot undo."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class Frozen:
    """Keeps modules in eval mode; asked before every forward, since ``.train()`` may be called on any part."""

    def __init__(self, modules: Iterable[nn.Module]):
        self._modules = list(modules)
        self.enforce()

    def enforce(self) -> None:
        for module in self._modules:
            if module.training:
                module.training = False


def freeze(root: nn.Module) -> Frozen:
    """Take all gradients away and return the keeper of its eval mode."""
    root.requires_grad_(False)
    return Frozen(root.modules())


def batch_norms(root: nn.Module) -> list[nn.Module]:
    """The modules that keep running statistics of batches."""
    return [module for module in root.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
