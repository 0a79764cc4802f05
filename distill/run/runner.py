"""Runs a plan: checks references, names and files, runs all stages' checks, then loads or runs each stage.

The runner handles signals, ranks, timing, console headings and the records of finished stages. It knows no stage by
name.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from augment.base import UserError, did_you_mean
from augment.console import plain_console, shown_path
from distill.data.summary import counts_line, detail_lines
from distill.files import write_atomic
from distill.report.items import Check
from distill.run.context import RunContext, RunSettings
from distill.run.folder import RunError, RunFolder, close_run, is_first_rank, open_run
from distill.run.shared import shared_folder
from distill.run.stage import Output, Ref, Stage
from distill.run.trial import Trial, running
from distill.training.signals import Interrupted, StopSignal

RECORD = "stage.json"
"""File that is written last into a stage's folder; a stage with it is finished."""


class PlanError(UserError, ValueError):
    """The stages of a plan do not fit together; the text names the stage."""


class ChecksFailedError(UserError, RuntimeError):
    """The report of a run holds a check that failed."""


def check_plan(stages: Sequence[Stage]) -> None:
    """Raise ``PlanError`` unless names are unique and each reference is to an earlier stage with that output type."""
    made: dict[str, type] = {}
    names = [stage.name for stage in stages]
    for stage in stages:
        parts = stage.name.split("/")
        if not all(part and part.strip(".") and part.replace("-", "").replace(".", "").isalnum() for part in parts):
            raise PlanError(f"stage {stage.name!r}: a name is letters, digits, '-' and '.', with '/' between its parts")
        if stage.name in made:
            raise PlanError(f"stage {stage.name!r}: two stages have this name")
        for ref in stage.refs():
            _check_ref(stage.name, ref, made, names)
        made[stage.name] = stage.output_type()


def _check_ref(name: str, ref: Ref[Any], made: dict[str, type], names: list[str]) -> None:
    if ref.stage not in made:
        if ref.stage in names:
            raise PlanError(f"stage {name!r} refers to {ref.stage!r}, which does not come before it")
        raise PlanError(
            f"stage {name!r} refers to {ref.stage!r}, which is not in the plan{did_you_mean(ref.stage, made)}"
        )
    if not issubclass(made[ref.stage], ref.type):
        there, wanted = made[ref.stage].__qualname__, ref.type.__qualname__
        raise PlanError(f"stage {name!r} expects {wanted} from {ref.stage!r}, which makes {there}")


def run_plan(
    settings: RunSettings,
    stages: Sequence[Stage],
    tree: dict[str, Any],
    resume: bool | Path = False,
    console: Console | None = None,
    continued_by: str = "the same command with --resume",
    again: Collection[str] = (),
) -> Path:
    """Run a plan in a run folder.

    Args:
        settings: the experiment's config.
        stages: the experiment's plan.
        tree: the resolved config as plain values, with ``name``; saved in the folder.
        resume: continue the run in this folder, or the newest unfinished run with an equal config (True).
        console: where to print; None: standard output.
        continued_by: what continues an interrupted run, for the message about it; ``{run}`` stands for its folder.
        again: names of stages that run again in the run of ``resume``, which may be finished, with all stages that
            depend on them; every other stage has to be finished, and is loaded.

    Returns:
        The run folder.

    Raises:
        PlanError: the stages do not fit together.
        UserError: raised by a stage's check or run.
        ChecksFailedError: the report holds a check that failed.
        Interrupted: a signal arrived; ``resume`` continues the run.
    """
    check_plan(stages)
    for stage in stages:
        stage.check_files()
    console = console or plain_console()
    folder = open_run(settings.output, tree, resume, finished_too=bool(again))
    try:
        with StopSignal() as stop:
            context = RunContext.of(settings, stop, console if is_first_rank() else None)
            context.folder = folder
            if again:
                _forget(stages, again, context)
            context.print(_opening(context, folder.path, settings.describe(context.data)))
            check_stages(stages, context)
            folder.record["images_read"] = True
            for stage in stages:
                if is_first_rank() or not stage.first_rank:
                    with _timed(stage.name, context, folder, Progress.of(stage, context).finished):
                        finish(stage, context, folder.path)
        checks = [item for items in context.items.values() for item in items if isinstance(item, Check)]
        if failed := [check.name for check in checks if not check.passed]:
            raise ChecksFailedError(f"{folder.path}: verification failed: {', '.join(failed)}; see report.html")
        folder.set_status("finished")
    except BaseException as error:
        with suppress(OSError):  # an error of a full disk must not replace the original one
            if isinstance(error, Interrupted):
                folder.set_status("interrupted")
                if is_first_rank():
                    run = shown_path(folder.path)
                    console.print(f"{run} is saved; {continued_by.replace('{run}', run)} continues it", soft_wrap=True)
            else:
                folder.fail()
        raise
    finally:
        close_run()
    return folder.path


def _forget(stages: Sequence[Stage], again: Collection[str], context: RunContext) -> None:
    """Remove the records of stages that run again; raise ``RunError`` if another one would have to run too."""
    assert context.folder is not None
    names = set(again)
    for stage in stages:
        if names & {stage.name, *(ref.stage for ref in stage.refs())}:
            names.add(stage.name)
    run = context.folder.path
    for stage in (stage for stage in stages if stage.recorded and stage.name not in names):
        if not Progress.of(stage, context).finished:
            raise RunError(f"{run}: {stage.name} is not finished any more, and is not made again for this")
    for name in names:
        (run / name / RECORD).unlink(missing_ok=True)


