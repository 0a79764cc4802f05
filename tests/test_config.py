"""Configs: every slip is one clear message that names the key path, in a fresh process in under five seconds."""

import os
import resource
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from augment.base import Registry
from distill.config import dump_config, editor_schema, load_config, merge_trees, validate_tree
from distill.experiments.distillation import DistillationExperiment
from distill.yaml_tree import ConfigError, apply_override, dump_yaml, parse_yaml, read_tree

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
TREE = """
name: toy
data: {source: {type: digits}, batch_size: 64, labels_per_class: 2}
augment:
  policy: shared_geometry
  student:
    - {type: RandomAffine, degrees: 10, p: 1.0}
    - {type: ColorJitter, brightness: 0.3, p: 0.8}
teacher:
  networks: [{model: "embedded:tf_efficientnet_lite1", size: 64}]
fit_teacher: {training: {epochs: 4}}
student:
  network: {model: "embedded:tf_efficientnet_lite0", size: 64}
  deltas: [{type: low_rank, rank: 4, sites: "*"}]
objectives: [{type: ce, weight: 0.5}, {type: kd, temperature: 4}, {type: icd}]
training: {epochs: 8, optimizer: {type: adamw, lr: 1e-3}}
"""


@pytest.fixture
def tree() -> dict[str, Any]:
    return parse_yaml(TREE, "toy")


def changed(tree: dict[str, Any], *overrides: str) -> dict[str, Any]:
    tree = deepcopy(tree)
    for override in overrides:
        apply_override(tree, override)
    return tree


def refused(tree: dict[str, Any], *overrides: str) -> list[str]:
    """The lines of error_at, without the first, which names the file."""
    with pytest.raises(ConfigError) as error:
        validate_tree(changed(tree, *overrides), "my.yaml")
    first, *lines = str(error.value).splitlines()
    assert first == "my.yaml cannot be used:"
    return [line.strip() for line in lines]


# --- YAML ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.5E+2", 150.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("010", 10),
        ("08", 8),
        ("-3", -3),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("True", True),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        (".inf", ".inf"),
        ("null", None),
        ("~", None),
        ("", None),
        ("<<", "<<"),
        ("embedded:tf_efficientnet_lite0", "embedded:tf_efficientnet_lite0"),
    ],
)
def test_yaml_without_surprises(text: str, value: Any) -> None:
    parsed = parse_yaml(f"key: {text}", "f.yaml")["key"]
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        *["1e3", "08", "1e-5", "no", "true", "~", "", "<<", "1_0", "a: b", "- x", "#", "'", "é", "a\nb ", "x " * 200],
        *[1e-5, 1e300, -0.0, 2**70, True, None, [], {}, [[1], {"a": [None]}]],
    ],
)
def test_yaml_is_read_back_as_it_was_written(value: Any) -> None:
    shared = [value, value]
    assert parse_yaml(dump_yaml({"key": value, "list": [shared, shared]}), "f")["key"] == value


@pytest.mark.parametrize(
    ("text", "error_at"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml, line 3: duplicate key 'a', first in line 1"),
        ("x: {a: 1, a: 2}", "f.yaml, line 1: duplicate key 'a'"),
        ("a: !!python/object/apply:os.system [x]", "f.yaml, line 1: YAML tag '!!python/object/apply:os.system'"),
        ("a:\n  - !env HOME", "f.yaml, line 2: YAML tag '!env' is not supported"),
        ("a: &x [1]\nb: *x", "f.yaml, line 2: YAML alias '*x' is not supported; share settings by 'base: FILE'"),
        ("a: [1\nb: 2", "f.yaml, line 2: not valid YAML: while parsing a flow sequence, expected ',' or ']'"),
        ("a: 1\n\tb: 2", "f.yaml, line 2: not valid YAML"),
        ("a: 1\n---\nb: 2", "f.yaml, line 2: not valid YAML: expected a single document"),
        ("? [a]\n: 1", "f.yaml, line 1: a key must be a plain word or number"),
        ("a: \x00", "f.yaml: not valid YAML: unacceptable character"),
        ("[" * 5000, "f.yaml: nested too deeply"),
        ("a: " + "9" * 5000, "f.yaml, line 1: a number of 5000 digits is too long"),
    ],
)
def test_yaml_that_is_refused(text: str, error_at: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, "f.yaml")
    assert str(error.value).startswith(error_at)


