"""Contrastive losses against naive loops, closed forms, and themselves on several processes."""

import math
import socket

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from mmlab.objectives.contrastive import (
    contrastive_loss,
    gather_with_gradient,
    sigmoid_loss,
    soft_contrastive_loss,
    token_similarity,
    token_wise_loss,
)


def features(num=6, dim=5, seed=0, dtype=torch.float64):
    """Two sets of features, of no particular length."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, num, dim)
    return 3 * torch.randn(shape, generator=generator, dtype=dtype)


def tokens(num=4, seed=0):
    """Images of 3 tokens, texts of 5 of which some are padding."""
    generator = torch.Generator().manual_seed(seed)
    images, texts = (torch.randn(num, n, 6, generator=generator).double() for n in (3, 5))
    lengths = 1 + torch.arange(num) % 5
    return images, texts, torch.arange(5) < lengths[:, None]


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


# The naive twins: one number after the other.


def naive_contrastive(images, texts, scale):
    total = 0.0
    for queries, keys in ((images, texts), (texts, images)):
        for i, query in enumerate(queries):
            cosines = [float(query @ key / (query.norm() * key.norm())) for key in keys]
            total += math.log(sum(math.exp(scale * c) for c in cosines)) - scale * cosines[i]
    return total / (2 * len(images))


def naive_sigmoid(images, texts, scale, bias):
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            logit = scale * float(image @ text / (image.norm() * text.norm())) + bias
            probability = 1 / (1 + math.exp(-logit))
            total -= math.log(probability if i == j else 1 - probability)
    return total / len(images)


def naive_token_similarity(query, keys):
    """How well the tokens of ``query`` find partners among ``keys``; neither has padding."""
    return sum(max(float(q @ k / (q.norm() * k.norm())) for k in keys) for q in query) / len(query)


def naive_token_wise(images, texts, scale):
    """Texts are lists of their real tokens."""
    total = 0.0
    for queries, keys in ((images, texts), (texts, images)):
        for i, query in enumerate(queries):
            logits = [scale * naive_token_similarity(query, key) for key in keys]
            total += math.log(sum(map(math.exp, logits))) - logits[i]
    return total / (2 * len(images))


@pytest.mark.parametrize("scale", [0.0, 1.0, 14.3, 100.0])
@pytest.mark.parametrize("num", [1, 2, 7])
def test_the_loss_is_the_naive_loop(num, scale):
    images, texts = features(num)
    expected = naive_contrastive(images, texts, scale)
    assert contrastive_loss(images, texts, scale).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (1.0, 0.5)])
def test_the_sigmoid_loss_is_the_naive_loop(scale, bias):
    images, texts = features()
    expected = naive_sigmoid(images, texts, scale, bias)
    assert sigmoid_loss(images, texts, scale, bias).item() == pytest.approx(expected, abs=1e-9)


def test_the_token_wise_loss_is_the_naive_loop():
    images, texts, valid = tokens()
    real = [text[mask] for text, mask in zip(texts, valid, strict=True)]
    expected = naive_token_wise(list(images), real, 5.0)
    loss = token_wise_loss(images, texts, valid, 5.0)
    assert loss.item() == pytest.approx(expected, abs=1e-9)


# Values known beforehand


@pytest.mark.parametrize("num", [1, 4, 9])
def test_equal_features_cost_the_logarithm_of_the_batch_at_any_scale(num):
    same = torch.ones(num, 3, dtype=torch.float64)
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    loss = contrastive_loss(same, same, scale)
    assert loss.item() == pytest.approx(math.log(num))
    loss.backward()
    assert scale.grad.item() == pytest.approx(0)


@pytest.mark.parametrize("scale", [1.0, 14.3])
def test_a_perfect_diagonal(scale):
    perfect = torch.eye(8, dtype=torch.float64)
    expected = math.log(1 + 7 * math.exp(-scale))
    assert contrastive_loss(perfect, perfect, scale).item() == pytest.approx(expected)


def test_limits_of_the_scale():
    images, texts = features()
    assert contrastive_loss(images, texts, 0.0).item() == pytest.approx(math.log(6))
    # The colder, the more it is the margin by which the best wrong answer wins.
    cosines = unit(images) @ unit(texts).T
    margins = [(c.amax(1) - c.diagonal()).mean() for c in (cosines, cosines.T)]
    cold = contrastive_loss(images, texts, 1e4) / 1e4
    assert cold.item() == pytest.approx(float(sum(margins) / 2), abs=1e-3)


def test_the_gradient_is_softmax_minus_identity():
    images, texts = features()
    images, texts = unit(images).requires_grad_(), unit(texts)
    scale = 7.0
    contrastive_loss(images, texts, scale).backward()
    logits = scale * images.detach() @ texts.T
    excess = logits.softmax(1) + logits.softmax(0) - 2 * torch.eye(6)
    towards = scale * excess @ texts / (2 * 6)
    # A unit vector cannot grow: what points along it does not count.
    along = (towards * images).sum(1, keepdim=True) * images
    torch.testing.assert_close(images.grad, (towards - along).detach())


def test_gradients_agree_with_finite_differences():
    images, texts = (x.requires_grad_() for x in features(4))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(contrastive_loss, (images, texts, scale))
    assert torch.autograd.gradcheck(sigmoid_loss, (images, texts, scale, bias))
    patches, words, valid = tokens()
    inputs = (patches.requires_grad_(), words.requires_grad_(), valid, scale)
    assert torch.autograd.gradcheck(token_wise_loss, inputs)


# Invariants

LOSSES = {
    "contrastive": lambda images, texts: contrastive_loss(images, texts, 9.0),
    "chunked": lambda images, texts: contrastive_loss(images, texts, 9.0, chunk_size=4),
    "sigmoid": lambda images, texts: sigmoid_loss(images, texts, 9.0, -5.0),
    "soft": lambda images, texts: soft_contrastive_loss(
        9 * unit(images) @ unit(texts).T,
        9 * unit(texts) @ unit(images).T,
        torch.eye(len(images)).double(),
        torch.eye(len(images)).double(),
    ),
    "token-wise": lambda images, texts: token_wise_loss(
        images[:, None], texts[:, None], torch.ones(len(texts), 1, dtype=torch.bool), 9.0
    ),
}
EACH = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@EACH
def test_the_two_modalities_may_change_places(loss):
    images, texts = features()
    torch.testing.assert_close(loss(images, texts), loss(texts, images))


@EACH
def test_the_order_of_the_pairs_does_not_matter_but_the_pairing_does(loss):
    images, texts = features()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(loss(images[order], texts[order]), loss(images, texts))
    assert (loss(images[order], texts) - loss(images, texts)).abs() > 1e-2


@EACH
def test_lengths_do_not_matter(loss):
    images, texts = features()
    lengths = 0.1 + torch.rand(6, 1).double()
    torch.testing.assert_close(loss(images * lengths, 7 * texts), loss(images, texts))


@EACH
def test_a_rotation_of_the_space_does_not_matter(loss):
    images, texts = features()
    rotation, _ = torch.linalg.qr(torch.randn(5, 5).double())
    torch.testing.assert_close(loss(images @ rotation, texts @ rotation), loss(images, texts))


def test_one_token_each_is_the_plain_loss():
    images, texts = features()
    expected = contrastive_loss(images, texts, 9.0)
    torch.testing.assert_close(LOSSES["token-wise"](images, texts), expected)
    torch.testing.assert_close(LOSSES["soft"](images, texts), expected)


def test_padding_changes_nothing():
    images, texts, valid = tokens()
    loss = token_wise_loss(images, texts, valid, 5.0)
    texts[~valid] = 100 * torch.randn(6).double()
    torch.testing.assert_close(token_wise_loss(images, texts, valid, 5.0), loss)
    longer = torch.cat([texts, torch.randn(4, 2, 6).double()], dim=1)
    padded = F.pad(valid, (0, 2))
    torch.testing.assert_close(token_wise_loss(images, longer, padded, 5.0), loss)


def test_token_similarity_is_not_symmetric():
    one, two = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    all_one, all_two = torch.ones(1, 1).bool(), torch.ones(1, 2).bool()
    assert token_similarity(one, two, all_one, all_two).item() == 1
    assert token_similarity(two, one, all_two, all_one).item() == 0.5


def test_soft_targets_mix_the_losses():
    images, texts = features()
    logits = 9 * unit(images) @ unit(texts).T
    targets = torch.rand(6, 6).double().softmax(-1)
    loss = soft_contrastive_loss(logits, logits.T, targets, targets)
    naive = -(targets * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum() / (2 * 6)
    torch.testing.assert_close(loss, naive)


def test_soft_targets_may_range_over_a_queue():
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    targets = F.one_hot(torch.tensor([4, 0, 9]), 10).float()
    loss = soft_contrastive_loss(logits, logits, targets, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets.argmax(1)))


# Chunks


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 8, 100])
def test_chunks_change_neither_value_nor_gradients(chunk_size):
    results = []
    for size in (None, chunk_size):
        images, texts = (x.requires_grad_() for x in features(8, dtype=torch.float32))
        scale = torch.tensor(30.0, requires_grad=True)
        loss = contrastive_loss(images, texts, scale, size)
        loss.backward()
        results.append((loss.detach(), images.grad, texts.grad, scale.grad))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)


def largest_saved(chunk_size, num=512):
    """The most numbers that one tensor kept for the backward pass holds."""
    sizes = [0]

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    images, texts = (x.requires_grad_() for x in features(num, 8, dtype=torch.float32))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        contrastive_loss(images, texts, torch.tensor(10.0), chunk_size)
    return max(sizes)


def test_chunks_keep_no_table_for_the_backward_pass():
    assert largest_saved(None) == 512 * 512
    assert largest_saved(64) == 512 * 8


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_a_wrong_chunk_size_is_named(chunk_size):
    images, texts = features()
    with pytest.raises(ValueError, match=f"chunk_size must be at least 1, got {chunk_size}"):
        contrastive_loss(images, texts, 1.0, chunk_size)


def test_half_precision_is_computed_in_single():
    images, texts = features(64, 32, dtype=torch.float32)
    half = contrastive_loss(images.bfloat16(), texts.bfloat16(), 100.0)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(contrastive_loss(images, texts, 100.0).item(), rel=0.02)


# Several processes


def test_one_process_gathers_nothing():
    x = torch.randn(2, 3)
    assert gather_with_gradient(x) is x


class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image = torch.nn.Linear(7, 5).double()
        self.text = torch.nn.Linear(4, 5).double()
        self.scale = torch.nn.Parameter(torch.tensor(9.0, dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))

    def forward(self, loss, images, texts):
        images, texts = self.image(images), self.text(texts)
        if loss == "sigmoid":
            return sigmoid_loss(images, texts, self.scale, self.bias)
        if loss == "token-wise":
            pairs = (x.reshape(len(x) // 2, 2, 5) for x in (images, texts))
            valid = torch.tensor([[True, True], [True, False]]).repeat(len(images) // 4, 1)
            return token_wise_loss(*pairs, valid, self.scale)
        chunk_size = 2 if loss == "chunked" else None
        return contrastive_loss(images, texts, self.scale, chunk_size)


def inputs():
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(8, n, generator=generator).double() for n in (7, 4))


def gradients(model):
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


PARALLEL = ("contrastive", "chunked", "sigmoid", "token-wise")


def run_process(rank, num_processes, port, folder):
    """What one process of a run does: its share of the batch, gradients averaged as DDP does."""
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=num_processes)
    torch.set_num_threads(1)
    results = {}
    for name in PARALLEL:
        model = Towers()
        shared = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        loss = shared(name, *(x.chunk(num_processes)[rank] for x in inputs()))
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        results[name] = (mean / num_processes, gradients(model))
    if rank == num_processes - 1:
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_two_processes_are_one_with_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(run_process, (2, free_port(), str(tmp_path)), nprocs=2)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    for name in PARALLEL:
        model = Towers()
        loss = model(name, *inputs())
        loss.backward()
        mean, found = results[name]
        torch.testing.assert_close(mean, loss.detach())
        for key, gradient in gradients(model).items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-12, msg=key)
            assert gradient.abs().max() > 1e-4
