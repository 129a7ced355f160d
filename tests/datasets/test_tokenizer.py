"""Tokenizers: parity with transformers and with OpenAI's rules, determinism, alignment, bad input.

The real vocabularies are not shipped; the files written here have the same layout.
"""

import copy
import gzip
import html
import inspect
import json
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import BertTokenizer, CLIPTokenizer

from mmlab.datasets.tokenizer import (
    OPENAI_CLIP_FILE,
    TokenBatch,
    Tokenizer,
    read_tokenizer,
    train_wordpiece,
)
from mmlab.datasets.vocabulary import CLIP_NUM_MERGES, read_openai_clip

CAPTIONS = [
    "A red circle is to the left of a blue square.",
    "two small green triangles above a large yellow circle",
    "The cats are sitting on 3 mats, aren't they?",
    "smiling face with heart-eyes",
    "a café in Zürich, naïve and déjà vu",
    "一个红色的圆形在蓝色正方形的左边",
    "笑脸和红心",
    "smiling 😍 cats 🐈 in 2024",
]
HARD = {
    "English": "The RED cats aren't sitting; they're circling!",
    "Chinese": "红色的猫 and a 圆形cat",
    "emoji": "😍🐈‍⬛ smiling 👩🏽‍🚀",
    "accents": "CAFÉ Zürich e\u0301 ñ İstanbul",
    "long": "red circle " * 10_000,
    "long word": "circle" * 40,
    "HTML": "<b>red &amp; blue</b> <script>alert('cats')</script>",
    "spaces": "  red\t\n circle\u3000cats\u00a0 ",
    "special": "a red [MASK] and <|endoftext|> [SEP] cats",
    "other scripts": "Кошка קוּפּ قطة แมว ネコ",
    "control": "red\x00 cir\u200bcle\ufffd",
}


def bert_file(folder, vocab):
    path = folder / "vocab.txt"
    path.write_text("".join(token + "\n" for token in sorted(vocab, key=vocab.get)), "utf-8")
    return path


def bpe_merges(captions, count):
    """Byte-pair encoding in its plainest form, on the bytes of lower-cased words."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    characters = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    words = Counter(word for caption in captions for word in caption.lower().split())
    words = {
        (*(characters[b] for b in w.encode()[:-1]), characters[w.encode()[-1]] + "</w>"): n
        for w, n in words.items()
    }
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                pairs[pair] += n
        best = max(sorted(pairs), key=pairs.get)
        merges.append(best)
        words = {merge_pair(word, best): n for word, n in words.items()}
    return merges


def merge_pair(word, pair):
    merged, i = [], 0
    while i < len(word):
        step = 2 if word[i : i + 2] == pair else 1
        merged.append("".join(word[i : i + step]))
        i += step
    return tuple(merged)


@pytest.fixture(scope="module")
def wordpiece():
    return train_wordpiece(CAPTIONS, vocab_size=300)


@pytest.fixture(scope="module")
def bert(tmp_path_factory, wordpiece):
    path = bert_file(tmp_path_factory.mktemp("bert"), wordpiece.engine.get_vocab())
    return path, Tokenizer.from_bert_vocab(path)


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory):
    """The same vocabulary in OpenAI's layout and in Hugging Face's."""
    folder = tmp_path_factory.mktemp("clip")
    lines = [" ".join(pair) for pair in bpe_merges(CAPTIONS * 2, 80)]
    openai = folder / "bpe_simple_vocab.txt.gz"
    text = '"bpe_simple_vocab_16e6.txt#version: 0.2\n' + "\n".join(lines) + "\n"
    openai.write_bytes(gzip.compress(text.encode()))
    vocab, _ = read_openai_clip(openai)
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def clip(clip_files):
    return Tokenizer.from_clip(clip_files / "bpe_simple_vocab.txt.gz")


# ------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("caption", HARD.values(), ids=HARD)
@pytest.mark.parametrize("lowercase", [True, False])
def test_bert_equals_transformers(bert, caption, lowercase):
    path, _ = bert
    ours = Tokenizer.from_bert_vocab(path, lowercase=lowercase)
    theirs = BertTokenizer(vocab=str(path), do_lower_case=lowercase)
    for length in (None, 16, 512):
        expected = theirs(
            [caption, "a cat"],
            padding=True,
            truncation=True,
            max_length=length or 512,
            return_tensors="pt",
        )
        batch = ours([caption, "a cat"], max_length=length)
        assert torch.equal(batch.input_ids, expected["input_ids"])
        assert torch.equal(batch.attention_mask, expected["attention_mask"].bool())
    assert ours.decode(batch.input_ids[1]) == theirs.decode(expected["input_ids"][1], True)


@pytest.mark.parametrize("caption", HARD.values(), ids=HARD)
def test_clip_equals_transformers(clip_files, caption):
    theirs = CLIPTokenizer(
        vocab=str(clip_files / "vocab.json"), merges=str(clip_files / "merges.txt")
    )
    ours = Tokenizer.from_clip(clip_files, pad="end", unescape_html=False)
    texts = [caption, "a cat"]
    expected = theirs(
        texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    batch = ours(texts, padding="max_length")
    assert torch.equal(batch.input_ids, expected["input_ids"])
    assert torch.equal(batch.attention_mask, expected["attention_mask"].bool())


def test_both_layouts_of_clips_vocabulary_are_one(clip_files, clip):
    for other in (
        Tokenizer.from_clip(clip_files),
        Tokenizer.from_clip(clip_files / "vocab.json"),
        Tokenizer.from_clip(clip_files / "vocab.json", clip_files / "merges.txt"),
    ):
        texts = list(HARD.values())
        assert torch.equal(other(texts).input_ids, clip(texts).input_ids)
        assert other.engine.get_vocab() == clip.engine.get_vocab()


def plain_clip_ids(text, vocab, merges):
    """OpenAI's rules (greedy lowest-rank merges) for ASCII words, written independently."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    ids = []
    for word in html.unescape(html.unescape(text)).lower().split():
        symbols = (*word[:-1], word[-1] + "</w>")
        while pairs := [p for p in pairwise(symbols) if p in ranks]:
            symbols = merge_pair(symbols, min(pairs, key=ranks.get))
        ids += [vocab[symbol] for symbol in symbols]
    return [vocab["<|startoftext|>"], *ids, vocab["<|endoftext|>"]]


