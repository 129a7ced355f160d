"""BLIP on two processes: one queue for all; in retrieval negatives from all, with gradient."""

import socket

import torch
import torch.distributed as dist

from mmlab.models.blip import BLIP, BLIPPretraining
from mmlab.models.blip_tasks import BLIPRetrieval
from tests.models.tiny import TINY_BLIP

STEPS = 2
# For each row of the batch of all processes, a wrong image and a wrong text among all of them.
WRONG = torch.tensor([4, 0, 5, 1, 3, 2]), torch.tensor([3, 4, 1, 0, 5, 2])


def module_of(kind):
    torch.manual_seed(0)
    return kind(BLIP(TINY_BLIP), queue_size=12, decay=0.9).double()


def batch_of(step, kind):
    """The batch of all processes; nothing in it is left to be drawn."""
    generator = torch.Generator().manual_seed(step)
    other = torch.tensor([1, 2, 0] * 2)
    images, texts = WRONG if kind is BLIPRetrieval else (other, other)
    return {
        "images": torch.randn(6, 3, 16, 16, generator=generator, dtype=torch.float64),
        "input_ids": torch.randint(4, 48, (6, 7), generator=generator),
        "negative_images": images,
        "negative_texts": texts,
        "image_ids": torch.randint(5, (6,), generator=generator),
    }


def share_of(batch, rank):
    return {key: tensor.chunk(2)[rank] for key, tensor in batch.items()}


def gradient_of_matching(module, step):
    module.zero_grad()
    step.losses()["matching"].backward()
    return module.network.image_encoder.patch_embedding.projection.weight.grad


def run_process(rank, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {}
    for kind in (BLIPPretraining, BLIPRetrieval):
        module, steps = module_of(kind), []
        for number in range(STEPS):
            step = module.step(share_of(batch_of(number, kind), rank))
            steps.append({name: loss.detach() for name, loss in step.losses().items()})
        gradient = gradient_of_matching(module, step)
        dist.all_reduce(gradient)
        state = {"queue": module.queue.state_dict(), "gradient": gradient / 2}
        results[kind.__name__] = {"losses": steps, **state}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def same(left, right):
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def contrasts_alone(kind):
    """What the processes must find: their own shares' contrast, the queue that holds all."""
    module, losses = module_of(kind), []
    for number in range(STEPS):
        batch = batch_of(number, kind)
        module.momentum.update(module.network)
        parts = [module.contrast(share_of(batch, rank)) for rank in range(2)]
        losses.append([part.loss().detach() for part in parts])
        module.queue.enqueue(
            batch["image_ids"] if kind is BLIPRetrieval else None,
            images=torch.cat([part.momentum_image_features for part in parts]),
            texts=torch.cat([part.momentum_text_features for part in parts]),
        )
    return losses, module.queue.state_dict()


def matching_alone(kind):
    """One process with the whole batch: what the mean over processes must be."""
    module, losses = module_of(kind), []
    for number in range(STEPS):
        batch = batch_of(number, kind)
        if kind is BLIPPretraining:  # Negatives are of the own share.
            for name in ("negative_images", "negative_texts"):
                batch[name] = batch[name] + torch.tensor([0, 0, 0, 3, 3, 3])
        step = module.step(batch)
        losses.append(step.losses()["matching"].detach())
    return losses, gradient_of_matching(module, step)


def test_processes_share_the_queue_and_where_asked_the_negatives(tmp_path):
    torch.multiprocessing.spawn(run_process, (free_port(), str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for kind in (BLIPPretraining, BLIPRetrieval):
        results = [one[kind.__name__] for one in found]
        contrasts, queue = contrasts_alone(kind)
        matching, gradient = matching_alone(kind)
        for rank, result in enumerate(results):
            for number in range(STEPS):
                same(result["losses"][number]["contrastive"], contrasts[number][rank])
            for name, table in queue.items():
                same(result["queue"][name], table)
            same(result["gradient"], gradient)
        for number in range(STEPS):
            same(sum(r["losses"][number]["matching"] for r in results) / 2, matching[number])
