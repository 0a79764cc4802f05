"""How a network is trained: loop, optimizer, schedule, precision, guards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from augment.base import Settings, error_at
from augment.policy import AugmentSettings


class OptimizerSettings(Settings):
    """AdamW, or SGD with momentum. What a module exempts (temperatures, scales of deltas) never decays."""

    type: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0, le=10, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0, le=1)
    decay: Literal["matrices", "all"] = Field("matrices", description="'all': norms and biases decay too")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD only")
    nesterov: bool = Field(True, description="SGD only: Nesterov's form of momentum")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW only")
    head_lr_factor: float = Field(1.0, gt=0, le=1000, description="learning rate of the head over that of the rest")


class ScheduleSettings(Settings):
    """Linear warm-up, then cosine to ``final`` × peak, division by steps, or constant. Stepped every batch."""

    type: Literal["cosine", "steps", "constant"] = "cosine"
    warmup: float = Field(0.0, ge=0, description="epochs of linear warm-up, fractions allowed")
    final: float = Field(0.0, ge=0, le=1, description="cosine only: last learning rate over the peak")
    milestones: tuple[float, ...] = Field((), description="steps only: epochs at which the rate is multiplied")
    gamma: float = Field(0.1, gt=0, lt=1, description="steps only: the factor")


class SpikeSettings(Settings):
    """A loss far above its running mean. Counted in the report either way."""

    factor: float = Field(10.0, gt=1, description="a spike is a loss above this many times the running mean")
    action: Literal["warn", "skip"] = Field("warn", description="'skip' leaves the update out")


class EarlyStopSettings(Settings):
    patience: int = Field(5, ge=1, description="epochs without a better validation accuracy")


class CurriculumSettings(Settings):
    """Easy samples first; see :mod:`distill.training.curriculum`."""

    by: Literal["gap", "entropy"] = Field(
        "gap", description="what is easy: the student is near the teacher; or the teacher is sure of itself"
    )
    epochs: float = Field(gt=0, description="after which all samples count alike; the way there is linear")
    sharpness: float = Field(
        1.0, gt=0, le=20, description="at the start, a sample twice as hard as the mean counts exp(-sharpness) of it"
    )

    def check(self, unweighable: Sequence[str], has_teacher: bool) -> None:
        """Refuse a curriculum that nothing can follow.

        Args:
            unweighable: types of the objectives that are no mean over samples.
            has_teacher: whether there is a teacher, which says what samples are easy.
        """
        if not has_teacher:
            raise error_at("training.curriculum", "it asks a teacher which samples are easy, and there is none")
        if unweighable:
            text = f"{', '.join(unweighable)}: no mean over samples whose parts could be weighed"
            raise error_at("training.curriculum", text)


class TrainingSettings(Settings):
    epochs: int = Field(10, ge=1, le=100_000)
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the whole gradient; none: no clipping")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 is autocast; weights stay fp32")
    curriculum: CurriculumSettings | None = Field(None, description="easy samples first; needs a teacher")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of an average of the weights, used in its place")
    early_stop: EarlyStopSettings | None = None
    keep: Literal["last", "best"] = Field(
        "last", description="which epoch's weights are the result (best: on validation)"
    )
    validate_every: int = Field(1, ge=1, description="epochs between validations; the last epoch is always validated")
    test_every: int | None = Field(
        None,
        ge=1,
        description="epochs between looks at the test split, for the record only: nothing is chosen by them, and the"
        " report tells the last epoch and the best one apart, as papers on CIFAR do; none: the result is tested, once",
    )
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(1, ge=1, le=1024, description="processes; more than one is DDP, with the batch shared out")
    log_every: int = Field(
        20, ge=1, description="steps between log rows; the only time at which a device is waited for"
    )
    checkpoint_minutes: float = Field(10.0, gt=0, description="at most this much work is lost to a kill -9")
    spike: SpikeSettings = SpikeSettings()

    @model_validator(mode="after")
    def _milestones_match(self) -> TrainingSettings:
        if (self.schedule.type == "steps") != bool(self.schedule.milestones):
            raise ValueError("schedule.milestones belongs to schedule.type: steps, and steps needs it")
        if self.schedule.warmup >= self.epochs:
            raise ValueError(f"schedule.warmup ({self.schedule.warmup}) must be shorter than epochs ({self.epochs})")
        return self

    def scaled(self, epochs: int) -> TrainingSettings:
        """The same training in another number of epochs: warm-up and milestones, and what is done every few epochs,
        stay at the same parts of it. Without a curriculum."""
        warmup, milestones = self.schedule.warmup, self.schedule.milestones
        schedule = self.schedule.model_copy(
            update={
                "warmup": warmup * epochs / self.epochs,
                "milestones": tuple(m * epochs / self.epochs for m in milestones),
            }
        )
        every = {
            name: value and max(1, value * epochs // self.epochs)
            for name, value in {"validate_every": self.validate_every, "test_every": self.test_every}.items()
        }
        return self.model_copy(update={"epochs": epochs, "schedule": schedule, "curriculum": None, **every})


class FitTeacherSettings(Settings):
    """The first stage of a run, for users who have no teacher yet: train it on the labeled data, cached by content."""

    method: Literal["finetune", "probe"] = Field("finetune", description="all weights, or the classifier alone")
    labels: Literal["all", "same"] = Field(
        "all", description="'all' ignores data.labels_per_class, which binds the student"
    )
    batch_norm: Literal["train", "frozen"] = Field(
        "frozen", description="finetune only; 'frozen' keeps the pretrained running statistics, which few images upset"
    )
    training: TrainingSettings = TrainingSettings()
    augment: AugmentSettings | None = Field(
        None, description="default: the student's chain of the experiment, without mix"
    )

    def check(self) -> None:
        """Refuse a curriculum: the teacher's own fit has no teacher."""
        if self.training.curriculum is not None:
            text = "it asks a teacher which samples are easy, and the teacher's own fit has none"
            raise error_at("fit_teacher.training.curriculum", text)
