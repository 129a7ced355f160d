"""Five families of vision-and-language networks as toys: they differ in who sees whom.

A pair is a caption (*words*) and a picture (*patches*), both already vectors of one width. A layer
takes the two and gives back the two; in one layer a token looks around at most once. A family is
nothing but a list of layers. The toys stand for designs, not for systems: heads, class tokens,
segment embeddings and dropout are left out. Names: Bugliarello et al. 2020 (arXiv 2011.15124) for
single- and dual-stream, Bao et al. 2021 (VLMo, arXiv 2111.02358) for dual and fusion encoder and
the mixture of modality experts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from mmlab.analysis.attention import record_attention
from mmlab.models.checks import check, check_integers
from mmlab.nn import MLP, Attention, TransformerBlock, patchify

Words = Float[Tensor, "batch words dim"]
Patches = Float[Tensor, "batch patches dim"]
Queries = Float[Tensor, "batch queries dim"]
Keys = Float[Tensor, "batch keys dim"]
Mask = Bool[Tensor, "#batch #heads tokens tokens"]

BLOCKS = (
    ("words", "words"),
    ("words", "patches"),
    ("patches", "words"),
    ("patches", "patches"),
)
"""The four blocks of an attention matrix, as (who looks, who is looked at)."""


@dataclass(frozen=True)
class ToyConfig:
    """Width, heads and hidden width of every layer of a toy; a wrong value raises ValueError."""

    dim: int = 32
    num_heads: int = 2
    mlp_dim: int = 64

    def __post_init__(self) -> None:
        check_integers(self, "dim", "num_heads", "mlp_dim")
        multiple = f"a multiple of num_heads={self.num_heads}"
        check(self.dim % self.num_heads == 0, "dim", self.dim, multiple)


TOY = ToyConfig()
BASE_WIDTH = ToyConfig(dim=768, num_heads=12, mlp_dim=3072)
"""The width of BERT-base and ViT-B: what a toy's layers would cost in earnest."""


# ---- Layers


class Together(nn.Module):
    """One sequence, one block: every token looks at all words and all patches."""

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.block = TransformerBlock(config.dim, config.num_heads, config.mlp_dim)

    def forward(
        self, words: Words, patches: Patches, mask: Mask | None = None
    ) -> tuple[Words, Patches]:
        """``mask`` is True where a token may look; see ``hide_blocks``."""
        tokens = torch.cat([words, patches], dim=1)
        tokens = self.block(tokens, mask)
        words, patches = tokens.tensor_split([words.shape[1]], dim=1)
        return words, patches


class Apart(nn.Module):
    """Two blocks with weights of their own: words look at words, patches at patches."""

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.words = TransformerBlock(config.dim, config.num_heads, config.mlp_dim)
        self.patches = TransformerBlock(config.dim, config.num_heads, config.mlp_dim)

    def forward(self, words: Words, patches: Patches) -> tuple[Words, Patches]:
        """Neither result depends on the other input."""
        return self.words(words), self.patches(patches)


class Look(nn.Module):
    """The attention half of a block, ``x + MSA(LN(x))``; keys and values may come from others."""

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.attention = Attention(config.dim, config.num_heads)

    def forward(self, x: Queries, context: Keys) -> Queries:
        """Queries from ``x``, keys and values from ``context``."""
        return x + self.attention(self.norm(x), context=self.norm(context))


class Think(nn.Module):
    """The other half of a block, ``x + MLP(LN(x))``: each token by itself."""

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.mlp = MLP(config.dim, config.mlp_dim)

    def forward(self, x: Queries) -> Queries:
        """Same shape as ``x``."""
        return x + self.mlp(self.norm(x))


class CoAttention(nn.Module):
    """Two streams swap keys and values: words look at patches, and patches at words, at once."""

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.words = Look(config)
        self.patches = Look(config)

    def forward(self, words: Words, patches: Patches) -> tuple[Words, Patches]:
        """Both look at what the other was before this layer."""
        return self.words(words, context=patches), self.patches(patches, context=words)


class WordsAlone(nn.Module):
    """Words look at words; the patches wait."""

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.look = Look(config)

    def forward(self, words: Words, patches: Patches) -> tuple[Words, Patches]:
        """The patches come back untouched."""
        return self.look(words, context=words), patches


