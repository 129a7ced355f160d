"""BLIP-2 against figures recorded from the official code, and against transformers' BLIP-2."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    OPTConfig,
    T5Config,
)

from mmlab.hub import from_mmlab, load_pretraining, pretraining_state, to_mmlab
from mmlab.models.blip2 import BLIP2, BLIP2Config, BLIP2Pretraining, multimodal_causal_mask
from mmlab.models.blip2_language import BLIP2Language

FILE = load_file(Path(__file__).parents[1] / "golden" / "blip2.safetensors")

# The recorded model: salesforce/LAVIS, blip2_qformer.py, with these sizes.
RECORDED = BLIP2Config(
    image_size=28,
    dim=48,
    depth=2,
    num_heads=4,
    mlp_dim=209,
    num_queries=5,
    vocab_size=101,
    context_length=32,
    text_dim=64,
    text_depth=4,
    text_num_heads=4,
    text_mlp_dim=256,
    embed_dim=16,
)


def part(start):
    return {k.removeprefix(start): t for k, t in FILE.items() if k.startswith(start)}


def close(left, right, name=""):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5, msg=lambda m: f"{name}: {m}")


def recorded_module():
    module = BLIP2Pretraining(BLIP2(RECORDED)).eval()
    load_pretraining(module, "blip2", part("state."))
    return module


def recorded_batch():
    given, drawn = part("in."), part("out.")
    return {
        "images": given["image"],
        "input_ids": given["input_ids"],
        "attention_mask": given["attention_mask"],
        "negative_images": drawn["neg_image_idx"],
        "negative_texts": drawn["neg_text_idx"],
    }


def written(module, past):
    """The text's tokens in writing, before the head of words."""
    batch, num_queries = recorded_batch(), RECORDED.num_queries
    ids, valid = batch["input_ids"].clone(), batch["attention_mask"].bool()
    ids[:, 0] = RECORDED.decoder_id
    mask = multimodal_causal_mask(num_queries, valid)[:, :, num_queries:]
    return module.network.qformer.write(ids, past, mask)[0]


def test_a_step_of_pretraining_equals_the_official_one():
    module = recorded_module()
    contrast, matching, words = step = module.step(recorded_batch())
    losses, queries = step.losses(), matching.fused[:, : RECORDED.num_queries]
    ours = {
        "image_embeds": contrast.image_tokens,
        "itc_query_hidden": contrast.queries,
        "itc_text_hidden": contrast.text_tokens,
        "image_feats": contrast.image_features,
        "text_feat": contrast.text_features,
        "sim_i2t": contrast.image_to_text,
        "sim_t2i": contrast.text_to_image,
        "itm_hidden": matching.fused,
        "itm_head_per_query": module.network.head("match")(queries),
        "itm_logits": matching.logits,
        "itg_text_hidden": written(module, contrast.past),
        "itg_logits": words.logits,
        "loss_itc": losses["contrastive"],
        "loss_itm": losses["matching"],
        "loss_lm": losses["language_modeling"],
    }
    theirs = part("out.")
    assert theirs.keys() == ours.keys() | {"neg_image_idx", "neg_text_idx"}
    for name, tensor in ours.items():
        close(tensor.detach(), theirs[name], name)


def test_the_whole_state_comes_back():
    state, back = part("state."), pretraining_state(recorded_module(), "blip2")
    assert state.keys() - back.keys() == {"Qformer.bert.embeddings.position_ids"}
    assert all(torch.equal(state[key], back[key]) for key in back)


# transformers

