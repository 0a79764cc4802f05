"""Formats that Pillow reads with a plug-in, and those that need their extension."""

from base64 import b64decode

import numpy as np
import pytest
from encoded_images import encoded, picture
from PIL import Image

from distill.data.base import DataError
from distill.data.decode import decode
from distill.data.formats import extensions, readable_formats, unreadable_because

HEIC = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAAAERA"
    "AAEAAQAAAAABoAABAAAAAAAAADIAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAAAADcaXBjbwAA"
    "AHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq"
    "rprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAEAAAAAEAAAAQ"
    "AAAAAf///9AAAAAC////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAAOm1kYXQAAAAuKAGvEyFiY0D1JyL//v+6"
    "f/CLJ/0r2WFncrrBW/L6wPZkm8DzqpGegIdppzAVeA=="
)


def test_heic_and_jfif(tmp_path) -> None:
    assert {".heic", ".jfif", ".webp", ".qoi", ".tga"} <= extensions() and not {".eps", ".pdf"} & extensions()
    image = decode(b64decode(HEIC), "a.heic")
    assert image.shape == (16, 16, 3) and np.abs(image.astype(int) - (200, 60, 30)).max() < 8
    data = encoded(Image.fromarray(picture()), "JPEG", quality=100, subsampling=0)
    (tmp_path / "a.jfif").write_bytes(data)
    assert np.abs(decode(tmp_path / "a.jfif", "a.jfif").astype(int) - picture()).max() < 8


def test_heic_without_the_plugin(monkeypatch) -> None:
    known = tuple(form for form in readable_formats() if form != "HEIF")
    monkeypatch.setattr("distill.data.formats.readable_formats", lambda: known)
    extensions.cache_clear()
    try:
        assert ".heic" not in extensions()
        assert (
            unreadable_because("x/1.HEIC") == ".heic (needs a plug-in of Pillow: pip install pi-heif, or pillow-heif)"
        )
        with pytest.raises(DataError, match=r"a\.heic: not an image that can be read \(\.heic \(needs a plug-in"):
            decode(b64decode(HEIC), "a.heic")
    finally:
        extensions.cache_clear()


def test_a_format_without_signature_is_tried_by_its_extension_only() -> None:
    data = encoded(Image.fromarray(picture()), "TGA")
    assert np.array_equal(decode(data, "a.tga"), picture())
    with pytest.raises(DataError, match="not an image"):
        decode(data, "a.png")
