import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmlab.analysis import count_parameters, record_attention
from mmlab.hub import create_model
from mmlab.models import blip2
from mmlab.models.blip2 import (
    BLIP2,
    BLIP2Pretraining,
    BLIP2Retrieval,
    bidirectional_mask,
    multimodal_causal_mask,
    query_similarity,
    start_from_blip2,
    start_from_vit,
    unimodal_mask,
)
from mmlab.models.vit import VIT_MINI, ViT
from mmlab.nn import beam_search
from tests.models.tiny import TINY_BLIP2

PAD, CLS, SEP, DEC = 0, 1, 2, 49
QUERIES = TINY_BLIP2.num_queries


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return BLIP2(replace(TINY_BLIP2, **changes)).eval()


def perturb(module, seed=3):
    """Every parameter another: no zero bias, no two equal tensors."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def pretraining(network=None, kind=BLIP2Pretraining, **settings):
    network = perturb(build()) if network is None else network
    return kind(network, **settings).eval()


def batch_of(count=4, seed=1):
    """Captions of different lengths from [CLS] to [SEP]."""
    generator = torch.Generator().manual_seed(seed)
    lengths = 5 + torch.arange(count) % 5
    valid = torch.arange(9) < lengths[:, None]
    ids = torch.randint(4, 48, (count, 9), generator=generator).where(valid, PAD)
    ids[:, 0], ids[torch.arange(count), lengths - 1] = CLS, SEP
    images = torch.randn(count, 3, 16, 16, generator=generator)
    return {"images": images, "input_ids": ids, "attention_mask": valid}


def chosen(batch):
    """Nothing is left to be drawn."""
    drawn = {"negative_images": torch.tensor([1, 0, 3, 2])}
    return batch | drawn | {"negative_texts": torch.tensor([2, 3, 0, 1])}


def image_and_text():
    model, batch = perturb(build()), batch_of()
    tokens = model.image_tokens(batch["images"])
    return model, tokens, batch["input_ids"], batch["attention_mask"]


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


def differ(left, right, least=1e-4):
    """In each row."""
    assert (left - right).abs().flatten(1).amax(1).min() > least


# Sizes

COUNTS = {
    # What learns, and what does not.
    "BLIP2_G_14": (186_705_470, 985_894_528),
    "BLIP2_G_14_OPT_2_7B": (107_133_696, 985_894_528),
    "BLIP2_G_14_OPT_6_7B": (108_314_880, 985_894_528),
    "BLIP2_G_14_FLAN_T5_XL": (106_739_968, 985_894_528),
    "BLIP2_G_14_FLAN_T5_XXL": (108_314_880, 985_894_528),
    "BLIP2_L_14_OPT_2_7B": (103_593_984, 290_581_504),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    learning, frozen = COUNTS[name]
    with torch.device("meta"):
        model = BLIP2(getattr(blip2, name))
    assert count_parameters(model.image_encoder) == frozen
    assert count_parameters(model, trainable_only=True) == learning
    assert count_parameters(model) == learning + frozen


def test_the_parts_have_the_sizes_of_the_sheet():
    with torch.device("meta"):
        model = BLIP2(blip2.BLIP2_G_14)
        tuned = BLIP2(blip2.BLIP2_G_14_RETRIEVAL)
    count, qformer = count_parameters, model.qformer
    assert count(model.image_encoder.blocks[0]) == 25_248_768
    assert count(qformer.embeddings) == 23_836_416
    assert (count(qformer.blocks[0]), count(qformer.blocks[1])) == (15_158_784, 11_811_840)
    crossing = [block.cross_attention is not None for block in qformer.blocks]
    assert crossing == [True, False] * 6
    assert qformer.queries.numel() == 24_576 and count(model.image_norm) == 2_816
    with_words = count(qformer) - 24_576 + count(model.heads["words"])
    assert with_words == 186_282_811
    assert count(tuned, trainable_only=True) == count(tuned)
    assert tuned.image_encoder.position_embedding.shape[1] == 677


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 250),
        ("text_dim", 25),
        ("vocab_size", 1),
        ("image_encoder", "swin"),
        ("stem", "conv"),
        ("num_queries", 0),
        ("cross_every", 0),
        ("heads", ("contrast", "rank")),
        ("heads", ("prefix",)),
        ("prefix_dim", 3),
        ("temperature", 0.0),
        ("dropout", 1.0),
        ("activation", "swish"),
    ],
)
def test_wrong_values_are_named(name, value):
    field = "prefix_dim" if value == ("prefix",) else name
    with pytest.raises(ValueError, match=f"{field} must be .*, got"):
        replace(blip2.BLIP2_G_14, **{name: value})


# The image encoder


@pytest.mark.parametrize("kind", ["eva", "clip", "vit"])
def test_the_image_encoder_is_frozen(kind):
    model = build(image_encoder=kind)
    assert not any(p.requires_grad for p in model.image_encoder.parameters())
    assert not model.train().image_encoder.training and model.qformer.training
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"image_norm", "qformer", "heads"}


def test_it_learns_where_it_is_told_to():
    model = build(freeze_images=False)
    assert all(p.requires_grad for p in model.parameters())
    assert model.train().image_encoder.training


def test_the_keys_of_eva_have_no_bias_and_no_norm_comes_last():
    eva, clip = build().image_encoder, build(image_encoder="clip").image_encoder
    assert eva.blocks[0].attention.k_proj.bias is None
    assert clip.blocks[0].attention.k_proj.bias is not None
    assert clip.patch_embedding.projection.bias is None
    images = batch_of()["images"]
    for encoder in (eva, clip):
        x = encoder.embed(images)
        for block in encoder.blocks:
            x = block(x)
        assert torch.equal(encoder.forward_tokens(images), x)


def test_the_image_encoder_may_be_in_half_precision():
    model, images = perturb(build()), batch_of()["images"]
    before = model.image_tokens(images)
    model.image_encoder.bfloat16()
    after = model.image_tokens(images)
    assert after.dtype == torch.float32
    assert 0 < (after - before).abs().max() < 0.2


@pytest.mark.parametrize("kind", ["eva", "clip", "vit"])
def test_images_may_become_larger(kind):
    model, images = build(image_encoder=kind), torch.randn(2, 3, 24, 24)
    with pytest.raises(ValueError, match=r"\(batch, 3, 16, 16\)"):
        model.encode_image(images)
    assert model.resize_positions(24, "bicubic_aligned").encode_image(images).shape == (2, 4, 8)
    assert model.config.image_size == 24
    assert not model.image_encoder.position_embedding.requires_grad


def test_the_mini_takes_the_weights_of_the_mini_vit():
    torch.manual_seed(0)
    vit, model = ViT(replace(VIT_MINI, num_classes=0)), create_model("blip2-mini", vocab_size=300)
    model.image_encoder.load_state_dict(vit.state_dict())
    assert model.config.decoder_id == 299
    assert count_parameters(model, trainable_only=True) < 2_000_000


# What a model starts with, and what is frozen


def test_the_image_encoder_starts_from_a_vit():
    sizes = {name: getattr(VIT_MINI, name) for name in ("image_size", "patch_size", "stem")}
    torch.manual_seed(1)
    vit = perturb(ViT(VIT_MINI))
    model = create_model("blip2-mini", vocab_size=50)
    start_from_vit(model, vit)
    images = torch.randn(2, 3, sizes["image_size"], sizes["image_size"])
    theirs = vit.eval().forward_tokens(images)
    torch.testing.assert_close(model.image_encoder.forward_tokens(images), theirs)
    assert not any(p.requires_grad for p in model.image_encoder.parameters())
    with pytest.raises(ValueError, match="must have the same shape"):
        start_from_vit(build(), vit)


def test_stage_2_starts_from_stage_1():
    first = perturb(build())
    second = build(seed=5, heads=("prefix",), prefix_dim=6)
    fresh = second.state_dict()["heads.prefix.weight"].clone()
    start_from_blip2(second, first)
    images = batch_of()["images"]
    left, right = (m.qformer.look(m.image_tokens(images)).tokens for m in (first, second))
    torch.testing.assert_close(left, right)
    assert torch.equal(second.heads["prefix"].weight, fresh)


def test_a_head_that_both_have_is_kept():
    first, second = perturb(build()), build(seed=5, heads=("match",))
    start_from_blip2(second, first)
    assert torch.equal(second.heads["match"].weight, first.heads["match"].weight)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_queries": 3}, "qformer.queries"),
        ({"vocab_size": 60}, "qformer.embeddings.word_embedding.weight"),
        ({"text_depth": 5}, "qformer.blocks.4."),
    ],
)
def test_a_blip2_of_another_shape_is_no_start(changes, name):
    for one, other in ((build(), build(**changes)), (build(**changes), build())):
        with pytest.raises(ValueError, match=f"they differ in '{name}"):
            start_from_blip2(one, other)


def test_stage_1_cannot_start_from_stage_2():
    with pytest.raises(ValueError, match="they differ in"):
        start_from_blip2(build(), build(heads=("prefix",), prefix_dim=6))


def test_narrow_models_start_with_a_larger_spread():
    assert blip2.BLIP2_G_14.init == "normal" and blip2.BLIP2_MINI.init == "xavier"
    published, narrow = build(), build(init="xavier")
    for model, spread in ((published, 0.02), (narrow, (2 / (24 + 36)) ** 0.5)):
        mlp = model.qformer.blocks[0].mlp.fc1.weight
        assert mlp.std().item() == pytest.approx(spread, rel=0.15)
        assert torch.equal(model.qformer.blocks[0].query_mlp.fc1.weight, mlp)
        assert model.qformer.queries.std().item() == pytest.approx(0.02, rel=0.2)
        first, second = model.qformer.queries[0, :2]
        assert not torch.equal(first, second)
    assert narrow.heads["match"].weight.std() > 2 * published.heads["match"].weight.std()
    with pytest.raises(ValueError, match="init must be one of 'normal', 'xavier', got 'zeros'"):
        build(init="zeros")


def test_what_is_frozen_is_named():
    model = build()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(model.frozen)}
    assert frozen and build(freeze_images=False).frozen == ()


def test_an_efficientnet_may_be_the_image_encoder():
    model = build(image_encoder="efficientnet", dim=320, image_size=48, patch_size=16)
    images = torch.randn(2, 3, 48, 48)
    assert model.image_tokens(images).shape == (2, 9, 320)
    assert model.encode_image(images).shape == (2, QUERIES, 8)
    statistics = [b for n, b in model.image_encoder.named_buffers() if n.endswith("running_mean")]
    before = [b.clone() for b in statistics]
    model.train().image_tokens(images)
    assert all(torch.equal(a, b) for a, b in zip(before, statistics, strict=True))
    assert model.resize_positions(64).encode_image(torch.randn(1, 3, 64, 64)).shape[1] == QUERIES
    model.image_encoder.bfloat16()
    assert model.image_tokens(torch.randn(2, 3, 64, 64)).dtype == torch.float32
    with pytest.raises(ValueError, match="dim must be 320 with an efficientnet, got 24"):
        build(image_encoder="efficientnet", dim=24, patch_size=8)


# The three masks

VALID = torch.tensor([[True, True, True], [True, True, False]])


def drawn(mask):
    wide = mask.expand(2, 1, 5, 5)[:, 0].int()
    return [["".join(map(str, row)) for row in one.tolist()] for one in wide]


def test_the_masks_are_those_of_the_paper():
    both, causal = ["11111"] * 5, ["11000", "11000", "11100", "11110", "11111"]
    assert drawn(bidirectional_mask(2, VALID)) == [both, ["11110"] * 5]
    assert drawn(unimodal_mask(2, VALID)) == [
        ["11000", "11000", "00111", "00111", "00111"],
        ["11000", "11000", "00110", "00110", "00110"],
    ]
    padded = ["11000", "11000", "11100", "11110", "11110"]
    assert drawn(multimodal_causal_mask(2, VALID)) == [causal, padded]


def test_the_contrast_may_be_computed_in_one_pass_or_two():
    model, images, ids, valid = image_and_text()
    both = model.qformer(images, ids, unimodal_mask(QUERIES, valid))
    close(both[:, :QUERIES], model.qformer.look(images).tokens)
    close(both[:, QUERIES:][valid], model.text_tokens(ids, valid)[valid])


def test_writing_may_look_at_the_mask_or_at_what_queries_have_left():
    model, images, ids, valid = image_and_text()
    ids = torch.cat([torch.full((4, 1), DEC), ids[:, 1:]], 1)
    both = model.qformer(images, ids, multimodal_causal_mask(QUERIES, valid))
    queries, past = model.qformer.look(images)
    close(both[:, :QUERIES], queries)
    right = model.words(both[:, QUERIES:])
    close(model.word_logits(ids, past, valid)[valid], right[valid])


def test_who_depends_on_whom():
    model, images, ids, valid = image_and_text()
    other_images, other = images + 1.0, ids.clone()
    other[:, 3] = 3
    for make, queries_see_text, text_sees_image in (
        (unimodal_mask, False, False),
        (bidirectional_mask, True, True),
        (multimodal_causal_mask, False, True),
    ):
        mask = make(QUERIES, valid)
        start = model.qformer(images, ids, mask)
        by_text = model.qformer(images, other, mask)
        by_image = model.qformer(other_images, ids, mask)
        if queries_see_text:
            differ(start[:, :QUERIES], by_text[:, :QUERIES])
        else:
            assert torch.equal(start[:, :QUERIES], by_text[:, :QUERIES])
        for t in range(3):
            text = start[:, QUERIES + t], by_image[:, QUERIES + t]
            differ(*text) if text_sees_image else close(*text)
        before = start[:, QUERIES : QUERIES + 3], by_text[:, QUERIES : QUERIES + 3]
        close(*before) if make is multimodal_causal_mask else differ(*before)


def test_padding_changes_nothing():
    model, images, ids, valid = image_and_text()
    other = ids.where(valid, 7)
    for left, right in (
        (model.encode_text(ids, valid), model.encode_text(other, valid)),
        (
            model.fuse(ids, images, valid)[:, :QUERIES],
            model.fuse(other, images, valid)[:, :QUERIES],
        ),
    ):
        close(left, right)
    close(model.encode_text(ids), model.encode_text(ids, valid.long()))


# The Q-Former


def test_every_second_block_looks_at_the_image():
    qformer = build().qformer
    assert [b.cross_attention is not None for b in qformer.blocks] == [True, False, True, False]
    thrice = build(cross_every=3).qformer
    assert [b.cross_attention is not None for b in thrice.blocks] == [True, False, False, True]


def test_only_queries_look():
    """In one block: text rows are the same whatever the image."""
    block = perturb(build()).qformer.blocks[0]
    x, context = torch.randn(2, 7, 24), torch.randn(2, 5, 20)
    start, other = block(x, None, context, 4), block(x, None, context + 1, 4)
    close(start[:, 4:], other[:, 4:])
    differ(start[:, :4], other[:, :4])


def test_without_cross_attention_the_image_has_no_effect():
    model, images, ids, valid = image_and_text()
    for block in model.qformer.blocks[::2]:
        for tensor in block.cross_attention.out_proj.parameters():
            tensor.data.zero_()
    fused = model.fuse(ids, images, valid), model.fuse(ids, images + 1.0, valid)
    assert torch.equal(*fused)


def test_queries_start_different_and_their_mlps_as_those_of_the_text():
    qformer = build().qformer
    assert qformer.queries.std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.pdist(qformer.queries[0]).min() > 0
    for block in qformer.blocks:
        assert torch.equal(block.query_mlp.fc1.weight, block.mlp.fc1.weight)
        assert torch.equal(block.query_mlp.fc2.weight, block.mlp.fc2.weight)
        assert block.query_mlp.fc1.weight.data_ptr() != block.mlp.fc1.weight.data_ptr()


def test_equal_queries_stay_equal():
    """Which is why those of transformers, all zero at first, cannot be trained from."""
    model, images, _, _ = image_and_text()
    model.qformer.queries.data[:] = 0.3
    queries, _ = model.qformer.look(images)
    close(queries, queries[:, :1].expand_as(queries))


def test_the_order_of_queries_does_not_matter():
    model, images, ids, valid = image_and_text()
    order = torch.tensor([2, 0, 3, 1])

    def results():
        queries, past = model.qformer.look(images)
        features = query_similarity(model.image_features(queries), model.encode_text(ids, valid))
        match = model.matching_logits(model.fuse(ids, images, valid))
        return queries, (features, match, model.word_logits(ids, past, valid))

    queries, kept = results()
    model.qformer.queries.data = model.qformer.queries.data[:, order]
    permuted, again = results()
    close(permuted, queries[:, order])
    for left, right in zip(kept, again, strict=True):
        close(left, right)


def test_the_head_of_matching_is_asked_for_each_query():
    model, images, ids, valid = image_and_text()
    fused = model.fuse(ids, images, valid)
    each = [model.heads["match"](fused[:, i]) for i in range(QUERIES)]
    close(model.matching_logits(fused), sum(each) / QUERIES)


def test_a_text_is_as_like_an_image_as_its_likest_query():
    images = F.normalize(torch.randn(3, 4, 5, requires_grad=True), dim=-1)
    images.retain_grad()
    texts = F.normalize(torch.randn(2, 5), dim=-1)
    table = query_similarity(images, texts)
    for i in range(3):
        for t in range(2):
            close(table[i, t], max(images[i] @ texts[t]))
    table[1, 0].backward()
    assert (images.grad.abs().sum(-1) > 0).nonzero().tolist() == [
        [1, int((images[1] @ texts[0]).argmax())]
    ]
    # One image or one text is no special case.
    assert query_similarity(images[:1], texts[:1]).shape == (1, 1)


def test_features_have_length_one():
    model, batch = build(), batch_of()
    close(model.encode_image(batch["images"]).norm(dim=-1), torch.ones(4, QUERIES))
    close(model.encode_text(batch["input_ids"]).norm(dim=-1), torch.ones(4))


def test_the_model_gives_all_tokens():
    model, images, ids, valid = image_and_text()
    found = model(ids, batch_of()["images"], valid)
    assert torch.equal(found.images, images)
    assert torch.equal(found.queries, model.qformer.look(images).tokens)
    assert torch.equal(found.text, model.text_tokens(ids, valid))
    assert torch.equal(found.fused, model.fuse(ids, images, valid))


def test_attention_maps_of_all_passes():
    model, images, ids, valid = image_and_text()
    with record_attention(model) as maps:
        model.image_tokens(batch_of()["images"])
        _, past = model.qformer.look(images)
        looked = dict(maps)
        model.word_logits(ids, past, valid)
    assert looked["image_encoder.blocks.0.attention"].shape == (4, 2, 5, 5)
    assert looked["qformer.blocks.0.attention"].shape == (4, 3, 4, 4)
    assert looked["qformer.blocks.2.cross_attention"].shape == (4, 3, 4, 5)
    assert not any("blocks.1.cross" in name for name in looked)
    writing = maps["qformer.blocks.3.attention"]
    assert writing.shape == (4, 3, 9, 4 + 9)
    assert (writing[..., 4:].triu(1) == 0).all() and (writing[..., :4] > 0).all()


def test_missing_parts_are_named():
    images = batch_of()["images"]
    silent = build(heads=("prefix",), prefix_dim=6)
    assert silent.prefix(silent.image_tokens(images)).shape == (4, QUERIES, 6)
    assert not {
        n for n, _ in silent.named_parameters() if "qformer.blocks.0.mlp" in n or "word" in n
    }
    with pytest.raises(ValueError, match="this Q-Former reads no text"):
        silent.text_tokens(batch_of()["input_ids"])
    with pytest.raises(ValueError, match="has no 'match' head; it has heads="):
        BLIP2Pretraining(silent)
    with pytest.raises(ValueError, match="no temperature"):
        BLIP2Pretraining(build(temperature=None))
    with pytest.raises(ValueError, match="has no 'words' head"):
        build(heads=("contrast",)).start_writing(silent.image_tokens(images))


def test_word_by_word_equals_all_at_once():
    model, images, ids, _ = image_and_text()
    ids[:, 0] = DEC
    writing, past = model.start_writing(images), model.qformer.look(images).past
    whole = model.word_logits(ids, past, torch.ones_like(ids))
    close(writing.next(ids[:, :3]), whole[:, 2])
    writing.repeat(2)
    rows = torch.arange(4).repeat_interleave(2)
    close(writing.next(ids[rows, 3:4]), whole[rows, 3])
    writing.select(torch.tensor([1, 0]))
    close(writing.next(ids[:1, 4:5].expand(2, -1)), whole[:1, 4].expand(2, -1))


def test_beams_write_captions():
    model, images, _, _ = image_and_text()
    prompt = torch.full((4, 1), DEC)
    texts = beam_search(model.start_writing(images), prompt, SEP, num_beams=3, max_length=8)
    assert texts.shape[0] == 4 and (texts[:, 0] == DEC).all()
    greedy = beam_search(
        model.start_writing(images), prompt, SEP, num_beams=1, max_length=3, min_length=3
    )
    first = model.start_writing(images).next(prompt)
    first[:, SEP] = -torch.inf
    assert torch.equal(greedy[:, 1], first.argmax(-1))


# Pre-training


def test_every_loss_has_a_name_and_what_learns_a_gradient():
    module = pretraining().train()
    before = {k: t.clone() for k, t in module.network.image_encoder.state_dict().items()}
    losses = module.losses(batch_of())
    assert list(losses) == ["contrastive", "matching", "language_modeling"]
    learning = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning)
    sum(losses.values()).backward()
    optimizer.step()
    without = {n for n, p in module.network.named_parameters() if p.grad is None}
    assert without == {n for n, _ in module.network.named_parameters() if n.startswith("image_enc")}
    after = module.network.image_encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_the_contrast_is_cross_entropy_with_smoothed_labels():
    module, batch = pretraining(), batch_of()
    contrast, places = module.step(batch).contrast, torch.arange(4)
    tables = (contrast.image_to_text, contrast.text_to_image)
    losses = [F.cross_entropy(table, places, label_smoothing=0.1) for table in tables]
    close(contrast.loss(), sum(losses) / 2)
    images = module.network.encode_image(batch["images"])
    texts = module.network.encode_text(batch["input_ids"], batch["attention_mask"])
    cosines = torch.stack([(images[i] @ texts.T).amax(0) for i in range(4)])
    close(contrast.image_to_text, cosines / module.network.temperature)
    close(contrast.text_to_image, contrast.image_to_text.T)


def test_the_contrast_teaches_rows_only():
    """The features of all are constants, one's own included, as in the official code."""
    module, batch = pretraining(), batch_of()
    contrast = module.contrast(batch)
    images, texts = contrast.image_features, contrast.text_features
    found = torch.autograd.grad(contrast.loss(), (images, texts), retain_graph=True)
    temperature = module.network.temperature.detach()
    for i, features in enumerate((images, texts)):
        own = features.detach().requires_grad_()
        table = (
            query_similarity(own, texts.detach())
            if i == 0
            else query_similarity(images.detach(), own).T
        )
        loss = F.cross_entropy(table / temperature, torch.arange(4), label_smoothing=0.1) / 2
        close(found[i], torch.autograd.grad(loss, own)[0])


