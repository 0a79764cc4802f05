"""The registry: known types come from the package, users' own by import path, and all others are refused."""

import importlib
import pickle
from typing import get_args

import pytest
from pydantic import Field, ValidationError

from augment.base import PluginError, Registry, Settings, import_class
from distill.deltas.base import Delta, DeltaSettings, StructuralDelta, WeightDelta
from distill.models.settings import StudentSettings
from distill.objectives.base import Objective
from distill.objectives.kd import KD

REGISTRIES = [
    Registry("distill.objectives", "Objective"),
    Registry("distill.deltas", "Delta"),
    Registry("distill.data", "Source"),
]


class Ladder(StructuralDelta):
    """A structural delta of a user."""

    class Settings(DeltaSettings):
        width: int = 8


class Plain(KD):
    """An objective without settings of its own."""


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.base)
def test_every_type_of_a_package_is_known_and_comes_back_from_its_settings(registry: Registry) -> None:
    known = registry.known()
    assert known and list(known) == sorted(known)
    for name, settings in known.items():
        component = settings.component
        assert component is not None and issubclass(component, registry.contract)
        assert component.Settings is settings  # type: ignore[attr-defined]
        assert component.__module__.startswith(registry.package), "one method, one file of the package"
        assert settings.model_fields["type"].default == name
        assert settings.__doc__, f"{name} has no docstring for the editor"


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.base)
def test_no_two_classes_of_a_package_have_one_name(registry: Registry) -> None:
    registry.known()  # imports them all

    def below(cls: type) -> set[type]:
        return {cls}.union(*(below(single) for single in cls.__subclasses__()))

    own = [cls for cls in below(registry.contract) if cls.__module__.startswith(f"{registry.package}.")]
    named = [cls for cls in own if get_args(cls.Settings.model_fields["type"].annotation)]  # type: ignore[attr-defined]
    assert len(named) == len(registry.known())


def test_a_structural_delta_can_be_named_beside_weight_deltas() -> None:
    settings = StudentSettings.model_validate(
        {
            "network": {"model": "resnet18"},
            "deltas": [{"type": f"{__name__}:Ladder", "width": 3}, "bias", {"type": "low_rank", "rank": 2}],
        }
    )
    ladder, bias, low_rank = settings.deltas
    assert ladder.component is Ladder and ladder.width == 3  # type: ignore[attr-defined]
    for weight in (bias, low_rank):
        assert weight.component is not None and issubclass(weight.component, WeightDelta)
    assert issubclass(WeightDelta, Delta) and issubclass(StructuralDelta, Delta)


def test_settings_belong_to_the_class_that_was_named() -> None:
    assert KD.Settings.component is KD and Objective.Settings.component is Objective
    assert Plain.Settings is not KD.Settings and Plain.Settings.component is Plain
    made = Registry("distill.objectives", "Objective").settings_of(f"{__name__}:Plain")(type=f"{__name__}:Plain")
    assert type(made) is Plain.Settings and made.temperature == KD.Settings().temperature  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(made)) == made, "a loader's worker may get it"


def test_settings_of_another_kind_are_refused() -> None:
    with pytest.raises(ValidationError, match="configures no delta"):
        StudentSettings.model_validate({"network": {"model": "resnet18"}, "deltas": [KD.Settings()]})
    assert StudentSettings.model_validate(
        {"network": {"model": "resnet18"}, "deltas": [Ladder.Settings(type="x")]}
    ).deltas == (Ladder.Settings(type="x"),)


@pytest.mark.parametrize(
    ("path", "error_at"),
    [
        ("os:system", "'os:system' is a builtin_function_or_method, not a class"),
        ("os:environ", "is a _Environ, not a class"),
        ("builtins:eval", "not a class"),
        ("pathlib:Path", "does not derive from distill.objectives.base.Objective"),
        ("subprocess:Popen", "does not derive from"),
        ("no_such_module:X", "no module named 'no_such_module'; is it installed, or in the folder that you run from?"),
        ("distill.nothing:X", "no module named 'distill.nothing'"),
        ("distill.objectives.kd:KDD", "module 'distill.objectives.kd' has no 'KDD'; did you mean 'KD'?"),
        ("distill.objectives.kd", "is no import path; write package.module:Class"),
        ("../x:Y", "is no import path"),
        (":X", "is no import path"),
        ("a:b:c", "is no import path"),
    ],
)
def test_what_an_import_path_may_not_name(path: str, error_at: str) -> None:
    with pytest.raises(PluginError) as error:
        import_class(path, Objective)
    assert error_at in str(error.value) and path in str(error.value)


def test_a_module_that_lacks_an_import_of_its_own_says_so(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leans_on.py").write_text("import not_installed_thing\n")
    (tmp_path / "broken_syntax.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(PluginError, match=r"importing 'leans_on' failed: ModuleNotFoundError: .*'not_installed_thing'"):
        import_class("leans_on:X")
    with pytest.raises(PluginError, match="importing 'broken_syntax' failed: SyntaxError"):
        import_class("broken_syntax:X")


def test_settings_cannot_be_changed_and_take_no_other_kind() -> None:
    class Some(Settings):
        count: int = 1
        on: bool = False
        pair: tuple[float, float] = (0.0, 1.0)
        by_name: dict[str, int] = Field({})

    with pytest.raises(ValidationError, match="frozen"):
        Some().count = 2  # type: ignore[misc]
    assert Some(pair=[1, 2]).pair == (1.0, 2.0)  # type: ignore[arg-type]
    assert Some(count=2.0).count == 2  # type: ignore[arg-type]
    for wrong in [
        {"count": "2"},
        {"count": True},
        {"on": 1},
        {"on": "yes"},
        {"pair": [1, "2"]},
        {"by_name": {"a": "1"}},
    ]:
        with pytest.raises(ValidationError):
            Some.model_validate(wrong)
