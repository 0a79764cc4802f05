"""kornia's augmentations that a chain can fuse: drawn by ourselves, declared in the forms of :mod:`augment.operation`.

One file per family. A class here names the kornia class that it ``wraps``; that is all it takes to be found. kornia
still checks the arguments (its module is built first), and ``engine: kornia`` feeds the parameters drawn here to that
module, so that both engines give the same pictures: within 1e-5 at 32 pixels, 1e-4 at 224.
"""

from augment.kornia_ops.base import FusedKorniaOp, fused_kornia_op

__all__ = ["FusedKorniaOp", "fused_kornia_op"]
