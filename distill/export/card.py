"""Model cards, of timm folders and of delta files: how to load them, their preprocessing, their results.

A card begins with the YAML that the model hub reads: library, base model, license where it is known, and measured
results. Names of folders are left out, so a card can be published as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

import yaml

from distill.export.manifest import Preprocessing, Result

HERE = "local-dir:PATH/OF/THIS/FOLDER"
_LICENSES = {
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc0-1.0",
}
_LICENSES |= {"cc-by-nc-sa-4.0", "openrail", "other"}


def card(
    architecture: str,
    origin: str,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    results: Sequence[Result],
    size: int,
    registered_by: str | None = None,
    classifies: bool = True,
    place: str = HERE,
    license: str | None = None,
) -> str:
    """The text of a timm folder's ``README.md``.

    Args:
        architecture: timm's name.
        origin: where the backbone's weights came from.
        preprocessing: how an image becomes the network's input.
        labels: class names; empty if there are none.
        results: measured numbers; the card gives mean and standard deviation over seeds.
        size: of the weights, in bytes.
        registered_by: the module that registers an architecture that is not part of timm.
        classifies: whether it has a classifier; else it gives pooled features.
        place: what ``timm.create_model`` takes for it, such as ``hf-hub:OWNER/NAME``.
        license: of the weights, an identifier such as ``apache-2.0``; None: not known.

    Returns:
        Markdown.
    """
    channels, height, width = preprocessing.input_size
    classes = f"{len(labels)} classes: {', '.join(labels[:20])}{', …' if len(labels) > 20 else ''}." if labels else ""
    imported = f"\nimport {registered_by}  # registers the architecture" if registered_by else ""
    reading = _READING[channels] if channels in _READING else _CHANNELWISE.format(channels=channels, why=_why(channels))
    names = '\nnames = model.pretrained_cfg.get("label_names")' if classifies else ""
    if not classifies:
        classes = "It has no classifier: its output are pooled features."
        reading = reading.replace("logits = model(", "features = model(")
    title, source, megabytes = f"{architecture}, distilled", shown_origin(origin), size / 1e6
    header = _header("timm", ["timm", "knowledge-distillation"], origin, license, results, title, classifies=classifies)
    return f"""{header}# {title}