class WordsReadPatches(nn.Module):
    """One-way cross-attention: words look at patches, not the other way; then the words' MLP."""

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.look = Look(config)
        self.think = Think(config)

    def forward(self, words: Words, patches: Patches) -> tuple[Words, Patches]:
        """The patches come back untouched."""
        return self.think(self.look(words, context=patches)), patches


class Experts(nn.Module):
    """Shared attention over all tokens; then words and patches go to an MLP each, their expert."""

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.look = Look(config)
        self.words = Think(config)
        self.patches = Think(config)

    def forward(self, words: Words, patches: Patches) -> tuple[Words, Patches]:
        """Who a token is decides its MLP, nothing is learned about the choice."""
        tokens = torch.cat([words, patches], dim=1)
        tokens = self.look(tokens, context=tokens)
        words, patches = tokens.tensor_split([words.shape[1]], dim=1)
        return self.words(words), self.patches(patches)


# ---- Families


class Toy(nn.Module):
    """A network is its layers, one after the other."""

    def __init__(self, layers: Iterable[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, words: Words, patches: Patches) -> tuple[Words, Patches]:
        """Words and patches after the last layer."""
        for layer in self.layers:
            words, patches = layer(words, patches)
        return words, patches


def single_stream(config: ToyConfig = TOY) -> Toy:
    """As VisualBERT, UNITER, ViLT: one stack over one long sequence."""
    return Toy(Together(config) for _ in range(4))


def dual_stream(config: ToyConfig = TOY) -> Toy:
    """As LXMERT: two solo layers, then twice co-attention followed by a solo layer."""
    solo, cross = Apart, CoAttention
    return Toy(layer(config) for layer in (solo, solo, cross, solo, cross, solo))


def dual_encoder(config: ToyConfig = TOY) -> Toy:
    """As CLIP: two stacks that never meet; only a similarity of their outputs joins them."""
    return Toy(Apart(config) for _ in range(4))


def fusion(config: ToyConfig = TOY) -> Toy:
    """As ALBEF: two solo layers, then the words alone go on and read the finished patches."""
    reading = (WordsAlone, WordsReadPatches)
    return Toy(layer(config) for layer in (Apart, Apart, *reading, *reading))


def mixture_of_experts(config: ToyConfig = TOY) -> Toy:
    """As the lower layers of VLMo: one attention for all, one MLP for each kind of token."""
    return Toy(Experts(config) for _ in range(4))


FAMILIES: dict[str, Callable[..., Toy]] = {
    "single_stream": single_stream,
    "dual_stream": dual_stream,
    "dual_encoder": dual_encoder,
    "fusion": fusion,
    "mixture_of_experts": mixture_of_experts,
}


def make_toy(family: str, config: ToyConfig = TOY, seed: int = 0) -> Toy:
    """An untrained toy of one of ``FAMILIES``, always the same for the same seed.

    Query weights are five times as large as PyTorch makes them: else every attention would be flat,
    and there would be nothing to look at. ValueError on an unknown family.
    """
    check(family in FAMILIES, "family", family, "one of " + ", ".join(FAMILIES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        toy = FAMILIES[family](config)
    with torch.no_grad():
        for layer in toy.modules():
            if isinstance(layer, Attention):
                layer.q_proj.weight.mul_(5)
    return toy.eval()


# ---- A pair as vectors


def embed_words(words: Iterable[str], dim: int = TOY.dim) -> Float[Tensor, "1 words dim"]:
    """A random vector for each word, the same wherever it stands, plus one for its place."""
    vectors = [_random_vector(f"word {word}", dim) for word in words]
    places = [_random_vector(f"place {i}", dim) for i in range(len(vectors))]
    return (torch.stack(vectors) + torch.stack(places) / 2)[None]


def embed_patches(
    image: UInt8[Tensor, "3 height width"], patch_size: int, dim: int = TOY.dim
) -> Float[Tensor, "1 patches dim"]:
    """A random linear map of each patch's pixels, plus a random vector for its place."""
    pixels = patchify(image[None] / 127.5 - 1, patch_size)
    values = pixels.shape[-1]
    rows = [_random_vector(f"value {i}", dim) for i in range(values)]
    places = [_random_vector(f"patch {i}", dim) for i in range(pixels.shape[1])]
    return pixels @ torch.stack(rows) / values**0.5 + torch.stack(places) / 2


def _random_vector(name: str, dim: int) -> Float[Tensor, " dim"]:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode("utf-8", "replace")))
    return torch.randn(dim, generator=generator)


# ---- Who looks at whom

# In a run with two words and three patches, the length of a sequence says who is in it.
_KINDS = {2: "words", 3: "patches", 5: "both"}


def who_looks(toy: Toy) -> dict[str, tuple[str, str]]:
    """For every attention of a toy, by name: who looks and who is looked at.

    Each is ``"words"``, ``"patches"`` or ``"both"``. Nothing is declared anywhere: a run with two
    words and three patches shows it, as the sizes two, three and five tell them apart.
    """
    dim = next(iter(toy.parameters())).shape[-1]
    like = next(iter(toy.parameters()))
    with record_attention(toy) as maps, torch.no_grad():
        toy(like.new_zeros(1, 2, dim), like.new_zeros(1, 3, dim))
    return {name: (_KINDS[m.shape[-2]], _KINDS[m.shape[-1]]) for name, m in maps.items()}


@torch.no_grad()
def attention_by_layer(
    toy: Toy, words: Float[Tensor, "1 words dim"], patches: Float[Tensor, "1 patches dim"]
) -> Float[Tensor, "layers tokens tokens"]:
    """The attention of each layer as one matrix, words first, mean over the heads.

    It is 0 where nobody looks; the row of a token that does not look around at all is 0.
    """
    num_words, num_tokens = words.shape[1], words.shape[1] + patches.shape[1]
    place = {
        "words": slice(0, num_words),
        "patches": slice(num_words, num_tokens),
        "both": slice(0, num_tokens),
    }
    with record_attention(toy) as maps:
        toy(words, patches)
    layers = words.new_zeros(len(toy.layers), num_tokens, num_tokens)
    for name, (queries, keys) in who_looks(toy).items():
        layer = int(name.split(".")[1])
        layers[layer, place[queries], place[keys]] = maps[name][0].mean(dim=0)
    return layers


def reach(
    layers: Float[Tensor, "layers tokens tokens"],
) -> Bool[Tensor, "layers tokens tokens"]:
    """Who can have influenced whom: ``[k, i, j]`` is True if token j has reached token i.

    After layer k a token knows itself, and whatever those knew that it has looked at.
    """
    known = torch.eye(layers.shape[-1], dtype=torch.bool)
    reached = []
    for looks in layers > 0:
        known = known | (looks.float() @ known.float() > 0)
        reached.append(known)
    return torch.stack(reached)


def block_mass(
    attention: Float[Tensor, "... tokens tokens"], num_words: int
) -> Float[Tensor, "... 2 2"]:
    """How a word's attention, and a patch's, divides between words and patches.

    Mean over the tokens that look: row 0 are the words, row 1 the patches; a row sums to 1, or to
    0 if that kind does not look in this layer.
    """
    parts = attention.tensor_split([num_words], dim=-1)
    shares = torch.stack([part.sum(dim=-1) for part in parts], dim=-1)  # (..., tokens, 2)
    kinds = shares.tensor_split([num_words], dim=-2)
    return torch.stack([rows.mean(dim=-2) for rows in kinds], dim=-2)


def hide_blocks(
    num_words: int, num_patches: int, *hidden: tuple[str, str]
) -> Bool[Tensor, "1 1 tokens tokens"]:
    """A mask for ``Together``: False in the blocks of ``BLOCKS`` that are hidden.

    ValueError on a block that does not exist, or if a token could look nowhere.
    """
    place = {"words": slice(0, num_words), "patches": slice(num_words, None)}
    mask = torch.ones(num_words + num_patches, num_words + num_patches, dtype=torch.bool)
    for queries, keys in hidden:
        allowed = "one of " + ", ".join(f"{q} → {k}" for q, k in BLOCKS)
        check((queries, keys) in BLOCKS, "hidden", f"{queries} → {keys}", allowed)
        mask[place[queries], place[keys]] = False
    check(bool(mask.any(dim=-1).all()), "hidden", hidden, "blocks that leave each token a view")
    return mask[None, None]


# ---- What it costs


@dataclass(frozen=True)
class LayerCost:
    """What one layer does: multiply-adds of its linear maps for each word and each patch, and more.

    ``looks`` are its attentions as (who looks, who is looked at); each costs ``2 q k D``.
    ``thinks`` says which tokens each of its MLPs works on; ``parameters`` counts its weights.
    """

    per_word: int
    per_patch: int
    looks: tuple[tuple[str, str], ...]
    thinks: tuple[str, ...]
    parameters: int


@cache
def layer_costs(family: str, config: ToyConfig = BASE_WIDTH) -> tuple[LayerCost, ...]:
    """The cost of each layer, measured once: hooks see what the parts of one run are given.

    Two words and three patches run on a device without memory; the sizes tell who is who.
    """
    check(family in FAMILIES, "family", family, "one of " + ", ".join(FAMILIES))
    with torch.device("meta"):
        toy = FAMILIES[family](config)
        pair = torch.zeros(1, 2, config.dim), torch.zeros(1, 3, config.dim)
    looks = who_looks(toy)
    costs = []
    for index, layer in enumerate(toy.layers):
        prefix = f"layers.{index}."
        seen = tuple(kinds for name, kinds in looks.items() if name.startswith(prefix))
        costs.append(_layer_cost(layer, pair, seen))
    return tuple(costs)


def _layer_cost(
    layer: nn.Module, pair: tuple[Tensor, Tensor], looks: tuple[tuple[str, str], ...]
) -> LayerCost:
    linear, thinks = {"words": 0, "patches": 0}, []

    def see(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        kind = _KINDS[inputs[0].shape[1]]
        if isinstance(module, MLP):
            thinks.append(kind)
            return
        for name in linear if kind == "both" else (kind,):
            linear[name] += module.in_features * module.out_features

    parts = [m for m in layer.modules() if isinstance(m, nn.Linear | MLP)]
    handles = [part.register_forward_hook(see) for part in parts]
    layer(*pair)
    for handle in handles:
        handle.remove()
    parameters = sum(p.numel() for p in layer.parameters())
    return LayerCost(linear["words"], linear["patches"], looks, tuple(thinks), parameters)


@dataclass(frozen=True)
class PairCost:
    """Multiply-adds that the words' side and the patches' side of one layer take for one pair."""

    words: int
    patches: int


def pair_costs(
    family: str, num_words: int, num_patches: int, config: ToyConfig = BASE_WIDTH
) -> list[PairCost]:
    """The cost of each layer for one pair, by who does the work."""
    size = {"words": num_words, "patches": num_patches, "both": num_words + num_patches}
    costs = []
    for layer in layer_costs(family, config):
        side = {"words": layer.per_word * num_words, "patches": layer.per_patch * num_patches}
        for queries, keys in layer.looks:
            for kind in ("words", "patches") if queries == "both" else (queries,):
                side[kind] += 2 * size[kind] * size[keys] * config.dim
        costs.append(PairCost(**side))
    return costs


@cache
def meeting_layers(family: str) -> tuple[int, int]:
    """The first layers (from 0) after which a word knows of a patch, and a patch of a word.

    The number of layers if that never happens.
    """
    toy = make_toy(family)
    words, patches = torch.ones(1, 2, TOY.dim), torch.ones(1, 3, TOY.dim)
    known = reach(attention_by_layer(toy, words, patches))
    met = known[:, :2, 2:].any(dim=(1, 2)), known[:, 2:, :2].any(dim=(1, 2))
    return tuple(m.tolist().index(True) if m.any() else len(m) for m in met)


def retrieval_macs(
    family: str,
    num_images: int,
    num_captions: int,
    num_words: int,
    num_patches: int,
    config: ToyConfig = BASE_WIDTH,
) -> int:
    """Multiply-adds to score every caption with every image, nothing computed twice.

    What a side does before it knows of the other is computed once for each caption or image and
    kept; from then on it is computed for each pair.
    """
    words_meet, patches_meet = meeting_layers(family)
    pairs = num_images * num_captions
    total = 0
    for layer, cost in enumerate(pair_costs(family, num_words, num_patches, config)):
        total += cost.words * (num_captions if layer < words_meet else pairs)
        total += cost.patches * (num_images if layer < patches_meet else pairs)
    return total
