"""One vocabulary for all tasks: the texts that pretraining and fine-tuning show."""

from __future__ import annotations

from collections.abc import Iterator

from mmlab.datasets import Scenes
from mmlab.datasets.scenes.language import KINDS
from mmlab.datasets.tokenizer import Tokenizer, train_wordpiece
from mmlab.tasks.paired_scenes import ANSWERS, VOCAB_SIZE


def all_texts(dataset: Scenes, num: int = 2000, seed: int = 0) -> list[str]:
    """Every English text about these scenes, each once: captions, questions, ``num`` of each task.

    The answers to questions are among them, so that a model can write them.
    """
    texts = [text for kind in KINDS for text in dataset.captions("en", kind)]
    texts += [asked.text for own in dataset.questions("en") for asked in own]
    texts += _of_tasks(dataset, num, seed)
    return list(dict.fromkeys([*texts, *ANSWERS]))


def _of_tasks(dataset: Scenes, num: int, seed: int) -> Iterator[str]:
    for pair in dataset.image_pairs(num, seed):
        yield pair.text
    for entailment in dataset.entailments(num, seed):
        yield entailment.hypothesis
    for choice in dataset.choices(num, seed):
        yield from (choice.question, *choice.answers, *choice.rationales)
    for expression in dataset.referring_expressions(num, seed):
        yield expression.text
    for pair in dataset.binding_pairs(num, seed):
        yield from (pair.text, pair.swapped)


def task_tokenizer(dataset: Scenes, seed: int = 0) -> Tokenizer:
    """Word pieces of ``all_texts`` of these scenes."""
    return train_wordpiece(all_texts(dataset, seed=seed), VOCAB_SIZE)
