"""A fresh network begins with an image encoder and a BERT of others, strictly, and tells of it."""

import json
from dataclasses import replace

import pytest
import torch

from mmlab.hub import CheckpointError, read_checkpoint
from mmlab.hub.bert import read_bert
from mmlab.hub.starting import (
    start_from_bert,
    start_from_image_encoder,
    start_vlmo_from_beit,
    untouched,
)
from mmlab.models.albef import ALBEF, ALBEFConfig
from mmlab.models.blip import BLIP, BLIPConfig
from mmlab.models.blip2 import BLIP2, BLIP2Config
from mmlab.models.vlmo import VLMo, VLMoConfig
from mmlab.nn import interpolate_positions
from tests.hub.published import (
    beit_shapes,
    bert_shapes,
    deit_shapes,
    eva_shapes,
    random_state,
    write,
)

IMAGE = {"image_size": 32, "patch_size": 16, "dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 64}
TEXT = {"vocab_size": 30, "context_length": 40, "text_dim": 32, "text_num_heads": 2}
TEXT |= {"text_mlp_dim": 64, "embed_dim": 16}
ALBEF_PLACES = (("text_encoder.", ""), ("heads.words.", "words."))
BLIP_PLACES = (("text_encoder.", ""), ("text_decoder.", ""))
QFORMER_PLACES = (("qformer.", ""), ("heads.words.", "words."))


def albef(**changes):
    torch.manual_seed(7)
    return ALBEF(ALBEFConfig(**IMAGE | TEXT | {"text_depth": 1, "fusion_depth": 1} | changes))


def blip(**changes):
    torch.manual_seed(7)
    return BLIP(BLIPConfig(**IMAGE | TEXT | {"text_depth": 2, "vocab_size": 32} | changes))


def blip2(**changes):
    torch.manual_seed(7)
    sizes = IMAGE | TEXT | {"text_depth": 2, "vocab_size": 31, "num_queries": 3}
    return BLIP2(BLIP2Config(**sizes | {"image_encoder": "eva", "mlp_dim": 64} | changes))


def begin(network, path, shapes, places, num_added=0, **options):
    old = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    theirs = write(path, shapes)
    taken = start_from_bert(network, read_checkpoint(path), places, num_added, **options)
    return old, theirs, taken, network.state_dict()


# Texts.


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("name", ["bert.safetensors", "pytorch_model.bin"])
def test_first_blocks_read_and_last_ones_fuse(name, old_names, tmp_path):
    shapes = bert_shapes(old=old_names)
    old, theirs, taken, new = begin(albef(), tmp_path / name, shapes, ALBEF_PLACES)
    for i in range(2):
        block = new[f"text_encoder.blocks.{i}.attention.q_proj.weight"]
        assert torch.equal(block, theirs[f"bert.encoder.layer.{i}.attention.self.query.weight"])
        inner = new[f"text_encoder.blocks.{i}.mlp.fc2.bias"]
        assert torch.equal(inner, theirs[f"bert.encoder.layer.{i}.output.dense.bias"])
    gain = "gamma" if old_names else "weight"
    norm = theirs[f"bert.encoder.layer.1.attention.output.LayerNorm.{gain}"]
    assert torch.equal(new["text_encoder.blocks.1.norm1.weight"], norm)
    types = theirs["bert.embeddings.token_type_embeddings.weight"]
    assert torch.equal(new["text_encoder.embeddings.type_embedding.weight"], types)
    assert torch.equal(new["heads.words.bias"], theirs["cls.predictions.bias"])
    fresh = [key for key in old if torch.equal(old[key], new[key])]
    assert {key for key in fresh if "image_encoder" not in key} == {
        *(key for key in old if key.startswith(("heads.contrast", "heads.match"))),
        *(key for key in old if "text_encoder.blocks.1.cross" in key),
    }
    assert set(taken.keys) == set(old) - set(fresh)


def test_what_begins_afresh_and_what_is_left_out_is_told(tmp_path):
    network = albef()
    _, _, taken, _ = begin(network, tmp_path / "b.safetensors", bert_shapes(), ALBEF_PLACES)
    assert taken.unused == ("pooler.dense.bias", "pooler.dense.weight")
    assert str(taken).endswith("; left out are pooler")
    assert untouched(network, [taken]) == [
        "heads.contrast",
        "heads.match",
        "image_encoder",
        "text_encoder.blocks.*.cross_attention",
        "text_encoder.blocks.*.cross_norm",
    ]


def test_both_transformers_of_blip_begin_alike_and_its_tokens_afresh(tmp_path):
    network = blip()
    path = tmp_path / "b.safetensors"
    old, theirs, taken, new = begin(network, path, bert_shapes(), BLIP_PLACES, num_added=2)
    query = theirs["bert.encoder.layer.1.attention.self.query.weight"]
    for part in ("text_encoder", "text_decoder"):
        assert torch.equal(new[f"{part}.blocks.1.attention.q_proj.weight"], query)
    words = new["text_encoder.embeddings.word_embedding.weight"]
    assert torch.equal(words[:30], theirs["bert.embeddings.word_embeddings.weight"])
    assert torch.equal(words[30:], old["text_encoder.embeddings.word_embedding.weight"][30:])
    assert torch.equal(new["text_decoder.words.bias"][:30], theirs["cls.predictions.bias"])
    assert (new["text_decoder.words.bias"][30:] == 0).all()
    assert "2 more words are fresh" in taken.notes
    # Sharing is as it was.
    shared = network.text_encoder.embeddings.word_embedding.weight
    assert shared is network.text_decoder.embeddings.word_embedding.weight
    assert untouched(network, [taken])[-4:] == [
        "text_decoder.blocks.*.cross_attention",
        "text_decoder.blocks.*.cross_norm",
        "text_encoder.blocks.*.cross_attention",
        "text_encoder.blocks.*.cross_norm",
    ]
    assert "embeddings.type_embedding.weight" in taken.unused


def test_mlps_of_queries_begin_as_those_of_the_text(tmp_path):
    network, path = blip2(), tmp_path / "b.safetensors"
    _, theirs, taken, new = begin(network, path, bert_shapes(), QFORMER_PLACES, num_added=1)
    inner = theirs["bert.encoder.layer.1.intermediate.dense.weight"]
    norm = theirs["bert.encoder.layer.1.output.LayerNorm.bias"]
    for mlp, after in (("mlp", "norm2"), ("query_mlp", "query_norm")):
        assert torch.equal(new[f"qformer.blocks.1.{mlp}.fc1.weight"], inner)
        assert torch.equal(new[f"qformer.blocks.1.{after}.bias"], norm)
    told = untouched(network, [taken])
    assert "qformer.queries" in told and "qformer.blocks.*.cross_attention" in told
    assert not [name for name in told if name.startswith("heads.words")]


def test_a_shorter_model_takes_the_first_positions(tmp_path):
    network, path = albef(context_length=9), tmp_path / "b.safetensors"
    _, theirs, taken, new = begin(network, path, bert_shapes(), ALBEF_PLACES)
    table = theirs["bert.embeddings.position_embeddings.weight"]
    assert torch.equal(new["text_encoder.embeddings.position_embedding.weight"], table[:9])
    assert taken.notes == ("the first 9 of 40 positions",)


def test_a_bert_without_its_head_leaves_the_words_head_fresh(tmp_path):
    shapes = {k.removeprefix("bert."): s for k, s in bert_shapes(head=False).items()}
    network = albef()
    _, _, taken, _ = begin(network, tmp_path / "b.safetensors", shapes, ALBEF_PLACES)
    assert "heads" in untouched(network, [taken])


def test_tied_matrices_of_the_head_must_be_one(tmp_path):
    state = random_state(bert_shapes())
    words = state["bert.embeddings.word_embeddings.weight"]
    for copy, fits in ((words.clone(), True), (words + 1, False)):
        torch.save({**state, "cls.predictions.decoder.weight": copy}, tmp_path / "b.bin")
        file = read_checkpoint(tmp_path / "b.bin")
        if fits:
            assert "words.bias" in read_bert(file).state
        else:
            with pytest.raises(CheckpointError, match=r"b.bin'.*same tensor in layout 'bert'"):
                read_bert(file)


CONFIG = {"model_type": "bert", "num_attention_heads": 2, "hidden_act": "gelu"}


@pytest.mark.parametrize(
    ("network", "shapes", "config", "message"),
    [
        ({}, bert_shapes(dim=16), {}, r"no BERT for this model: it has dim=16 \(not 32\)"),
        ({}, bert_shapes(depth=3), {}, r"it has depth=3 \(not 2\)"),
        ({}, bert_shapes(mlp=48), {}, r"it has mlp_dim=48 \(not 64\)"),
        ({}, bert_shapes(vocab=28), {}, "knows 28 words, the tokenizer 30; a BERT is taken with"),
        ({"context_length": 50}, bert_shapes(), {}, "has 40 positions, fewer than .*length=50"),
        ({}, deit_shapes(), {}, "it is no BERT; its keys look like 'vit-timm'"),
        (
            {},
            bert_shapes() | {"classifier.weight": (3, 32)},
            {},
            "1 left over: 'classifier.weight'",
        ),
        ({}, bert_shapes(), CONFIG | {"num_attention_heads": 4}, r"num_heads=4 \(not 2\)"),
        ({}, bert_shapes(), CONFIG | {"model_type": "roberta"}, "that of a 'roberta' model"),
    ],
)
def test_a_wrong_text_file_costs_one_sentence(network, shapes, config, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    network = albef(**network)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        begin(network, tmp_path / "wrong.safetensors", shapes, ALBEF_PLACES)
    assert "wrong.safetensors" in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(before[key], t) for key, t in network.state_dict().items())


def test_another_activation_is_told_and_no_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"hidden_act": "gelu_new"}))
    _, _, taken, _ = begin(albef(), tmp_path / "b.safetensors", bert_shapes(), ALBEF_PLACES)
    assert taken.notes == ("it was trained with activation='gelu_tanh', this model has 'gelu'",)


