"""kornia's 2-D augmentations as operations of a chain.

Two kinds, chosen by :func:`augment.kornia_ops.unfused.kornia_operation`:

- :class:`FusedKorniaOp`: a subclass per kornia class, in a file of its own or with its counterpart. It draws kornia's
  parameters itself and declares what it does in a form of :mod:`augment.operation` (affine, color, kernel, erase), so
  that a chain computes it in one pass with its neighbors. A subclass names the kornia class that it ``wraps``; there is
  no list to edit.
- :class:`augment.kornia_ops.unfused.UnfusedKorniaOp`: every other kornia class, run by kornia's own code.

kornia checks the arguments of both (its module is built first). With ``engine: kornia`` the parameters drawn by a
FusedKorniaOp go to kornia's module; the results of the two engines agree within 1e-5 at 32 pixels, 1e-4 at 224.
"""

from augment.kornia_ops.base import FusedKorniaOp, fused_kornia_op

__all__ = ["FusedKorniaOp", "fused_kornia_op"]
