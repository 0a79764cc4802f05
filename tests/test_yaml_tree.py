"""Config files: YAML without surprises, base files, and overrides; a fault names the file and the line or key."""

from pathlib import Path
from typing import Any

import pytest
from example_config import changed, example_tree

from distill.yaml_tree import ConfigError, dump_yaml, parse_yaml, read_tree


@pytest.fixture
def tree() -> dict[str, Any]:
    return example_tree()


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
