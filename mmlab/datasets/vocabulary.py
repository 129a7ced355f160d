"""Vocabulary files of BERT and CLIP, and the engines of ``tokenizers`` built from them.

An engine (``tokenizers.Tokenizer``) normalises text, splits it into words and words into tokens. It
adds no special tokens, never truncates and never pads: ``Tokenizer`` does.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

BERT_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLIP_SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
CLIP_NUM_MERGES = 48_894
"""How many merges of OpenAI's longer file CLIP uses: 49,408 - 2 x 256 bytes - 2 special tokens."""
CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
"""What counts as a word: openai/CLIP, ``clip/simple_tokenizer.py``."""

Merges = list[tuple[str, str]]
PathLike = str | os.PathLike


# ------------------------------------------------------------------------------------------ BERT


def bert_engine(
    vocab: dict[str, int],
    lowercase: bool,
    special_tokens: Sequence[str] = BERT_SPECIAL_TOKENS,
) -> Tokenizer:
    """BERT's cleaning and splitting (Chinese characters stand alone), then longest-match WordPiece.

    Lower-casing also strips accents, as in BERT.
    """
    engine = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece()
    mark_special(engine, special_tokens)
    return engine


def read_bert_vocab(path: Path) -> dict[str, int]:
    """``vocab.txt``: one token a line, numbered from 0."""
    tokens = [line.rstrip("\r") for line in read_text(path).removesuffix("\n").split("\n")]
    check_once(path, tokens)
    missing = [token for token in BERT_SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise ValueError(f"{path} is not a BERT vocabulary: it lacks {', '.join(missing)}")
    return {token: number for number, token in enumerate(tokens)}


def configured_lowercase(vocab: Path, source: PathLike) -> bool:
    """``do_lower_case`` of the configuration that came with the vocabulary; True without one."""
    try:
        config = find_file(
            vocab.parent if Path(source).exists() else source, "tokenizer_config.json"
        )
    except FileNotFoundError:
        return True
    return bool(_read_json(config).get("do_lower_case", True))


def learn_wordpiece(
    words: Counter[str], vocab_size: int, min_count: int, special_tokens: Sequence[str]
) -> dict[str, int]:
    """Special tokens, every character, then the most frequent pairs merged one after another."""
    characters = sorted({character for word in words for character in word})
    inner = sorted({f"##{character}" for word in words for character in word[1:]})
    # The trainer numbers characters in hash order and breaks ties between pairs by number. Naming
    # them all beforehand, sorted, lets the outcome depend on the words alone.
    fixed = [*special_tokens, *characters, *inner]
    if vocab_size < len(fixed):
        raise ValueError(
            f"vocab_size must be at least {len(fixed)} (the special tokens and every character of "
            f"the captions), got {vocab_size}"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_count,
        special_tokens=fixed,
        limit_alphabet=len(fixed),
        show_progress=False,
    )
    engine = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    engine.train_from_iterator((" ".join([word] * n) for word, n in words.items()), trainer)
    return engine.get_vocab()


def count_words(captions: Sequence[str], lowercase: bool) -> Counter[str]:
    """How often each word occurs, cleaned and split as BERT does."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter()
    for caption, count in Counter(captions).items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)):
            words[word] += count
    return words


# ------------------------------------------------------------------------------------------ CLIP


def clip_engine(vocab: dict[str, int], merges: Merges, source: PathLike) -> Tokenizer:
    """CLIP's lower-casing and splitting, then byte-pair encoding of each word's bytes.

    The last byte of a word is its own symbol, ``x</w>``.
    """
    parts = (part for a, b in merges for part in (a, b, a + b))
    missing = {*CLIP_SPECIAL_TOKENS, *parts} - vocab.keys()
    if missing:
        raise ValueError(f"{source} is not a CLIP vocabulary: it lacks {min(missing)!r}")
    unknown = CLIP_SPECIAL_TOKENS[1]
    engine = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token=unknown))
    whitespace = normalizers.Replace(Regex(r"\s+"), " ")
    clean = [normalizers.NFC(), whitespace, normalizers.Lowercase()]
    engine.normalizer = normalizers.Sequence(clean)
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    engine.decoder = decoders.ByteLevel()
    mark_special(engine, CLIP_SPECIAL_TOKENS)
    return engine


def read_openai_clip(path: Path) -> tuple[dict[str, int], Merges]:
    """CLIP's vocabulary from its merges: bytes, bytes that end a word, then one token a merge."""
    merges = _read_merges(path)[:CLIP_NUM_MERGES]
    characters = _byte_characters()
    endings = [character + "</w>" for character in characters]
    tokens = [*characters, *endings, *(a + b for a, b in merges), *CLIP_SPECIAL_TOKENS]
    check_once(path, tokens)
    return {token: number for number, token in enumerate(tokens)}, merges


def read_huggingface_clip(
    source: PathLike, merges: PathLike | None
) -> tuple[dict[str, int], Merges]:
    """``vocab.json`` and ``merges.txt``."""
    path = find_file(source, "vocab.json")
    if merges is None:
        merges = (
            path.with_name("merges.txt")
            if Path(source).exists()
            else find_file(source, "merges.txt")
        )
    vocab = _read_json(path)
    if sorted(n for n in vocab.values() if type(n) is int) != list(range(len(vocab))):
        raise ValueError(f"{path} must map tokens to the numbers 0, 1, 2 …, each once")
    return vocab, _read_merges(merges)


def _read_merges(path: PathLike) -> Merges:
    """``a b`` on each line, after a heading that gives the version."""
    heading, *lines = read_text(path).split("\n")
    merges = [tuple(line.split()) for line in lines if line.strip()]
    if "#version" not in heading or not merges or any(len(pair) != 2 for pair in merges):
        raise ValueError(f"{path} is no list of merges: '#version' first, then two tokens a line")
    return merges


def _byte_characters() -> list[str]:
    """A visible character for each of the 256 bytes: visible bytes first, as themselves (GPT-2)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in visible] + [chr(256 + n) for n in range(256 - len(visible))]


# ----------------------------------------------------------------------------------------- shared


def mark_special(engine: Tokenizer, tokens: Sequence[str]) -> None:
    """Make ``tokens`` special: never split, and left out of decoded text."""
    engine.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])


def check_once(path: PathLike, tokens: Sequence[str]) -> None:
    """Refuse a vocabulary in which a token has two numbers."""
    if len(set(tokens)) < len(tokens):
        twice = next(token for token, count in Counter(tokens).items() if count > 1)
        raise ValueError(f"{path} lists the token {twice!r} more than once")


def find_file(source: PathLike, name: str) -> Path:
    """``source`` itself, ``name`` in the folder ``source``, or ``name`` in that hub repository."""
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir() and not (path / name).is_file():
        raise FileNotFoundError(f"the folder {path} holds no {name}")
    if path.suffix in {".txt", ".json", ".gz"}:
        raise FileNotFoundError(f"there is no file {path}")
    return path / name if path.is_dir() else _download(str(source), name)


def _download(repository: str, name: str) -> Path:
    # Imported here: reading a local file needs no network library.
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name))
    except Exception as error:  # offline, no such repository, no such file, not a valid id …
        raise FileNotFoundError(
            f"{repository!r} is no file or folder here, and the Hugging Face hub gave no {name} "
            f"of that name ({type(error).__name__}): check the name, or the connection"
        ) from None


def read_text(path: PathLike) -> str:
    """The text of a file, gunzipped where its name says so."""
    path = Path(path)
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from None


def _read_json(path: PathLike) -> dict:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(content).__name__}")
    return content
