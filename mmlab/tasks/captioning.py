"""How good captions of scenes are: likeness to true ones, truth itself, and what is made up.

BLEU (Papineni et al. 2002) and CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726, section 6) come from
sacrebleu and pycocoevalcap, the code of the COCO caption server, which needs no Java for it. Truth
is read off the scenes, and so is CHAIR (Rohrbach et al. 2018, arXiv 1809.02156, section 2.1): what
a caption names that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmlab.datasets import Scenes
from mmlab.datasets.scenes import COLORS, SHAPES, judge
from mmlab.tasks.describing import describe_well, true_wordings

_THING = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(SHAPES)})(?:e?s)?\b")


def caption_figures(
    written: Sequence[str], dataset: Scenes, language: str = "en"
) -> dict[str, float | int]:
    """Judge one caption of each scene.

    - ``"bleu4"`` (0 to 100) and ``"cider"`` (0 to 10): likeness to all wordings of the true short
      and medium captions. No caption is like all wordings, so that even a true one stays well below
      a CIDEr of 10.
    - ``"true"``, ``"unreadable"``: the shares that the referee of the scenes finds true, and that
      it cannot read; a true caption need not tell everything.
    - ``"exact"``, ``"named"``, ``"num_different"``: see ``Described``.
    - ``"chair_instance"``, ``"chair_sentence"``, ``"named_each"``: see ``Hallucination``.

    ValueError unless there are as many captions as scenes, or for another language than English;
    ImportError that says what to install where the libraries are missing.
    """
    if language != "en":
        raise ValueError(f"language must be 'en', whose words are set apart, got {language!r}")
    described, made_up = describe_well(written, dataset), hallucination(written, dataset)
    references = [sorted(true_wordings(dataset, i, language)) for i in range(len(dataset))]
    verdicts = [judge(text, seen) for text, seen in zip(written, dataset, strict=True)]
    return {
        "bleu4": bleu4(written, references),
        "cider": cider(written, references),
        "true": verdicts.count(True) / len(dataset),
        "unreadable": verdicts.count(None) / len(dataset),
        "exact": described.exact,
        "named": described.named,
        "chair_instance": made_up.instance,
        "chair_sentence": made_up.sentence,
        "named_each": made_up.named_each,
        "num_different": described.num_different,
        "num_images": len(dataset),
    }


@dataclass(frozen=True)
class Hallucination:
    """CHAIR: what captions name that is not there; things are a color with a shape.

    - ``instance``: of all things that are named, the share that their scene does not show; 0 if
      nothing is named at all.
    - ``sentence``: the share of captions that name such a thing.
    - ``named_each``: how many things a caption names, on average.
    """

    instance: float
    sentence: float
    named_each: float


def hallucination(written: Sequence[str], dataset: Scenes) -> Hallucination:
    """CHAIR of one English caption of each scene; ValueError unless there are as many as scenes.

    A thing counts each time it is named, however many of it there are ("two red circles": once).
    """
    wrong, named = [], 0
    for text, scene in zip(written, dataset.scenes, strict=True):
        shown = {(thing.color, thing.shape) for thing in scene.objects}
        things = _THING.findall(text.lower())
        named += len(things)
        wrong.append(sum(thing not in shown for thing in things))
    return Hallucination(
        sum(wrong) / max(1, named),
        sum(count > 0 for count in wrong) / len(wrong),
        named / len(wrong),
    )


def bleu4(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of the whole corpus, 0 to 100, with the usual tokens of sacrebleu (``"13a"``).

    They set commas and full stops apart. ImportError that says what to install.
    """
    metrics, _ = _libraries()
    most = max(map(len, references))
    # sacrebleu wants equally many; one that comes twice changes nothing.
    streams = [[own[i % len(own)] for own in references] for i in range(most)]
    return metrics.BLEU(tokenize="13a").corpus_score(list(written), streams).score


def cider(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D, 0 to 10, on the tokens of ``bleu4``; how rare words are is told by the references.

    The mean over the references of a scene, which should therefore differ. With a single scene
    every word is in all of them, and all scores are 0. ImportError that says what to install.
    """
    metrics, scorer = _libraries()
    tokens = metrics.BLEU(tokenize="13a").tokenizer
    truth = {i: [tokens(text) for text in own] for i, own in enumerate(references)}
    score, _ = scorer().compute_score(truth, {i: [tokens(t)] for i, t in enumerate(written)})
    return float(score)


def _libraries():
    try:
        from pycocoevalcap.cider.cider import Cider
        from sacrebleu import metrics
    except ImportError:
        raise ImportError(
            "judging captions needs sacrebleu and pycocoevalcap; install them with: "
            "pip install 'mmlab[captioning]'"
        ) from None
    return metrics, Cider
