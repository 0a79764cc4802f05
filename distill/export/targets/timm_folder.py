"""A student as a plain timm model: a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads.

``config.json`` and ``model.safetensors`` are in timm's format; ``manifest.json`` holds their SHA-256.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from torch import nn

from distill.deltas.attach import deltas, merge
from distill.deltas.base import StructuralDelta
from distill.export.card import HERE, card
from distill.export.checksummed import Checksummed, ExportError, read_checked, read_checksummed, write_checksummed
from distill.export.logits import logits_of
from distill.export.manifest import Preprocessing, Result, model_arguments
from distill.export.targets.base import About, ExportTarget, Session
from distill.files import write_atomic
from distill.models.closed_form_head import ARCHITECTURE as CLOSED_FORM
from distill.models.closed_form_head import closed_form
from distill.models.emulator import ARCHITECTURE as EMULATOR
from distill.models.emulator import emulator_arguments
from distill.models.fingerprint import Fingerprint, fingerprint
from distill.models.network import timm_with_own_models
from distill.models.reused_head import ARCHITECTURE, reused
from distill.models.wrapped_body import wrapping

CONFIG, TENSORS, MANIFEST, CARD = "config.json", "model.safetensors", "manifest.json", "README.md"
_WEIGHTS = {".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz", ".pkl"}


class FolderManifest(Checksummed):
    """The content of ``manifest.json``."""

    schema_version: Literal[1] = 1
    config_sha256: str
    """Of ``config.json``."""
    weights_sha256: str
    """Of ``model.safetensors``."""
    model: Fingerprint
    origin: str
    """Where the backbone's weights came from."""
    results: tuple[Result, ...]


def write_timm_folder(
    folder: Path,
    model: nn.Module,
    *,
    origin: str,
    labels: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    results: Sequence[Result] = (),
    model_args: dict[str, Any] | None = None,
) -> FolderManifest:
    """Merge a copy of ``model`` and write it.

    Args:
        folder: where to write; it is made if it does not exist.
        model: a timm model, with or without deltas.
        origin: the backbone's pretrained tag or file.
        labels: class names in the order of the logits; empty if there are none.
        preprocessing: how an image becomes the model's input; None: as the model declares.
        results: measured numbers.
        model_args: arguments of ``timm.create_model``; None: what timm recorded on the model.

    Returns:
        The content of ``manifest.json``.

    Raises:
        DeltaError: the model carries a structural delta.
        ExportError: there are labels, but not one for each class.
    """
    folder = Path(folder)
    num_classes: int = model.num_classes  # type: ignore[assignment]
    if labels and len(labels) != num_classes:
        raise ExportError(f"{len(labels)} labels for {num_classes} classes")
    if deltas(model):
        model = copy.deepcopy(model)
        merge(model)
    preprocessing = preprocessing or Preprocessing.of(model)
    config = _config(model, preprocessing, labels, model_arguments(model, model_args))
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    manifest = FolderManifest(
        config_sha256=write_atomic(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False).encode()),
        weights_sha256=write_atomic(folder / TENSORS, safetensors.torch.save(tensors, {"format": "pt"})),
        model=fingerprint(tensors),
        origin=origin,
        results=tuple(results),
    )
    write_checksummed(folder / MANIFEST, manifest)
    text = folder_card(config, manifest, sum(map(_bytes, tensors.values())))
    write_atomic(folder / CARD, text.encode())
    return manifest


def folder_card(
    config: dict[str, Any], manifest: FolderManifest, size: int, place: str = HERE, license: str | None = None
) -> str:
    """The model card of a timm folder.

    Args:
        config: content of ``config.json``.
        manifest: content of ``manifest.json``.
        size: of the weights, in bytes.
        place: what ``timm.create_model`` takes for it, such as ``hf-hub:OWNER/NAME``.
        license: of the weights; None: that of the backbone, as timm knows it.

    Returns:
        Markdown.
    """
    module = timm_with_own_models().model_entrypoint(config["architecture"]).__module__
    about = config["pretrained_cfg"]
    return card(
        config["architecture"],
        manifest.origin,
        Preprocessing(**{name: about[name] for name in Preprocessing.model_fields if name in about}),
        config.get("label_names", ()),
        manifest.results,
        size,
        None if module.startswith("timm.") else module,
        bool(config["num_classes"]),
        place,
        license or about.get("license"),
    )