# Images.


@pytest.mark.parametrize("make", [albef, blip])
@pytest.mark.parametrize("size", [32, 64])
def test_a_deit_without_its_head_is_the_image_encoder(make, size, tmp_path):
    path, network = tmp_path / "deit.pth", make(image_size=32)
    theirs = write(path, deit_shapes(size))
    taken = start_from_image_encoder(network, read_checkpoint(path))
    new = network.image_encoder.state_dict()
    q, _, v = theirs["blocks.0.attn.qkv.weight"].chunk(3)
    assert torch.equal(new["blocks.0.attention.q_proj.weight"], q)
    assert torch.equal(new["blocks.0.attention.v_proj.weight"], v)
    grids = 2 * (size // 16,), (2, 2)
    table = interpolate_positions(theirs["pos_embed"], *grids, "bicubic")
    assert torch.equal(new["position_embedding"], table)
    assert set(taken.keys) == {f"image_encoder.{key}" for key in new}
    assert taken.unused == ("head.bias", "head.weight")
    stretched = ("17 positions are interpolated to 5",) if size == 64 else ()
    assert taken.notes == stretched
    assert "image_encoder" not in untouched(network, [taken])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (deit_shapes(dim=48), r"no image encoder for this model: it has dim=48 \(not 32\)"),
        (deit_shapes(depth=2), r"it has depth=2 \(not 1\)"),
        (deit_shapes(patch=8), r"patch_size=8 \(not 16\)"),
        (bert_shapes(), "is a BERT, and no image encoder"),
        (deit_shapes() | {"dist_token": (1, 1, 32), "pos_embed": (1, 6, 32)}, "distilled=True"),
    ],
)
def test_a_wrong_image_file_costs_one_sentence(shapes, message, tmp_path):
    path, network = tmp_path / "wrong.pth", albef()
    write(path, shapes)
    with pytest.raises(CheckpointError, match=message) as caught:
        start_from_image_encoder(network, read_checkpoint(path))
    assert "wrong.pth" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [32, 64])