def test_false_pairs_are_in_the_official_order():
    module, batch = pretraining(), chosen(batch_of())
    step, network = module.step(batch), module.network
    images, texts, valid = batch["images"], batch["input_ids"], batch["attention_mask"]
    wrong = batch["negative_texts"]
    images = torch.cat([images, images[batch["negative_images"]], images])
    fused = network(torch.cat([texts, texts, texts[wrong]]), images, valid.repeat(3, 1)).fused
    # Of the wrong texts the masks are theirs, too.
    fused[8:] = network(texts[wrong], images[8:], valid[wrong]).fused
    close(step.matching.logits, network.matching_logits(fused))
    labels = torch.tensor([1] * 4 + [0] * 8)
    close(step.matching.loss(), F.cross_entropy(step.matching.logits, labels))


def test_negatives_are_never_the_own_partner_and_follow_the_similarities():
    module = pretraining(generator=torch.Generator().manual_seed(0))
    module.network.heads["contrast"].temperature.data.fill_(0.5)
    contrast = module.contrast(batch_of())
    counts = torch.zeros(2, 4, 4)
    for _ in range(300):
        images, texts = module._negatives({}, contrast)
        counts[0, range(4), images] += 1
        counts[1, range(4), texts] += 1
    off = ~torch.eye(4).bool()
    tables = (contrast.text_to_image, contrast.image_to_text)
    for count, table in zip(counts, tables, strict=True):
        assert (count.diagonal() == 0).all()
        weights = table.masked_fill(~off, -10000).softmax(-1)
        expected = 300 * weights
        chi_square = ((count - expected)[off].square() / expected[off]).sum()
        # 4 rows of 2 degrees of freedom each; 31 is exceeded once in 10,000 tries.
        assert chi_square < 31


