from dataclasses import replace

import pytest
import torch

from mmlab.datasets.example import Caption, Example
from mmlab.datasets.shards import ShardOptions, ShardStream
from mmlab.datasets.tokenizer import train_wordpiece
from mmlab.models.blip import BLIP
from mmlab.tasks.capfilt import (
    BlipCaptioner,
    BlipFilter,
    CapFiltError,
    CapFiltOptions,
    bootstrap_captions,
    read_verdicts,
)
from tests.models.tiny import TINY_BLIP

OPTIONS = CapFiltOptions(chunk_size=4, batch_size=3)


def example(number, *captions):
    generator = torch.Generator().manual_seed(number)
    image = torch.randint(256, (3, 16, 16), generator=generator, dtype=torch.uint8)
    return Example(f"e{number}", image, "", captions)


def web(text):
    return Caption(text, kind="alt")


def examples(count=10):
    """Even ones fit; every fifth also has a text by a person, which is wrong."""
    for number in range(count):
        captions = [web(f"truth {number}" if number % 2 == 0 else "buy now")]
        if number % 5 == 0:
            captions.append(Caption("a human error", kind="human"))
        yield example(number, *captions)


def perfect_judge(items, texts):
    pairs = zip(items, texts, strict=True)
    return torch.tensor([float(text == f"truth {item.id[1:]}") for item, text in pairs])


def captioner(items, draws):
    """Right three times in four."""
    luck = torch.rand(len(items), generator=draws)
    pairs = zip(items, luck, strict=True)
    return [f"truth {item.id[1:]}" if x < 0.75 else "nonsense" for item, x in pairs]


def contents(folder):
    shards = sorted(map(str, folder.glob("*.tar")))
    stream = ShardStream(shards, ShardOptions(epochs=1, shuffle=False))
    return {e.id: {(c.text, c.kind) for c in e.captions} for e in stream}


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_fits_is_kept_and_every_text_has_its_reason(tmp_path):
    report = bootstrap_captions(examples(), tmp_path, captioner, perfect_judge, OPTIONS)
    verdicts = list(read_verdicts(tmp_path))
    assert len(verdicts) == 10 + 2 + 10
    found = contents(tmp_path)
    for verdict in verdicts:
        right = verdict.text == f"truth {verdict.example[1:]}"
        assert verdict.kept == (right or verdict.origin == "human")
        kept = {text for text, _ in found.get(verdict.example, ())}
        assert (verdict.text in kept) == verdict.kept
    reasons = {(v.origin, v.reason) for v in verdicts}
    assert ("human", "written by a person") in reasons
    assert ("web", "match 0.000 is below 0.5") in reasons
    assert ("web", "match 1.000 is at least 0.5") in reasons
    assert report.seen == {"web": 10, "human": 2, "synthetic": 10}
    assert report.noise_ratio("web") == 0.5 and report.noise_ratio("human") == 0
    assert 0 < report.noise_ratio("synthetic") < 0.6
    assert str(report).startswith("kept 2 of 2 human texts, ")


def test_a_new_text_that_says_the_same_comes_once(tmp_path):
    bootstrap_captions(examples(4), tmp_path, captioner, perfect_judge, OPTIONS)
    assert contents(tmp_path)["e2"] == {("truth 2", "alt")}


