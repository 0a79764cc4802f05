"""Settings of meta-training. This module does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from augment.base import Settings, error_at


class MetaSettings(Settings):
    """Meta-training: a start of the deltas from which episodes of the training classes are learned well.

    ==========  ====================================================================================================
    type        a step, from the deltas θ_k after k inner steps in each of ``tasks`` episodes
    ==========  ====================================================================================================
    reptile     θ ← θ + ε (mean θ_k − θ), ε falls linearly (Nichol et al., arXiv 1803.02999)
    fomaml      Adam with the mean gradient of the queries' loss at θ_k (Finn et al., arXiv 1703.03400, first order)
    ==========  ====================================================================================================
    """

    type: Literal["reptile", "fomaml"] = "reptile"
    iterations: int = Field(100, ge=1, description="steps of θ")
    tasks: int = Field(5, ge=1, description="episodes in each of them")
    ways: int = Field(5, ge=2, description="classes of an episode")
    shots: int = Field(15, ge=1, description="images of each class that the inner steps train on")
    queries: int = Field(10, ge=1, description="fomaml: other images of each class, whose loss gives the gradient")
    inner_steps: int = Field(8, ge=1, description="k")
    inner_batch: int = Field(10, ge=1, description="images of an inner step; fewer if an episode has fewer")
    inner_lr: float = Field(1e-3, gt=0, description="of the inner steps: Adam without momentum (β₁ 0)")
    step: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = Field(
        (1.0, 0.0), description="reptile: ε in the first step, and after the last one"
    )
    outer_lr: float = Field(1e-3, gt=0, description="fomaml: learning rate of Adam")
    test_steps: int = Field(50, ge=1, description="inner steps in a test episode, each on all its support images")
    test_episodes: int = Field(
        100, ge=0, description="first episodes in which the deltas are trained from θ too; 0: none, it is slow"
    )

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.step[0] == 0:
            raise error_at("step", "0 in the first step: θ would never change")
        if self.test_episodes == 1:
            raise error_at("test_episodes", "1 has no interval; take 2 or more, or 0")
        return self
