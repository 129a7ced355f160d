"""The benchmarks against transformers, at tiny sizes: sides must agree before a clock runs."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmlab.models.albef import ALBEF_MINI
from mmlab.models.blip import BLIP_MINI
from mmlab.models.blip2 import BLIP2_MINI
from mmlab.models.lxmert import HEADS, LXMERT_MINI
from mmlab.models.visualbert import VISUALBERT_MINI

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import albef
import blip
import lxmert
import pairs
import qformer
import visualbert

SMALL = {"image_size": 32, "vocab_size": 120, "dropout": 0.1}
SIZES = {
    blip: replace(BLIP_MINI, **SMALL),
    albef: replace(ALBEF_MINI, **SMALL),
    qformer: replace(BLIP2_MINI, image_encoder="eva", stem="linear", **SMALL),
    lxmert: replace(LXMERT_MINI, vocab_size=120, heads=HEADS, num_classes=9, dropout=0.1),
    visualbert: replace(VISUALBERT_MINI, vocab_size=120, dropout=0.1),
}
FIGURES = {
    blip: {"features", "matching", "captioning_step"},
    albef: {"training_step"},
    qformer: {"queries", "queries_and_text"},
    lxmert: {"features", "pretraining_step"},
    visualbert: {"features", "pretraining_step"},
}


@pytest.mark.parametrize("part", SIZES, ids=lambda part: part.__name__)
def test_both_sides_agree_and_are_timed(part, capsys):
    figures = part.measure(rounds=1, batch_size=3, depth=2, config=SIZES[part])
    assert figures.keys() == FIGURES[part]
    assert all(min(row.values()) > 0 for row in figures.values())
    assert "ratio" in capsys.readouterr().out


@pytest.mark.parametrize("compare", [pairs.compare_forward, pairs.compare_training])
def test_no_clock_runs_where_the_sides_differ(compare):
    model, x = torch.nn.Linear(3, 1), torch.ones(3)
    sides = (model, lambda: model(x).sum()), (model, lambda: model(x).sum() + 1e-3)
    with pytest.raises(AssertionError, match="not close"):
        compare("unlike", *sides, rounds=1)


def test_towers_of_transformers_give_the_losses_of_albef():
    """Each of the three, and where gradients of the text go."""
    ours = albef.ALBEF(SIZES[albef])
    modules = [
        albef.ALBEFPretraining(m, queue_size=8) for m in (albef.with_their_towers(ours), ours)
    ]
    modules[0].queue.load_state_dict(modules[1].queue.state_dict())
    batch = albef.batch_of(ours.config, 3)
    theirs, right = (m.eval().losses(batch, update=False) for m in modules)
    torch.testing.assert_close(theirs, right, rtol=0, atol=1e-5)
    sum(theirs.values()).backward()
    sum(right.values()).backward()
    tables = [m.network.text_encoder.embeddings.word_embedding.weight.grad for m in modules]
    torch.testing.assert_close(*tables, rtol=0, atol=1e-5)
    assert tables[0].abs().max() > 1e-3


def test_weights_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"the weights do not fit: \['bias', 'more'\]"):
        blip.load(torch.nn.Linear(2, 2), {"weight": torch.zeros(2, 2), "more": torch.zeros(1)})
