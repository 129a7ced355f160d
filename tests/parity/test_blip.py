"""BLIP against figures recorded from the official code, and against transformers' BLIP."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    GenerationConfig,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmlab.hub import from_mmlab, load_pretraining, pretraining_state, to_mmlab
from mmlab.models.blip import BLIP, BLIPConfig, BLIPPretraining
from mmlab.models.blip_tasks import (
    BLIPCaptioning,
    BLIPQuestionAnswering,
    generate_answers,
    generate_captions,
)
from mmlab.nn import nucleus_filter
from mmlab.nn.decoding import _likeliest, _penalise

GOLDEN = Path(__file__).parents[1] / "golden"
BLIP_FILE = load_file(GOLDEN / "blip.safetensors")
BATCH = 4

# The recorded model: salesforce/BLIP, models/blip_pretrain.py, with these sizes.
RECORDED = BLIPConfig(
    image_size=32,
    dim=64,
    depth=2,
    num_heads=4,
    mlp_dim=256,
    vocab_size=102,
    context_length=32,
    text_dim=64,
    text_depth=3,
    text_num_heads=4,
    text_mlp_dim=256,
    embed_dim=16,
)


def part(file, start):
    return {k.removeprefix(start): t for k, t in file.items() if k.startswith(start)}


def close(left, right, name=""):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5, msg=lambda m: f"{name}: {m}")


def recorded_module():
    module = BLIPPretraining(BLIP(RECORDED), queue_size=8).eval()
    load_pretraining(module, "blip", part(BLIP_FILE, "state."))
    return module


def recorded_batch(step):
    given, drawn = part(BLIP_FILE, f"step{step}.in."), part(BLIP_FILE, f"step{step}.out.")
    return {
        "images": given["image"],
        "input_ids": given["input_ids"],
        "attention_mask": given["attention_mask"],
        "negative_images": drawn["neg_image_idx"],
        "negative_texts": drawn["neg_text_idx"],
    }


def our_outputs(module, step):
    """Everything under the names of the recording."""
    contrast, matching, words = step
    losses = step.losses()
    return {
        "image_embeds": contrast.image_tokens,
        "image_embeds_m": contrast.momentum_images,
        "text_hidden": contrast.text_tokens,
        "text_hidden_m": contrast.momentum_texts,
        "image_feat": contrast.image_features,
        "text_feat": contrast.text_features,
        "image_feat_m": contrast.momentum_image_features,
        "text_feat_m": contrast.momentum_text_features,
        "sim_i2t": contrast.image_to_text,
        "sim_t2i": contrast.text_to_image,
        "itm_pos_hidden": matching.fused[:BATCH],
        "itm_neg_hidden": matching.fused[BATCH:],
        "itm_logits": matching.logits,
        "lm_logits": words.logits,
        "loss_ita": losses["contrastive"],
        "loss_itm": losses["matching"],
        "loss_lm": losses["language_modeling"],
        "queue_ptr_after": module.queue.pointer,
        "image_queue_after": module.queue.images,
        "text_queue_after": module.queue.texts,
    }


def test_two_steps_of_pretraining_equal_the_official_ones():
    module = recorded_module()
    for step in range(2):
        ours = our_outputs(module, module.step(recorded_batch(step)))
        theirs = part(BLIP_FILE, f"step{step}.out.")
        assert theirs.keys() == ours.keys() | {"neg_image_idx", "neg_text_idx"}
        for name, tensor in ours.items():
            close(tensor.detach(), theirs[name], f"step {step}, {name}")


def test_the_order_of_a_step_matters():
    """The twin moves before it is asked, the queue after: either way round the figures differ."""
    theirs = part(BLIP_FILE, "step0.out.")
    still = recorded_module().step(recorded_batch(0), update=False).contrast
    assert (still.momentum_image_features - theirs["image_feat_m"]).abs().max() > 1e-5
    module = recorded_module()
    module.step(recorded_batch(0))
    again = module.step(recorded_batch(0), update=False).contrast
    assert (again.image_to_text - theirs["sim_i2t"]).abs().max() > 1e-2


def test_the_whole_state_comes_back():
    state = part(BLIP_FILE, "state.")
    back = pretraining_state(recorded_module(), "blip")
    assert state.keys() - back.keys() == {
        f"{stack}.embeddings.position_ids"
        for stack in ("text_encoder", "text_encoder_m", "text_decoder.bert")
    }
    assert all(torch.equal(state[key], back[key]) for key in back)


# transformers

PAD, CLS, SEP, DEC, ENC = 0, 1, 2, 48, 49
TINY = BLIPConfig(
    image_size=24,
    patch_size=8,
    dim=20,
    depth=2,
    num_heads=2,
    mlp_dim=40,
    vocab_size=50,
    context_length=16,
    text_dim=24,
    text_depth=3,
    text_num_heads=3,
    text_mlp_dim=36,
    embed_dim=8,
    dropout=0.0,
)
RETRIEVAL, CAPTIONING = {"heads": ("contrast", "match")}, {"heads": ("words",)}
# The answer decoder of transformers is as wide as the image encoder, ours as the text.
QUESTIONS = {"heads": ("answers",), "dim": 24, "num_heads": 3}


def randomised(seed=0, **changes):
    torch.manual_seed(seed)
    model = BLIP(replace(TINY, **changes))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model.eval()


def theirs_like(model, kind, **settings):
    """The class ``kind`` of transformers with the weights of ``model``, strictly."""
    config = model.config
    their_config = BlipConfig(
        vision_config={
            "hidden_size": config.dim,
            "intermediate_size": config.mlp_dim,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.num_heads,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "layer_norm_eps": config.norm_eps,
        },
        text_config={
            "vocab_size": config.vocab_size,
            "hidden_size": config.text_dim,
            "intermediate_size": config.text_mlp_dim,
            "num_hidden_layers": config.text_depth,
            "num_attention_heads": config.text_num_heads,
            "max_position_embeddings": config.context_length,
            "bos_token_id": DEC,
            "sep_token_id": SEP,
            "label_smoothing": 0.1,
        },
        image_text_hidden_size=config.embed_dim,
    )
    theirs = kind(their_config).eval()
    state = from_mmlab("blip-hf", model.state_dict())
    missing, left_over = theirs.load_state_dict(state, strict=False)
    assert not left_over and all(key.endswith("position_ids") for key in missing)
    return theirs


def captions(count=3, tokens=7, first=CLS):
    generator = torch.Generator().manual_seed(2)
    valid = torch.arange(tokens) < torch.tensor([tokens, 4, 6])[:count, None]
    ids = torch.randint(3, 48, (count, tokens), generator=generator)
    ids[torch.arange(count), valid.sum(1) - 1] = SEP
    ids[:, 0] = first
    return ids.where(valid, PAD), valid


def pictures(count=3, seed=1):
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (BlipForImageTextRetrieval, RETRIEVAL),
        (BlipForConditionalGeneration, CAPTIONING),
        (BlipForQuestionAnswering, QUESTIONS),
    ],
)
def test_weights_go_to_transformers_and_come_back(kind, changes):
    model = randomised(**changes, temperature=None)
    back = to_mmlab("blip-hf", theirs_like(model, kind).state_dict())
    own = model.state_dict()
    assert back.keys() == own.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in own.items())


def test_retrieval_equals_transformers_outputs_and_gradients():
    model = randomised(**RETRIEVAL)
    theirs = theirs_like(model, BlipForImageTextRetrieval)
    (ids, valid), images = captions(), pictures().requires_grad_()
    cosines = theirs(ids, images, use_itm_head=False, attention_mask=valid.long()).itm_score
    close(model.encode_image(images) @ model.encode_text(ids, valid).T, cosines)
    # transformers leaves the first token to the caller; [ENC] is what training used.
    grounded_ids = captions(first=ENC)[0]
    right = theirs(grounded_ids, images, attention_mask=valid.long())
    tokens = model.image_tokens(images)
    close(tokens, right.last_hidden_state)
    ours = model.matching_logits(model.ground(ids, (tokens,), valid))
    close(ours, right.itm_score)
    left, right = (
        torch.autograd.grad(logits.square().sum(), images)[0] for logits in (ours, right.itm_score)
    )
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
    assert left.abs().max() > 1e-3


def test_captioning_equals_transformers_logits_and_smoothed_loss():
    model = randomised(**CAPTIONING)
    theirs = theirs_like(model, BlipForConditionalGeneration)
    (ids, valid), images = captions(), pictures()
    their_ids = captions(first=DEC)[0]
    labels = their_ids.masked_fill(~valid, -100)
    labels[:, :3] = -100
    right = theirs(images, their_ids, attention_mask=valid.long(), labels=labels)
    ours = model.word_logits(ids, model.image_tokens(images), valid)
    close(ours[valid], right.logits[valid])
    module = BLIPCaptioning(model, prompt_length=3)
    loss = module.losses({"images": images, "input_ids": ids, "attention_mask": valid})
    close(loss["language_modeling"], right.loss)


def test_questions_without_padding_equal_transformers():
    """With padding they differ: its cross-attention drops the mask of the question (5.x)."""
    model = randomised(**QUESTIONS)
    theirs = theirs_like(model, BlipForQuestionAnswering)
    images = pictures()
    questions = torch.randint(3, 48, (3, 5), generator=torch.Generator().manual_seed(4))
    answers, _ = captions(tokens=6)
    their_questions = torch.cat([torch.full((3, 1), ENC), questions[:, 1:]], 1)
    their_answers = torch.cat([torch.full((3, 1), DEC), answers[:, 1:]], 1)
    valid = answers != PAD

    def their_logits(mask):
        given = theirs.text_encoder(
            their_questions,
            attention_mask=mask,
            encoder_hidden_states=theirs.vision_model(images).last_hidden_state,
        ).last_hidden_state
        return theirs.text_decoder(
            their_answers,
            attention_mask=valid.long(),
            encoder_hidden_states=given,
            encoder_attention_mask=mask,
        ).logits

    def our_logits(mask):
        question = model.ground(questions, model.image_tokens_of(images), mask)
        return model.answer_logits(answers, question, mask, valid)

    ones = torch.ones_like(questions)
    close(our_logits(ones)[valid], their_logits(ones)[valid])
    masked = ones.clone()
    masked[1, 3:] = 0
    close(our_logits(masked)[0, valid[0]], their_logits(masked)[0, valid[0]])
    gap = (our_logits(masked)[1] - their_logits(masked)[1])[valid[1]].abs().max()
    assert gap > 1e-3, "transformers masks padded questions now: compare them as well"
    module = BLIPQuestionAnswering(model)
    batch = {
        "images": images,
        "input_ids": questions,
        "answer_ids": answers,
        "question_of": torch.arange(3),
        "weights": torch.ones(3),
    }
    right = theirs.text_decoder(
        their_answers,
        attention_mask=valid.long(),
        encoder_hidden_states=model.ground(questions, model.image_tokens_of(images), ones),
        labels=their_answers.masked_fill(~valid, -100),
        reduction="none",
    ).loss
    close(module.losses(batch)["answers"], right.sum() / 3)


def without_padding(ids, start):
    """transformers pads with [SEP] where the padding token is 0."""
    rows = [row.tolist() for row in ids]
    ends = [row.index(SEP, start) if SEP in row[start:] else len(row) for row in rows]
    return [row[: end + 1] for row, end in zip(rows, ends, strict=True)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "search",
    [
        {"num_beams": 3, "max_length": 12, "min_length": 5},
        {"num_beams": 1, "max_length": 9, "min_length": 1},
        {"num_beams": 4, "max_length": 14, "min_length": 1, "length_penalty": 2.0},
        {"num_beams": 3, "max_length": 12, "min_length": 2, "repetition_penalty": 1.5},
    ],
)
def test_beams_find_the_captions_of_transformers(search, seed):
    model = randomised(seed, **CAPTIONING)
    # So that texts end before they must.
    model.text_decoder.words.bias.data[SEP] += 3.0
    theirs = theirs_like(model, BlipForConditionalGeneration)
    images = pictures(4, seed)
    prompt = torch.tensor([CLS, 7, 9])
    ours = generate_captions(model, images, prompt, end_id=SEP, **search)
    with_end = torch.cat([prompt, torch.tensor([SEP])]).expand(4, -1).clone()
    settings = GenerationConfig(**search, do_sample=False)
    right = theirs.generate(images, with_end, generation_config=settings)
    found = without_padding(ours, start=3)
    assert found == without_padding(right, start=3)
    lengths = {len(text) for text in found}
    assert min(lengths) > search["min_length"] or search["min_length"] == 1


def test_answers_are_those_of_transformers():
    model = randomised(**QUESTIONS)
    model.text_decoder.words.bias.data[SEP] += 2.0
    theirs = theirs_like(model, BlipForQuestionAnswering)
    images = pictures()
    questions = torch.randint(3, 48, (3, 5), generator=torch.Generator().manual_seed(4))
    questions[:, 0] = CLS
    ours = generate_answers(model, images, questions, end_id=SEP, num_beams=3)
    settings = GenerationConfig(num_beams=3, max_length=10, min_length=1, do_sample=False)
    their_questions = torch.cat([torch.full((3, 1), ENC), questions[:, 1:]], 1)
    right = theirs.generate(their_questions, images, generation_config=settings)
    assert without_padding(ours, start=1) == without_padding(right, start=1)


def test_the_nucleus_is_that_of_transformers():
    logits = 3 * torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    texts = torch.randint(30, (20, 6), generator=torch.Generator().manual_seed(1))
    for p in (0.1, 0.5, 0.9, 0.99):
        assert torch.equal(nucleus_filter(logits, p), TopPLogitsWarper(p)(None, logits))
    assert torch.equal(_likeliest(logits, 7), TopKLogitsWarper(7)(None, logits))
    right = RepetitionPenaltyLogitsProcessor(1.1)(texts, logits.clone())
    assert torch.equal(_penalise(logits, texts, 1.1), right)
