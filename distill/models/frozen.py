"""Freezes networks: no gradient, and eval mode even after a call of ``.train()``."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class Frozen:
    """Keeps modules in eval mode. Call ``enforce`` before every forward, in case of ``.train()`` on any of them."""

    def __init__(self, modules: Iterable[nn.Module]):
        self._modules = list(modules)
        self.enforce()

    def holds(self, module: nn.Module) -> bool:
        """Whether a module is among them."""
        return any(module is kept for kept in self._modules)

    def enforce(self) -> None:
        for module in self._modules:
            if module.training:
                module.training = False


def freeze(root: nn.Module) -> Frozen:
    """Turn all gradients off and eval mode on; ``enforce`` of the result restores eval mode."""
    root.requires_grad_(False)
    return Frozen(root.modules())


def batch_norms(root: nn.Module) -> list[nn.Module]:
    """The modules that keep running statistics of batches."""
    return [module for module in root.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
