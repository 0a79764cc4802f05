"""``distill train --plan``: which stages there are, what each needs, and which are finished; nothing is written."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from distill.commands.plan import show_plan
from distill.config import validate_tree
from distill.experiments.base import Experiment
from distill.run.context import open_context
from distill.run.folder import close_run, open_run
from distill.run.runner import finish


def experiment(output: Path) -> Experiment:
    network = {"model": "test_resnet", "pretrained": False, "size": 32}
    tree = {
        "name": "planned",
        "output": str(output),
        "data": {"source": "digits", "size": 32, "workers": 0},
        "teacher": {"networks": [network]},
        "fit_teacher": {"method": "probe"},
        "student": {"network": network, "deltas": ["low_rank"]},
        "objectives": ["ce", "kd"],
        "training": {"accelerator": "cpu"},
    }
    return validate_tree(tree, "test")


def shown(settings: Experiment) -> dict[str, list[str]]:
    """Stage → the other cells of its row; "" → what stands below the table."""
    console = Console(width=200, file=io.StringIO())
    show_plan(settings, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    rows = {line.split()[0]: [cell.strip() for cell in line.split("  ") if cell.strip()][1:] for line in lines if line}
    return {**rows, "": [lines[-1]]}


@pytest.mark.slow
def test_the_stages_and_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = experiment(tmp_path)
    rows = shown(settings)
    assert rows["teacher"] == ["–", "to do", "–"] and rows["student"] == ["teacher", "to do", "–"]
    assert rows["test"][0] == "linear-probe, labels-only, student" and rows["report"][:2] == ["–", "always done"]
    assert rows[""] == ["a run starts from the beginning"] and not list(tmp_path.iterdir())

    with open_context(settings) as context:
        teacher = settings.plan()[0]
        finish(teacher, context, tmp_path)
        monkeypatch.delenv("DISTILL_RUN_FOLDER", raising=False)
        context.folder = open_run(tmp_path, settings.model_dump(mode="json"), resume=False)
        probe = next(stage for stage in settings.plan() if stage.name == "linear-probe")
        finish(probe, context, tmp_path)
        close_run()
    rows = shown(settings)
    [fitted] = (tmp_path / "teachers").iterdir()
    assert rows["teacher"] == ["–", "finished", str(fitted)]
    assert rows["linear-probe"] == ["–", "finished", str(tmp_path / "planned" / "linear-probe")]
    assert rows["student"] == ["teacher", "to do", "–"]
    assert rows[""] == [f"--resume continues {tmp_path / 'planned'}"]
