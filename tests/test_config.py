"""Configs: every slip is one clear message that names the key path."""

from pathlib import Path
from typing import Any

import pytest
from example_config import changed, example_tree

from distill.config import dump_config, load_config, merge_trees, validate_tree
from distill.experiments.distillation import DistillationExperiment
from distill.yaml_tree import ConfigError, parse_yaml

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


@pytest.fixture
def tree() -> dict[str, Any]:
    return example_tree()


def refused(tree: dict[str, Any], *overrides: str) -> list[str]:
    """The lines of error_at, without the first, which names the file."""
    with pytest.raises(ConfigError) as error:
        validate_tree(changed(tree, *overrides), "my.yaml")
    first, *lines = str(error.value).splitlines()
    assert first == "my.yaml cannot be used:"
    return [line.strip() for line in lines]


@pytest.mark.parametrize(
    ("override", "error_at"),
    [
        ("trainig.epochs=3", "trainig: unknown key; did you mean 'training'?"),
        ("training.epoch=3", "training.epoch: unknown key; did you mean 'epochs'?"),
        ("training.epochs=ten", "training.epochs: expected a whole number, found 'ten'"),
        ("training.epochs='3'", "training.epochs: expected a number, found '3'"),
        ("training.epochs=true", "training.epochs: expected a number, found true"),
        ("training.epochs=2.5", "training.epochs: expected a whole number, found 2.5"),
        ("training.epochs=0", "training.epochs: must be at least 1, is 0"),
        ("training.epochs=", "training.epochs: expected a whole number, found nothing"),
        ("training.optimizer.lr=0", "training.optimizer.lr: must be greater than 0, is 0"),
        ("training.optimizer.lr=.inf", "training.optimizer.lr: expected a number, found '.inf'"),
        ("training.optimizer.betas=[0.9]", "training.optimizer.betas.1: is missing"),
        ("training.optimizer.betas=['0.9', 1]", "training.optimizer.betas.0: expected a number, found '0.9'"),
        ("training.optimizer=adam", "training.optimizer: expected a mapping (key: value), found 'adam'"),
        (
            "training.optimizer.type=adam",
            "training.optimizer.type: expected 'adamw', 'sgd' or 'lars', found 'adam'",
        ),
        ("controls.linear_probe=1", "controls.linear_probe: expected true or false, found 1"),
        ("name=12", "name: expected a text (numbers and truth values become text in quotes), found 12"),
        ("name=../../x", "name: a run name is letters, digits"),
        ("name=teachers", "name: the folder 'teachers' is for fitted teachers"),
        ("seed=-1", "seed: must be at least 0, is -1"),
        ("data.source.type=digit", "data.source.type: unknown source type 'digit'; did you mean 'digits'?"),
        ("data.source=3", "data.source: expected a mapping with the key 'type': which source"),
        ("objectives=kd", "objectives: expected a list, found 'kd'"),
        ("objectives=[]", "objectives: needs at least 1 item, has 0"),
        ("objectives.1.temperature=-1", "objectives.1.temperature: must be greater than 0, is -1"),
        ("objectives.1.temprature=3", "objectives.1.temprature: unknown key; did you mean 'temperature'?"),
        ("objectives.1.type=kdd", "objectives.1.type: unknown objective type 'kdd'; did you mean 'kd'?"),
        ("objectives.1.type=os:system", "objectives.1.type: 'os:system' is a builtin_function_or_method, not a class"),
        ("objectives.1.type=pathlib:Path", "objectives.1.type: 'pathlib:Path' does not derive from distill.objectives"),
        ("objectives.1.type=no_such.thing:X", "objectives.1.type: 'no_such.thing:X': no module named 'no_such'"),
        ("student.deltas.0.type=lowrank", "student.deltas.0.type: unknown delta type 'lowrank'; did you mean 'low_r"),
        ("student.deltas.0.type=lora", "student.deltas.0.type: unknown delta type 'lora'; did you mean 'low_rank'?"),
        ("student.deltas.0.r=4", "student.deltas.0.r: unknown key; did you mean 'rank'?"),
        ("training.optimizer.learning_rate=1", "training.optimizer.learning_rate: unknown key; did you mean 'lr'?"),
        # values of several kinds: one line, at the key path of the config
        ("teacher.networks.0.labels.dog=-1", "teacher.networks.0.labels.dog: must be at least 0, is -1"),
        ("teacher.networks.0.labels={dog: [cat, -1]}", "teacher.networks.0.labels.dog.1: must be at least 0, is -1"),
        ("teacher.cache.logits=0", "teacher.cache.logits: must be at least 1, is 0"),
        (
            "teacher.cache.logits=ful",
            "teacher.cache.logits: expected 'full' or 'none' or a whole number, found 'ful'; did you mean 'full'?",
        ),
        ("student.network.model=embedded:x", "student.network.model: no embedded weights for 'x'; known: tf_eff"),
        ("augment.policy=same", "augment.policy: expected 'identical', 'independent'"),
        ("augment.student.1.brightnes=1", "augment.student.1.brightnes: ColorJitter has no argument 'brightnes'; did"),
        (
            "augment.student.1.type=ColorJiter",
            "augment.student.1.type: no operation is called 'ColorJiter'; did you mean 'ColorJitter'?",
        ),
        ("teacher=null", "objectives: kd, icd need a teacher, and there is none; add teacher.networks"),
        ("objectives=[ce]", "teacher: no objective reads it; add one such as kd, or remove the teacher"),
        ("augment.mix={mixup: 0, cutmix: 0}", "augment.mix.mixup: neither mixup nor cutmix is on"),
        ("student.train=full", "student.deltas: train: full trains every weight and takes no deltas"),
        ("training.devices=3", "data.batch_size: 64 is not a multiple of training.devices, 3"),
    ],
)
def test_a_slip_is_one_line_that_names_the_key(tree: dict[str, Any], override: str, error_at: str) -> None:
    lines = refused(tree, override)
    assert len(lines) == 1 and lines[0].startswith(error_at)


