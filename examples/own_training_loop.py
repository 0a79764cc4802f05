"""A student taught in a plain torch loop: two views of each digit, cross-entropy, and the teacher's relations.

Run it with ``python examples/own_training_loop.py [FOLDER]``; the delta file is written into FOLDER.
"""

import sys
import tempfile

import torch
from sklearn.datasets import load_digits

import distill


def main(folder: str, steps: int = 20) -> list[float]:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.images * 255 / 16).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target)

    student = distill.create_student(
        "embedded:tf_efficientnet_lite0",
        [{"type": "low_rank", "rank": 4}, "norm_affine"],
        num_classes=10,
        size=32,
        needs=("logits", "pooled"),
    )
    teacher = distill.create_teacher("embedded:tf_efficientnet_lite1", size=32, needs="pooled")
    recipe = [{"type": "RandomResizedCrop", "scale": [0.6, 1.0]}, {"type": "ColorJitter", "brightness": 0.4}]
    augment = distill.create_augment("shared_geometry", student=student, teacher=teacher, recipe=recipe, seed=0)
    objectives = ["ce", {"type": "pkt", "weight": 1000}]
    step = distill.create_step(student, teacher, objectives, augment, steps_per_epoch=steps)

    optimizer = torch.optim.AdamW([p for p in step.parameters() if p.requires_grad], lr=3e-3)
    step.train()
    losses = []
    for number in range(steps):
        ids = torch.randint(len(labels), (32,))
        loss = step(images[ids], ids, labels[ids], epoch=number, step=number).loss  # epoch: new views at every step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step.after_update(number)
        losses.append(loss.item())

    print(f"loss {losses[0]:.2f} → {losses[-1]:.2f} in {steps} steps")
    manifest = distill.save_delta(student, folder, labels=[str(n) for n in range(10)])
    print(f"{folder}: {len(manifest.deltas)} kinds of deltas for {manifest.architecture}")
    return losses


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
