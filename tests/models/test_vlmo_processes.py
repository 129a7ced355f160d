"""VLMo on two processes: one table of similarities, wrong partners from both, and its gradient."""

import socket

import torch
import torch.distributed as dist

from mmlab.models.vlmo import VLMo
from mmlab.models.vlmo_pretraining import VLMoPretraining
from mmlab.objectives.global_contrast import gather_own_first
from tests.models.tiny import TINY_VLMO

# For each row of a process's share, a wrong image and a wrong text, counted own rows first.
WRONG = torch.tensor([3, 5, 1]), torch.tensor([4, 0, 5])
SCALES = ("heads.contrast.logit_scale", "heads.fusion_contrast.logit_scale")


def module_of():
    torch.manual_seed(0)
    return VLMoPretraining(
        VLMo(TINY_VLMO), mask_id=3, generator=torch.Generator().manual_seed(1)
    ).double()


def batch_of():
    """The batch of both processes; in the second share texts are shorter."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 48, (6, 7), generator=generator)
    ids[3:, 5:] = 0
    images = torch.randn(6, 3, 12, 12, generator=generator, dtype=torch.float64)
    labels = ids.masked_fill(ids == 0, -100)
    return {"images": images, "input_ids": ids, "masked_ids": ids, "labels": labels}


def share_of(batch, rank):
    share = {key: tensor.chunk(2)[rank] for key, tensor in batch.items()}
    if rank == 1:
        share |= {key: share[key][:, :5] for key in ("input_ids", "masked_ids", "labels")}
    return share | {"negative_images": WRONG[0], "negative_texts": WRONG[1]}


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in module.network.named_parameters() if p.grad is not None}


def averaged(found):
    for gradient in found.values():
        dist.all_reduce(gradient)
    return {name: gradient / 2 for name, gradient in found.items()}


def run_process(rank, port, folder):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    module = module_of()
    step = module.step(share_of(batch_of(), rank))
    losses = step.losses()
    results = {
        "order": gather_own_first(torch.tensor([rank])),
        "similarity": step.contrast.image_to_text.detach(),
        "losses": {name: loss.detach() for name, loss in losses.items()},
        "logits": step.matching.logits.detach(),
        "drawn": torch.stack(module._negatives({}, step.contrast)),
        "gradients": averaged(gradients(module, losses["contrastive"])),
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def same(left, right):
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def own_first(rank):
    rows = torch.arange(6)
    return torch.cat([rows.chunk(2)[rank], rows.chunk(2)[1 - rank]])


def test_two_processes_see_one_batch_and_average_to_half_of_its_gradient(tmp_path):
    torch.multiprocessing.spawn(run_process, (free_port(), str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    module, batch = module_of(), batch_of()
    places = torch.arange(6).roll(1)
    whole = module.step(batch | {"negative_images": places, "negative_texts": places})
    loss = whole.losses()["contrastive"]
    for rank, result in enumerate(found):
        order = own_first(rank)
        assert result["order"].tolist() == [rank, 1 - rank]
        same(result["similarity"], whole.contrast.image_to_text[order][:, order].detach())
        same(result["losses"]["contrastive"], loss.detach())
        assert (result["drawn"] != torch.arange(3)).all() and result["drawn"].max() > 2
        same(result["logits"], matching_alone(module, batch, order))
    expected = gradients(module, loss)
    for name, gradient in found[0]["gradients"].items():
        # Only own rows carry a gradient; the scales are in everybody's table.
        same(gradient, expected[name] * (1.0 if name in SCALES else 0.5))
    assert expected.keys() == found[0]["gradients"].keys() >= set(SCALES)


def matching_alone(module, batch, order):
    """What a process must find for its share, from the whole batch."""
    ids, images = batch["input_ids"][order], batch["images"][order]
    parts = [
        (ids[:3], images[:3]),
        (ids[:3], images[WRONG[0]]),
        (ids[WRONG[1]], images[:3]),
    ]
    return torch.cat([module.network.matching_logits(module.network(*p)) for p in parts]).detach()
