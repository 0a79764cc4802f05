"""What a source-only student computes on the images of both domains: batch-norm statistics and moments of features."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from distill.data.experiment_data import ExperimentData
from distill.data.split import by_hash
from distill.deltas.statistics import REPLACED, Statistics
from distill.export.delta.source_moments import ABOUT, read_source_moments
from distill.files import sha256_of, write_atomic
from distill.models.student import Student
from distill.report.items import Item, Note
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.predict import predict_pooled
from distill.run.prepare import StudentSpec
from distill.run.stage import Ref, Stage
from distill.run.trial import trying
from distill.stages.outputs import TrainedStudent
from distill.transfer.moments import FeatureMoments, aligned, batch_norm_moments, batch_norms_of, can_standardize
from distill.transfer.start import Moments, build_from

TENSORS = "moments.safetensors"
IMAGES = 2048
"""Most images of a domain that are measured, chosen by the hashes of their ids."""
UNALIGNED = (
    "no moments of the source's images lie beside the delta file: batch-norm statistics of the new images cannot be "
    "aligned with the source's, and replace the network's where they are used"
)


@dataclass(frozen=True)
class DomainMoments:
    """What was measured.

    Args:
        statistics: site of a batch norm → its statistics for the target, aligned with the source where the data has it
            (:func:`distill.transfer.moments.aligned`), else those of the images; empty without batch norms.
        source: moments of the pooled features on the source domain; None without source images, or if no scaling can
            be folded into the head.
        target: the same on the target domain.
        seconds: wall time.
        norms: site of a batch norm → moments of the source, with which the statistics are aligned; empty: they are not.
        plain: site of a batch norm → the statistics of the target's images (AdaBN), where ``statistics`` are aligned;
            empty: ``statistics`` are these.
    """

    statistics: Mapping[str, Moments]
    source: FeatureMoments | None
    target: FeatureMoments | None
    seconds: float
    norms: Mapping[str, Moments] = field(default_factory=dict)
    plain: Mapping[str, Moments] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasureDomains(Stage[DomainMoments]):
    """Measures the moments of both domains with a source-only student. No label is read.

    Args:
        source: the student.
        classes: of the student, where all images of the data are of the target; None: there is a source domain.
        start: folder of the student's delta file, which may have moments of the source beside it, where there is none.
    """

    source: Ref[TrainedStudent]
    classes: tuple[str, ...] | None = None
    start: Path | None = None

    def check_files(self) -> None:
        if self.start is not None:
            read_source_moments(self.start)

    def check(self, context: RunContext) -> DomainMoments | None:
        """Whether the statistics can be replaced; nothing is measured."""
        trained = context.find(self.source)
        if trained is None:
            return None
        with trying(f"{self.name}: replacing the batch-norm statistics"):
            adapted = with_statistics(trained)
        statistics = {} if adapted is None else moments_of(adapted)
        moments = None
        if can_standardize(trained.student.model):
            width = trained.student.shapes.pooled
            moments = FeatureMoments(torch.zeros(width), torch.ones(width))
        aligns = self.classes is None or (self.start is not None and bool(read_source_moments(self.start)))
        own = statistics if aligns else {}
        return DomainMoments(statistics, moments if self.classes is None else None, moments, 0.0, own, own)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        data = target_of(context, self.classes)
        exclude = {"source": True, "workers": True}
        settings = data.settings.model_dump(mode="json", exclude=exclude)
        key = {"target": [data.fingerprint("train"), settings], "images": IMAGES}
        if self.start is not None and (self.start / ABOUT).exists():
            key["source moments"] = sha256_of(self.start / ABOUT)
        return key

    def run(self, context: RunContext, folder: Path) -> DomainMoments:
        begun, trained = time.perf_counter(), context.get(self.source)
        target = target_of(context, self.classes)
        adapted, statistics = with_statistics(trained), {}
        norms: Mapping[str, Moments] = {}
        plain: Mapping[str, Moments] = {}
        if adapted is not None:
            if self.classes is None:
                norms = self._batch_norms(context, adapted, context.data, False)
            elif self.start is not None:
                norms = read_source_moments(self.start)
            statistics = self._batch_norms(context, adapted, target, True, norms or None)
            if norms:
                plain = self._batch_norms(context, adapted, target, True)
                statistics = aligned_all(adapted, norms, statistics)
        of_source = of_target = None
        if can_standardize(trained.student.model):
            of_target = self._features(context, trained, target)
            of_source = self._features(context, trained, context.data) if self.classes is None else None
        seconds = time.perf_counter() - begun
        if is_first_rank():
            tensors = {"seconds": torch.tensor(seconds, dtype=torch.float64)}
            for site, moments in statistics.items():
                tensors |= {f"norm/{name}/{site}": own for name, own in zip(("mean", "var"), moments)}
            for site, moments in norms.items():
                tensors |= {f"source/{name}/{site}": own for name, own in zip(("mean", "var"), moments)}
            for site, moments in plain.items():
                tensors |= {f"plain/{name}/{site}": own for name, own in zip(("mean", "var"), moments)}
            for domain, own in (("source", of_source), ("target", of_target)):
                if own is not None:
                    tensors |= {f"features/{domain}/mean": own.mean, f"features/{domain}/std": own.std}
            write_atomic(folder / TENSORS, safetensors.torch.save({n: t.contiguous() for n, t in tensors.items()}))
        return DomainMoments(statistics, of_source, of_target, seconds, norms, plain)

    def load(self, context: RunContext, folder: Path) -> DomainMoments:
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
        statistics, norms, plain = (_pairs(tensors, part) for part in ("norm", "source", "plain"))
        own = {
            domain: FeatureMoments(tensors[f"features/{domain}/mean"], tensors[f"features/{domain}/std"])
            for domain in ("source", "target")
            if f"features/{domain}/mean" in tensors
        }
        return DomainMoments(statistics, own.get("source"), own.get("target"), float(tensors["seconds"]), norms, plain)

    def report(self, context: RunContext, output: DomainMoments) -> Iterable[Item]:
        if self.classes is not None and output.statistics and not output.norms:
            yield Note(text=UNALIGNED)

    def _batch_norms(
        self,
        context: RunContext,
        student: Student,
        data: ExperimentData,
        adapt: bool,
        source: Mapping[str, Moments] | None = None,
    ) -> dict[str, Moments]:
        loader = some_of(data, IMAGES).train_loader(shared=False)
        try:
            with context.waiting("measuring what the batch norms read"):
                return batch_norm_moments(student, loader, context.device, source, adapt)
        finally:
            loader.close()

    def _features(self, context: RunContext, trained: TrainedStudent, data: ExperimentData) -> FeatureMoments:
        loader = some_of(data, IMAGES).eval_loader("train", context.connected, trained.student.input)
        try:
            network = trained.student.network
            return FeatureMoments.of(predict_pooled(context, network, loader).logits)
        finally:
            loader.close()


def aligned_all(student: Student, source: Mapping[str, Moments], target: Mapping[str, Moments]) -> dict[str, Moments]:
    """Statistics with which every batch norm gives the target what it gives the source, see :func:`aligned`.

    Args:
        student: with ``statistics`` deltas, which have the statistics that the source was measured with.
        source: site → moments of the source.
        target: site → moments of the target.

    Returns:
        Site → statistics.
    """
    before = moments_of(student)
    return {
        site: aligned(student.model.get_submodule(site), source[site], own, before[site])
        for site, own in target.items()
    }


def _pairs(tensors: Mapping[str, Tensor], part: str) -> dict[str, Moments]:
    sites = [name.removeprefix(f"{part}/mean/") for name in tensors if name.startswith(f"{part}/mean/")]
    return {site: (tensors[f"{part}/mean/{site}"], tensors[f"{part}/var/{site}"]) for site in sites}


def target_of(context: RunContext, classes: tuple[str, ...] | None) -> ExperimentData:
    """The target domain, without training labels.

    Args:
        context: of the run.
        classes: of a model that was trained elsewhere, where all data are the target; None: it is ``data.target``.

    Returns:
        The target's data.
    """
    return context.data.target_domain() if classes is None else context.data.as_target(classes)


def some_of(data: ExperimentData, count: int) -> ExperimentData:
    """Training images of a domain, chosen by the hashes of their ids, not by labels; unreadable ones are replaced."""
    train = data.subset("train")
    chosen = by_hash(range(len(train)), train.ids, salt="domain")[:count]
    mask = torch.zeros(len(train), dtype=torch.bool)
    mask[chosen] = True
    some = data.part(data.classes, {"train": train.where(mask.numpy())}, data.seed)
    some.tolerant = True
    return some


def statistics_spec(trained: TrainedStudent) -> StudentSpec:
    """The specification of the same student with a ``statistics`` delta before its other ones."""
    own = tuple(entry for entry in trained.spec.settings.deltas if entry.type != "statistics")
    deltas = (Statistics.Settings(), *own)
    spec, student = trained.spec, trained.student
    settings = spec.settings.model_copy(update={"deltas": deltas})
    return StudentSpec(settings, spec.seed, student.shapes.classes, spec.needs, spec.head, spec.network)


def with_statistics(trained: TrainedStudent, statistics: Mapping[str, Moments] | None = None) -> Student | None:
    """The student with other batch-norm statistics, or with those that it has; None if its backbone has none."""
    model = trained.student.model
    sites = batch_norms_of(model)
    if not sites:
        return None
    if statistics is None:
        layers = {site: model.get_submodule(site) for site in sites}
        own = {site: tuple(getattr(layer, name).clone() for name in REPLACED) for site, layer in layers.items()}
        statistics = own  # type: ignore[assignment]
    return build_from(statistics_spec(trained), trained.student, statistics)


def moments_of(student: Student) -> dict[str, Moments]:
    """Site → the statistics of a student's ``statistics`` deltas."""
    return {
        site.name: (site.delta.mean.clone(), site.delta.var.clone())
        for site in student.sites
        if isinstance(site.delta, Statistics)
    }