def test_mixing_and_one_class_per_image_do_not_go_together(tree: dict[str, Any]) -> None:
    overrides = {"augment": {"mix": {"mixup": 0.8}}, "objectives": [{"type": "kd"}, {"type": "icd"}]}
    validate_tree(merge_trees(tree, overrides), "test")
    overrides["objectives"][1]["mask_same_class"] = True
    with pytest.raises(ConfigError, match=r"augment\.mix: icd needs one class per image, but mixing gives"):
        validate_tree(merge_trees(tree, overrides), "test")


def test_one_term_with_one_teacher_writes_the_head(tree: dict[str, Any]) -> None:
    alone = merge_trees(tree, {"objectives": [{"type": "simkd"}]})
    validate_tree(alone, "test")
    networks = alone["teacher"]["networks"]
    for twice in ({"objectives": ["simkd", "simkd"]}, {"teacher": {"networks": networks * 2}}):
        with pytest.raises(ConfigError, match=r"objectives: simkd.* replaces the student's head, which only one term"):
            validate_tree(merge_trees(alone, twice), "test")


def test_all_slips_are_listed(tree: dict[str, Any]) -> None:
    slips = ["training.epochs=0", "training.epoch=1", "seed=x", "data.fit=cropp", "export.verify_images=-1", "sed=1"]
    assert [line.split(":")[0] for line in refused(tree, *slips)] == [
        "seed",
        "data.fit",
        "training.epochs",
        "training.epoch",
        "export.verify_images",
        "sed",
    ]
    assert refused({}) == [
        "name: is missing",
        "data: is missing",
        "student: is missing",
        "objectives: is missing",
    ]
    assert refused(tree, "objectives=[{type: kd, temperature: 0}, {type: nosuchthing}]") == [
        "objectives.0.temperature: must be greater than 0, is 0",
        refused(tree, "objectives.0.type=nosuchthing")[0].replace("objectives.0", "objectives.1"),
    ]


