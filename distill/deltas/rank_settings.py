"""Settings of methods with a rank: one rank for all layers, or chosen from the data (:mod:`distill.deltas.ranked`)."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from augment.base import Settings, error_at
from distill.deltas.base import DeltaSettings, SizedSettings

UNITS = {"": 1, "B": 1, "KB": 1000, "KIB": 1024, "MB": 1000**2, "MIB": 1024**2, "GB": 1000**3, "GIB": 1024**3}


def parse_bytes(text: str) -> int:
    """``"200KB"`` → 200000, ``"64KiB"`` → 65536; a number alone is bytes. Raises ``ValueError``."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in UNITS:
        raise ValueError(f"expected bytes such as 200KB, 64KiB or 1.5MB, found {text!r}")
    return int(float(match[1]) * UNITS[match[2].upper()])


def check_bytes(value: str | int | None) -> str | int | None:
    """Validate a field that holds a number of bytes."""
    if value is not None and parse_bytes(str(value)) < 1:
        raise ValueError("must be at least one byte")
    return value


class Allocation(Settings):
    """Ranks chosen from the data, within a budget of bytes or for a fraction ``alpha`` of all gains."""

    budget: str | int | None = Field(
        None,
        description="bytes of all tensors of these deltas in the delta file, without head and JSON: 200KB, 64KiB, 1MB",
    )
    alpha: float | None = Field(
        None, gt=0, lt=1, description="fraction of the sum of all gains that the chosen ranks must exceed"
    )
    importance: Literal["fisher", "gradient", "activation", "feature_change", "none", "uniform"] = Field(
        "fisher", description="weight of a layer's squared singular values; uniform: one rank for all layers"
    )
    spectrum: Literal["warm_up", "gradient"] = Field(
        "warm_up", description="singular values of the change in a warm-up of all weights, or of the first step of one"
    )
    warm_up: int = Field(
        1,
        ge=0,
        description="epochs of the warm-up: of all weights (spectrum: warm_up) or of the head (spectrum: gradient)",
    )
    warm_up_lr: float | None = Field(
        None,
        gt=0,
        description="learning rate of the warm-up; none: that of training for the head, a tenth of it for weights",
    )
    samples: int = Field(
        1024, ge=1, description="training images over which gradients are averaged, or features compared"
    )
    least: int | None = Field(None, ge=0, description="smallest rank of a layer; none: 1 for halrp, 0 for the others")
    max_rank: int = Field(100, ge=1, description="largest rank of a layer")
    start: Literal["identity", "warm_up"] | None = Field(
        None,
        description="training starts from the unchanged backbone and a new head, or from the weights and head of the "
        "warm-up, cut to the ranks; none: as the method was published",
    )

    _budget_is_bytes = field_validator("budget")(check_bytes)

    @model_validator(mode="after")
    def _parts_fit(self) -> Allocation:
        if (self.budget is None) == (self.alpha is None):
            raise ValueError("give one of budget (such as 200KB) and alpha (such as 0.9)")
        if self.importance == "uniform" and self.budget is None:
            raise error_at("importance", "uniform uses no gains, so it needs a budget")
        if self.importance == "uniform" and self.least is not None:
            raise error_at("least", "uniform gives every layer the same rank; leave least out")
        if self.spectrum == "gradient":
            if self.importance == "feature_change":
                raise error_at(
                    "importance",
                    "feature_change resets the weights of a warm-up of all weights, so it needs spectrum: warm_up",
                )
            if self.start == "warm_up":
                raise error_at("start", "spectrum: gradient has no warm-up of the weights to start from")
        elif self.warm_up == 0 and self.importance != "uniform":
            raise error_at("warm_up", "after 0 epochs no weight has changed; give 1 or more, or spectrum: gradient")
        return self

    @property
    def bytes(self) -> int | None:
        return None if self.budget is None else parse_bytes(str(self.budget))


class RankedSettings(SizedSettings):
    rank: int = Field(8, ge=1, description="rank of the change of every layer, in each of its groups")
    ranks: Allocation | None = Field(None, description="choose each layer's rank from the data; replaces rank")

    @model_validator(mode="after")
    def _rank_or_ranks(self) -> RankedSettings:
        if self.ranks is not None and self.rank != type(self).model_fields["rank"].default:
            raise error_at("rank", "ranks chooses the rank of every layer; give rank or ranks, not both")
        return self


def at_rank_one(entry: DeltaSettings) -> DeltaSettings:
    """The settings, with rank 1 if the ranks are to be chosen from data: to attach the deltas without data."""
    if isinstance(entry, RankedSettings) and entry.ranks is not None:
        return entry.model_copy(update={"ranks": None, "rank": 1})
    return entry