def test_captions_of_one_image_belong_together_in_retrieval():
    module, batch = pretraining(kind=BLIP2Retrieval), batch_of()
    batch["image_ids"] = torch.tensor([5, 7, 5, 9])
    contrast = module.contrast(batch)
    truth = torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]])
    targets = 0.9 * truth + 0.1 / 4
    tables = (contrast.image_to_text, contrast.text_to_image)
    losses = [-(targets * table.log_softmax(-1)).sum(1).mean() for table in tables]
    close(contrast.loss(), sum(losses) / 2)
    for _ in range(30):
        images, texts = module._negatives({}, contrast)
        for wrong in (images, texts):
            assert (batch["image_ids"] != batch["image_ids"][wrong]).all()


def test_words_are_smoothed_shifted_and_begin_with_dec():
    module, batch = pretraining(), batch_of()
    step, ids, valid = module.step(batch), batch["input_ids"], batch["attention_mask"]
    log_probs = step.words.logits[:, :-1].log_softmax(-1)[valid[:, 1:]]
    right = log_probs.gather(1, ids[:, 1:][valid[:, 1:]][:, None])
    close(step.words.loss(), -(0.9 * right.mean() + 0.1 * log_probs.mean()))
    past = module.network.qformer.look(step.contrast.image_tokens).past
    first = torch.cat([torch.full((4, 1), DEC), ids[:, 1:]], 1)
    close(step.words.logits, module.network.word_logits(first, past, valid))