@pytest.mark.parametrize("text", ["red circles Sitting on cat mats", "a &amp;lt; red"])
def test_clip_follows_openais_rules(clip_files, clip, text):
    vocab, merges = read_openai_clip(clip_files / "bpe_simple_vocab.txt.gz")
    assert clip([text]).input_ids[0].tolist() == plain_clip_ids(text, vocab, merges)


def test_clip_vocabulary_has_the_published_size(tmp_path):
    """256 bytes, 256 at word ends, 48,894 merges, 2 special tokens: 49,408 (openai/CLIP)."""
    path = tmp_path / "merges.txt"
    letters = [chr(c) for c in range(174, 256)]
    pairs = [f"{a}{b} {c}</w>" for a in letters for b in letters for c in letters[:8]][:49_500]
    path.write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", "utf-8")
    vocab, merges = read_openai_clip(path)
    assert len(merges) == CLIP_NUM_MERGES and len(vocab) == 49_408
    assert vocab["<|startoftext|>"] == 49_406 and vocab["<|endoftext|>"] == 49_407
    # The order of bytes in GPT-2's table, as in the published vocab.json.
    assert vocab["!"] == 0 and vocab["a"] == 64 and vocab["a</w>"] == 320 and vocab["Ġ"] == 220


# ----------------------------------------------------------------------------------------- training


