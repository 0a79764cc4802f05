"""What ships is what was evaluated: timm's own transform, by the exported configuration, makes evaluation's images."""

import io
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw, ImageOps

from augment.chain import eval_view
from augment.views import InputSpec
from distill.data.canvas import Canvas
from distill.data.decode import decode
from distill.export.manifest import Preprocessing
from distill.export.targets.timm_folder import write_timm_folder
from distill.export.timm_transform import transform_difference

MEANS = {"imagenet": (0.485, 0.456, 0.406), "half": (0.5, 0.5, 0.5), "lite": (0.498, 0.498, 0.498), "zero": (0, 0, 0)}
SHAPES = [(60, 200), (200, 60), (97, 101), (64, 64), (33, 500), (20, 31), (1, 40), (300, 299)]


def drawing(height, width, mode="RGB", seed=0):
    """Noise, edges and an ellipse: details that resampling shows."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    ImageDraw.Draw(image).ellipse((width // 5, height // 5, width // 2, height - 1), fill=(250, 10, 60))
    return image.convert(mode)


def about(size, fit, mean="imagenet", std=(0.229, 0.224, 0.225)):
    canvas = Canvas.of_input(size, MEANS[mean], fit)
    return canvas, Preprocessing(input_size=(3, *size), mean=MEANS[mean], std=std, crop_mode=canvas.crop_mode)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("size", [(64, 64), (63, 63), (224, 224), (48, 80)], ids=str)
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_timms_transform_makes_evaluations_images(fit, size, mean):
    canvas, exported = about(size, fit, mean)
    apart = transform_difference(exported, canvas, [np.asarray(drawing(*shape)) for shape in SHAPES])
    assert apart is not None and apart.is_rounding and apart.largest <= 1.01, str(apart)
    assert apart.images == len(SHAPES)


def test_a_difference_is_measured():
    """The padding that was once ImageNet's mean, whatever the network's."""
    canvas, exported = about((64, 64), "pad", "half")
    wide = [np.asarray(drawing(40, 160))]
    skewed = transform_difference(exported, Canvas((64, 64), "pad"), wide)
    assert skewed is not None and not skewed.is_rounding
    assert 5 < skewed.mean < 15 and 23 < skewed.largest < 25
    assert str(skewed).startswith("timm's transform, by pretrained_cfg, differs from evaluation by")
    assert [result.value for result in skewed.results] == [skewed.mean, skewed.largest]
    squashed = transform_difference(exported.model_copy(update={"crop_mode": "squash"}), canvas, wide)
    assert squashed is not None and squashed.mean > 5
    assert transform_difference(exported, canvas, []) is None


def read_as_the_card_says(data):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK"])
def test_images_of_every_mode_read_as_the_card_says(mode):
    image = drawing(40, 120, mode if mode not in ("RGBA", "LA") else "RGB").convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(file, "TIFF" if mode == "CMYK" else "PNG", exif=exif)
    canvas, exported = about((64, 64), "pad", "half")
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=exported.model_dump()))
    shipped = transform(read_as_the_card_says(file.getvalue()))
    evaluated = canvas(decode(file.getvalue(), "x"))
    assert evaluated.shape == (64, 64, 3)
    view = eval_view(
        torch.from_numpy(evaluated.transpose(2, 0, 1).copy())[None], InputSpec((64, 64), exported.mean, exported.std)
    )
    assert float(((shipped - view[0]) * torch.tensor(exported.std).view(3, 1, 1) * 255).abs().max()) <= 1.01


def test_gray_networks_read_gray_images_and_alpha_is_measured():
    gray = np.asarray(drawing(40, 160, "L"))[:, :, None]
    canvas = Canvas.of_input((64, 64), (0.45,), "pad")
    exported = Preprocessing(input_size=(1, 64, 64), mean=(0.45,), std=(0.22,), crop_mode=canvas.crop_mode)
    apart = transform_difference(exported, canvas, [gray])
    assert apart is not None and apart.is_rounding
    four = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    canvas = Canvas.of_input((32, 32), (0.5,) * 4, "squash")
    exported = Preprocessing(input_size=(4, 32, 32), mean=(0.5,) * 4, std=(0.5,) * 4, crop_mode=canvas.crop_mode)
    apart = transform_difference(exported, canvas, [four])
    assert apart is not None and not apart.is_rounding, (
        "Pillow weighs colors by the fourth channel, evaluation does not"
    )
    assert apart.note.endswith("prepare images as the export's card says")


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize(("channels", "depth"), [(2, 8), (4, 8), (5, 8), (5, 16)])
def test_images_that_timms_transform_cannot_read_are_prepared_by_the_cards_code(channels, depth, fit, tmp_path):
    mean, std = tuple(np.linspace(0.2, 0.6, channels).tolist()), (0.25,) * channels
    canvas = Canvas.of_input((32, 32), mean, fit, depth)
    exported = Preprocessing(input_size=(channels, 32, 32), mean=mean, std=std, crop_mode=canvas.crop_mode)
    # Pillow clips 16 bits between its two passes, and floats not at all: values that never reach the ends agree.
    low, high = (0, 256) if depth == 8 else (20000, 45000)
    image = np.random.default_rng(0).integers(low, high, (40, 70, channels)).astype(f"uint{depth}")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2, in_chans=channels).eval()
    write_timm_folder(tmp_path, model, origin="random", preprocessing=exported, model_args={"in_chans": channels})
    card = (tmp_path / "README.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    names = {"image": image}
    exec(code.replace("PATH/OF/THIS/FOLDER", str(tmp_path)), names)
    own = eval_view(torch.from_numpy(canvas(image).transpose(2, 0, 1).copy())[None], exported.input)
    scale = 255 * torch.tensor(std).view(-1, 1, 1)
    assert float(((names["prepare"](image) - own[0]) * scale).abs().max()) <= 1.01
    assert torch.allclose(names["logits"], model(own), atol=1e-2)
    why = "takes the fourth channel for transparency" if channels == 4 else f"has no images of {channels} channels"
    assert f"Do not use timm's transform on a whole image: it resizes through Pillow, which {why}" in card
    apart = transform_difference(exported, canvas, [image])
    assert apart is not None
    if channels != 4:
        assert apart.mean < (0.05 if depth == 8 or fit != "pad" else 0.5), "timm pads with a value of 8 bits"
        assert apart.note.startswith(f"timm's transform cannot read images of {channels} channels")
        assert apart.results[0].name == "timm's transform, channel by channel, mean difference from evaluation / 255"


def test_sixteen_bits_which_timms_transform_does_not_take():
    """It gets their highest 8 bits: half a level less on average. timm's loader would cut gray ones off at 255."""
    deep = [np.random.default_rng(0).integers(0, 65536, (70, 90, 3)).astype(np.uint16)]
    _, exported = about((64, 64), "squash", "zero", (1.0, 1.0, 1.0))
    apart = transform_difference(exported, Canvas.of_input((64, 64), MEANS["zero"], "squash", depth=16), deep)
    assert apart is not None and 0.1 < apart.mean < 0.7 and not apart.is_rounding
    cause = "since it takes pictures of 8 bits and evaluation keeps 16"
    assert str(apart).endswith(cause) and apart.note.endswith(f"{cause}; give it the highest 8 of the bits in use")
    buffer = io.BytesIO()
    Image.fromarray(deep[0][..., 0]).save(buffer, "PNG")
    assert np.array_equal(np.asarray(Image.open(buffer).convert("RGB"))[..., 0], np.minimum(deep[0][..., 0], 255))