PAD, CLS, SEP, IMAGE = 0, 1, 2, 59
TINY = BLIP2Config(
    image_size=24,
    patch_size=8,
    dim=20,
    depth=2,
    num_heads=2,
    mlp_dim=40,
    num_queries=4,
    vocab_size=50,
    context_length=16,
    text_dim=24,
    text_depth=3,
    text_num_heads=3,
    text_mlp_dim=36,
    embed_dim=8,
    # One epsilon for all norms of the image there.
    image_norm_eps=1e-6,
    dropout=0.0,
    temperature=None,
)
RETRIEVAL = {"heads": ("contrast", "match")}
STAGE_2 = {"heads": ("prefix",), "prefix_dim": 16}
OPT = {"vocab_size": 60, "hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 2}
OPT |= {"ffn_dim": 32, "num_attention_heads": 2, "max_position_embeddings": 64, "dropout": 0.0}
T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
T5 |= {"dropout_rate": 0.0, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}
LANGUAGE = {"opt": OPTConfig(**OPT), "t5": T5Config(**T5)}


def randomised(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def build(**changes):
    torch.manual_seed(0)
    return randomised(BLIP2(replace(TINY, **changes)))


def theirs_like(model, kind, **settings):
    """The class ``kind`` of transformers with the weights of ``model``, strictly."""
    config = model.config
    their_config = Blip2Config(
        vision_config={
            "hidden_size": config.dim,
            "intermediate_size": config.mlp_dim,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.num_heads,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "layer_norm_eps": config.norm_eps,
        },
        qformer_config={
            "vocab_size": config.vocab_size,
            "hidden_size": config.text_dim,
            "intermediate_size": config.text_mlp_dim,
            "num_hidden_layers": config.text_depth,
            "num_attention_heads": config.text_num_heads,
            "max_position_embeddings": config.context_length,
            "cross_attention_frequency": config.cross_every,
            "encoder_hidden_size": config.dim,
            "use_qformer_text_input": config.reads_text,
        },
        num_query_tokens=config.num_queries,
        image_text_hidden_size=config.embed_dim,
        **settings,
    )
    torch.manual_seed(1)
    theirs = randomised(kind(their_config), seed=1)
    state = from_mmlab("blip2-hf", model.state_dict())
    missing, left_over = theirs.load_state_dict(state, strict=False)
    assert not left_over
    assert all(key.startswith("language_model.") for key in missing)
    return theirs


def talking(name):
    """Ours and theirs with the same language model."""
    model = build(**STAGE_2)
    settings = {"text_config": LANGUAGE[name], "image_token_index": IMAGE}
    theirs = theirs_like(model, Blip2ForConditionalGeneration, **settings)
    return BLIP2Language(model, theirs.language_model), theirs


def pictures(count=3, seed=1):
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def captions(first=CLS, tokens=7, front=False):
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([tokens, 4, 6])[:, None]
    places = torch.arange(tokens)
    valid = places >= tokens - lengths if front else places < lengths
    ids = torch.randint(4, 48, (3, tokens), generator=generator)
    ids[:, 0] = first
    return ids.where(valid, PAD), valid


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(Blip2ForImageTextRetrieval, RETRIEVAL), (Blip2ForConditionalGeneration, STAGE_2)],
)
def test_weights_go_to_transformers_and_come_back(kind, changes):
    model = build(**changes)
    settings = {"text_config": LANGUAGE["opt"]} if changes is STAGE_2 else {}
    theirs = theirs_like(model, kind, **settings).state_dict()
    # A bias of keys that was trained there changes nothing.
    theirs["vision_model.encoder.layers.0.self_attn.qkv.bias"][20:40] = 1.0
    back, own = to_mmlab("blip2-hf", theirs), model.state_dict()
    assert back.keys() == own.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in own.items())


def test_retrieval_equals_transformers_outputs_and_gradients():
    model = build(**RETRIEVAL)
    theirs = theirs_like(model, Blip2ForImageTextRetrieval)
    (ids, valid), images = captions(), pictures().requires_grad_()
    right = theirs(images, ids, attention_mask=valid.long())
    tokens = model.image_tokens(images)
    close(tokens, right.vision_model_output.last_hidden_state)
    close(model.encode_image(images), right.image_embeds)
    close(model.encode_text(ids, valid), right.text_embeds)
    right = theirs(images, ids, attention_mask=valid.long(), use_image_text_matching_head=True)
    fused = model.fuse(ids, tokens, valid)
    close(fused[:, :4], right.text_model_output.last_hidden_state[:, :4])
    close(fused[:, 4:][valid], right.text_model_output.last_hidden_state[:, 4:][valid])
    logits = model.matching_logits(fused)
    close(logits, right.logits_per_image)
    places = [
        (images, images),
        (model.qformer.queries, theirs.query_tokens),
        (model.qformer.embeddings.word_embedding.weight, theirs.embeddings.word_embeddings.weight),
    ]
    for ours, same in places:
        left = torch.autograd.grad(logits.square().sum(), ours, retain_graph=True)[0]
        other = torch.autograd.grad(right.logits_per_image.square().sum(), same, retain_graph=True)[
            0
        ]
        torch.testing.assert_close(left, other, rtol=1e-3, atol=1e-4)
        assert left.abs().max() > 1e-3


def test_the_likeness_of_image_and_text_equals_transformers():
    model = build(**RETRIEVAL)
    theirs = theirs_like(model, Blip2ForImageTextRetrieval)
    (ids, valid), images = captions(), pictures()
    right = theirs(images, ids, attention_mask=valid.long())
    cosines = (model.encode_image(images) @ model.encode_text(ids, valid).T).amax(1)
    close(cosines, right.logits_per_image)


def test_the_queries_become_the_prefix_of_transformers():
    model, theirs = talking("opt")
    right = theirs.get_image_features(pictures(), return_dict=True)
    network = model.network
    close(network.prefix(network.image_tokens(pictures())), right.pooler_output)