def test_training_depends_on_the_captions_alone():
    captions = CAPTIONS * 3
    vocabularies = []
    for seed in range(4):
        random.Random(seed).shuffle(captions)
        vocabularies.append(train_wordpiece(captions, 250).engine.get_vocab())
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_the_vocabulary_is_what_training_promises(wordpiece):
    vocab = wordpiece.engine.get_vocab()
    assert sorted(vocab.values()) == list(range(wordpiece.vocab_size))
    names = sorted(vocab, key=vocab.get)
    assert names[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Frequent words became whole, Chinese characters stayed alone, accents are gone.
    assert {"circle", "cats"} <= vocab.keys()
    assert not any(len(name) > 1 and "一" <= name.strip("#")[0] <= "龥" for name in names[5:])
    assert "é" not in vocab
    unknown = wordpiece.token_id("[UNK]")
    assert not (wordpiece(CAPTIONS).input_ids == unknown).any()


def test_vocab_size_is_a_bound_and_min_count_a_threshold():
    captions = ["abcd abcd", "xyz"]
    small = train_wordpiece(captions, 22, min_count=1)
    assert small.vocab_size == 22
    large = train_wordpiece(captions, 1000)
    assert large.tokens(large(["abcd"]).input_ids[0]) == ["[CLS]", "abcd", "[SEP]"]
    assert large.tokens(large(["xyz"]).input_ids[0]) == ["[CLS]", "x", "##y", "##z", "[SEP]"]


def test_ids_of_special_tokens_follow_their_order():
    order = ("[UNK]", "[DEC]", "[MASK]", "[SEP]", "[CLS]", "[PAD]")
    tokenizer = train_wordpiece(CAPTIONS, 300, special_tokens=order)
    assert (tokenizer.mask_id, tokenizer.sep_id, tokenizer.cls_id, tokenizer.pad_id) == (2, 3, 4, 5)
    assert tokenizer.special_ids == (0, 1, 2, 3, 4, 5)
    batch = tokenizer(["cats", "two cats"])
    assert batch.input_ids[0, -1] == 5 and not batch.attention_mask[0, -1]


def test_case_is_kept_on_demand():
    tokenizer = train_wordpiece(["Cats cats É"] * 2, 100, lowercase=False)
    assert tokenizer.tokens(tokenizer(["Cats cats É"]).input_ids[0])[1:-1] == ["Cats", "cats", "É"]


# --------------------------------------------------------------------------------- rows, alignment


def test_padding_and_mask(wordpiece):
    batch = wordpiece(["cats", "a circle smiling"])
    assert batch.input_ids.shape == (2, 5) and len(batch) == 2
    assert batch.attention_mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert (batch.input_ids[0, 3:] == wordpiece.pad_id).all()
    padded = wordpiece(["cats"], max_length=9, padding="max_length")
    assert padded.input_ids.shape == (1, 9) and padded.attention_mask.sum() == 3


def test_truncation_keeps_the_last_token_and_counts_what_it_dropped(wordpiece, clip):
    for tokenizer in (wordpiece, clip):
        whole = tokenizer(["cat", "red circle cats " * 50], max_length=1000)
        cut = tokenizer(["cat", "red circle cats " * 50], max_length=10)
        assert cut.input_ids.shape[1] == 10
        assert cut.input_ids[1, -1] == tokenizer.sep_id
        assert torch.equal(cut.input_ids[1, :9], whole.input_ids[1, :9])
        assert cut.num_dropped.tolist() == [0, whole.attention_mask[1].sum() - 10]


def test_clip_padding_is_visible(clip_files):
    """OpenAI pads with 0, Hugging Face with the end token; pooling at argmax agrees on both."""
    openai, other = Tokenizer.from_clip(clip_files), Tokenizer.from_clip(clip_files, pad="end")
    assert openai.pad_id == 0 and other.pad_id == other.sep_id
    a, b = (t(["a cat"], padding="max_length") for t in (openai, other))
    assert a.input_ids.shape == (1, 77)
    assert a.input_ids[0, -1] == 0 and b.input_ids[0, -1] == other.sep_id
    assert torch.equal(a.input_ids.argmax(1), b.input_ids.argmax(1))
    assert torch.equal(a.attention_mask, b.attention_mask)
    assert openai.decode(a.input_ids) == ["a cat"]


@pytest.mark.parametrize("name", ["wordpiece", "clip"])
def test_offsets_point_at_the_text_of_each_token(name, request):
    tokenizer = request.getfixturevalue(name)
    texts = ["Smiling CATS,  red 笑脸 café", "a 😍 circle"]
    batch = tokenizer(texts)
    for i, text in enumerate(batch.texts):
        words = {}
        for (start, end), word in zip(
            batch.offsets[i].tolist(), batch.word_ids[i].tolist(), strict=True
        ):
            if word < 0:
                assert start == end == 0
                continue
            piece = words.setdefault(word, [start, end])
            piece[1] = end
        spans = [text[start:end] for start, end in words.values()]
        assert "".join(spans) == "".join(text.split())
    assert [w for w in batch.texts] == texts
    # The same letters in any case.
    t = batch.offsets[0].tolist().index(next(s for s in batch.offsets[0].tolist() if s[1]))
    assert texts[0].startswith(texts[0][slice(*batch.offsets[0, t].tolist())])


def test_alignment_of_characters_finds_the_tokens(wordpiece):
    text = "two small green triangles above a large yellow circle"
    batch = wordpiece([text, "cats"])
    start = text.index("large")
    chosen = batch.tokens_in(0, start, len(text))
    assert wordpiece.decode(batch.input_ids[0][chosen]) == "large yellow circle"
    assert not batch.tokens_in(1, 0, 0).any()
    assert batch.tokens_in(1, 0, 100).sum() == (batch.word_ids[1] >= 0).sum()


def test_word_ids_group_the_pieces_of_a_word():
    tokenizer = train_wordpiece(["ab ab", "xyz"], 100)
    batch = tokenizer(["xyz ab!xyz", "ab"])
    assert batch.word_ids[0].tolist() == [-1, 0, 0, 0, 1, 2, 3, 3, 3, -1]
    assert batch.word_ids[1].tolist() == [-1, 0, -1] + [-1] * 7


def test_first_and_last_token_on_demand(bert):
    _, tokenizer = bert
    blip = tokenizer.add_special_tokens("[DEC]", "[ENC]")
    assert blip.vocab_size == tokenizer.vocab_size + 2
    assert blip.token_id("[DEC]") == tokenizer.vocab_size
    assert blip.token_id("[ENC]") == tokenizer.vocab_size + 1
    plain, decoder = blip(["a cat"]), blip(["a cat"], first="[DEC]")
    assert decoder.input_ids[0, 0] == blip.token_id("[DEC]")
    assert torch.equal(plain.input_ids[:, 1:], decoder.input_ids[:, 1:])
    assert blip.decode(decoder.input_ids[0]) == "a cat"
    # ALBEF's captions have no [SEP].
    albef = tokenizer(["a circle", "a circle smiling"], max_length=4, add_last=False)
    assert tokenizer.sep_id not in albef.input_ids
    assert albef.num_dropped.tolist() == [0, 0]
    with pytest.raises(ValueError, match="DEC"):
        tokenizer.token_id("[DEC]")


def test_decoding_returns_the_caption(wordpiece, clip):
    caption = "a red circle is to the left of a blue square"
    for tokenizer in (wordpiece, clip):
        batch = tokenizer([caption, "cats"])
        assert tokenizer.decode(batch.input_ids) == [caption, "cats"]
        assert tokenizer.decode(batch.input_ids[0].tolist()) == caption
        kept = tokenizer.decode(batch.input_ids[1], skip_special_tokens=False)
        assert tokenizer.layout.last in kept
    assert clip.decode(clip(["naïve 笑脸 😍"]).input_ids[0]) == "naïve 笑脸 😍"


def test_html_is_resolved_as_openai_does(clip, clip_files):
    assert clip(["red &amp;amp; blue"]).texts == ("red & blue",)
    as_is = Tokenizer.from_clip(clip_files, unescape_html=False)
    assert as_is(["red &amp; blue"]).texts == ("red &amp; blue",)


# ------------------------------------------------------------------------------- files, hub, copies


@pytest.mark.parametrize("name", ["wordpiece", "clip"])
def test_save_and_load_change_nothing(name, request, tmp_path):
    tokenizer = request.getfixturevalue(name).add_special_tokens("[DEC]")
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.layout == tokenizer.layout
    texts = [text for name, text in HARD.items() if name != "long"]
    for field in ("input_ids", "attention_mask", "offsets", "word_ids"):
        ours, theirs = (getattr(t(texts), field) for t in (tokenizer, loaded))
        assert torch.equal(ours, theirs)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.json", "tokenizer.json"]


def test_a_failed_save_leaves_the_old_file(wordpiece, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text("old")

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space"):
        wordpiece.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    assert path.read_text() == "old"


def test_copies_travel_to_worker_processes(wordpiece):
    twin = copy.deepcopy(wordpiece)
    assert torch.equal(twin(CAPTIONS).input_ids, wordpiece(CAPTIONS).input_ids)
    assert len(repr(wordpiece)) < 300, "the vocabulary must stay out of repr"


def test_folders_and_their_configuration(bert, tmp_path):
    path, tokenizer = bert
    bert_file(tmp_path, tokenizer.engine.get_vocab())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = Tokenizer.from_bert_vocab(tmp_path)
    unknown = cased.token_id("[UNK]")
    assert cased(["CATS"]).input_ids[0, 1] == unknown
    assert (
        Tokenizer.from_bert_vocab(tmp_path, lowercase=True)(["CATS"]).input_ids != unknown
    ).all()
    assert torch.equal(
        Tokenizer.from_bert_vocab(path)(["CATS"]).input_ids, tokenizer(["cats"]).input_ids
    )


def test_a_hub_id_is_fetched(bert, clip_files, monkeypatch):
    path, tokenizer = bert
    files = {
        ("bert-base-uncased", "vocab.txt"): path,
        ("openai/clip", "vocab.json"): clip_files / "vocab.json",
        ("openai/clip", "merges.txt"): clip_files / "merges.txt",
    }
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: files[repo, name])
    from_hub = Tokenizer.from_bert_vocab("bert-base-uncased")
    assert from_hub.engine.get_vocab() == tokenizer.engine.get_vocab()
    assert (
        Tokenizer.from_clip("openai/clip").vocab_size == Tokenizer.from_clip(clip_files).vocab_size
    )


def test_batches_move_between_devices(wordpiece):
    batch = wordpiece(["cats"]).to("meta")
    assert isinstance(batch, TokenBatch) and batch.input_ids.device.type == "meta"
    assert batch.texts == ("cats",)


# ---------------------------------------------------------------------------------------- bad input


def plain_call(tokenizer, *args, **kwargs):
    """As a user calls it, without the type checks that only the tests install."""
    return inspect.unwrap(type(tokenizer).__call__)(tokenizer, *args, **kwargs)


@pytest.mark.parametrize("empty", ["", "   ", "\n\t", "\x00"])
def test_an_empty_caption_is_named(wordpiece, empty):
    with pytest.raises(ValueError, match=r"captions\[1\] is empty"):
        wordpiece(["cats", empty, ""])
    batch = wordpiece(["cats", empty], allow_empty=True)
    expected = [wordpiece.cls_id, wordpiece.sep_id, wordpiece.pad_id]
    assert batch.input_ids[1].tolist() == expected


def test_no_captions(wordpiece):
    with pytest.raises(ValueError, match="at least one"):
        wordpiece([])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["cats", None], r"captions\[1\] must be a string, got NoneType"),
        ([3], r"captions\[0\] must be a string, got int"),
        ([["a", "b"]], r"captions\[0\] must be a string, got list"),
        (None, "captions must be strings, got NoneType"),
        (5, "captions must be strings, got int"),
    ],
)
def test_what_is_no_string(wordpiece, texts, message):
    with pytest.raises(TypeError, match=message):
        plain_call(wordpiece, texts)