def check_stages(stages: Sequence[Stage], context: RunContext) -> None:
    """Check all stages that are not finished, and try them on one small batch of each split, before any of them runs.

    Only the first rank does it. The random generators are as before afterwards, so that a resumed run, whose finished
    stages are not checked, trains as one that was never stopped.

    Raises:
        UserError: the text names the stage, and what failed.
    """
    if not is_first_rank():
        return
    begun = time.perf_counter()
    parent = None if context.folder is None else context.folder.path
    cuda = [context.device] if context.device.type == "cuda" else []
    with TemporaryDirectory(prefix=".checks-", dir=parent) as name, torch.random.fork_rng(devices=cuda):
        trial = replace(context, outputs={}, items={}, trial=Trial(Path(name)))
        for stage in stages:
            context.stop.raise_if_received()
            if Progress.of(stage, context).finished:
                continue
            output = stage.check(trial)
            if output is not None:
                trial.outputs[stage.name] = output
                trial.items[stage.name] = tuple(stage.report(trial, output))
    if trial.outputs:
        context.print(f"checked on one batch of each split, in {time.perf_counter() - begun:.1f} s")


@dataclass(frozen=True)
class Progress:
    """The folder of a stage's output, and whether the stage is finished."""

    folder: Path
    record: dict[str, Any]
    """The record of the stage once it is finished: its key and what it depends on."""
    finished: bool
    shared: bool = False
    """Whether other runs use the same folder."""

    @classmethod
    def of(cls, stage: Stage, context: RunContext) -> Progress:
        """Find the output of a stage, and add its key and digest to the context.

        Raises:
            RunError: the folder holds an output of this stage with another key.
        """
        if stage.name not in context.keys:
            context.keys[stage.name] = stage.key(context)
        key = {
            "stage": f"{type(stage).__module__}:{type(stage).__qualname__}",
            "seed": context.seed,
            "key": context.keys[stage.name],
            "inputs": {ref.stage: context.digests[ref.stage] for ref in stage.refs()},
        }
        key = json.loads(json.dumps(key, sort_keys=True, default=str))
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        context.digests[stage.name] = digest
        if not stage.recorded:
            return cls(Path(), key, False)
        stored = stage.store(context, digest[:16])
        if stored is None and context.folder is None:
            return cls(Path(), key, False)
        folder = stored or context.folder.path / stage.name  # type: ignore[union-attr]
        path = folder / RECORD
        if not path.is_file():
            return cls(folder, key, False, stored is not None)
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read: {error}; delete it to run the stage again") from error
        if before != key:
            parts = [part for part in key if before.get(part) != key[part]]
            raise RunError(f"{folder} was made with another {', '.join(parts)}; start a new run, without --resume")
        return cls(folder, key, True, stored is not None)


def finish(stage: Stage[Output], context: RunContext, folder: Path) -> Output:
    """Load the output of a stage if it is finished; else run the stage and write its record.

    Args:
        stage: the outputs that it refers to are in ``context.outputs``.
        context: the output and the items of the stage are added to it.
        folder: for a stage without a record.

    Returns:
        The output, which is also in ``context.outputs``.
    """
    progress = Progress.of(stage, context)
    if progress.shared and not progress.finished:

        def finished() -> bool:
            return Progress.of(stage, context).finished

        with shared_folder(progress.folder, stage.name, context, finished):
            return _finish(stage, context, folder)
    return _finish(stage, context, folder)


def _finish(stage: Stage[Output], context: RunContext, folder: Path) -> Output:
    progress = Progress.of(stage, context)
    if progress.finished:
        output = stage.load(context, progress.folder)
    else:
        output = stage.run(context, progress.folder if stage.recorded else folder)
    context.outputs[stage.name] = output
    context.items[stage.name] = items = tuple(stage.report(context, output))
    if stage.recorded and not progress.finished and is_first_rank() and not any(map(_failed, items)):
        write_atomic(progress.folder / RECORD, json.dumps(progress.record, indent=2).encode())
    return output


def load_finished(stages: Sequence[Stage], context: RunContext) -> list[Stage]:
    """Load the outputs of the finished stages of a plan; runs no stage.

    Args:
        stages: in the plan's order, with all stages that they refer to.
        context: the outputs are added to it.

    Returns:
        The stages that are not finished, or that refer to one that is not.
    """
    check_plan(stages)
    missing: list[Stage] = []
    for stage in stages:
        progress = Progress.of(stage, context)
        if not progress.finished or any(ref.stage not in context.outputs for ref in stage.refs()):
            missing.append(stage)
        else:
            context.outputs[stage.name] = stage.load(context, progress.folder)
    return missing


def _failed(item: object) -> bool:
    return isinstance(item, Check) and not item.passed


@contextmanager
def _timed(name: str, context: RunContext, folder: RunFolder, loaded: bool) -> Iterator[None]:
    context.stop.raise_if_received()
    begun = time.perf_counter()
    if context.console is not None:
        title = Text.assemble((name, "bold"), (" (finished, loaded)" if loaded else "", "dim"))
        context.console.rule(title, align="left", style="dim")
    try:
        with running(name):
            yield
    finally:
        folder.finish_stage(name, time.perf_counter() - begun)


def _opening(context: RunContext, folder: Path, about: Sequence[str]) -> str:
    """The first lines of a run: folder, images, labels, classes, device, how the data was read, how it is used."""
    first = f"{shown_path(folder)}: {counts_line(context.data)}; on {context.device.type}"
    return "\n  ".join([first, *detail_lines(context.data), *about])
