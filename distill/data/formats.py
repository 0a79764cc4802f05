"""Image formats: those that this installation of Pillow reads, and what is missing for the others.

Only formats that Pillow decodes itself are read, or a plug-in with a bundled decoder: Pillow runs other programs for
some formats (EPS).
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from pathlib import Path

from PIL import Image

_NAMES = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "QOI", "DDS", "PCX"),
    *("SGI", "ICO", "PSD", "TGA", "HEIF", "JXL"),
)
_WITHOUT_SIGNATURE = "TGA"
"""A format that any bytes may be: it is tried only for files with its extension."""
_PLUGINS = (("pi_heif", "register_heif_opener"), ("pillow_heif", "register_heif_opener"), ("pillow_jxl", None))
"""(module, function that registers its format) of Pillow's plug-ins that are used if they are installed."""
_HEIF = "needs a plug-in of Pillow: pip install pi-heif, or pillow-heif"
ARRAY = ".npy"
"""Extension of files with an array, see :mod:`distill.data.arrays`."""
_MISSING = {
    **dict.fromkeys((".heic", ".heif", ".hif", ".heics", ".heifs"), _HEIF),
    ".jxl": "needs a plug-in of Pillow: pip install pillow-jxl-plugin",
    **dict.fromkeys((".avif", ".avifs"), "needs Pillow 11.3 or later, built with AVIF"),
    **dict.fromkeys((".svg", ".svgz", ".eps", ".ai"), "a vector graphic, which has no pixels"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"), "an archive; unpack it"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"), "a video; store its frames as images"),
    **dict.fromkeys((".parquet", ".arrow"), "a table; use the source huggingface"),
    **dict.fromkeys(
        (".dcm", ".nii", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".raw", ".exr", ".hdr"),
        "not a format of Pillow; convert it to PNG or TIFF",
    ),
    ".pdf": "pages, not an image; convert each to PNG",
    **dict.fromkeys((".npz", ".mat", ".h5", ".hdf5", ".pt", ".pkl"), "arrays; save each image as .npy, PNG or TIFF"),
    ARRAY: "an array; give the file this extension",
    ".gitkeep": "not an image",
}

_SIGNATURES = {
    b"%!PS": ".eps",
    b"%PDF": ".pdf",
    b"PK\3\4": ".zip",
    b"\x1f\x8b": ".gz",
    b"\x89HDF": ".h5",
    b"\x93NUMPY": ".npy",
}
"""First bytes of a file → the extension that it should have."""
_BRANDS = {b"hei": ".heic", b"hev": ".heic", b"mif": ".heic", b"msf": ".heic", b"avi": ".avif"}
"""Brand of a file of MPEG's container → the extension; others are videos."""


@cache
def readable_formats() -> tuple[str, ...]:
    """Names of the formats that are read: those of ``_NAMES`` that Pillow and its installed plug-ins have."""
    Image.init()
    for module, register in _PLUGINS:
        try:
            plugin = import_module(module)
        except ImportError:
            continue
        if register is not None:
            getattr(plugin, register)()
    return tuple(name for name in _NAMES if name in Image.OPEN)


@cache
def extensions() -> frozenset[str]:
    """File extensions of the formats that are read, in lower case, with the dot; also that of arrays."""
    formats = readable_formats()
    known = [extension for extension, name in Image.registered_extensions().items() if name in formats]
    return frozenset([*known, ARRAY])


def formats_of(name: str) -> list[str]:
    """The formats to try for a file of this name: all those that have a signature, whatever the extension."""
    every = readable_formats()
    if extension_of(name) in {e for e, form in Image.registered_extensions().items() if form == _WITHOUT_SIGNATURE}:
        return list(every)
    return [form for form in every if form != _WITHOUT_SIGNATURE]


def extension_of(name: str) -> str:
    """The extension of a file's name in lower case, with the dot; empty if there is none."""
    return os.path.splitext(name)[1].lower()


def is_array(name: str) -> bool:
    """Whether a file of this name holds an array, see :mod:`distill.data.arrays`."""
    return extension_of(name) == ARRAY


def other_content(source: bytes | str | Path) -> str:
    """What a file is that is no image by its first bytes, whatever its name says; empty if that is not known."""
    if isinstance(source, bytes):
        start = source[:256]
    else:
        with open(source, "rb") as file:
            start = file.read(256)
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS; run git lfs pull"
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    extension = next((known for signature, known in _SIGNATURES.items() if start.startswith(signature)), "")
    if start[4:8] == b"ftyp":
        extension = _BRANDS.get(start[8:11], ".mp4")
    elif b"<svg" in text:
        extension = ".svg"
    elif text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page or XML; was the download refused?"
    return f"its content is {unreadable_because(f'x{extension}')}" if extension else ""


def unreadable_because(name: str) -> str:
    """Why a file is not read, from its extension: ``.heic (needs a plug-in of Pillow: …)``."""
    extension = extension_of(name)
    if not extension:
        return "without an extension"
    return f"{extension} ({_MISSING[extension]})" if extension in _MISSING else f"{extension} (not an image)"
