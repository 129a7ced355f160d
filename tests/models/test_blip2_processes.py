"""BLIP-2 on two processes: the contrast sees the features of all, negatives come from all."""

import socket

import torch
import torch.distributed as dist

from mmlab.models.blip2 import BLIP2, BLIP2Pretraining, BLIP2Retrieval
from tests.models.tiny import TINY_BLIP2

KINDS = (BLIP2Pretraining, BLIP2Retrieval)


def module_of(kind):
    torch.manual_seed(0)
    return kind(BLIP2(TINY_BLIP2)).double()


def batch_of_all():
    """Nothing in it is left to be drawn."""
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randn(6, 3, 16, 16, generator=generator, dtype=torch.float64),
        "input_ids": torch.randint(4, 48, (6, 7), generator=generator),
        "negative_images": torch.tensor([4, 0, 5, 1, 3, 2]),
        "negative_texts": torch.tensor([3, 4, 1, 0, 5, 2]),
        "image_ids": torch.tensor([3, 7, 8, 3, 5, 7]),
    }


def share_of(batch, rank):
    return {key: tensor.chunk(2)[rank] for key, tensor in batch.items()}


def results(module, batch):
    """Losses, and the gradients of each: of a part after the gathering and of one before it."""
    network, found = module.network, {}
    for name, loss in module.losses(batch).items():
        parts = (network.qformer.queries, network.image_norm.weight)
        gradients = torch.autograd.grad(loss, parts, retain_graph=True)
        found[name] = [loss.detach(), *gradients]
    return found


def run_process(rank, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    batch, found = share_of(batch_of_all(), rank), {}
    for kind in KINDS:
        module = module_of(kind)
        found[kind.__name__] = results(module, batch)
        del batch["negative_images"]
        drawn = torch.stack([torch.stack(module.step(batch).matching[:2]) for _ in range(20)])
        found[kind.__name__ + " draws"] = drawn
        batch = share_of(batch_of_all(), rank)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_two_processes_do_what_one_does_with_both_shares(tmp_path):
    """Means over processes equal one process's, gradients included.

    For the contrast as well, because one process does not differentiate the columns either.
    """
    torch.multiprocessing.spawn(run_process, (free_port(), str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    batch = batch_of_all()
    for kind in KINDS:
        alone = results(module_of(kind), batch)
        for name, right in alone.items():
            shares = [one[kind.__name__][name] for one in found]
            for i, tensor in enumerate(right):
                mean = sum(share[i] for share in shares) / 2
                torch.testing.assert_close(mean, tensor, rtol=1e-9, atol=1e-12)
        ids = batch["image_ids"] if kind is BLIP2Retrieval else torch.arange(6)
        draws = [one[kind.__name__ + " draws"] for one in found]
        for rank, drawn in enumerate(draws):
            assert (ids[drawn] != ids.chunk(2)[rank]).all()
            assert {n // 3 for n in drawn.flatten().tolist()} == {0, 1}