def with_places(ids, valid):
    """transformers wants a word for each query, in whose place it puts it."""
    places = torch.full((len(ids), 4), IMAGE)
    return torch.cat([places, ids], 1), torch.cat([places > 0, valid], 1).long()


def test_a_decoder_foretells_the_words_after_the_queries():
    """Queries, the prompt and padding are not foretold."""
    ours, theirs = talking("opt")
    (ids, valid), images = captions(), pictures()
    batch = {"images": images, "input_ids": ids, "attention_mask": valid}
    prompts = torch.tensor([2, 0, 3])
    for lengths in (None, prompts):
        given = batch if lengths is None else batch | {"prompt_lengths": lengths}
        start = 0 if lengths is None else lengths[:, None]
        labels = ids.masked_fill(~valid | (torch.arange(7) < start), -100)
        their_ids, mask = with_places(ids, valid)
        labels = torch.cat([torch.full((3, 4), -100), labels], 1)
        right = theirs(images, their_ids, attention_mask=mask, labels=labels)
        close(ours.losses(given)["language_modeling"], right.loss)
        logits = right.logits[:, 3:-1].log_softmax(-1)
        wanted = labels[:, 4:] != -100
        chosen = logits.gather(2, ids[..., None])[..., 0][wanted]
        close(right.loss, -chosen.mean())


def test_an_encoder_reads_the_queries_and_a_decoder_writes():
    ours, theirs = talking("t5")
    (ids, valid), images = captions(), pictures()
    output, output_valid = captions(first=7, tokens=6)
    labels = output.masked_fill(~output_valid, -100)
    their_ids, mask = with_places(ids, valid)
    right = theirs(images, their_ids, attention_mask=mask, labels=labels).loss
    batch = {"images": images, "input_ids": ids, "attention_mask": valid}
    batch |= {"output_ids": output, "output_mask": output_valid}
    close(ours.losses(batch)["language_modeling"], right)
    # Without anything to read but the image, as LAVIS has it for captions.
    their_ids, mask = with_places(ids[:, :0], valid[:, :0])
    right = theirs(images, their_ids, attention_mask=mask, labels=labels).loss
    batch = {"images": images, "output_ids": output}
    close(ours.losses(batch)["language_modeling"], right)


@pytest.mark.parametrize("search", [{"num_beams": 1}, {"num_beams": 3}])
@pytest.mark.parametrize("name", ["opt", "t5"])
def test_texts_after_a_prompt_are_those_of_transformers(name, search):
    ours, theirs = talking(name)
    (ids, valid), images = captions(front=True), pictures()
    search = search | {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}
    their_ids, mask = with_places(ids, valid)
    right = theirs.generate(images, their_ids, attention_mask=mask, **search)
    found = ours.generate(images, ids, valid, **search)
    if name == "opt":
        right = right[:, their_ids.shape[1] :]
    assert torch.equal(found, right)
    assert found.shape[1] > 2
    alone = ours.generate(images, **search)
    assert alone.shape[0] == 3


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_the_language_model_is_frozen(name):
    ours, _ = talking(name)
    before = {k: t.clone() for k, t in ours.state_dict().items()}
    assert not ours.train().language_model.training and ours.network.qformer.training
    assert not ours.network.image_encoder.training
    (ids, valid), images = captions(), pictures()
    batch = {"images": images, "input_ids": ids, "attention_mask": valid, "output_ids": ids}
    optimizer = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=0.1)
    ours.losses(batch)["language_modeling"].backward()
    optimizer.step()
    frozen = ("language_model.", "network.image_encoder.")
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, before[key]) == key.startswith(frozen), key
    assert all(p.grad is None for p in ours.language_model.parameters())
    assert len(optimizer.state) == sum(p.requires_grad for p in ours.parameters())


def test_the_language_model_may_be_in_half_precision():
    ours, _ = talking("opt")
    ids, valid = captions()
    batch = {"images": pictures(), "input_ids": ids, "attention_mask": valid}
    before = ours.losses(batch)["language_modeling"]
    ours.language_model.bfloat16()
    after = ours.losses(batch)["language_modeling"]
    assert after.dtype == torch.float32
    assert after.item() == pytest.approx(before.item(), rel=0.05)
    after.backward()
    assert ours.network.qformer.queries.grad.abs().max() > 0


def test_widths_must_agree():
    _, theirs = talking("opt")
    with pytest.raises(ValueError, match="prefix_dim must be 16 for this language model, got 12"):
        BLIP2Language(build(heads=("prefix",), prefix_dim=12), theirs.language_model)
    with pytest.raises(ValueError, match="has no 'prefix' head"):
        BLIP2Language(build(), theirs.language_model)
