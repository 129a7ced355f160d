"""Captions into numbers: WordPiece trained on captions, BERT's vocabulary, CLIP's byte pairs.

Hugging Face's ``tokenizers`` does the splitting. This module adds what a model needs around it: the
first and the last token, truncation, padding, and which characters every token came from.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers
import torch
from jaxtyping import Bool, Int64
from tokenizers.models import BPE
from torch import Tensor

from mmlab.datasets.vocabulary import (
    BERT_SPECIAL_TOKENS,
    CLIP_SPECIAL_TOKENS,
    PathLike,
    bert_engine,
    clip_engine,
    configured_lowercase,
    count_words,
    find_file,
    learn_wordpiece,
    mark_special,
    read_bert_vocab,
    read_huggingface_clip,
    read_openai_clip,
    read_text,
)

_FORMAT = "mmlab tokenizer 1"
OPENAI_CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"


@dataclass(frozen=True)
class TokenBatch:
    """Captions as numbers, one row a caption.

    Token ``t`` of caption ``i`` stands for the characters ``[start, end)`` = ``offsets[i, t]`` of
    ``texts[i]`` and belongs to word ``word_ids[i, t]``; special tokens and padding have the empty
    span ``(0, 0)`` and word -1. ``attention_mask`` is False on padding. ``num_dropped[i]`` tokens
    did not fit into the length allowed. ``texts`` are the captions, in CLIP's case after ``&amp;``
    and the like became characters.
    """

    input_ids: Int64[Tensor, "batch length"]
    attention_mask: Bool[Tensor, "batch length"]
    offsets: Int64[Tensor, "batch length 2"]
    word_ids: Int64[Tensor, "batch length"]
    num_dropped: Int64[Tensor, " batch"]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def tokens_in(self, index: int, start: int, end: int) -> Bool[Tensor, " length"]:
        """Which tokens of caption ``index`` touch its characters ``[start, end)``."""
        first, last = self.offsets[index].unbind(-1)
        return (first < end) & (last > start) & (last > first)

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch with its tensors on ``device``."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True)
class TokenLayout:
    """What a model expects around a caption.

    ``first``, ``last`` and ``mask`` are names of tokens; CLIP has no ``mask``. Padding is a number,
    since OpenAI's CLIP pads with 0, which is no special token but ``!``. ``max_length`` counts all
    tokens, the first and the last included. ``unescape_html`` turns ``&lt;`` and the like into
    characters, twice over, as OpenAI's CLIP does.
    """

    first: str
    last: str
    pad_id: int
    mask: str | None = None
    max_length: int | None = None
    unescape_html: bool = False


@dataclass(frozen=True)
class Tokenizer:
    """Turns captions into a ``TokenBatch``, and numbers back into text.

    Made by ``train_wordpiece``, ``from_bert_vocab``, ``from_clip`` or ``load``. ``engine`` is the
    ``tokenizers.Tokenizer`` that splits text.
    """

    engine: tokenizers.Tokenizer = field(repr=False)
    layout: TokenLayout

    def __call__(
        self,
        texts: str | Sequence[str],
        max_length: int | None = None,
        padding: Literal["longest", "max_length"] = "longest",
        *,
        first: str | None = None,
        add_last: bool = True,
        allow_empty: bool = False,
    ) -> TokenBatch:
        """Tokenize captions; one string is a batch of one.

        A row has at most ``max_length`` tokens (default: the layout's) and, however long the
        caption, ends in ``[SEP]`` or ``<|endoftext|>``. ``first`` replaces the first token: BLIP
        starts with ``[ENC]`` or ``[DEC]``. ``add_last=False`` leaves the last one out, as ALBEF
        does. A special token written in a caption becomes that token, as in ``transformers``.

        Raises TypeError for what is not a string, and ValueError for a caption without any token
        (unless ``allow_empty``); both name its index.
        """
        texts = self._clean(texts)
        before = [self.cls_id if first is None else self.token_id(first)]
        after = [self.sep_id] if add_last else []
        max_length = self._limit(max_length, padding, len(before) + len(after))
        encodings = self.engine.encode_batch(texts, add_special_tokens=False)
        counts = torch.tensor([len(encoding) for encoding in encodings])
        if not allow_empty and not counts.all():
            index = int(counts.argmin())
            raise ValueError(f"captions[{index}] is empty: {texts[index]!r} holds no token")
        kept, num_special = counts, len(before) + len(after)
        if max_length is not None:
            kept = counts.clamp(max=max_length - num_special)
        used = kept + num_special
        length = max_length if padding == "max_length" else int(used.max())
        ids, spans, words = [], [], []
        for encoding, k in zip(encodings, kept.tolist(), strict=True):
            num_after = length - k - len(before)
            pads = [self.pad_id] * (num_after - len(after))
            ids.append(before + encoding.ids[:k] + after + pads)
            spans.append([(0, 0), *encoding.offsets[:k], *[(0, 0)] * num_after])
            words.append([-1, *encoding.word_ids[:k], *[-1] * num_after])
        return TokenBatch(
            input_ids=torch.tensor(ids),
            attention_mask=torch.arange(length) < used[:, None],
            # Nested lists of pairs take torch ten times as long as numpy.
            offsets=torch.from_numpy(np.array(spans, dtype=np.int64)),
            word_ids=torch.tensor(words),
            num_dropped=counts - kept,
            texts=tuple(texts),
        )

    def decode(
        self, ids: Int64[Tensor, "*batch length"] | Sequence, skip_special_tokens: bool = True
    ) -> str | list[str]:
        """The text of one row of ids (a string), or of several (a list).

        A row ends at its first ``[SEP]`` or ``<|endoftext|>``, unless special tokens are kept.
        BERT's rule puts a space between Chinese characters.
        """
        row = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if row and isinstance(row[0], list):
            return [self.decode(r, skip_special_tokens) for r in row]
        wrong = [number for number in row if not 0 <= number < self.vocab_size]
        if wrong:
            raise ValueError(f"ids must lie between 0 and {self.vocab_size - 1}, got {wrong[0]}")
        if skip_special_tokens and self.sep_id in row:
            row = row[: row.index(self.sep_id)]
        text = self.engine.decode(row, skip_special_tokens=skip_special_tokens)
        # Only CLIP's tokens say where a word ends.
        is_clip = isinstance(self.engine.model, BPE)
        return text.replace("</w>", " ").strip() if is_clip else text

    def token_id(self, token: str) -> int:
        """The number of a token; ValueError if the vocabulary has none such."""
        number = self.engine.token_to_id(token)
        if number is None:
            raise ValueError(f"{token!r} is not one of the {self.vocab_size} tokens")
        return number

    def tokens(self, ids: Int64[Tensor, " length"] | Sequence[int]) -> list[str]:
        """The name of each token, such as ``"##ing"`` or ``"cat</w>"``."""
        return [self.engine.id_to_token(int(number)) for number in ids]

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included: the rows of the embedding matrix."""
        return self.engine.get_vocab_size()

    @property
    def max_length(self) -> int | None:
        """The length that rows are cut to; ``None`` where nothing limits it."""
        return self.layout.max_length

    @property
    def pad_id(self) -> int:
        """What fills rows up."""
        return self.layout.pad_id

    @property
    def cls_id(self) -> int:
        """What rows begin with: ``[CLS]`` or ``<|startoftext|>``."""
        return self.token_id(self.layout.first)

    @property
    def sep_id(self) -> int:
        """What captions end with: ``[SEP]`` or ``<|endoftext|>``."""
        return self.token_id(self.layout.last)

    @property
    def mask_id(self) -> int:
        """``[MASK]``; ValueError for CLIP, which has none."""
        if self.layout.mask is None:
            raise ValueError("this vocabulary has no mask token: CLIP never masks text")
        return self.token_id(self.layout.mask)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """All special tokens, in order: those that masking must leave alone."""
        added = self.engine.get_added_tokens_decoder()
        return tuple(sorted(number for number, token in added.items() if token.special))

    def add_special_tokens(self, *tokens: str) -> Tokenizer:
        """A tokenizer with further special tokens, numbered after the last.

        BLIP adds ``[DEC]`` and ``[ENC]`` to BERT's 30,522 tokens, as 30,522 and 30,523.
        """
        known = [token for token in tokens if self.engine.token_to_id(token) is not None]
        if known or len(set(tokens)) < len(tokens):
            raise ValueError(f"special tokens must be new, and each given once, got {tokens}")
        engine = tokenizers.Tokenizer.from_str(self.engine.to_str())
        mark_special(engine, tokens)
        return replace(self, engine=engine)

    def save(self, path: PathLike) -> None:
        """Write everything to one JSON file, whole or not at all."""
        path = Path(path)
        aside = path.with_name(f".{path.name}.part")
        try:
            aside.write_text(self.to_json(indent=1), encoding="utf-8")
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def to_json(self, indent: int | None = None) -> str:
        """Everything as one text, for ``from_json``."""
        engine = json.loads(self.engine.to_str())
        content = {"format": _FORMAT, "layout": asdict(self.layout), "engine": engine}
        return json.dumps(content, ensure_ascii=False, indent=indent)

    @classmethod
    def load(cls, path: PathLike) -> Tokenizer:
        """Read what ``save`` wrote; ValueError if the file holds anything else."""
        return cls.from_json(read_text(path), str(path))

    @classmethod
    def from_json(cls, text: str, source: str = "the text") -> Tokenizer:
        """The tokenizer in what ``to_json`` gave; an error calls it ``source``."""
        try:
            content = json.loads(text)
            if content["format"] != _FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            engine = tokenizers.Tokenizer.from_str(json.dumps(content["engine"]))
            return cls(engine, TokenLayout(**content["layout"]))
        except Exception as error:  # tokenizers raises a bare Exception
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{source} is not a tokenizer saved by mmlab ({reason})") from None

    @classmethod
    def from_bert_vocab(cls, source: PathLike, lowercase: bool | None = None) -> Tokenizer:
        """BERT's WordPiece from its ``vocab.txt`` (Devlin et al. 2019); rows up to 512 tokens.

        ``source`` is the file, a folder that holds it, or a Hugging Face hub id such as
        ``"bert-base-uncased"`` (30,522 tokens). ``lowercase=None`` asks ``tokenizer_config.json``
        beside it, and lower-cases where there is none.
        """
        path = find_file(source, "vocab.txt")
        vocab = read_bert_vocab(path)
        if lowercase is None:
            lowercase = configured_lowercase(path, source)
        return cls(bert_engine(vocab, lowercase), _bert_layout(vocab, max_length=512))

    @classmethod
    def from_clip(
        cls,
        source: PathLike,
        merges: PathLike | None = None,
        *,
        pad: Literal["zero", "end"] = "zero",
        unescape_html: bool = True,
    ) -> Tokenizer:
        """CLIP's lower-cased byte-pair encoding (Radford et al. 2021, section 2.4); rows up to 77.

        ``source`` is ``vocab.json`` with its ``merges.txt``, a folder or a Hugging Face hub id that
        holds both, or OpenAI's ``bpe_simple_vocab_16e6.txt.gz`` alone; 49,408 tokens either way.

        OpenAI's code pads with 0 and resolves HTML entities. Hugging Face's pads with
        ``<|endoftext|>`` (``pad="end"``) and leaves entities (``unescape_html=False``). OpenAI's
        also mends broken encodings and curly quotes: run ``ftfy.fix_text`` first for the same ids.
        """
        if pad not in ("zero", "end"):
            raise ValueError(f"pad must be 'zero' or 'end', got {pad!r}")
        path = Path(source)
        if merges is None and path.is_file() and path.suffix != ".json":
            vocab, pairs = read_openai_clip(path)
        else:
            vocab, pairs = read_huggingface_clip(source, merges)
        engine = clip_engine(vocab, pairs, source)
        first, last = CLIP_SPECIAL_TOKENS
        pad_id = 0 if pad == "zero" else vocab[last]
        return cls(engine, TokenLayout(first, last, pad_id, None, 77, unescape_html))

    def _clean(self, texts: object) -> list[str]:
        """The captions as a list of strings that the engine takes."""
        if not isinstance(texts, Iterable):
            raise TypeError(f"captions must be strings, got {type(texts).__name__}")
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("there are no captions to tokenize: give at least one")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"captions[{index}] must be a string, got {type(text).__name__}")
        if self.layout.unescape_html:
            texts = [html.unescape(html.unescape(text)) for text in texts]
        # Half a surrogate pair, left by a broken decoder, has no UTF-8 form: it becomes "?".
        return [text.encode("utf-8", "replace").decode("utf-8") for text in texts]

    def _limit(self, max_length: object, padding: object, num_special: int) -> int | None:
        """The most tokens a row may have."""
        if padding not in ("longest", "max_length"):
            raise ValueError(f"padding must be 'longest' or 'max_length', got {padding!r}")
        limit = self.layout.max_length if max_length is None else max_length
        if limit is None and padding == "max_length":
            raise ValueError("padding='max_length' needs max_length: this tokenizer has none")
        if limit is not None and not (type(limit) is int and limit > num_special):
            raise ValueError(
                f"max_length must be a whole number above the {num_special} special tokens, "
                f"got {limit!r}"
            )
        return limit