A plain [timm](https://github.com/huggingface/pytorch-image-models) model of {megabytes:.1f} MB, made from `{source}`.
{classes}

```python
import timm{imported}

model = timm.create_model("{place}", pretrained=True).eval(){names}
```

{reading}
Input: {channels} × {height} × {width}, mean {list(preprocessing.mean)}, std {list(preprocessing.std)},
{preprocessing.interpolation} interpolation, {preprocessing.crop_mode} crop of {preprocessing.crop_pct:g}.

{_table(results)}
`manifest.json` holds the SHA-256 of `config.json` and `model.safetensors`.

{_license(license)}"""


def delta_card(
    architecture: str,
    origin: str,
    backbone_sha256: str,
    labels: Sequence[str],
    results: Sequence[Result],
    size: int,
    kinds: Sequence[str],
    place: str,
    license: str | None = None,
) -> str:
    """The text of the ``README.md`` of a delta file.

    Args:
        architecture: timm's name of the backbone.
        origin: where the backbone's weights came from.
        backbone_sha256: of all its tensors.
        labels: class names; empty if there are none.
        results: measured numbers.
        size: of the file, in bytes.
        kinds: types of its deltas.
        place: its name on the hub.
        license: an identifier such as ``apache-2.0``; None: not known.

    Returns:
        Markdown.
    """
    title = f"{architecture}, a delta"
    classes = f"{len(labels)} classes: {', '.join(labels[:20])}{', …' if len(labels) > 20 else ''}." if labels else ""
    header = _header("delta-distill", ["timm", "delta", "knowledge-distillation"], origin, license, results, title)
    what = ", ".join(dict.fromkeys(kinds)) or "a head alone"
    return f"""{header}# {title}

A delta file of {size / 1e3:.0f} kB ({what}): the change of a frozen backbone, and its new head. {classes}

```python
import distill  # pip install delta-distill

model = distill.load_delta("{place}")
```

## Backbone
`{shown_origin(origin)}` ({architecture}), {_how_to_get(origin)}
The SHA-256 of its tensors is `{backbone_sha256}`. It is checked when the delta is loaded; another backbone is refused.

{_table(results)}
`delta.json` holds preprocessing and labels, and the SHA-256 of `delta.safetensors` and of every tensor of the backbone.

{_license(license)}"""


def shown_origin(origin: str) -> str:
    """Where weights came from, without the path of a folder."""
    return "a local network" if origin.startswith("local-dir:") else origin


def hub_name(origin: str) -> str | None:
    """The hub's name of the weights that a network was made from; None if they are not there."""
    import timm

    if origin.startswith("hf-hub:"):
        return origin.removeprefix("hf-hub:").partition("@")[0]
    if ":" in origin or "@" in origin or not timm.is_model(origin.partition(".")[0]):
        return None
    config = timm.get_pretrained_cfg(origin)
    return (config.hf_hub_id or None) if config is not None else None


def _how_to_get(origin: str) -> str:
    if origin.startswith("embedded:"):
        return "which is installed with delta-distill."
    if (name := hub_name(origin)) is not None:
        return f"which is https://huggingface.co/{name} and is fetched when the delta is loaded."
    return "which is not on the hub: ask the author for it, and give it as `distill.load_delta(…, backbone)`."


def _header(
    library: str,
    tags: Sequence[str],
    origin: str,
    license: str | None,
    results: Sequence[Result],
    title: str,
    classifies: bool = True,
) -> str:
    """The YAML at the beginning of a card."""
    fields: dict[str, object] = {"library_name": library, "tags": list(tags)}
    if classifies:
        fields["pipeline_tag"] = "image-classification"
    if license is not None:
        known = license.lower() in _LICENSES
        fields |= {"license": license.lower()} if known else {"license": "other", "license_name": license}
    if (base := hub_name(origin)) is not None:
        fields["base_model"] = base
    metrics = [
        {"type": _metric(name), "value": round(mean(values), 6), "name": name}
        for name, values in _by_name(results).items()
    ]
    if metrics:
        fields["metrics"] = list(dict.fromkeys(str(metric["type"]) for metric in metrics))
        about = {"task": {"type": "image-classification"}, "dataset": {"name": "the run's images", "type": "custom"}}
        fields["model-index"] = [{"name": title, "results": [{**about, "metrics": metrics}]}]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n\n"


def _metric(name: str) -> str:
    """The hub's type of a measure: ``test/top1`` → ``accuracy``."""
    own = name.rpartition("/")[2]
    return "accuracy" if own == "top1" else own


def _license(license: str | None) -> str:
    if license is None:
        text = "Not known: the licenses of the backbone and of the training images apply."
    else:
        text = f"{license}. The license of the training images applies too."
    return f"## License\n{text}\n"


_TRANSFORM = """```python
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
logits = model(transform(image).unsqueeze(0))  # image: PIL, {mode}
```
"""
_READING = {
    1: _TRANSFORM.format(mode="L")
    + """
Read an image as evaluation did: turned by its EXIF orientation, converted to gray:

```python
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("image.png")).convert("L")
```
""",
    3: _TRANSFORM.format(mode="RGB")
    + """
Read an image as evaluation did: turned by its EXIF orientation, transparency on white, other modes converted to RGB:

```python
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("image.png"))
if image.has_transparency_data:
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
image = image.convert("RGB")
```
""",
}
"""Channels → how timm's transform is used, and how a file becomes the image that it reads."""
_CHANNELWISE = """Do not use timm's transform on a whole image: it resizes through Pillow, {why}.
Use it channel by channel, as evaluation does:

```python
import numpy as np
import torch
from PIL import Image

def prepare(image):  # uint8 or uint16 (white is 65535) [height, width, {channels}] → what the model reads
    config, parts = model.pretrained_cfg, []
    deep = image.dtype == np.uint16
    for channel, mean, std in zip(range({channels}), config["mean"], config["std"]):
        one = {{**config, "input_size": (1, *config["input_size"][1:]), "mean": (mean,), "std": (std,)}}
        transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=one))
        values = np.ascontiguousarray(image[:, :, channel])
        part = transform(Image.fromarray(values.astype(np.float32) / 257 if deep else values))
        if deep:  # timm's transform leaves floats as they are, here 0 to 255
            part = (((part * std + mean) / 255).clamp(0, 1) - mean) / std
        parts.append(part)
    return torch.cat(parts)

logits = model(prepare(image).unsqueeze(0))
```
"""


def _why(channels: int) -> str:
    if channels == 4:
        return "which takes the fourth channel for transparency and weighs the others by it"
    return f"which has no images of {channels} channels"


def _table(results: Sequence[Result]) -> str:
    """Results by name, mean ± standard deviation where there are several seeds."""
    if not results:
        return "No results were recorded.\n"
    rows = ["| result | value | seeds |", "|---|---|---|"]
    for name, values in _by_name(results).items():
        seeds = [str(result.seed) for result in results if result.name == name and result.seed is not None]
        spread = f" ± {stdev(values):.4g}" if len(values) > 1 else ""
        rows.append(f"| {name} | {mean(values):.4g}{spread} | {', '.join(seeds)} |")
    return "\n".join(rows) + "\n"


def _by_name(results: Sequence[Result]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for result in results:
        values.setdefault(result.name, []).append(result.value)
    return values
