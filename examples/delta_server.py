"""A server of many tasks over one backbone: post an image to ``/TASK``. Requests of all tasks share batches.

Run it with ``python examples/delta_server.py FOLDER``, a folder of delta folders, each named like its task, after
``pip install fastapi uvicorn``. Then ``curl --data-binary @image.jpg localhost:8000/TASK``.
"""

import asyncio
import io
import sys
from collections import deque
from pathlib import Path
from typing import Annotated

import timm.data
import torch
import uvicorn
from fastapi import Body, FastAPI, HTTPException
from PIL import Image

import distill


def create_app(bank: distill.DeltaBank, size: int = 224, largest: int = 16) -> FastAPI:
    app, lock, waiting = FastAPI(), asyncio.Lock(), deque()

    def prepare(name: str, data: bytes):
        task = bank.load(name)  # read and checked now, so a bad file fails its own requests and no batch
        config = {**task.preprocessing.model_dump(), "input_size": (3, size, size)}
        return task, timm.data.create_transform(**config)(Image.open(io.BytesIO(data)).convert("RGB"))

    @app.post("/{name}")
    async def classify(name: str, data: Annotated[bytes, Body(media_type="image/*")]) -> dict:
        try:
            task, image = await asyncio.to_thread(prepare, name, data)
        except (distill.UserError, OSError) as error:  # no such task, or its file is bad; no image
            raise HTTPException(422, f"{name}: {type(error).__name__}") from error
        waiting.append((task, image, mine := asyncio.Future()))
        async with lock:  # a batch is what arrived while the one before it was computed
            if not mine.done():
                batch = [waiting.popleft() for _ in range(min(largest, len(waiting)))]
                tasks, images, answers = zip(*batch)
                try:
                    logits = await asyncio.to_thread(bank.batch, torch.stack(images), tasks)
                    for answer, row in zip(answers, logits):
                        answer.set_result(row.tolist())
                except Exception as error:
                    for answer in answers:
                        answer.set_exception(error)
        return {"task": name, "labels": task.labels, "logits": await mine}

    return app


if __name__ == "__main__":
    bank = distill.DeltaBank(distill.create_student("embedded:tf_efficientnet_lite0").model, max_bytes="2GB")
    for path in Path(sys.argv[1]).iterdir():
        bank.add(path.name, path)
    uvicorn.run(create_app(bank))
