import pytest
import torch

from mmlab.tasks.classification import emoji_images
from mmlab.training.batches import Batches
from mmlab.training.seeds import generator, mixed_seed, seed_everything


class Numbers:
    """Examples that are their own index, with a random number beside each."""

    def __len__(self):
        return 23

    def batch(self, rows, share, generator):
        draws = torch.rand(len(rows), generator=generator)
        return {"rows": rows[share], "draws": draws[share]}


def test_an_epoch_shows_no_example_twice():
    batches = Batches(Numbers(), batch_size=5, seed=0)
    epochs = [torch.cat([batches.rows(4 * e + i) for i in range(4)]).tolist() for e in range(3)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_all_examples_come_up():
    batches = Batches(Numbers(), batch_size=5, seed=0)
    assert {int(r) for step in range(40) for r in batches.rows(step)} == set(range(23))


def test_a_batch_depends_on_seed_and_step_only():
    early, late = Batches(Numbers(), 5, seed=3), Batches(Numbers(), 5, seed=3)
    for step in range(11):
        early[step]
    assert all(torch.equal(early[11][k], late[11][k]) for k in ("rows", "draws"))
    other = Batches(Numbers(), 5, seed=4)
    assert not torch.equal(other[11]["draws"], late[11]["draws"])


def test_the_shares_of_all_processes_are_the_whole_batch():
    data = emoji_images(48, augment=True)
    whole = Batches(data, 12, seed=1)[7]
    parts = [Batches(data, 12, 1, process, 3)[7] for process in range(3)]
    for name in ("images", "labels"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_starts_where_it_is_told(workers):
    batches = Batches(Numbers(), 5, seed=0, workers=workers)
    loaded = [batch["rows"] for batch in batches.loader(3, 6)]
    assert [r.tolist() for r in loaded] == [batches.rows(step).tolist() for step in (3, 4, 5)]


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="batch_size must be at most the 23 images, got 24"):
        Batches(Numbers(), 24, 0)
    with pytest.raises(ValueError, match="multiple of the 2 processes, got 5"):
        Batches(Numbers(), 5, 0, process=0, num_processes=2)


def test_seeds_differ_in_every_key():
    seeds = {mixed_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125 and all(0 <= seed < 2**63 for seed in seeds)
    first, second = (torch.rand(3, generator=generator(1, 2)) for _ in range(2))
    assert torch.equal(first, second)
    seed_everything(1, 2)
    assert torch.equal(torch.rand(3), first)
