import pytest
import torch
from torch import nn

from mmlab.nn import FeatureQueue, MomentumTwin, make_average, update_average
from mmlab.nn.momentum import NO_ID


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(3, 2)
        self.heads = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
        self.scale = nn.Parameter(torch.tensor(2.0))


def test_a_constant_network_is_approached_in_closed_form():
    net = Net()
    twin = MomentumTwin(net, decay=0.9)
    start = twin.network.trunk.weight.clone()
    assert torch.equal(start, net.trunk.weight)
    nn.init.normal_(net.trunk.weight)
    for _ in range(7):
        twin.update(net)
    expected = 0.9**7 * start + (1 - 0.9**7) * net.trunk.weight
    torch.testing.assert_close(twin.network.trunk.weight, expected)
    assert twin.num_updates == 7


def test_a_twin_may_lack_parts_and_takes_no_gradient():
    net = Net()
    twin = MomentumTwin(net, without=("heads.b", "scale"))
    names = {name for name, _ in twin.network.named_parameters()}
    assert names == {"trunk.weight", "trunk.bias", "heads.a.weight", "heads.a.bias"}
    assert not any(p.requires_grad for p in twin.parameters())
    before = twin.network.heads["a"].weight.clone()
    nn.init.normal_(net.heads["a"].weight)
    twin.update(net)
    expected = before.lerp(net.heads["a"].weight.detach(), 1 - twin.decay)
    torch.testing.assert_close(twin.network.heads["a"].weight, expected)
    assert net.scale.requires_grad and "b" in net.heads


def test_parts_are_averaged_by_name_not_by_place():
    net = Net()
    average = make_average(net)
    del average.heads["a"]
    nn.init.constant_(net.heads["b"].weight, 3.0)
    update_average(average, net, 0.0)
    assert (average.heads["b"].weight == 3).all()


def test_alpha_rises_over_the_first_steps():
    net = Net()
    twin = MomentumTwin(net, alpha=0.4, ramp_steps=4)
    weights = []
    for _ in range(6):
        twin.update(net)
        weights.append(twin.weight().item())
    assert weights == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert MomentumTwin(net, alpha=0.4).weight().item() == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("name", "value"), [("decay", 1.5), ("decay", -0.1), ("alpha", 2.0), ("ramp_steps", -1)]
)
def test_wrong_numbers_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must .*, got {value}"):
        MomentumTwin(Net(), **{name: value})


def test_the_queue_holds_the_last_features_in_order():
    queue = FeatureQueue(12, keys=5)
    assert torch.allclose(queue.keys.norm(dim=0), torch.ones(12))
    rows = torch.randn(28, 5)
    for batch in rows.split(4):
        queue.enqueue(keys=batch)
    # 28 = 2 * 12 + 4: the last four are at the start.
    assert queue.pointer == 4
    assert torch.equal(queue.keys.T, torch.cat([rows[24:], rows[16:24]]))
    for batch in rows[:8].split(4):
        queue.enqueue(keys=batch)
    assert queue.pointer == 0
    assert torch.equal(queue.keys.T, torch.cat([rows[24:], rows[:8]]))


def test_a_batch_that_does_not_divide_the_queue_goes_on_at_the_start():
    queue, rows = FeatureQueue(5, keys=2), torch.randn(9, 2)
    for batch in rows.split(3):
        queue.enqueue(keys=batch)
    assert queue.pointer == 4
    assert torch.equal(queue.keys.T[[4, 0, 1, 2, 3]], rows[[4, 5, 6, 7, 8]])


def test_two_tables_and_ids_share_a_pointer():
    queue = FeatureQueue(4, ids=True, images=2, texts=3)
    assert (queue.ids == NO_ID).all()
    queue.enqueue(torch.tensor([7, 8, 9]), images=torch.ones(3, 2), texts=torch.zeros(3, 3))
    assert queue.ids.tolist() == [7, 8, 9, NO_ID]
    assert (queue.images[:, :3] == 1).all() and (queue.texts[:, :3] == 0).all()
    saved = FeatureQueue(4, ids=True, images=2, texts=3)
    saved.load_state_dict(queue.state_dict())
    assert saved.pointer == 3 and torch.equal(saved.texts, queue.texts)


def test_no_gradient_and_no_parameter():
    queue = FeatureQueue(4, keys=2)
    queue.enqueue(keys=torch.ones(2, 2, requires_grad=True))
    assert not queue.keys.requires_grad and not list(queue.parameters())


def test_bad_input_is_refused():
    queue = FeatureQueue(4, keys=2)
    with pytest.raises(ValueError, match="a batch of 5 does not fit into a queue of 4"):
        queue.enqueue(keys=torch.ones(5, 2))
    with pytest.raises(ValueError, match="the queue holds keys; each must be given"):
        queue.enqueue(images=torch.ones(2, 2))
    with pytest.raises(ValueError, match="the queue holds keys"):
        queue.enqueue(torch.tensor([1, 2]), keys=torch.ones(2, 2))
    with pytest.raises(ValueError, match="size must be at least 1"):
        FeatureQueue(0, keys=2)
