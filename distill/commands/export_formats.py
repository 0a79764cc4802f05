"""``distill export RUN --to FORMAT,…``: adds formats to a finished run, or writes them to another folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from distill.config import read_run, validate_tree
from distill.experiments.student import as_exporting
from distill.export.checksummed import ExportError
from distill.export.compared import chosen
from distill.export.settings import TARGETS, ExportSettings, MeasureSettings
from distill.export.targets.base import ExportTarget, require
from distill.files import write_atomic
from distill.report.items import FormatFigures
from distill.run.export import EXPORT
from distill.run.folder import CONFIG, RECORD, RunError, check_finished, read_tree
from distill.run.runner import RECORD as FINISHED
from distill.run.runner import ChecksFailedError, run_plan
from distill.stages.export import ExportStudent
from distill.stages.measure_export import MeasureExport
from distill.stages.report import PAGE, RESULTS
from distill.yaml_tree import ConfigError

LOCK = ".export.lock"


def named_targets(formats: str) -> list[ExportTarget]:
    """The targets that a list of types names, ``onnx,pt2``, with default settings.

    Raises:
        PluginError: an unknown type.
        ExportError: no type, one that is named twice, or one whose packages are not installed.
    """
    names = [name.strip() for name in formats.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ExportError(f"--to {formats}: name formats, each once, such as --to onnx,pt2; --output names a folder")
    settings = [TARGETS.settings_of(name).model_validate({"type": name}) for name in names]
    targets: list[ExportTarget] = [each.component(each) for each in settings]  # type: ignore[misc]
    require(targets)
    return targets


def only(targets: Sequence[ExportTarget], export: ExportSettings) -> ExportSettings:
    """The settings of an export in these formats alone."""
    return export.model_copy(update={"targets": tuple(target.settings for target in targets)})


def add_formats(
    path: Path, formats: str | None, console: Console, *, measure: bool = True, pick: str | None = None
) -> None:
    """Write formats to a finished run, verify, measure and report them: as if its config had named them from the start.

    The stages of export, verification and measuring run again, and the report; all others are loaded. Formats that are
    there and are what would be written stay. After an error the run is as it was.

    Args:
        path: the run folder.
        formats: types of export targets, with commas; None: those that are there.
        console: shows the stages.
        measure: whether all formats are measured, see :mod:`distill.export.measure`; False: as the config says.
        pick: the rule that chooses among them; None: that of the config.

    Raises:
        ExportError: a format is not installed, cannot hold the student, or gives other outputs; or another process
            exports this run; or no format satisfies the rule.
    """
    experiment = as_exporting(read_run(path)[0], str(path))
    check_finished(path, path / experiment.trained, path / RESULTS)
    extended = _extended(experiment.export, named_targets(formats) if formats is not None else [])
    # The keys of finished stages are those of the config as it was read, so nothing else of it changes.
    tree = read_tree(path)
    export = dict(tree.get("export") or {})
    export["targets"] = [target.settings.model_dump(mode="json") for target in extended]
    if measure and experiment.measures_formats:
        own = experiment.export.measure or MeasureSettings()
        export["measure"] = own.model_dump(mode="json") | ({} if pick is None else {"pick": pick})
    tree["export"] = export
    changed = as_exporting(validate_tree(tree, str(path / CONFIG)), str(path))
    stages = changed.plan()
    names = [stage.name for stage in stages if isinstance(stage, ExportStudent)]
    measuring = [stage.name for stage in stages if isinstance(stage, MeasureExport)]
    if not names:
        raise ConfigError(f"{path}: kind: {experiment.kind}, and --to needs a run that exports one student")
    if pick is not None and not measuring:
        raise ConfigError(f"{path}: kind: {experiment.kind}, whose formats are not measured, so --pick cannot choose")
    again = names
    if formats is None:  # only the choice is new, or what it is made from
        done = experiment.export.measure is not None and (path / measuring[0] / FINISHED).is_file()
        again = [stages[-1].name] if done else measuring
    folders = [*(path / EXPORT / target.folder for target in extended), *(path / name for name in measuring)]
    with _locked(path), _as_it_was_after_an_error(path, folders):
        try:
            run_plan(changed, stages, tree, path, console, "the same command", again=again)
        except ChecksFailedError as error:
            failed = str(error).removesuffix("; see report.html")
            raise ExportError(f"{failed}: other outputs than the student's; the run is as it was") from error
    if pick is not None:
        measured = json.loads((path / RESULTS).read_text())["summary"]["formats"]
        choice = chosen([FormatFigures.model_validate(each) for each in measured], pick)
        if choice is not None and choice.name is None:
            raise ExportError(str(choice))


def _extended(export: ExportSettings, targets: Sequence[ExportTarget]) -> list[ExportTarget]:
    """The run's targets, and those of the new ones that have another folder."""
    there = export.make_targets()
    folders = {target.folder for target in there}
    return [*there, *(target for target in targets if target.folder not in folders)]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise RunError(f"{path} is being exported by another process; wait until it has finished") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _as_it_was_after_an_error(path: Path, folders: Sequence[Path]) -> Iterator[None]:
    """Restore the files of config, records and report after an error, and remove new ones of these folders."""
    files = [path / CONFIG, path / RECORD, path / RESULTS, path / PAGE]
    before = {file: file.read_bytes() for file in [*files, *path.glob("*/*.json")] if file.is_file()}
    new = [folder for folder in folders if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in new:
            shutil.rmtree(folder, ignore_errors=True)
        for file, data in before.items():
            if not file.is_file() or file.read_bytes() != data:
                write_atomic(file, data)
        raise
