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

    Returns:
        Markdown.
    """
    channels, height, width = preprocessing.input_size
    classes = f"{len(labels)} classes: {', '.join(labels[:20])}{', …' if len(labels) > 20 else ''}." if labels else ""
    imported = f"\nimport {registered_by}  # registers the architecture" if registered_by else ""
    return f"""# {architecture}, distilled

A plain [timm](https://github.com/huggingface/pytorch-image-models) model of {size / 1e6:.1f} MB, made from `{origin}`.
{classes}

```python
import timm{imported}

model = timm.create_model("local-dir:PATH/OF/THIS/FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
logits = model(transform(image).unsqueeze(0))  # image: PIL, RGB
names = model.pretrained_cfg.get("label_names")
```

Read an image as evaluation did: turned by its EXIF orientation, transparency on white, other modes converted to RGB:

```python
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("image.png"))
if image.has_transparency_data:
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
image = image.convert("RGB")
```

Input: {channels} × {height} × {width}, mean {list(preprocessing.mean)}, std {list(preprocessing.std)},
{preprocessing.interpolation} interpolation, {preprocessing.crop_mode} crop of {preprocessing.crop_pct:g}.

{_table(results)}
`manifest.json` holds the SHA-256 of `config.json` and `model.safetensors`.

## License
To be filled in before publication: the licenses of the backbone and of the training images apply.
"""


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
