"""A tiny CLIP on shards, by accelerate in several processes: what each saw, and the losses.

python -m torch.distributed.run … shard_run.py <shards> <folder for the results> <steps>
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from mmlab.datasets.shards import ShardLoader, ShardOptions
from mmlab.models.clip import CLIP, CLIPConfig, CLIPPretraining
from mmlab.training.loop import Losses

CONFIG = CLIPConfig(
    image_size=16,
    patch_size=8,
    dim=32,
    depth=1,
    num_heads=2,
    mlp_dim=64,
    vocab_size=128,
    context_length=16,
    text_dim=32,
    text_depth=1,
    text_num_heads=2,
    text_mlp_dim=64,
    embed_dim=16,
)


def collate(examples, draws):
    """Letters are tokens here; 127 ends a caption and fills it up."""
    examples = list(examples)
    ids = torch.full((len(examples), 16), 127)
    for row, example in zip(ids, examples, strict=True):
        letters = [ord(letter) for letter in example.captions[0].text[:15]]
        row[: len(letters)] = torch.tensor(letters)
    images = torch.stack([example.image for example in examples]).float() / 255
    return {"images": images, "input_ids": ids, "ids": [example.id for example in examples]}


def main(shards, folder, steps):
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = Losses(CLIPPretraining(CLIP(CONFIG)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    process = accelerator.process_index
    loader = ShardLoader(
        shards, 8, collate, ShardOptions(buffer=16), process, accelerator.num_processes, workers=1
    )
    seen, losses = [], []
    for _, batch in zip(range(steps), loader, strict=False):
        seen.append(batch.pop("ids"))
        loss = sum(model(batch).values())
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
    weights = sum(parameter.double().sum() for parameter in model.parameters()).item()
    report = {"seen": seen, "losses": losses, "weights": weights}
    Path(folder, f"{process}.json").write_text(json.dumps(report))
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
