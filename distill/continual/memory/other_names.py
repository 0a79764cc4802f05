"""Our memories → what papers and other libraries call them, for the error of an unknown type."""

from __future__ import annotations

OTHER_NAMES = {
    "keyed": "reservoir reservoirsampling random uniform ring ringbuffer classbalanced balanced er replay buffer",
    "herding": "icarl exemplars nme mean",
    "leave memory out.": "none no off",
}
