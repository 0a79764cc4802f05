"""The card of an exported program: what it takes and gives, and how to run it."""

from __future__ import annotations

from distill.export.artifact import ProgramInput
from distill.export.targets.base import About


def program_card(title: str, architecture: str, input: ProgramInput, classes: int, about: About) -> str:
    """The text of ``README.md``.

    Args:
        title: of the format.
        architecture: timm's name.
        input: of the program.
        classes: number of logits.
        about: metadata; ``preprocessing`` is set.

    Returns:
        Markdown.
    """
    preprocessing = about.preprocessing
    assert preprocessing is not None
    way = f"{preprocessing.interpolation} interpolation, {preprocessing.crop_mode} crop of {preprocessing.crop_pct:g}"
    numbers = f"mean {list(preprocessing.mean)}, std {list(preprocessing.std)}"
    names = f"\n{', '.join(about.labels[:20])}{', …' if len(about.labels) > 20 else ''}." if about.labels else ""
    rows = "".join(f"| {result.name} | {result.value:.4g} |\n" for result in about.results)
    table = f"\n| result | value |\n|---|---|\n{rows}" if rows else ""
    where = "inside the program" if input.dtype == "uint8" else "before it"
    batch = f"exactly {input.batch}" if input.batch else "any number of images"
    return f"""# {architecture}, distilled, as {title}

Made from `{about.origin}`; weights and computation are in the file, so timm is not needed to run it.

Input `images`: {input}. Batch: {batch}; height and width are fixed.
An image is resized to {input.height} × {input.width} ({way}).
It is normalized {where} with {numbers}.

Output `logits`: [N, {classes}] float32.{names}

```python
import distill.export

run = distill.export.open("PATH/OF/THIS/FOLDER")  # checks the SHA-256 of every file first
logits = run(images)
```
{table}
`manifest.json` holds the SHA-256 of every file.
"""
