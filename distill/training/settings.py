"""Settings of training: loop, optimizer, schedule, precision, guards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from augment.base import Settings, error_at
from augment.base.suggestions import did_you_mean
from augment.policy import AugmentSettings

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")


class OptimizerSettings(Settings):
    """AdamW, SGD with momentum, or LARS. Parameters in a module's ``no_weight_decay`` (deltas' scales) never decay."""

    type: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = Field(1e-3, gt=0, le=10, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0, le=1, description="decoupled for adamw, an L2 penalty for sgd and lars")
    decay: Literal["matrices", "all"] = Field("matrices", description="what decays; 'all': norms and biases too")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD and LARS only")
    nesterov: bool = Field(True, description="SGD and LARS only: use Nesterov momentum")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW only: decay rates of the moments")
    trust: float = Field(
        1e-3,
        gt=0,
        le=1,
        description="LARS only: the length of a matrix' update over that of its weights is at most this much",
    )
    trust_clip: bool = Field(False, description="LARS only: lr is the largest rate of a matrix, as in LARC")
    head_lr_factor: float = Field(1.0, gt=0, le=1000, description="learning rate of the head over that of the rest")
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="learning rate of each layer divided by that of the next one (BEiT has 0.65 to 0.75), also for"
        " deltas, by the layer that they change; none: equal rates",
    )


class ScheduleSettings(Settings):
    """Linear warm-up, then cosine to ``final`` × peak, multiplication by ``gamma`` at milestones, or constant."""

    type: Literal["cosine", "steps", "constant"] = "cosine"
    warmup: float = Field(0.0, ge=0, description="epochs of linear warm-up, which may be a fraction")
    final: float = Field(0.0, ge=0, le=1, description="cosine only: last learning rate divided by the peak")
    milestones: tuple[float, ...] = Field((), description="steps only: epochs at which gamma multiplies the rate")
    gamma: float = Field(0.1, gt=0, lt=1, description="steps only: the factor")


class SpikeSettings(Settings):
    """Loss spikes: losses far above the running mean. The report counts them with either action."""

    factor: float = Field(10.0, gt=1, description="a spike is a loss above this many times the running mean")
    action: Literal["warn", "skip"] = Field("warn", description="'skip' skips the update of a spike")


class EarlyStopSettings(Settings):
    """Stops training when validation does not improve."""

    patience: int = Field(5, ge=1, description="validations without a better score")


class CurriculumSettings(Settings):
    """Larger weights for easy samples at first; see :mod:`distill.training.curriculum`."""

    by: Literal["gap", "entropy"] = Field(
        "gap", description="easy samples: a small KL divergence from the teacher, or a low entropy of the teacher"
    )
    epochs: float = Field(gt=0, description="epochs after which all samples have equal weights; linear")
    sharpness: float = Field(
        1.0, gt=0, le=20, description="at first, a sample twice as hard as the mean has exp(-sharpness) of its weight"
    )

    def check(self, unweighable: Sequence[str], has_teacher: bool) -> None:
        """Raise an error if the objectives cannot weight samples, or there is no teacher.

        Args:
            unweighable: types of the objectives that are not a mean over samples.
            has_teacher: whether there is a teacher, whose outputs decide which samples are easy.
        """
        if not has_teacher:
            raise error_at("training.curriculum", "it needs a teacher, and there is none")
        if unweighable:
            text = f"{', '.join(unweighable)}: not a mean over samples, so its samples cannot be weighted"
            raise error_at("training.curriculum", text)


class QuantizeSettings(Settings):
    """Trains under the rounding of export in the last epochs; see :mod:`distill.training.quantization`.

    ``weights`` and ``activations`` prepare the student for int8 formats, ``deltas`` and ``head`` for a smaller delta
    file, which is then stored in these formats.
    """

    epochs: float = Field(2.0, gt=0, description="how many of the last ones; may be a fraction, and more than all")
    weights: int | None = Field(
        None,
        ge=2,
        le=8,
        description="bits of the weights of convs and linear layers, deltas included; none: not rounded",
    )
    activations: int | None = Field(
        None, ge=2, le=8, description="bits of the inputs of convs and linear layers; none: not rounded"
    )
    observe: float = Field(
        0.5,
        gt=0,
        le=1,
        description="part of the quantized training in which the ranges of activations follow the batches",
    )
    deltas: Literal["float16", "int8", "sign"] | None = Field(
        None, description="format in which the deltas' own tensors are stored; none: float32"
    )
    head: Literal["float16", "int8", "sign"] | None = Field(
        None, description="format in which the head is stored; none: float32"
    )

    @model_validator(mode="after")
    def _rounds_something(self) -> QuantizeSettings:
        if not any((self.weights, self.activations, self.deltas, self.head)):
            raise ValueError("nothing is quantized: give weights, activations, deltas or head")
        return self

    @property
    def computes(self) -> bool:
        """Whether the student computes with rounded weights or activations."""
        return bool(self.weights or self.activations)

    def refuse_stored(self, key: str, why: str) -> None:
        """Raise an error if a smaller delta file is trained for where none is written.

        Args:
            key: of these settings in the config.
            why: the reason.
        """
        for name in self.stored:
            raise error_at(f"{key}.{name}", why)

    @property
    def stored(self) -> dict[str, Literal["float16", "int8", "sign"]]:
        """Part of the delta file, ``deltas`` or ``head`` → its format; without parts that are not rounded."""
        return {name: form for name, form in (("deltas", self.deltas), ("head", self.head)) if form}


class LoggerSettings(Settings):
    """A logger of the fits. ``log.csv`` is always written, since the report draws the curves from it."""

    type: str = Field(
        description="csv, tensorboard, wandb, mlflow, or a logger class of Lightning: package.module:Class"
    )
    project: str | None = Field(None, description="wandb: the project, mlflow: the experiment; none: the run's name")
    offline: bool = Field(
        True,
        description="wandb, mlflow: write into the fit's folder only (wandb sync sends it later); false: to the server"
        " that the package is set up for",
    )
    arguments: dict[str, Any] = Field({}, description="further arguments of the Lightning logger, by name")

    @field_validator("type")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in LOGGERS and ":" not in value:
            hint = did_you_mean(value, LOGGERS)
            raise ValueError(
                f"unknown logger {value!r}{hint}; or name a logger class of Lightning: package.module:Class"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value


class TrainingSettings(Settings):
    """Training of one network."""

    epochs: int = Field(10, ge=1, le=100_000, description="passes over the training samples")
    accumulate: int = Field(
        1,
        ge=1,
        le=100_000,
        description="batches whose gradients are averaged for one update, also the fewer ones at the end of an epoch."
        " Steps, schedules and log rows count updates. A loss that compares samples compares those of one batch",
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the whole gradient; none: no clipping")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast, with fp32 weights")
    curriculum: CurriculumSettings | None = Field(None, description="easy samples first; needs a teacher")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the weights, which is validated and exported"
    )
    quantize: QuantizeSettings | None = Field(
        None, description="the last epochs under the rounding of int8 formats or of a small delta file"
    )
    early_stop: EarlyStopSettings | None = Field(None, description="stop when validation does not improve")
    keep: Literal["last", "best"] = Field("last", description="epoch whose weights are the result; best: in validation")
    validate_every: int = Field(1, ge=1, description="epochs between validations; the last epoch is always validated")
    test_every: int | None = Field(
        None,
        ge=1,
        description="epochs between evaluations on the test split, whose results are only reported: nothing is chosen"
        " by them. The report shows the last epoch and the best one; none: only the result is tested",
    )
    accelerator: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    devices: int = Field(1, ge=1, le=1024, description="processes; more than one: DDP, which splits the batch")
    loggers: tuple[LoggerSettings, ...] = Field(
        (LoggerSettings(type="tensorboard"),), description="where the logs of the fits go, beside log.csv"
    )
    log_every: int = Field(20, ge=1, description="steps between log rows; the device is synchronized only then")
    checkpoint_minutes: float = Field(10.0, gt=0, description="minutes between checkpoints in an epoch (one process)")
    spike: SpikeSettings = SpikeSettings()

    @model_validator(mode="after")
    def _milestones_match(self) -> TrainingSettings:
        if (self.schedule.type == "steps") != bool(self.schedule.milestones):
            raise ValueError("schedule.milestones and schedule.type: steps are given together or not at all")
        if self.schedule.warmup >= self.epochs:
            raise ValueError(f"schedule.warmup ({self.schedule.warmup}) must be shorter than epochs ({self.epochs})")
        return self

    @model_validator(mode="after")
    def _quantized_epochs_are_last(self) -> TrainingSettings:
        if self.quantize is None:
            return self
        for key, chooses in (("keep", self.keep == "best"), ("early_stop", self.early_stop is not None)):
            if chooses:
                text = "it could choose an epoch before the quantized ones, which are the last (quantize)"
                raise error_at(key, text)
        return self

    def updates(self, batches: int) -> int:
        """Number of updates in an epoch of so many batches."""
        return -(-batches // self.accumulate)

    def scaled(self, epochs: int) -> TrainingSettings:
        """The same training with another number of epochs, without the curriculum.

        Warm-up, milestones, quantized epochs and those between validations and tests are scaled in proportion.
        """
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
        quantize = self.quantize and self.quantize.model_copy(
            update={"epochs": self.quantize.epochs * epochs / self.epochs}
        )
        return self.model_copy(
            update={"epochs": epochs, "schedule": schedule, "curriculum": None, "quantize": quantize, **every}
        )


class FitTeacherSettings(Settings):
    """Trains the teacher on the labeled data first; runs with equal settings and data share the result."""

    method: Literal["finetune", "probe"] = Field("finetune", description="train all weights, or the classifier alone")
    labels: Literal["all", "same"] = Field(
        "all", description="'all': all labels; 'same': those of the student, limited by data.labels_per_class"
    )
    batch_norm: Literal["train", "frozen"] = Field(
        "frozen", description="finetune only; 'frozen': keep the pretrained running statistics, better with few images"
    )
    training: TrainingSettings = TrainingSettings()
    augment: AugmentSettings | None = Field(
        None, description="how its views are made; default: like the student's, without mix and ramp"
    )

    def check(self) -> None:
        """Raise an error for what a fit without a teacher, whose network is not exported, does not have."""
        if self.training.curriculum is not None:
            text = "it needs a teacher, and the teacher's own fit has none"
            raise error_at("fit_teacher.training.curriculum", text)
        if self.training.quantize is not None:
            raise error_at("fit_teacher.training.quantize", "the teacher is not exported; leave it out")
