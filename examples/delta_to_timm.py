"""From a delta file to a timm model elsewhere: load, merge, write a timm folder, and let timm alone open it.

Run it with ``python examples/delta_to_timm.py [FOLDER]``.
"""

import sys
import tempfile
from pathlib import Path

import timm
import torch

import distill
from distill.export.targets.timm_folder import write_timm_folder


def train_a_little(folder: Path) -> None:
    """Stands for a run: ``runs/NAME/export/delta`` is such a folder."""
    torch.manual_seed(0)
    student = distill.create_student("embedded:tf_efficientnet_lite0", "low_rank", num_classes=3, size=64).train()
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(student(torch.randn(6, 3, 64, 64)).logits, torch.arange(6) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    distill.save_delta(student, folder, labels=["red", "green", "blue"])


def main(folder: str) -> float:
    delta, merged = Path(folder) / "delta", Path(folder) / "merged"
    train_a_little(delta)

    # The backbone is the one that the file names; any other is refused, tensor by tensor.
    model = distill.load_delta(delta)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)

    distill.merge(model)
    write_timm_folder(merged, model, origin="embedded:tf_efficientnet_lite0", labels=["red", "green", "blue"])

    # Elsewhere, with timm alone:
    plain = timm.create_model(f"local-dir:{merged}", pretrained=True).eval()
    with torch.no_grad():
        difference = float((plain(images) - expected).abs().max())
    sizes = [sum(file.stat().st_size for file in path.glob("*.safetensors")) for path in (delta, merged)]
    print(f"delta {sizes[0] / 1e3:.0f} kB, merged {sizes[1] / 1e6:.1f} MB; logits differ by {difference:g}")
    return difference


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