def test_a_perfect_filter_finds_nothing_more_the_second_time(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    bootstrap_captions(examples(), first, captioner, perfect_judge, OPTIONS)
    shards = sorted(map(str, first.glob("*.tar")))
    again = ShardStream(shards, ShardOptions(epochs=1, shuffle=False))
    report = bootstrap_captions(again, second, None, perfect_judge, OPTIONS)
    assert report.kept == report.seen and contents(second) == contents(first)


@pytest.mark.parametrize(
    ("writes", "judges", "kept"), [(False, False, 12), (True, False, 22), (False, True, 7)]
)
def test_the_ablations_of_the_paper(tmp_path, writes, judges, kept):
    roles = captioner if writes else None, perfect_judge if judges else None
    bootstrap_captions(examples(), tmp_path, *roles, OPTIONS)
    assert sum(v.kept for v in read_verdicts(tmp_path)) == kept


@pytest.mark.parametrize(("match", "kept"), [(0.4999, False), (0.5, True), (0.9, True)])
def test_one_half_is_enough(tmp_path, match, kept):
    def judge(items, texts):
        return torch.full((len(items),), match, dtype=torch.float64)

    bootstrap_captions(examples(1), tmp_path, None, judge, OPTIONS)
    verdict = next(v for v in read_verdicts(tmp_path) if v.origin == "web")
    assert verdict.kept == kept and verdict.match == match


def test_a_killed_run_goes_on_and_gives_the_same_files(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    bootstrap_captions(examples(), whole, captioner, perfect_judge, OPTIONS)
    seen = []

    def dying(items, draws):
        seen.extend(item.id for item in items)
        if "e6" in seen:
            raise KeyboardInterrupt
        return captioner(items, draws)

    with pytest.raises(KeyboardInterrupt):
        bootstrap_captions(examples(), broken, dying, perfect_judge, OPTIONS)
    assert len(list(broken.glob("*.jsonl"))) == 1
    # As if killed between a shard and its verdicts.
    (broken / "chunk-00001-00000.tar").write_bytes(b"half")
    asked = []

    def watched(items, draws):
        asked.extend(item.id for item in items)
        return captioner(items, draws)

    report = bootstrap_captions(examples(), broken, watched, perfect_judge, OPTIONS)
    assert asked == [f"e{n}" for n in range(4, 10)]
    assert report.seen["synthetic"] == 10
    assert files(broken) == files(whole)


def test_a_folder_of_another_run_is_refused(tmp_path):
    bootstrap_captions(examples(), tmp_path, captioner, perfect_judge, OPTIONS)
    with pytest.raises(CapFiltError, match=r"is of a run with threshold 0\.5, not 0\.9"):
        other = replace(OPTIONS, threshold=0.9)
        bootstrap_captions(examples(), tmp_path, captioner, perfect_judge, other)
    with pytest.raises(CapFiltError, match="is of a run with captioner True, not False"):
        bootstrap_captions(examples(), tmp_path, None, perfect_judge, OPTIONS)
    with pytest.raises(CapFiltError, match="has a verdict on 'e0', which is not in this chunk"):
        strangers = (example(n, web("x")) for n in range(90, 95))
        bootstrap_captions(strangers, tmp_path, captioner, perfect_judge, OPTIONS)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 1\.5"):
        CapFiltOptions(threshold=1.5)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        CapFiltOptions(chunk_size=0)


def prepare(items):
    return torch.stack([item.image for item in items]).float() / 128 - 1


def test_blip_writes_and_judges(tmp_path):
    texts = ["a picture of a red ball", "a picture of a blue box", "buy this now"] * 3
    tokenizer = train_wordpiece(texts, 60).add_special_tokens("[DEC]", "[ENC]")
    torch.manual_seed(0)
    sizes = {"vocab_size": tokenizer.vocab_size, "context_length": 16}
    writer = BLIP(replace(TINY_BLIP, heads=("words",), **sizes)).eval()
    matcher = BLIP(replace(TINY_BLIP, heads=("match",), **sizes)).eval()
    assert tokenizer.token_id("[DEC]") == writer.config.decoder_id
    assert tokenizer.token_id("[ENC]") == matcher.config.encoder_id
    sampling = {"max_length": 9, "min_length": 5}
    captions = BlipCaptioner(writer, tokenizer, prepare, "a picture of", sampling)
    judge = BlipFilter(matcher, tokenizer, prepare)
    report = bootstrap_captions(examples(5), tmp_path, captions, judge, OPTIONS)
    assert report.seen["synthetic"] == 5
    for verdict in read_verdicts(tmp_path):
        assert "[DEC]" not in verdict.text and "a picture of" not in verdict.text
        if verdict.match is not None:
            item = next(e for e in examples(5) if e.id == verdict.example)
            alone = judge([item], [verdict.text]).item()
            assert verdict.match == pytest.approx(alone, abs=1e-5)