# --- Files and overrides ------------------------------------------------------------------------------------------


def test_base_files_lie_under(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "low.yaml").write_text("a: {x: 1, y: 2}\nkind: {type: one, only_one: 1}\nlist: [1, 2]\n")
    (tmp_path / "sub" / "mid.yaml").write_text("base: ../low.yaml\na: {y: 3}\n")
    (tmp_path / "top.yaml").write_text("base: sub/mid.yaml\na: {z: 4}\nkind: {type: two}\nlist: [3]\n")
    assert read_tree(tmp_path / "top.yaml") == {"a": {"x": 1, "y": 3, "z": 4}, "kind": {"type": "two"}, "list": [3]}
    (tmp_path / "low.yaml").write_text("base: top.yaml\n")
    with pytest.raises(ConfigError, match=r"'base' leads back to this file"):
        read_tree(tmp_path / "top.yaml")
    (tmp_path / "low.yaml").unlink()
    with pytest.raises(ConfigError, match=r"low.yaml \(the base of .*mid.yaml\): no such file; there is .*top.yaml"):
        read_tree(tmp_path / "top.yaml")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    cases: list[tuple[bytes, str]] = [
        (b"", "is empty"),
        (b"- 1", "expected a mapping of settings (key: value), found a list"),
        (b"text", "expected a mapping of settings (key: value), found 'text'"),
        (b"a: \xff", "is not text in UTF-8"),
        (b"base: [1]", "base: expected a file name, found [1]"),
    ]
    for content, error_at in cases:
        (tmp_path / "c.yaml").write_bytes(content)
        with pytest.raises(ConfigError) as error:
            read_tree(tmp_path / "c.yaml")
        assert error_at in str(error.value) and "c.yaml" in str(error.value)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_tree(tmp_path)


def test_overrides_reach_mappings_and_lists(tree: dict[str, Any]) -> None:
    new = changed(
        tree, "seed=3", "training.optimizer.lr=1e-4", "student.deltas.0.rank=2", "objectives.1={type: kd}", "a.b.c=[x]"
    )
    assert new["seed"] == 3 and new["training"]["optimizer"]["lr"] == 1e-4
    assert new["student"]["deltas"][0]["rank"] == 2 and new["objectives"][1] == {"type": "kd"}
    assert new["a"] == {"b": {"c": ["x"]}}
    assert changed({"training": None}, "training.epochs=1") == {"training": {"epochs": 1}}


@pytest.mark.parametrize(
    ("override", "error_at"),
    [
        ("seed", "override 'seed': write key.path=value, such as training.epochs=20"),
        ("=3", "override '=3': write key.path=value"),
        ("a..b=3", "override 'a..b=3': write key.path=value"),
        ("seed.x=3", "override seed.x: seed is 0, which has no keys"),
        ("objectives.7.weight=1", "override objectives.7.weight: '7' is not an item of the list; its items are 0 to 2"),
        ("objectives.-1.weight=1", "override objectives.-1.weight: '-1' is not an item of the list"),
        ("objectives.kd=1", "override objectives.kd: 'kd' is not an item of the list"),
        ("seed+=3", "override seed+: seed is 0, not a list; set it by seed=[…]"),
        ("~sead", "override ~sead: there is no sead; did you mean 'seed'?"),
        ("~objectives.9", "override objectives.9: '9' is not an item of the list"),
        ("~seed.x", "override seed.x: seed is 0, which has no keys"),
        ("~", "override '~': write key.path=value"),
        ("seed=[1", "override seed, line 1: not valid YAML"),
        ("seed=!!int 3", "override seed, line 1: YAML tag '!!int' is not supported"),
    ],
)
def test_overrides_that_are_refused(tree: dict[str, Any], override: str, error_at: str) -> None:
    with pytest.raises(ConfigError) as error:
        changed({"seed": 0, **tree}, override)
    assert str(error.value).startswith(error_at)


