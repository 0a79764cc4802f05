"""The activation form of weight deltas: a changed Linear or conv as its own output, with factors and a product added.

``y = R ⊙ (W ∗ (S ⊙ x)) + B (A ∗ x)``: the weight ``diag(R) W diag(S) + B A`` is never formed, so each image of a batch
can have deltas of its own, see :mod:`distill.export.delta.per_image`. The bias is not part of it.

Shapes: R [out], S [in], A [g, r, n] and B [g, out/g, r] with n = in/g · kh · kw, g the groups of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ActivationForm:
    """What deltas change of a layer's weight; everything None: nothing. Methods give the form after a further change.

    Args:
        rows: R; None: ones.
        columns: S; None: ones.
        A: None: no product.
        B: None with A.
    """

    rows: Tensor | None = None
    columns: Tensor | None = None
    A: Tensor | None = None
    B: Tensor | None = None

    def scale_rows(self, factors: Tensor) -> ActivationForm:
        """The weight becomes ``diag(f) W``, f [out]."""
        rows = factors if self.rows is None else self.rows * factors
        B = None if self.B is None else self.B * factors.view(*self.B.shape[:2], 1)
        return replace(self, rows=rows, B=B)

    def scale_columns(self, factors: Tensor) -> ActivationForm:
        """The weight becomes ``W diag(f)``, f [in]."""
        columns = factors if self.columns is None else self.columns * factors
        if self.A is None:
            return replace(self, columns=columns)
        by_channel = self.A.unflatten(2, (len(factors) // len(self.A), -1))
        A = (by_channel * factors.view(len(self.A), 1, -1, 1)).flatten(2)
        return replace(self, columns=columns, A=A)

    def plus(self, A: Tensor, B: Tensor) -> ActivationForm:
        """``B A`` is added to the weight: A [g, r, n], B [g, out/g, r]."""
        if self.A is None or self.B is None:
            return replace(self, A=A, B=B)
        return replace(self, A=torch.cat([self.A, A], 1), B=torch.cat([self.B, B], 2))

    def of_rows(self, first: int, end: int) -> ActivationForm:
        """The form of some rows of a Linear."""
        rows = None if self.rows is None else self.rows[first:end]
        return replace(self, rows=rows, B=None if self.B is None else self.B[:, first:end])

    def with_rows(self, part: ActivationForm, first: int, end: int, out: int) -> ActivationForm | None:
        """This form of a Linear, with another one for some of its rows, which was made from ``of_rows``.

        Args:
            part: of these rows.
            first: the first of them.
            end: the one after the last of them.
            out: rows of the layer.

        Returns:
            The form of the whole layer; None if the part scales columns, which all rows have in common.
        """
        if part.columns is not self.columns:
            return None
        rows, A, B = self.rows, self.A, self.B
        if part.rows is not None:
            rows = part.rows.new_ones(out) if rows is None else rows.clone()
            rows[first:end] = part.rows
        if part.A is not None and part.B is not None:
            whole = part.B.new_zeros(1, out, part.B.shape[2])
            if self.B is not None:
                whole[:, :, : self.B.shape[2]] = self.B
            whole[:, first:end] = part.B
            A, B = part.A, whole
        return ActivationForm(rows, self.columns, A, B)


__all__ = ["ActivationForm"]
