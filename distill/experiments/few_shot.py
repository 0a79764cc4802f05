"""Few-shot classification: heads in closed form on cached features, measured by episodes, one of them exported.

Importing this does not import torch. Validating a config that names heads or deltas does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from augment.base import Registry, Settings, error_at, is_deferred
from distill.experiments.fitted_heads import FittedHeadExperiment
from distill.transfer.few_shot.settings import EpisodeSettings
from distill.transfer.meta_settings import MetaSettings

if TYPE_CHECKING:  # these import torch
    from distill.data.base import Split
    from distill.data.experiment_data import ExperimentData
    from distill.run.stage import Ref, Stage
    from distill.stages.outputs import TrainedStudent
    from distill.transfer.few_shot.base import FewShotHead

    AnyHead = FewShotHead.Settings
else:
    AnyHead = Annotated[Settings, Registry("distill.transfer.few_shot", "FewShotHead")]


class FewShotExperiment(FittedHeadExperiment):
    """The config of few-shot heads: no network is trained, and heads are fitted to pooled features in seconds.

    The features are those of ``student.network``, with the deltas of ``student.start`` if that is given, and with
    ``student.deltas`` as ``meta`` trains them.

    Every head is fitted to all labeled training images, however many a class has, and evaluated on test; ``ship`` is
    folded into the network's classifier and exported. ``episodes`` measures the heads in small problems besides.
    ``data.val_fraction`` is 0 unless it is given, since nothing is chosen.
    """

    kind: Literal["few_shot"] = "few_shot"  # type: ignore[assignment]
    heads: tuple[AnyHead, ...] = Field(min_length=1, description="prototype, ridge, logistic or lp_plus")
    ship: str | None = Field(None, description="name of the head that is exported; none: the first")
    episodes: EpisodeSettings | None = Field(None, description="none: the heads are fitted to all classes alone")
    meta: MetaSettings | None = Field(
        None,
        description="first meta-train student.deltas on episodes of the training classes; none: they stay as they are",
    )

    @property
    def shipped(self) -> str:
        """Name of the head that is exported."""
        return self.ship or self.heads[0].shown  # type: ignore[attr-defined]

    def describe(self, data: ExperimentData) -> list[str]:
        counts = data.subset("train").labels
        lines = [f"few-shot: {data.labeled_count} of {len(counts)} training images have a label"]
        if self.episodes is not None:
            own = self.episodes
            shots = ", ".join(map(str, own.shots))
            lines.append(f"{own.episodes} episodes of {own.ways} classes, shots: {shots}, images of {own.split}")
        if self.meta is not None:
            lines.append(f"meta-training: {self.meta.type}, {self.meta.iterations} steps of {self.meta.tasks} episodes")
        return lines

    def plan(self) -> list[Stage]:
        from distill.run.from_delta import delta_folder
        from distill.stages.export import ExportStudent
        from distill.stages.fit_shots import EvaluateShots, FitShots, FoldHead
        from distill.stages.load_start import LoadStart
        from distill.stages.meta_train import AdaptInEpisodes, MetaTrain
        from distill.stages.pooled_features import PooledFeatures
        from distill.stages.report import WriteReport
        from distill.stages.run_episodes import RunEpisodes
        from distill.stages.verify import VerifyExport

        made: list[Stage] = []
        source: Ref[TrainedStudent] | None = None
        if self.meta is not None:
            meta = MetaTrain("meta", self.student, self.meta, self.episodes)
            source = meta.output
            made.append(meta)
        elif self.student.start is not None:
            start = LoadStart("start", delta_folder(self.student.start), self.student)
            source = start.output
            made.append(start)
        network = self.student.network if source is None else None
        splits: tuple[Split, ...] = ("train",)
        parts: dict[str, Any] = {"labeled": True, "optional": ("val", "test")}
        features = PooledFeatures("features", splits, network, source, new_head=True, **parts)
        heads = [FitShots(f"heads/{_folder(head)}", head, features.output) for head in self.heads]
        shipped = next(stage for stage in heads if stage.head.shown == self.shipped)
        student = FoldHead("student", self.student, shipped.output, source)
        made += [features, *heads, student]
        others = [stage.head.shown for stage in heads if stage is not shipped]
        if self.episodes is not None:
            compared, names = [features.output], [""]
            if self.meta is not None:
                backbone = PooledFeatures("backbone-features", splits, self.student.network, new_head=True, **parts)
                made.append(backbone)
                compared, names = [backbone.output, features.output], ["backbone", "meta-learned deltas"]
            made.append(RunEpisodes("episodes", self.heads, self.episodes, tuple(compared), tuple(names)))
            if self.meta is not None and self.meta.test_episodes and source is not None:
                made.append(AdaptInEpisodes("trained-episodes", self.meta, self.episodes, source))
        models: tuple[Any, ...] = (*(stage.output for stage in heads), student.output)
        test = EvaluateShots("test", models=models, student=student.output)
        export = ExportStudent("export", self.export, student.output, test.output)
        verify = VerifyExport("verify", self.student, self.export, student.output, export.output)
        last = [verify, *self.plan_measuring(student.output, export.output)]
        return [*made, test, export, *last, WriteReport("report", baseline=others[0] if others else self.shipped)]

    @model_validator(mode="after")
    def _fits_heads_alone(self, info: ValidationInfo) -> Self:
        if is_deferred(info, "classes"):
            return self
        self._check_deltas()
        names = [head.shown for head in self.heads]  # type: ignore[attr-defined]
        if twice := [name for name in names if names.count(name) > 1]:
            raise error_at("heads", f"two heads are called {twice[0]!r}; give one a name")
        if "student" in names:
            raise error_at("heads", "'student' is the row of the exported network; give the head another name")
        if self.ship is not None and self.ship not in names:
            raise error_at("ship", f"there is no head {self.ship!r}, only {', '.join(names)}")
        return self

    def _check_deltas(self) -> None:
        """Raise an error for deltas that nothing trains, or that meta-training cannot start from."""
        deltas = self.student.deltas
        if self.meta is None and deltas and self.student.start is None:
            raise error_at("student.deltas", "nothing trains them; set meta, or student.start to a delta file")
        if self.meta is None:
            return
        if self.episodes is not None and self.episodes.split == "train" and self.episodes.classes is None:
            text = "with meta and split: train, name classes, which meta-training leaves out, or a number of them"
            raise error_at("episodes.classes", f"{text}; else it trains on the images of the episodes")
        if not deltas:
            raise error_at("student.deltas", "meta-training trains deltas, and there are none; name them")
        for number, entry in enumerate(deltas):
            changed = [hook for hook in ("after_step", "finish") if entry.component.redefines(hook)]  # type: ignore[union-attr]
            if changed:
                when = "after every step" if changed[0] == "after_step" else "after its training"
                text = f"{entry.type} changes its form {when}, and meta-training has one form for all episodes"
                raise error_at(f"student.deltas.{number}", f"{text}; use one such as low_rank")
            if self.student.start is None and entry.component.prepares(entry):  # type: ignore[union-attr]
                text = f"{entry.type} chooses ranks or masks by a loss on all classes; give them as numbers for meta"
                raise error_at(f"student.deltas.{number}", text)
        if self.training.devices > 1:
            raise error_at("training.devices", "meta-training runs in one process; set 1")


def _folder(head: Any) -> str:
    """The name of a head as that of a folder."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", head.shown)
