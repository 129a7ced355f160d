"""Language models for stage 2 of BLIP-2, with their tokenizers: whatever ``transformers`` can read.

``transformers`` is no dependency of mmlab: what needs it says so where it is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from mmlab.hub.files import weights_digest
from mmlab.hub.frozen_parts import SMOLLM2

MAKE_ONE = "mmlab language-model --out runs/opt-mini"
"""The command that makes a small one."""


@dataclass(frozen=True)
class LanguageModel:
    """A language model of ``transformers`` and the tokenizer that it was trained with.

    ``source`` is what it was read from, ``digest`` a fingerprint of the weights there.
    ``start_ids`` are what its texts begin with, such as ``</s>`` in OPT, and ``end_id`` what they
    end with: a line break where that is one token, as in LAVIS (``blip2_opt.py``), or else the
    tokenizer's end of a text.
    """

    source: str
    network: nn.Module
    tokenizer: object = field(repr=False)
    start_ids: tuple[int, ...]
    end_id: int
    digest: str

    @property
    def dim(self) -> int:
        """Width of its word vectors."""
        return self.network.get_input_embeddings().weight.shape[1]

    @property
    def pad_id(self) -> int:
        """What rows are filled up with; where they end is told apart."""
        number = self.tokenizer.pad_token_id
        return self.end_id if number is None else number

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it reads and writes with two stacks, and writes from a beginning of its own."""
        return bool(self.network.config.is_encoder_decoder)

    def encode(
        self, texts: Sequence[str], max_length: int
    ) -> tuple[Int64[Tensor, "texts max_length"], Int64[Tensor, " texts"]]:
        """Token numbers from the start to the end, and how many there are.

        However long the text, a row ends with ``end_id``.
        """
        words = self.tokenizer(list(texts), add_special_tokens=False).input_ids
        kept = max_length - len(self.start_ids) - 1
        rows = [[*self.start_ids, *row[:kept], self.end_id] for row in words]
        lengths = torch.tensor([len(row) for row in rows])
        filled = [row + [self.pad_id] * (max_length - len(row)) for row in rows]
        return torch.tensor(filled), lengths

    def prompt(self, count: int) -> Int64[Tensor, "count start_tokens"]:
        """What ``count`` texts begin with, for a model that writes."""
        start = torch.tensor(self.start_ids, dtype=torch.long)
        return start.expand(count, len(start))

    def decode(self, ids: Int64[Tensor, "texts tokens"]) -> list[str]:
        """The texts in rows of token numbers, each up to its end."""
        rows = [
            row[: row.index(self.end_id)] if self.end_id in row else row for row in ids.tolist()
        ]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def import_transformers(needed_by: str = "a language model") -> ModuleType:
    """The library; ImportError that says what to install where it is missing."""
    try:
        import transformers
    except ImportError:
        raise ImportError(
            f"{needed_by} needs transformers; install it with: pip install 'transformers>=5.0'"
        ) from None
    return transformers


def load_language_model(source: str | Path) -> LanguageModel:
    """The language model in a folder of ``transformers``, or of that name on the Hugging Face Hub.

    Decoders (OPT, Llama …) and encoder-decoders (T5 …), in float32; ``"smollm2"`` is that of
    ``mmlab.hub.frozen_parts``. ValueError if it cannot be read; ImportError without
    ``transformers``, or where the package is missing.
    """
    source, library = str(source), import_transformers()
    if source == "smollm2":
        return read_gguf(source, SMOLLM2.path(), library)
    if not Path(source).is_dir() and source.count("/") != 1:
        raise ValueError(
            f"there is no language model {source!r}: name a folder or 'owner/name' on the Hub, or "
            f"make a small one with: {MAKE_ONE}"
        )
    try:
        config = library.AutoConfig.from_pretrained(source)
        two_stacks = config.is_encoder_decoder
        kind = library.AutoModelForSeq2SeqLM if two_stacks else library.AutoModelForCausalLM
        network = kind.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
        tokenizer = library.AutoTokenizer.from_pretrained(source)
    except Exception as error:  # of many kinds, and of many lines
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"the language model {source!r} cannot be read ({reason}); make a small one with: "
            f"{MAKE_ONE}"
        ) from None
    return with_tokenizer(source, network, tokenizer)


def read_gguf(source: str, path: Path, library: ModuleType) -> LanguageModel:
    """The language model in a file of llama.cpp's format, its few bits made float32.

    ImportError that says what to install without ``gguf``.
    """
    if find_spec("gguf") is None:
        raise ImportError(f"{path.name!r} needs gguf; install it with: pip install 'mmlab[frozen]'")
    given = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    network = library.AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)
    return with_tokenizer(source, network, library.AutoTokenizer.from_pretrained(**given))


def with_tokenizer(source: str, network: nn.Module, tokenizer: object) -> LanguageModel:
    """The two as one, with what texts begin and end with."""
    start, words = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    start_ids = tuple(start[: start.index(words[0])]) if words else ()
    breaks = tokenizer("\n", add_special_tokens=False).input_ids
    unknown = tokenizer.unk_token_id
    is_token = len(breaks) == 1 and breaks[0] != unknown
    end_id = breaks[0] if is_token else tokenizer.eos_token_id
    digest = weights_digest(network.state_dict())
    return LanguageModel(source, network.eval(), tokenizer, start_ids, end_id, digest)
