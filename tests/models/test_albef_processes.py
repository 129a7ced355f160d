"""ALBEF on two processes: one queue for all, and only the own share of the batch beside it."""

import socket

import torch
import torch.distributed as dist

from mmlab.models.albef import ALBEF, ALBEFPretraining
from mmlab.models.albef_tasks import ALBEFRetrieval
from tests.models.tiny import TINY_ALBEF

STEPS = 3


def module_of(kind):
    torch.manual_seed(0)
    return kind(ALBEF(TINY_ALBEF), queue_size=16, decay=0.9, mask_id=3).double()


def batch_of(step):
    """The batch of all processes; nothing in it is left to be drawn."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(4, 50, (6, 7), generator=generator)
    labels = torch.full_like(ids, -100)
    labels[:, 2] = ids[:, 2]
    other = torch.tensor([1, 2, 0] * 2)
    return {
        "images": torch.randn(6, 3, 16, 16, generator=generator, dtype=torch.float64),
        "input_ids": ids,
        "negative_images": other,
        "negative_texts": other,
        "masked_ids": ids.masked_fill(labels != -100, 3),
        "labels": labels,
        "image_ids": torch.randint(5, (6,), generator=generator),
    }


def share_of(batch, rank):
    return {key: tensor.chunk(2)[rank] for key, tensor in batch.items()}


def run_process(rank, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {}
    for kind in (ALBEFPretraining, ALBEFRetrieval):
        module = module_of(kind)
        steps = []
        for number in range(STEPS):
            step = module.step(share_of(batch_of(number), rank))
            steps.append({name: loss.detach() for name, loss in step.losses().items()})
        results[kind.__name__] = {"losses": steps, "queue": module.queue.state_dict()}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def alone(kind, rank):
    """What a process must find: its share's losses, with a queue that holds everybody's."""
    module, losses = module_of(kind), []
    for number in range(STEPS):
        batch = batch_of(number)
        module.momentum.update(module.network)
        parts = [module.contrast(share_of(batch, r)) for r in range(2)]
        contrast = parts[rank]
        own = share_of(batch, rank)
        found = {"contrastive": contrast.loss(), "matching": module.match(own, contrast).loss()}
        if kind is ALBEFPretraining:
            found["masked_words"] = module.predict_words(own, contrast).loss()
        losses.append(found)
        module.queue.enqueue(
            batch["image_ids"] if kind is ALBEFRetrieval else None,
            images=torch.cat([part.momentum_image_features for part in parts]),
            texts=torch.cat([part.momentum_text_features for part in parts]),
        )
    return losses, module.queue.state_dict()


def test_processes_share_the_queue_and_nothing_else_of_the_batch(tmp_path):
    torch.multiprocessing.spawn(run_process, (free_port(), str(tmp_path)), nprocs=2)
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for kind in (ALBEFPretraining, ALBEFRetrieval):
            losses, queue = alone(kind, rank)
            found = results[kind.__name__]
            for expected, got in zip(losses, found["losses"], strict=True):
                assert expected.keys() == got.keys()
                for name, loss in expected.items():
                    torch.testing.assert_close(got[name], loss.detach(), rtol=1e-9, atol=1e-12)
            for name, table in queue.items():
                torch.testing.assert_close(found["queue"][name], table, rtol=1e-9, atol=1e-12)
            # 3 steps of 6 in a queue of 16.
            assert found["queue"]["pointer"] == 2
