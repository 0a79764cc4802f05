"""The model card of a timm folder: how to load it with timm alone, its preprocessing, its results."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from distill.export.manifest import Preprocessing, Result


def card(
    architecture: str,
    origin: str,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    results: Sequence[Result],
    size: int,
    registered_by: str | None = None,
    classifies: bool = True,
) -> str:
    """The text of ``README.md``.

    Args:
        architecture: timm's name.
        origin: where the backbone's weights came from.
        preprocessing: how an image becomes the network's input.
        labels: class names; empty if there are none.
        results: measured numbers; the card gives mean and standard deviation over seeds.
        size: of the weights, in bytes.
        registered_by: the module that registers an architecture that is not part of timm.
        classifies: whether it has a classifier; else it gives pooled features.

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
    return f"""# {architecture}, distilled

A plain [timm](https://github.com/huggingface/pytorch-image-models) model of {size / 1e6:.1f} MB, made from `{origin}`.
{classes}

```python
import timm{imported}

model = timm.create_model("local-dir:PATH/OF/THIS/FOLDER", pretrained=True).eval(){names}
```

{reading}
Input: {channels} × {height} × {width}, mean {list(preprocessing.mean)}, std {list(preprocessing.std)},
{preprocessing.interpolation} interpolation, {preprocessing.crop_mode} crop of {preprocessing.crop_pct:g}.

{_table(results)}
`manifest.json` holds the SHA-256 of `config.json` and `model.safetensors`.

## License
To be filled in before publication: the licenses of the backbone and of the training images apply.
"""


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
    for name in dict.fromkeys(result.name for result in results):
        values = [result.value for result in results if result.name == name]
        seeds = [str(result.seed) for result in results if result.name == name and result.seed is not None]
        spread = f" ± {stdev(values):.4g}" if len(values) > 1 else ""
        rows.append(f"| {name} | {mean(values):.4g}{spread} | {', '.join(seeds)} |")
    return "\n".join(rows) + "\n"