def test_resolved_config_is_read_back_equal(tree: dict[str, Any], tmp_path: Path) -> None:
    variants = [
        [],
        ["name='1e3'", "output=a b/c", "training.optimizer.lr=1e-5", "student.network.checkpoint=x.pth"],
        ["teacher=null", "objectives=[ce]", "fit_teacher=null", "student.deltas=[]", "student.train=full"],
        ["augment={policy: multicrop, local: [{crops: 2}]}", "training.early_stop={}", "training.ema=0.99"],
    ]
    for overrides in variants:
        experiment = validate_tree(changed(tree, *overrides), "q")
        (tmp_path / "config.yaml").write_text(dump_config(experiment))
        assert load_config(tmp_path / "config.yaml") == experiment


def test_the_run_is_named_after_the_file(tmp_path: Path) -> None:
    (tmp_path / "flowers.yaml").write_text(f"base: {QUICKSTART}\n")
    assert load_config(tmp_path / "flowers.yaml").name == "flowers"
    assert load_config(tmp_path / "flowers.yaml", ["name=other"]).name == "other"


def test_users_own_classes(tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_parts.py").write_text(
        "from typing import Literal\n"
        "from distill.objectives.kd import KD\n"
        "class Softer(KD):\n    'As KD.'\n"
        "class Own(KD):\n"
        "    class Settings(KD.Settings):\n        type: str\n        strength: float = 1.0\n"
        "class Fixed(KD):\n"
        "    class Settings(KD.Settings):\n        type: Literal['fixed'] = 'fixed'\n"
    )
    (tmp_path / "my_fault.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = "objectives.1={type: my_parts:Own, strength: 2, temperature: 3}"
    experiment = validate_tree(changed(tree, own, "objectives.0=my_parts:Softer"), "q")
    softer, own_settings = experiment.objectives[:2]
    assert (own_settings.component.__name__, own_settings.strength, own_settings.temperature) == ("Own", 2, 3)  # type: ignore[union-attr,attr-defined]
    assert (softer.component.__name__, softer.type) == ("Softer", "my_parts:Softer")  # type: ignore[union-attr]
    assert validate_tree(parse_yaml(dump_config(experiment), "q"), "q") == experiment
    assert refused(tree, own.replace("strength", "strenght")) == [
        "objectives.1.strenght: unknown key; did you mean 'strength'?"
    ]
    assert "declare it there as type: str" in refused(tree, "objectives.1.type=my_parts:Fixed")[0]
    assert refused(tree, "objectives.1.type=my_parts:Sofler")[0].endswith("no 'Sofler'; did you mean 'Softer'?")
    assert refused(tree, "objectives.1.type=my_fault:X") == [
        "objectives.1.type: 'my_fault:X': importing 'my_fault' failed: ZeroDivisionError: division by zero"
    ]


def test_a_kind_chooses_the_experiment(tree: dict[str, Any]) -> None:
    assert validate_tree(tree, "q").kind == "distillation"
    assert validate_tree({**tree, "kind": "distillation"}, "q") == validate_tree(tree, "q")
    with pytest.raises(ConfigError, match="kind: unknown kind 'distilation'; did you mean 'distillation'"):
        validate_tree({**tree, "kind": "distilation"}, "q")
    own = validate_tree({**tree, "kind": f"{__name__}:Shorter"}, "q")
    assert isinstance(own, Shorter) and own.plan() == []
    with pytest.raises(ConfigError, match=r"kind: 'os:PathLike' does not derive from .*Experiment"):
        validate_tree({**tree, "kind": "os:PathLike"}, "q")


class Shorter(DistillationExperiment):
    """A kind of one's own."""

    kind: str = f"{__name__}:Shorter"  # type: ignore[assignment]

    def plan(self) -> list[Any]:
        return []
