"""Networks that stay frozen: no gradient, and an eval mode that a stray ``.train()`` cannot undo."""

from __future__ import annotations

from torch import nn


class Frozen:
    """Keeps a set of modules in eval mode; asked before every forward, since ``.train()`` may be called on any part."""

    def __init__(self, root: nn.Module):
        # Modules without state or mode-dependent behaviour are checked as well: a flag costs nothing to read.
        self._modules = list(root.modules())
        self.enforce()

    def enforce(self) -> None:
        for module in self._modules:
            if module.training:
                module.training = False


def freeze(root: nn.Module) -> Frozen:
    """Take all gradients away and return the keeper of its eval mode."""
    root.requires_grad_(False)
    return Frozen(root)
