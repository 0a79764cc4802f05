"""Writes TIFFs of any number of bands, which neither Pillow nor OpenCV does."""

import struct

import numpy as np


def tiff(pixels: np.ndarray, planar: bool = False) -> bytes:
    """An uncompressed TIFF of uint8 or uint16 [H, W, C]; with ``planar``, one band after the other."""
    height, width, bands = pixels.shape
    strips = bands if planar else 1
    data = (pixels.transpose(2, 0, 1) if planar else pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
    fields = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8 * pixels.dtype.itemsize] * bands),
        259: ("H", [1]),  # not compressed
        262: ("H", [1]),  # black is zero
        273: ("I", [0] * strips),  # filled in below
        277: ("H", [bands]),
        278: ("I", [height]),
        279: ("I", [len(data) // strips] * strips),
        284: ("H", [2 if planar else 1]),
        338: ("H", [0] * (bands - 1)),
    }
    place = 8 + 2 + 12 * len(fields) + 4
    start = place + sum(size for form, values in fields.values() if (size := struct.calcsize(form) * len(values)) > 4)
    fields[273] = "I", [start + strip * len(data) // strips for strip in range(strips)]
    table, behind = struct.pack("<H", len(fields)), b""
    for tag, (form, values) in fields.items():
        packed = struct.pack(f"<{len(values)}{form}", *values)
        table += struct.pack("<HHI", tag, {"H": 3, "I": 4}[form], len(values))
        if len(packed) > 4:
            table += struct.pack("<I", place + len(behind))
            behind += packed
        else:
            table += packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", 8) + table + bytes(4) + behind + data
