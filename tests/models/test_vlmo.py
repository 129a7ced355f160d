import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab.analysis import count_parameters, record_attention
from mmlab.hub import create_model
from mmlab.models import vlmo
from mmlab.models.vlmo import FUSION, IMAGE, TEXT, VLMo
from mmlab.nn import TransformerBlock, interpolate_positions, run_blocks
from mmlab.nn.relative_positions import resize_offsets
from tests.models.tiny import TINY_VLMO

TINY = TINY_VLMO


def build(seed=0, **changes):
    """Noise on every parameter, so that no zero hides a mistake."""
    torch.manual_seed(seed)
    model = VLMo(replace(TINY, **changes)).eval()
    perturb(model, seed)
    return model


def perturb(module, seed=3):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)


def pairs(lengths=(7, 4, 5), seed=1):
    """Token numbers, padded with 0, what is valid of them, and images."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(4, 50, valid.shape, generator=generator).where(valid, 0)
    images = torch.randn(len(lengths), 3, 12, 12, generator=generator)
    return ids, valid, images


def passes(model, ids, valid, images):
    """The features of every way through the model."""
    image, text = model.image_paths(images), model.text_paths(ids, valid)
    pair = model(ids, images, valid)
    return {
        "image": image.tokens,
        "image by fusion": image.fused,
        "text": text.tokens,
        "text by fusion": text.fused,
        "pair": torch.cat([pair.text, pair.image], 1),
    }


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


# Sizes


COUNTS = {
    "VLMO_B_16": 202_445_470,
    "VLMO_B_16_RETRIEVAL": 177_413_857,
    "VLMO_B_16_VQA": 182_410_905,
    "VLMO_B_16_NLVR2": 178_601_954,
    "VLMO_B_PLUS_16": 184_980_734,
    "VLMO_B_PLUS_16_RETRIEVAL": 167_662_433,
    "VLMO_B_PLUS_16_VQA": 171_249_433,
    "VLMO_B_PLUS_16_NLVR2": 168_260_290,
    "VLMO_L_16": 599_127_102,
    "VLMO_L_16_RETRIEVAL": 565_259_521,
    "VLMO_L_16_VQA": 572_165_433,
    "VLMO_L_16_NLVR2": 567_367_938,
}


@pytest.mark.parametrize(("name", "expected"), COUNTS.items())
def test_parameter_counts(name, expected):
    with torch.device("meta"):
        assert count_parameters(VLMo(getattr(vlmo, name))) == expected


PARTS = [
    (vlmo.VLMO_B_16, 23_474_688, 162_144, 11_812_608, 16_536_576, 2_361_600, 589_824, 24_063_546),
    (vlmo.VLMO_B_PLUS_16, 16_627_904, 0, 5_929_056, 8_300_352, 1_185_376, 295_936, 16_932_058),
    (vlmo.VLMO_L_16, 31_299_584, 432_384, 20_993_024, 29_388_800, 4_197_376, 1_048_576, 32_336_698),
]


@pytest.mark.parametrize(
    ("config", "text", "table", "low", "top", "attention", "itc", "mlm"), PARTS
)
def test_parameter_counts_of_the_parts(config, text, table, low, top, attention, itc, mlm):
    with torch.device("meta"):
        model = VLMo(config)
    assert count_parameters(model.text_embeddings) == text
    assert (count_parameters(model.position_bias) if model.position_bias else 0) == table
    sizes = [count_parameters(block) for block in model.blocks]
    assert sizes == [low] * config.fusion_start + [top] * config.fusion_depth
    assert {count_parameters(block.attention) for block in model.blocks} == {attention}
    assert count_parameters(model.heads["contrast"]) == 2 * itc + 1
    assert count_parameters(model.heads["words"]) == mlm


GMACS = [(vlmo.VLMO_B_16, 17.6, 3.43, 21.3), (vlmo.VLMO_L_16, 61.6, 12.2, 74.5)]


@pytest.mark.parametrize(("config", "image", "text", "pair"), GMACS)
def test_multiplications_of_the_three_passes(config, image, text, pair):
    with torch.device("meta"):
        model = VLMo(replace(config, heads=())).eval()
        ids, images = torch.ones(1, 40, dtype=torch.long), torch.zeros(1, 3, 224, 224)
    for run, expected in (
        (lambda: model.image_paths(images, fused=False), image),
        (lambda: model.text_paths(ids, fused=False), text),
        (lambda: model(ids, images), pair),
    ):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
            run()
        assert count.get_total_flops() / 2e9 == pytest.approx(expected, rel=4e-3)


def test_the_mini_model_is_small_and_made_by_name():
    assert count_parameters(create_model("vlmo-mini")) < 2_000_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 250),
        ("dim", 770),
        ("fusion_depth", 13),
        ("fusion_depth", 0),
        ("context_length", 197),
        ("positions", "rotary"),
        ("layer_scale", -0.1),
        ("heads", ("contrast", "rank")),
        ("num_classes", 3),
        ("num_codes", 512),
        ("drop_path", 1.0),
        ("activation", "swish"),
        ("init", "zeros"),
    ],
)
def test_wrong_values_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got"):
        replace(vlmo.VLMO_B_16, **{name: value})


def test_wrong_inputs_are_named():
    model, (ids, _, images) = build(), pairs()
    with pytest.raises(ValueError, match="a text may have 10 tokens, this one has 14"):
        model(F.pad(ids, (0, 7)), images)
    with pytest.raises(ValueError, match=r"images must have shape \(batch, 3, 12, 12\), got"):
        model(ids, images[..., :8])
    with pytest.raises(ValueError, match="image_number must be from 1 to num_images=1, got 2"):
        model(ids, images, image_number=2)
    with pytest.raises(ValueError, match="this VLMo has no 'answer' head; it has heads="):
        model.answer_logits(model(ids, images))
    with pytest.raises(ValueError, match="no 'codes' head"):
        model.image_paths(images, torch.zeros(3, 9, dtype=torch.bool))
    two = build(num_images=2, heads=("answer",), num_classes=2)
    with pytest.raises(ValueError, match="features must be given for num_images=2 images, got 1"):
        two.answer_logits(two(ids, images))


# Experts


def test_fusion_experts_are_in_the_top_blocks():
    model = build(depth=4, fusion_depth=2)
    names = [tuple(block.experts) for block in model.blocks]
    assert names == [(TEXT, IMAGE)] * 2 + [(TEXT, IMAGE, FUSION)] * 2
    assert build(fusion_depth=0, heads=()).text_paths(pairs()[0]).fused is None


# Which passes read which experts: below the first fusion expert, and from there on.
READERS = {
    (TEXT, "below"): {"text", "text by fusion", "pair"},
    (IMAGE, "below"): {"image", "image by fusion", "pair"},
    (TEXT, "above"): {"text"},
    (IMAGE, "above"): {"image"},
    (FUSION, "above"): {"text by fusion", "image by fusion", "pair"},
}


@pytest.mark.parametrize(("expert", "where"), READERS)
def test_every_pass_reads_its_own_experts_and_no_others(expert, where):
    model, given = build(), pairs()
    before = passes(model, *given)
    blocks = model.blocks[:2] if where == "below" else model.blocks[2:]
    for block in blocks:
        perturb(block.experts[expert])
    after = passes(model, *given)
    moved = {name for name in before if (before[name] - after[name]).abs().max() > 1e-3}
    assert moved == READERS[expert, where]
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - moved)


def test_gradients_reach_what_a_pass_reads():
    model, (ids, valid, images) = build(), pairs()

    def learning(features):
        model.zero_grad()
        features.square().sum().backward()
        parts = ("text", "image", "fusion", "attention")
        names = [name for name, p in model.named_parameters() if p.grad is not None]
        return {part for part in parts for name in names if part in name and "blocks" in name}

    image = learning(model.image_paths(images, fused=False).tokens)
    assert image == {"image", "attention"}
    assert learning(model.text_paths(ids, valid, fused=False).tokens) == {"text", "attention"}
    pair = learning(model(ids, images, valid).pooled)
    assert pair == {"text", "image", "fusion", "attention"}


def test_all_blocks_have_one_attention_for_all():
    model = build()
    for block in model.blocks:
        owned = [name for name, _ in block.attention.named_parameters()]
        assert len(owned) == 7 and "k_proj.bias" not in owned


def test_with_equal_experts_all_ways_are_one_plain_transformer():
    model = build(positions="absolute", layer_scale=0.0)
    for block in model.blocks:
        for name in (IMAGE, FUSION):
            if name in block.experts:
                block.experts[name].load_state_dict(block.experts[TEXT].state_dict())
    plain = [as_plain_block(block) for block in model.blocks]
    ids, _, images = pairs((7, 7, 7))
    image, text = model.embed_image(images), model.embed_text(ids)
    found = passes(model, ids, None, images)
    for name, tokens in (("image", image), ("text", text), ("pair", torch.cat([text, image], 1))):
        expected = model.norm(run_blocks(plain, tokens))
        close(found[name], expected)
        if name != "pair":
            close(found[f"{name} by fusion"], expected)


def as_plain_block(block):
    plain = TransformerBlock(TINY.dim, TINY.num_heads, TINY.mlp_dim).eval()
    plain.norm1.load_state_dict(block.norm1.state_dict())
    keys = {"k_proj.bias": torch.zeros(TINY.dim)}
    plain.attention.load_state_dict(block.attention.state_dict() | keys)
    plain.norm2.load_state_dict(block.experts[TEXT].norm.state_dict())
    plain.mlp.load_state_dict(block.experts[TEXT].mlp.state_dict())
    return plain


# Texts and positions


@pytest.mark.parametrize("positions", vlmo.POSITIONS)
def test_padding_changes_nothing_and_is_recognised(positions):
    model, (ids, valid, images) = build(positions=positions), pairs()
    short = passes(model, ids, valid, images)
    ids, longer = F.pad(ids, (0, 3)), F.pad(valid, (0, 3))
    for long in (
        passes(model, ids.where(longer, 9), longer, images),
        passes(model, ids, None, images),
    ):
        for name, tokens in long.items():
            kept = tokens if "text" not in name and name != "pair" else tokens[:, :7]
            if name == "pair":
                close(tokens[:, 10:], short[name][:, 7:])
            expected = short[name][:, : kept.shape[1]]
            rows = torch.ones_like(valid) if "image" in name else valid
            close(kept[:, :7][rows], expected[:, :7][rows])


def test_words_and_patches_have_two_type_rows_and_one():
    model, (ids, _, images) = build(), pairs()
    row = model.modality_embedding.weight
    close(model.embed_image(images)[:, :1] - row[1], model.class_token.expand(3, 1, -1))
    embeddings = model.text_embeddings
    words = embeddings.word_embedding(ids) + embeddings.type_embedding.weight[0]
    close(model.embed_text(ids), embeddings.norm(words) + row[0])


def test_only_absolute_positions_are_added_to_tokens():
    (ids, _, images), relative, absolute = pairs(), build(), build(positions="absolute")
    table = relative.text_embeddings.position_embedding.weight
    before = relative.embed_text(ids)
    table.data += 1
    assert torch.equal(relative.embed_text(ids), before) and not table.requires_grad
    assert relative.position_embedding is None and absolute.position_bias is None
    before = absolute.embed_text(ids), absolute.embed_image(images)
    absolute.text_embeddings.position_embedding.weight.data[3] += torch.randn(TINY.dim)
    absolute.position_embedding.data[0, 3] += 1
    after = absolute.embed_text(ids), absolute.embed_image(images)
    for left, right in zip(before, after, strict=True):
        moved = (left - right).abs().amax((0, 2)) > 0
        assert moved.nonzero().flatten().tolist() == [3]


def test_where_words_stand_matters_within_the_text_alone():
    """The bias between words and patches is one number: it knows of no places."""
    model = build()
    bias = model.position_bias.pair(7)
    for block in (bias[:, :, :7, 7:], bias[:, :, 7:, :7]):
        assert (block.flatten(2).amax(-1) == block.flatten(2).amin(-1)).all()


def test_positions_of_another_resolution():
    relative, absolute = build(), build(positions="absolute")
    table = relative.position_bias.table.detach().clone()
    relative.resize_positions(24)
    close(relative.position_bias.table, resize_offsets(table, (3, 3), (6, 6)))
    places = absolute.position_embedding.detach().clone()
    absolute.resize_positions(24)
    close(absolute.position_embedding, interpolate_positions(places, (3, 3), (6, 6), "bicubic"))
    ids, valid, _ = pairs()
    for model in (relative, absolute):
        assert model.config.image_size == 24
        assert model(ids, torch.randn(3, 3, 24, 24), valid).image.shape == (3, 37, 24)


# Attention


def test_attention_of_the_last_pass_is_recorded_with_its_bias():
    model, (ids, valid, images) = build(), pairs()
    with record_attention(model) as maps:
        model(ids, images, valid)
    assert list(maps) == [f"blocks.{i}.attention" for i in range(3)]
    for attended in maps.values():
        assert attended.shape == (3, 3, 17, 17)
        close(attended.sum(-1), torch.ones(3, 3, 17))
        hidden = ~F.pad(valid, (0, 10), value=True)
        assert attended.transpose(1, 3)[hidden].abs().max() == 0
    tokens = torch.cat([model.embed_text(ids), model.embed_image(images)], 1)
    first = model.blocks[0]
    split = (3, 17, 3, 8)
    queries = first.attention.q_proj(first.norm1(tokens)).reshape(split).transpose(1, 2)
    keys = first.attention.k_proj(first.norm1(tokens)).reshape(split).transpose(1, 2)
    scores = queries @ keys.mT / math.sqrt(8) + model.position_bias.pair(7)[0]
    scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
    close(maps["blocks.0.attention"], scores.softmax(-1))


def test_recomputed_blocks_give_the_same_gradients():
    model, (ids, valid, images) = build(), pairs()

    def gradient():
        model.zero_grad()
        ways = passes(model, ids, valid, images)
        sum(tokens.square().sum() for tokens in ways.values()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradient()
    assert "position_bias.table" in expected
    model.activation_checkpointing = True
    for name, tensor in gradient().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def test_half_precision_is_close():
    model, (ids, valid, images) = build(), pairs()
    expected = model(ids, images, valid).pooled
    with torch.autocast("cpu", torch.bfloat16):
        found = model(ids, images, valid).pooled
    # bfloat16 keeps 8 bits: relative steps of 2^-8.
    assert (found.float() - expected).abs().max() < 0.1
    assert (model.bfloat16()(ids, images.bfloat16(), valid).pooled - expected).abs().max() < 0.1


def test_branches_are_dropped_more_often_the_higher_they_are():
    model = VLMo(replace(TINY, drop_path=0.2))
    assert [block.drop_path.rate for block in model.blocks] == [0.0, 0.1, 0.2]
    ids, valid, images = pairs()
    model.train()
    assert not torch.equal(model(ids, images, valid).pooled, model(ids, images, valid).pooled)


# Initialisation


def test_weights_start_as_published_or_spread_with_the_width():
    published, narrow = VLMo(TINY), VLMo(replace(TINY, init="xavier"))
    for model, spread in ((published, 0.02), (narrow, math.sqrt(2 / (24 + 40)))):
        fc1 = torch.cat([b.experts[e].mlp.fc1.weight for b in model.blocks for e in b.experts])
        assert fc1.std().item() == pytest.approx(spread, rel=0.1)
        assert (model.blocks[0].gamma1 == 0.5).all() and model.position_bias.table.abs().max() == 0
        scale = model.heads["contrast"].logit_scale.item()
        assert scale == pytest.approx(math.log(1 / 0.07))
