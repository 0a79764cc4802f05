"""Suggestions for unknown names: misspellings, the names of other libraries, long lists."""

import pytest
from pydantic import ValidationError

import augment.presets
from augment.base import Registry, did_you_mean
from augment.base.other_names import OTHER_NAMES as KEYS
from augment.base.suggestions import SHOWN, fold, table
from augment.names import OperationError, find_class, list_operations
from augment.other_names import LOADER, OPERATIONS, PRESETS
from augment.policy import AugmentSettings

REGISTRIES = {
    "deltas": Registry("distill.deltas", "Delta"),
    "objectives": Registry("distill.objectives", "Objective"),
    "data": Registry("distill.data", "Source"),
    "export.targets": Registry("distill.export.targets", "ExportTarget"),
}


@pytest.mark.parametrize(
    ("registry", "name", "suggested"),
    [
        *[("deltas", name, "low_rank") for name in ("lora", "LoRA", "LORA", "rslora", "PiSSA", "LoCon", "vera")],
        *[
            ("deltas", name, suggested)
            for name, suggested in {"BitFit": "bias", "LN_TUNING": "norm_affine", "SSF": "scale_shift"}.items()
        ],
        *[("deltas", name, "adapter") for name in ("houlsby", "AdaptFormer", "bottleneck", "RepAdapter")],
        *[("deltas", name, "low_rank") for name in ("LoraConfig", "LoHaConfig", "FourierFT", "lora-xs")],
        *[("objectives", name, "kd") for name in ("reverse_kl", "JSD", "SoftTargetCrossEntropy", "DML")],
        *[("objectives", name, "ce") for name in ("BCEWithLogitsLoss", "FocalLoss", "LabelSmoothingCrossEntropy")],
        *[("data", name, "folder") for name in ("imagenet", "npy")],
        *[
            ("objectives", name, "kd")
            for name in ("KLDivLoss", "kl_div", "DistillKL", "hinton", "KDLoss", "soft_target")
        ],
        *[("objectives", name, "ce") for name in ("CrossEntropyLoss", "cross_entropy")],
        *[("objectives", name, "fitnets") for name in ("hint", "FitNet")],
        *[
            ("objectives", name, suggested)
            for name, suggested in {"attention": "at", "CCKD": "cc", "mse": "pooled", "cwd": "dense"}.items()
        ],
        *[
            ("data", name, suggested)
            for name, suggested in {"ImageFolder": "folder", "hf": "huggingface", "CIFAR100": "torchvision"}.items()
        ],
        ("export.targets", "merged", "timm_folder"),
    ],
)
def test_types_as_others_call_them(registry: str, name: str, suggested: str) -> None:
    with pytest.raises(ValueError, match=f"; did you mean '{suggested}'\\?"):
        REGISTRIES[registry].settings_of(name)


@pytest.mark.parametrize(
    ("name", "suggested"),
    {
        "GaussianBlur": "RandomGaussianBlur",
        "HorizontalFlip": "RandomHorizontalFlip",
        "CoarseDropout": "Cutout",
        "GaussNoise": "GaussianNoise",
        "ToGray": "RandomGrayscale",
        "Grayscale": "RandomGrayscale",
        "ShiftScaleRotate": "RandomAffine",
        "RandomAutocontrast": "RandomAutoContrast",
        "RandomAdjustSharpness": "Sharpness",
        "ImageCompression": "JPEG",
        "ElasticTransform": "Elastic",
        "TrivialAugment": "TrivialAugmentWide",
        "RandomResizedCropAndInterpolation": "RandomResizedCrop",
    }.items(),
)
def test_operations_as_others_call_them(name: str, suggested: str) -> None:
    with pytest.raises(OperationError, match=f"no operation is called '{name}'; did you mean '{suggested}'"):
        find_class(name)


@pytest.mark.parametrize(
    ("name", "suggested"),
    {"moco": "mocov2", "randaugment": "RandAugment", "cutout": "Cutout", "hflip": "RandomHorizontalFlip"}.items(),
)
def test_presets_as_others_call_them_and_operations_in_small_letters(name: str, suggested: str) -> None:
    with pytest.raises(ValidationError, match=f"no preset is called '{name}'; did you mean '{suggested}'"):
        AugmentSettings.model_validate({"student": [name]})


def test_what_is_no_operation_gets_a_sentence() -> None:
    with pytest.raises(OperationError, match="ToTensor: leave it out; operations get and give images"):
        find_class("ToTensor")


def test_every_table_leads_to_names_that_exist_and_shadows_none() -> None:
    """A name of suggested in a table of other names would never be read."""
    for registry in REGISTRIES.values():
        known = registry.known()
        others = __import__(f"{registry.package}.other_names", fromlist=["OTHER_NAMES"]).OTHER_NAMES
        assert {name for name in others if not name.endswith(".")} <= set(known), registry.package
        assert not set(table(others)) & {fold(name) for name in known}, registry.package
    known = list_operations()
    assert {suggested for suggested in OPERATIONS if not suggested.endswith(".")} <= set(known)
    assert not set(table(OPERATIONS)) & {fold(name) for name in known}
    assert set(PRESETS) <= set(augment.presets.PRESETS)
    assert not set(table(PRESETS)) & {fold(name) for name in augment.presets.PRESETS}
    transforms = vars(pytest.importorskip("albumentations"))
    assert set(LOADER) <= set(transforms)
    assert not set(table(LOADER)) & {fold(name) for name in transforms}


def test_keys_as_others_call_them() -> None:
    for key, known, suggested in [
        ("learning_rate", ["lr", "epochs"], "lr"),
        ("r", ["rank", "alpha"], "rank"),
        ("target_modules", ["sites", "exclude"], "sites"),
        ("T", ["temperature", "weight"], "temperature"),
        ("num_workers", ["workers", "worker_timeout"], "workers"),
        ("arch", ["model", "pretrained"], "model"),
        ("whole", ["full", "deltas"], "full"),
    ]:
        assert did_you_mean(key, known) == f"; did you mean {suggested!r}?"
    # A name of another library that has nothing here is a misspelling, if anything.
    assert did_you_mean("weights", ["weight", "labels"]) == "; did you mean 'weight'?"
    assert all(fold(other) for names in KEYS.values() for other in names.split())


def test_lists_are_cut_to_the_nearest_names() -> None:
    many = [f"model{number}" for number in range(1000)]
    assert did_you_mean("zzz", many, listed_by="list them").count(",") < 10
    assert did_you_mean("zzz", many, listed_by="list them").endswith(" (list them lists all)")
    assert did_you_mean("zzz", many).startswith("; nearest of 1000: ")
    few = [f"n{number}" for number in range(SHOWN)]
    assert did_you_mean("zzz", few) == "; known: " + ", ".join(sorted(few))
    assert did_you_mean("zzz", []) == ""


def test_names_in_other_scripts_are_told_apart() -> None:
    assert did_you_mean("日本", ["中国", "日本語"]) == "; did you mean '日本語'?"
    assert did_you_mean("!", ["?", "a"]) == "; known: ?, a"