def test_blip2_takes_all_blocks_of_eva_but_the_last(size, tmp_path):
    path, network = tmp_path / "eva.pth", blip2()
    theirs = write(path, eva_shapes(size))
    taken = start_from_image_encoder(network, read_checkpoint(path))
    new = network.image_encoder.state_dict()
    assert torch.equal(new["blocks.0.attention.v_proj.bias"], theirs["blocks.0.attn.v_bias"])
    assert set(taken.keys) == {f"image_encoder.{key}" for key in new}
    assert {"norm.weight", "head.bias", "blocks.1.attn.q_bias"} <= set(taken.unused)
    assert new["position_embedding"].shape == (1, 5, 32)
    assert bool(taken.notes) == (size == 64)
    with pytest.raises(CheckpointError, match=r"eva.pth': the keys do not fit layout 'eva'"):
        write(path, deit_shapes(depth=2))
        start_from_image_encoder(network, read_checkpoint(path))


def test_a_blip2_with_a_clip_takes_its_image_half(tmp_path):
    from mmlab.hub import save
    from mmlab.models.clip import CLIP, CLIPConfig

    given = {key: IMAGE[key] for key in IMAGE if key != "depth"}
    clip = CLIP(CLIPConfig(**given, depth=2, vocab_size=20, text_dim=32, text_depth=1))
    save(clip, tmp_path / "clip.safetensors", layout="clip-openai")
    network = blip2(image_encoder="clip", activation="quick_gelu", norm_eps=1e-5, image_size=64)
    taken = start_from_image_encoder(network, read_checkpoint(tmp_path / "clip.safetensors"))
    new, old = network.image_encoder.state_dict(), clip.image_encoder.state_dict()
    for key in new.keys() - {"position_embedding"}:
        assert torch.equal(new[key], old[key])
    table = interpolate_positions(old["position_embedding"], (2, 2), (4, 4), "bicubic_aligned")
    torch.testing.assert_close(new["position_embedding"], table)
    assert "image_encoder.norm.weight" in taken.unused