@pytest.mark.parametrize("max_length", [0, 2, -1, 3.5, True])
def test_lengths_without_room(wordpiece, max_length):
    with pytest.raises(ValueError, match="max_length"):
        plain_call(wordpiece, ["cats"], max_length=max_length)


def test_padding_options(wordpiece):
    with pytest.raises(ValueError, match="'longest' or 'max_length', got 'left'"):
        plain_call(wordpiece, ["cats"], padding="left")
    with pytest.raises(ValueError, match="needs max_length"):
        wordpiece(["cats"], padding="max_length")


def test_broken_unicode_becomes_a_question_mark(wordpiece, clip):
    for tokenizer in (wordpiece, clip):
        assert tokenizer(["cats \ud83d red"]).texts == ("cats ? red",)


def test_questions_a_vocabulary_cannot_answer(wordpiece, clip):
    with pytest.raises(ValueError, match="no mask token"):
        _ = clip.mask_id
    with pytest.raises(ValueError, match=f"between 0 and {wordpiece.vocab_size - 1}, got 999"):
        wordpiece.decode([2, 999])
    with pytest.raises(ValueError, match="got -1"):
        wordpiece.decode([2, -1])
    with pytest.raises(ValueError, match="must be new"):
        wordpiece.add_special_tokens("[DEC]", "[DEC]")
    with pytest.raises(ValueError, match="must be new"):
        wordpiece.add_special_tokens("[MASK]")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"captions": []}, "captions that hold words"),
        ({"captions": [" "]}, "captions that hold words"),
        ({"captions": ["abc"], "vocab_size": 6}, "vocab_size must be at least 10 .* got 6"),
        ({"captions": ["a"], "special_tokens": ["[PAD]"]}, "must hold each of"),
    ],
)
def test_training_on_too_little(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_wordpiece(**arguments)


def broken_files(folder):
    good = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
    return {
        "no special tokens": ("from_bert_vocab", "the\ncat\n", "lacks .*PAD"),
        "twice": ("from_bert_vocab", good + "cat\ndog\ncat\n", "'cat' more than once"),
        "not merges": ("from_clip", "the\ncat\n", "no list of merges"),
        "no merges": ("from_clip", "#version: 0.2\n", "no list of merges"),
    }


@pytest.mark.parametrize("name", broken_files(None))
def test_files_of_another_kind(name, tmp_path):
    method, content, message = broken_files(tmp_path)[name]
    path = tmp_path / "file.txt"
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=message):
        getattr(Tokenizer, method)(path)