def read_tokenizer(path: PathLike) -> Tokenizer:
    """The tokenizer in a file or folder on this machine, whose kind the name tells.

    ``vocab.txt`` is BERT's; ``vocab.json`` with ``merges.txt`` beside it, or OpenAI's
    ``bpe_simple_vocab_16e6.txt.gz``, is CLIP's; any other ``.json`` is one that ``save`` wrote. A
    folder stands for the vocabulary that it holds. ValueError if there is none, or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in ("vocab.json", "vocab.txt", OPENAI_CLIP_FILE)]
        path = next((file for file in files if file.is_file()), path)
    if not path.is_file():
        raise ValueError(f"there is no tokenizer at {str(path)!r}")
    if path.name == "vocab.json" or path.suffix == ".gz":
        return Tokenizer.from_clip(path)
    return Tokenizer.load(path) if path.suffix == ".json" else Tokenizer.from_bert_vocab(path)


def train_wordpiece(
    captions: Sequence[str],
    vocab_size: int = 1000,
    lowercase: bool = True,
    min_count: int = 2,
    special_tokens: Sequence[str] = BERT_SPECIAL_TOKENS,
) -> Tokenizer:
    """Learn a WordPiece vocabulary: every character, then the pairs most often side by side.

    Text is cleaned and split as in BERT. ``special_tokens`` get the first numbers, in their order.
    Pairs seen fewer than ``min_count`` times stay apart, so there may be fewer tokens than
    ``vocab_size``. The same captions in any order give the same vocabulary. (Pairs are ranked by
    count, as ``tokenizers`` does; the trainer of Schuster and Nakajima 2012, never published, by
    likelihood.)
    """
    once = len(set(special_tokens)) == len(special_tokens)
    if not once or not set(BERT_SPECIAL_TOKENS) <= set(special_tokens):
        needed = ", ".join(BERT_SPECIAL_TOKENS)
        raise ValueError(
            f"special_tokens must hold each of {needed} once, got {list(special_tokens)}"
        )
    words = count_words(captions, lowercase)
    if not words:
        raise ValueError("train_wordpiece needs captions that hold words")
    vocab = learn_wordpiece(words, vocab_size, min_count, special_tokens)
    return Tokenizer(bert_engine(vocab, lowercase, special_tokens), _bert_layout(vocab, None))


def _bert_layout(vocab: dict[str, int], max_length: int | None) -> TokenLayout:
    return TokenLayout("[CLS]", "[SEP]", vocab["[PAD]"], "[MASK]", max_length)
