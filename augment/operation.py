"""The contract of an operation. A user's own class has one of three shapes, fastest first:

*declarative*: it draws its parameters and declares what it does; a chain computes it together with its neighbors::

    class Zoom:
        def sample(self, draws, shape):                      # tensors whose row b belongs to sample b
            return {"scale": 1 + draws.uniform(0), "drawn": draws.bernoulli(1, 0.5)}
        def affine(self, params, shape):                     # [B, 3, 3], or one of the other forms below
            matrix = torch.eye(3, device=params["scale"].device).repeat(shape[0], 1, 1)
            matrix[:, 0, 0] = matrix[:, 1, 1] = params["scale"]
            return matrix

*sampled*: it draws in one method and changes the images in another::

    class Tint(Sampled):
        def __init__(self, strength: float = 0.2): ...
        def sample(self, draws, shape): return draws.uniform(0, (3, 1, 1))    # [B, 3, 1, 1], by sample
        def apply(self, images, params): return images * (1 - self.strength * params)

*any* ``nn.Module`` or callable on [B, C, H, W] floats in [0, 1]. It may draw with torch's global functions: it runs in
:class:`augment.keyed.KeyedDraws`, on a batch padded to a few more rows.

The form of a declarative operation follows from the name of its method; no base class is needed. ``shape`` is that of
the images at the operation's position in the chain, [B, C, H, W].

=============================  ======================================================================================
``affine(params, shape)``      [B, 3, 3] homographies, source pixel → destination pixel (x right, y down, pixel centers
                               at integers), as kornia's transform matrices. If the size changes also
                               ``output_size(shape) → (height, width)``. Attributes ``resample`` ("bilinear", "nearest",
                               "bicubic") and ``padding`` ("zeros", "border", "reflection") say how pixels are read;
                               default bilinear and zeros. A flip has ``mirror``, the dimension that it reverses
                               (2 or 3): flips are moved ahead of colors and blurs.
``color(images, params)``      images → images, each pixel by itself. What depends on the whole image comes from
                               ``statistics(images, params) → {name: [B, …]}``, called with the images just before
                               the step; its result is added to ``params``. (The mean for contrast, say.)
``kernel(params, shape)``      (vertical [B, k], horizontal [B, k]), k odd: a separable filter, reflected at the border.
``erase(params, shape)``       (boxes [B, 4] as top, left, height, width in pixels, values [B] or [B, C]).
=============================  ======================================================================================

``params["drawn"]``, [B] bool, is read for every form: where it is false, the sample does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from augment.draws import Draws
from augment.fuse.blur import blur
from augment.fuse.color import color
from augment.fuse.erase import erase
from augment.fuse.geometry import warp_alone
from augment.keyed import KeyedDraws, padded_rows

Form = Literal["affine", "color", "kernel", "erase"]


class Operation(nn.Module):
    """One step of a chain: ``forward(images, draws) → images``, floats [B, C, H, W] in [0, 1].

    ``draws`` are the operation's own, keyed by its name. A sample's result must depend on nothing but the sample and
    its draws. ``geometric`` says that pixels move: those operations can be shared between views.
    """

    name: str = "operation"
    geometric: bool = False
    form: Form | None = None
    reason: str = "its own code"
    """Why a chain cannot compute it together with its neighbors, if it has no form."""

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        raise NotImplementedError

    def run_with(self, images: Tensor, draws: Draws, geometry: Draws) -> Tensor:
        """Apply it where another view may share the geometry.

        Args:
            images: [B, C, H, W] floats.
            draws: of this operation, for this view.
            geometry: of this operation, for what moves pixels.

        Returns:
            The changed images.
        """
        return self(images, geometry if self.geometric else draws)

    @property
    def key(self) -> str:
        """What its draws are keyed by, beside the number of operations before it that have the same key."""
        return self.name

    def configure(self, engine: str, compile: bool | str) -> None:
        """Take a chain's settings for the operations inside; others have none."""

    def leaves(self) -> Iterator[Operation]:
        """The operations inside a container; any other operation itself."""
        yield self

    def details(self) -> list[str]:
        """Lines for :meth:`augment.chain.Chain.plan` on what is inside; none for an operation without members."""
        return []

    def extra_repr(self) -> str:
        return ", ".join([self.name, self.form or "not fused", *(["geometric"] if self.geometric else [])])