def test_broken_clip_files(clip_files, tmp_path):
    whole = (clip_files / "bpe_simple_vocab.txt.gz").read_bytes()
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        Tokenizer.from_clip(tmp_path / "cut.gz")
    (tmp_path / "merges.txt").write_bytes((clip_files / "merges.txt").read_bytes())
    vocab = json.loads((clip_files / "vocab.json").read_text("utf-8"))
    for content, message in [
        ("{", "not a JSON file"),
        ("[1]", "JSON object, got a list"),
        (json.dumps(vocab | {"cat": 3.5}), "numbers 0, 1, 2"),
        (json.dumps({"a": 0, "b": 1}), "lacks"),
    ]:
        (tmp_path / "vocab.json").write_text(content, "utf-8")
        with pytest.raises(ValueError, match=message):
            Tokenizer.from_clip(tmp_path)
    with pytest.raises(ValueError, match="pad must be"):
        inspect.unwrap(Tokenizer.from_clip.__func__)(Tokenizer, clip_files, pad="left")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": "other"}', "\x80"])
def test_load_refuses_other_files(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(content, "latin-1")
    with pytest.raises(ValueError, match=r"tokenizer\.json (is not a tokenizer|cannot be read)"):
        Tokenizer.load(path)


def test_load_refuses_a_file_that_was_cut(wordpiece, tmp_path):
    path = tmp_path / "tokenizer.json"
    wordpiece.save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="not a tokenizer saved by mmlab"):
        Tokenizer.load(path)


