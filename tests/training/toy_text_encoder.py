"""A text encoder without weights, for tests: a bag of words, each with keyed random numbers. Named in configs as
``toy_text_encoder:BagOfWords``."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distill.text.encoders.base import TextEncoder


class BagOfWords(TextEncoder):
    class Settings(TextEncoder.Settings):
        type: str
        width: int = 16

    settings: Settings

    def encode(self, texts: Sequence[str]) -> Tensor:
        rows = [sum(self._word(word) for word in re.findall(r"\w+", text.lower())) for text in texts]
        return torch.nn.functional.normalize(torch.tensor(np.stack(rows), dtype=torch.float32), dim=1)

    def _word(self, word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        return np.random.default_rng(seed).normal(size=self.settings.width)


class Tower(BagOfWords):
    """The text tower of an image-text model, by its own word."""

    image_text = True