def check_timm_folder(folder: Path) -> FolderManifest:
    """Check that a folder is what was written, before anything loads it; returns the content of ``manifest.json``.

    Raises:
        ExportError: a file is absent or differs in any bit, or there are other weights that timm might load instead.
    """
    folder = Path(folder)
    manifest = read_checksummed(folder / MANIFEST, FolderManifest)
    read_checked(folder, CONFIG, manifest.config_sha256)
    read_checked(folder, TENSORS, manifest.weights_sha256)
    for path in sorted(folder.iterdir()):
        if path.suffix in _WEIGHTS and path.name != TENSORS:
            raise ExportError(f"{path}: weights that are not in the manifest")
    return manifest


def _config(
    model: nn.Module, preprocessing: Preprocessing, labels: Sequence[str], model_args: dict[str, Any]
) -> dict[str, Any]:
    """timm's ``config.json``, from which its loader takes architecture and preprocessing."""
    declared: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    kept = ("first_conv", "classifier", "fixed_input_size", "min_input_size", "license", "tag")
    pretrained_cfg = {name: declared[name] for name in kept if name in declared}
    pretrained_cfg |= preprocessing.model_dump(mode="json")
    # The weights have timm's own names and shapes, whatever file the backbone came from.
    pretrained_cfg |= {"num_classes": model.num_classes, "custom_load": False, "pool_size": None}
    architecture = declared["architecture"]
    if (head := reused(model)) is not None:
        model_args = wrapping(architecture, head.model_dump(), model_args)
        architecture = ARCHITECTURE
    if (classifier := closed_form(model)) is not None:
        model_args = wrapping(architecture, {"head": classifier.settings}, model_args)
        architecture = CLOSED_FORM
    if (blocks := emulator_arguments(model)) is not None:
        model_args = wrapping(architecture, blocks, model_args)
        architecture = EMULATOR
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": model_args,
        "pretrained_cfg": pretrained_cfg,
    }
    return config | ({"label_names": list(labels)} if labels else {})


def _bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size()


class TimmFolder(ExportTarget):
    """A folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads; deltas are merged.

    Example:
        >>> import tempfile, timm, torch
        >>> from pathlib import Path
        >>> model = timm.create_model("test_resnet", num_classes=3).eval()
        >>> target = TimmFolder(TimmFolder.Settings())
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = target.write(model, folder, About(origin="random", labels=("a", "b", "c")))
        >>> images = torch.zeros(1, 3, 32, 32)
        >>> torch.equal(target.session(folder)(images), model(images))
        True
    """

    class Settings(ExportTarget.Settings):
        type: Literal["timm_folder"] = "timm_folder"

    title, folder = "merged model", "merged"

    def unsupported(self, model: nn.Module) -> str | None:
        structural = [site.delta.settings.type for site in deltas(model) if isinstance(site.delta, StructuralDelta)]
        return f"{', '.join(dict.fromkeys(structural))} cannot be merged" if structural else None

    def write(self, model: nn.Module, folder: Path, about: About) -> int:
        write_timm_folder(folder, model, **about.of_weights)
        return (folder / TENSORS).stat().st_size

    def check(self, folder: Path) -> str:
        return check_timm_folder(folder).weights_sha256

    def import_runtime(self) -> None:
        timm_with_own_models()

    def session(self, folder: Path) -> Session:
        self.check(folder)
        return logits_of(timm_with_own_models().create_model(f"local-dir:{folder.resolve()}", pretrained=True))