# --- Validation ---------------------------------------------------------------------------------------------------


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
        ("training.optimizer.type=adam", "training.optimizer.type: expected 'adamw' or 'sgd', found 'adam'; did you"),
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


# --- Schema -------------------------------------------------------------------------------------------------------


def test_schema_knows_every_type_and_says_what_keys_mean() -> None:
    schema = editor_schema()
    assert {"base", *DistillationExperiment.model_fields} == set(schema["properties"])
    places = {
        ("distill.objectives", "Objective"): schema["properties"]["objectives"]["items"],
        ("distill.deltas", "Delta"): schema["$defs"]["StudentSettings"]["properties"]["deltas"]["items"],
        ("distill.data", "Source"): schema["$defs"]["DataSettings"]["properties"]["source"],
    }
    for family, place in places.items():
        known = Registry(*family).known()
        options = {option["title"]: option for option in place["anyOf"] if "title" in option}
        assert list(options) == list(known) and known
        for name, settings in known.items():
            assert options[name]["properties"]["type"]["const"] == name
            assert set(options[name]["properties"]) == set(settings.model_fields)
            assert options[name]["additionalProperties"] is False
            assert options[name]["description"]
    epochs = schema["$defs"]["OptimizerSettings"]["properties"]["lr"]
    assert epochs["description"] == "peak learning rate" and epochs["exclusiveMinimum"] == 0


def test_schema_accepts_what_is_valid_and_nothing_misspelt(tree: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(editor_schema())
    validator = jsonschema.Draft202012Validator(editor_schema())
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        assert not list(validator.iter_errors(parse_yaml(path.read_text(), path.name))), path
    assert not list(validator.iter_errors(parse_yaml(dump_config(validate_tree(tree, "q")), "q")))
    assert not list(validator.iter_errors(changed(tree, "objectives.1={type: my.own:Thing, x: 1}", "objectives.0=ce")))
    for slip in ["trainig=1", "training.epochs=0", "objectives.1.temprature=1", "objectives.1.type=dk", "data.fit=x"]:
        assert list(validator.iter_errors(changed(tree, slip))), slip


# --- A fresh process ----------------------------------------------------------------------------------------------


def command(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """What ``train.py`` does, and its processor seconds: those of the clock are other people's too."""
    began = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    return done, sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - began


@pytest.mark.parametrize(
    ("arguments", "error_at"),
    [
        (["configs/quickstart.yaml", "trainig.epochs=3"], "  trainig: unknown key; did you mean 'training'?"),
        (["configs/quickstart.yaml", "training.epochs=ten"], "  training.epochs: expected a whole number, found 'ten'"),
        (["configs/quickstart.yaml", "data.size=4"], "  data.size: must be at least 8, is 4"),
        (
            ["configs/quickstart.yaml", "seed=!!int 3"],
            "error: override seed, line 1: YAML tag '!!int' is not supported",
        ),
        (["configs/quickstart.yaml", "objectives.1.type=kdd"], "  objectives.1.type: unknown objective type 'kdd'"),
        (["configs/nothing.yaml"], "error: configs/nothing.yaml: no such file; there is configs/quickstart.yaml"),
    ],
)
def test_a_slip_is_told_at_once_and_without_a_traceback(arguments: list[str], error_at: str) -> None:
    done, seconds = command(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr and done.stderr.startswith("error: ")
    assert any(line.startswith(error_at) for line in done.stderr.splitlines()), done.stderr
    assert len(done.stderr.splitlines()) <= 2
    # Where a class is named it takes an import of torch, and nothing else that is slow: see the next test.
    if "objectives" not in arguments[-1]:
        assert seconds < 5


@pytest.mark.slow
def test_plain_slips_do_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom distill.config import ConfigError, load_config\n"
        "try:\n    load_config(Path('configs/quickstart.yaml'), sys.argv[1:])\n"
        "except ConfigError:\n    print(*(name for name in ('torch', 'kornia', 'timm') if name in sys.modules))\n"
    )
    for override, imported in [("training.epochs=0", ""), ("objectives.1.temperature=0", "torch")]:
        done = subprocess.run([sys.executable, "-c", code, override], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == imported, done.stderr


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