def test_a_batch_of_one_has_no_wrong_pair():
    with pytest.raises(ValueError, match="there is no wrong item for query 0"):
        pretraining().losses(batch_of(1))


def test_the_temperature_is_not_clamped():
    module = pretraining()
    temperature = module.network.heads["contrast"].temperature
    temperature.data.fill_(0.9)
    module.losses(batch_of())["contrastive"].backward()
    assert temperature.item() == pytest.approx(0.9) and temperature.grad.abs() > 0


def test_recomputed_blocks_give_the_same_gradients():
    module, batch = pretraining(), chosen(batch_of())

    def gradients():
        module.zero_grad()
        sum(module.losses(batch).values()).backward()
        return [p.grad.clone() for p in module.parameters() if p.requires_grad]

    plain = gradients()
    module.network.activation_checkpointing = True
    assert module.network.qformer.activation_checkpointing
    for left, right in zip(gradients(), plain, strict=True):
        close(left, right)


def test_a_generator_decides_all_draws():
    first, second = (
        pretraining(generator=torch.Generator().manual_seed(5)).losses(batch_of()) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_learning_lowers_the_loss():
    module, batch = pretraining(), chosen(batch_of())
    learning = [p for p in module.parameters() if p.requires_grad]
    optimizer, totals = torch.optim.Adam(learning, lr=2e-3), []
    for _ in range(20):
        total = sum(module.losses(batch).values())
        totals.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert totals[-1] < 0.8 * totals[0] and math.isfinite(totals[-1])
