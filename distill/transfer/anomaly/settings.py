"""Settings of anomaly detection in an experiment. Importing this does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from augment.base import Registry, Settings
from distill.data.base import Source

if TYPE_CHECKING:  # the base class of methods imports torch
    from distill.transfer.anomaly.base import AnomalyMethod

    AnyMethod = AnomalyMethod.Settings
else:
    AnyMethod = Annotated[Settings, Registry("distill.transfer.anomaly", "AnomalyMethod")]


class AnomalySettings(Settings):
    """Images that differ from normal ones. Methods and thresholds see normal images alone."""

    methods: tuple[AnyMethod, ...] = Field(min_length=1, description="mahalanobis, patchcore, or your own")
    normal: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="classes of the data that are normal; with test, those of its classes (default: good). Without it,"
        " all training images are normal",
    )
    false_alarms: float = Field(
        0.01, gt=0, lt=1, description="the threshold is the score that this fraction of held-out normal images exceeds"
    )
    test: Annotated[Source.Settings, Registry("distill.data", "Source")] | None = Field(
        None,
        description="images with classes such as good and kinds of defects; default: the test split of data.source",
    )