@pytest.mark.parametrize("source", ["nobody/nothing", "not a name!", "missing/vocab.txt"])
def test_a_missing_source_is_one_clear_error(source, tmp_path):
    """The tests run with the hub switched off (HF_HUB_OFFLINE)."""
    for method in (Tokenizer.from_bert_vocab, Tokenizer.from_clip):
        with pytest.raises(FileNotFoundError) as caught:
            method(source)
        assert source in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"holds no vocab\.txt"):
        Tokenizer.from_bert_vocab(tmp_path)


def test_layouts_can_be_changed(clip):
    short = replace(clip, layout=replace(clip.layout, max_length=8))
    assert short(["red cats " * 20]).input_ids.shape == (1, 8)


def test_the_kind_of_a_tokenizer_is_told_by_its_name(bert, clip, clip_files, wordpiece, tmp_path):
    vocab, expected = bert
    own = tmp_path / "words.json"
    wordpiece.save(own)
    openai = tmp_path / OPENAI_CLIP_FILE
    openai.write_bytes((clip_files / "bpe_simple_vocab.txt.gz").read_bytes())
    text = "two cats &amp; a circle"
    for path, tokenizer in (
        (vocab, expected),
        (vocab.parent, expected),
        (own, wordpiece),
        (openai, clip),
        (tmp_path, clip),
        (clip_files, clip),
        (clip_files / "vocab.json", clip),
    ):
        assert torch.equal(read_tokenizer(path)(text).input_ids, tokenizer(text).input_ids)


def test_no_tokenizer_is_an_error_that_names_the_place(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "none.json", "bert-base-uncased"):
        with pytest.raises(ValueError, match=f"there is no tokenizer at .*{name}"):
            read_tokenizer(tmp_path / name)
