import torch
from torch import nn

from mmlab.training.ema import make_average, update_average


def test_it_is_the_closed_form_of_an_exponential_average():
    model = nn.Linear(3, 2)
    average = make_average(model)
    history = [model.weight.detach().clone()]
    for _ in range(5):
        nn.init.normal_(model.weight)
        history.append(model.weight.detach().clone())
        update_average(average, model, 0.8)
    expected = 0.8**5 * history[0]
    expected += sum(0.2 * 0.8 ** (5 - t) * history[t] for t in range(1, 6))
    torch.testing.assert_close(average.weight, expected)


def test_statistics_of_batch_norms_are_copied():
    model = nn.BatchNorm1d(3)
    average = make_average(model)
    model(torch.randn(8, 3))
    update_average(average, model, 0.9)
    assert torch.equal(average.running_mean, model.running_mean)
    assert average.num_batches_tracked == 1


def test_the_average_is_apart_from_the_model():
    model = nn.Linear(3, 2)
    average = make_average(model)
    before = model.weight.detach().clone()
    nn.init.ones_(average.weight)
    assert torch.equal(model.weight, before) and model.weight.requires_grad
    assert not average.weight.requires_grad and not average.training