def test_an_efficientnet_has_weights_of_its_own(tmp_path):
    write(tmp_path / "deit.pth", deit_shapes())
    network = blip2(image_encoder="efficientnet", dim=320)
    with pytest.raises(CheckpointError, match=r"deit.pth': this model's image encoder, 'effic"):
        start_from_image_encoder(network, read_checkpoint(tmp_path / "deit.pth"))


# BEiT.


def vlmo(**changes):
    torch.manual_seed(7)
    sizes = IMAGE | {"depth": 2, "vocab_size": 30, "context_length": 9, "heads": ("words",)}
    sizes |= {"image_size": 48}
    return VLMo(VLMoConfig(**sizes | {"longest_text": 9, "fusion_depth": 0} | changes))


@pytest.mark.parametrize("size", [48, 80])
def test_a_vlmo_takes_a_beit_and_stretches_its_offsets(size, tmp_path):
    path, network = tmp_path / "beit.pth", vlmo()
    old = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    theirs = write(path, beit_shapes(size))
    taken = start_vlmo_from_beit(network, read_checkpoint(path))
    new = network.state_dict()
    fc1 = theirs["blocks.1.mlp.fc1.weight"]
    assert torch.equal(new["blocks.1.experts.image.mlp.fc1.weight"], fc1)
    rows = theirs["rel_pos_bias.relative_position_bias_table"]
    found = new["position_bias.table"][:28, :2]
    if size == 48:
        assert torch.equal(found, rows)
    else:
        # The patch itself is in the middle; the last three rows tell of the class token.
        torch.testing.assert_close(found[12], rows[40])
        assert torch.equal(found[25:], rows[81:])
        assert taken.notes == ("5 x 5 patches are stretched to 3 x 3",)
    told = untouched(network, [taken])
    assert {"text_embeddings", "blocks.*.experts.text", "heads"} <= set(told)
    assert all(torch.equal(new[key], old[key]) for key in new if "text" in key)


def test_what_is_no_beit_is_named(tmp_path):
    write(tmp_path / "deit.pth", deit_shapes(depth=2))
    with pytest.raises(CheckpointError, match=r"deit.pth': it is no BEiT: it has no 'relative"):
        start_vlmo_from_beit(vlmo(), read_checkpoint(tmp_path / "deit.pth"))
    write(tmp_path / "beit.pth", beit_shapes(48, depth=3))
    with pytest.raises(CheckpointError, match=r"beit.pth'.*"):
        start_vlmo_from_beit(vlmo(), read_checkpoint(tmp_path / "beit.pth"))


def test_positions_that_are_no_square_are_refused(tmp_path):
    write(tmp_path / "eva.pth", eva_shapes() | {"pos_embed": (1, 7, 32)})
    with pytest.raises(CheckpointError, match=r"eva.pth': it is no image encoder for this model"):
        start_from_image_encoder(blip2(), read_checkpoint(tmp_path / "eva.pth"))


def test_two_images_have_each_block_twice_and_want_another_bert(tmp_path):
    network = albef(num_images=2, heads=("classes",), num_classes=3)
    assert network.config.bert == replace(albef().config.bert, depth=3)
    with pytest.raises(CheckpointError, match=r"it has depth=2 \(not 3\)"):
        begin(network, tmp_path / "b.safetensors", bert_shapes(), ALBEF_PLACES)