class Sampled:
    """An operation that draws in one method and works in another. Derive from it, or define the same methods.

    Set ``geometric = True`` if it moves pixels, so that the policy ``shared_geometry`` shares it; an operation with
    ``affine`` is geometric anyway.
    """

    geometric: ClassVar[bool] = False

    def sample(self, draws: Draws, shape: torch.Size) -> Any:
        """Parameters for images of ``shape`` [B, C, H, W], drawn from ``draws`` on the images' device."""
        raise NotImplementedError

    def apply(self, images: Tensor, params: Any) -> Tensor:
        """The changed images; a declarative operation need not define it."""
        form = form_of(self)
        if form is None:
            raise NotImplementedError(f"{type(self).__name__} has neither apply() nor one of {', '.join(FORMS)}()")
        return run_form(form, self, images, params)


FORMS: tuple[Form, ...] = get_args(Form)


def form_of(user: Any) -> Form | None:
    """The form in which an operation, or a class of operations, declares what it does, or None."""
    return next((form for form in FORMS if callable(getattr(user, form, None))), None)


def run_form(form: Form, user: Any, images: Tensor, params: Any) -> Tensor:
    """Apply a declarative operation by itself, as a chain of one.

    Args:
        form: how the operation declares what it does.
        user: the operation.
        images: [B, C, H, W].
        params: of the operation, row b for sample b.

    Returns:
        The changed images.
    """
    if form == "affine":
        return warp_alone(user, images, params)
    return {"color": color, "kernel": blur, "erase": erase}[form](user, images, params)


class SampledOp(Operation):
    """Runs an object that has ``sample`` and ``apply``, or ``sample`` and a form."""

    def __init__(self, user: Any, name: str):
        super().__init__()
        self.name = name
        self.user = user  # registered when it is a module, so that its buffers follow the device
        self.form = form_of(user)
        self.geometric = bool(getattr(user, "geometric", False)) or self.form == "affine"

    def sample(self, draws: Draws, shape: torch.Size) -> Any:
        """The parameters for images of ``shape`` on ``draws``' device."""
        return self.user.sample(draws, shape)

    def run(self, images: Tensor, params: Any) -> Tensor:
        """The changed images."""
        if self.form is not None:
            return run_form(self.form, self.user, images, params)
        return self.user.apply(images, params)

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        return self.run(images, self.sample(draws.to(images.device), images.shape))


class BarrierOp(Operation):
    """Runs any module or callable with its random draws keyed by sample."""

    def __init__(self, user: Callable[[Tensor], Tensor], name: str):
        super().__init__()
        self.user = user
        self.name = name
        self.geometric = bool(getattr(user, "geometric", False))

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        batch = len(images)
        rows = padded_rows(batch, images.shape[1:])
        padded = torch.cat([images, images[-1:].expand(rows - batch, -1, -1, -1)])
        with KeyedDraws(draws.padded(rows), self.name):
            result = self.user(padded)
        if not isinstance(result, Tensor) or result.ndim != 4 or len(result) != rows:
            shown = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"{self.name} must return a tensor [{rows}, C, H, W], not {shown}")
        return result[:batch]


def kind_of(cls: type) -> Callable[[Any, str], Operation] | None:
    """The wrapper that runs objects of a user's class, or None if they are no operations."""
    # Every nn.Module has an ``apply``, which has another meaning.
    works = form_of(cls) is not None or getattr(cls, "apply", None) not in (None, nn.Module.apply, Sampled.apply)
    if callable(getattr(cls, "sample", None)) and works:
        return SampledOp
    if any("__call__" in base.__dict__ for base in cls.__mro__):
        return BarrierOp
    return None
