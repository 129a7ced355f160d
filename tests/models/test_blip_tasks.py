import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmlab.models.blip import BLIP
from mmlab.models.blip_tasks import (
    BLIPCaptioning,
    BLIPClassification,
    BLIPQuestionAnswering,
    BLIPRetrieval,
    blip_answerer,
    blip_captioner,
    blip_classifier,
    blip_retriever,
    class_logits,
    generate_answers,
    generate_captions,
    match_probabilities,
    rank_answers,
    sample_captions,
)
from mmlab.nn.momentum import NO_ID
from tests.models.tiny import TINY_BLIP

PAD, CLS, SEP, DEC, ENC = 0, 1, 2, 48, 49
# As wide as the text, so that a decoder of answers can start from one of captions.
WIDE = replace(TINY_BLIP, dim=24)


def build(seed=0, **changes):
    torch.manual_seed(seed)
    model = BLIP(replace(WIDE, **changes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


def batch_of(count=4, images=(3, 16, 16), seed=1):
    generator = torch.Generator().manual_seed(seed)
    valid = torch.arange(7) < (4 + torch.arange(count) % 4)[:, None]
    ids = torch.randint(4, 48, (count, 7), generator=generator).where(valid, PAD)
    ids[:, 0] = CLS
    pictures = torch.randn(count, *images, generator=generator)
    return {"images": pictures, "input_ids": ids, "attention_mask": valid}


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


# Retrieval


def retrieval(**settings):
    torch.manual_seed(2)
    return BLIPRetrieval(blip_retriever(build()), **({"queue_size": 8} | settings))


def test_a_retriever_keeps_the_encoders_and_gets_a_temperature():
    model, batch = build(), batch_of()
    for pretrained in (model, build(temperature=None, heads=("contrast", "match"))):
        retriever = blip_retriever(pretrained)
        assert retriever.text_decoder is None
        close(retriever.encode_text(batch["input_ids"]), pretrained.encode_text(batch["input_ids"]))
        assert 0.0 < retriever.temperature < 1.0


def test_retrieval_writes_nothing():
    losses = retrieval().losses(batch_of() | {"image_ids": torch.arange(4)})
    assert list(losses) == ["contrastive", "matching"]


def test_all_captions_of_an_image_are_right_in_batch_and_queue():
    module = retrieval(alpha=0.0)
    assert (module.queue.ids == NO_ID).all()
    ids = torch.tensor([5, 6, 5, 7])
    module.step(batch_of() | {"image_ids": torch.tensor([7, 8, 5, 9])})
    assert module.queue.ids.tolist() == [7, 8, 5, 9] + 4 * [NO_ID]
    contrast = module.step(batch_of() | {"image_ids": ids}).contrast
    expected = torch.zeros(4, 12)
    expected[0, [0, 2, 6]] = expected[2, [0, 2, 6]] = 1 / 3
    expected[1, 1] = 1.0
    expected[3, [3, 4]] = 1 / 2
    close(contrast.image_targets, expected)
    close(contrast.text_targets, expected)


def test_negatives_are_of_other_images_and_as_similar_as_the_network_finds_them():
    module = retrieval(generator=torch.Generator().manual_seed(0), queue_size=4)
    module.network.heads["contrast"].temperature.data.fill_(0.5)
    for parameter in module.momentum.network.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape)
    batch = batch_of() | {"image_ids": torch.tensor([5, 6, 5, 7])}
    contrast = module.step(batch).contrast
    items = module.candidates(batch, contrast)
    own = contrast.text_features @ contrast.image_features.T / 0.5
    close(items.text_to_image, own)
    close(items.image_to_text, own.T)
    counts = torch.zeros(4, 4)
    for _ in range(300):
        images, texts = module._negatives({}, items)
        for drawn in (images, texts):
            assert (batch["image_ids"][drawn] != batch["image_ids"]).all()
        counts[range(4), images] += 1
    weights = own.softmax(-1).masked_fill(items.belongs, 0)
    expected = (300 * weights / weights.sum(1, keepdim=True))[~items.belongs]
    chi_square = ((counts[~items.belongs] - expected).square() / expected).sum()
    # Rows of 1, 2, 1 and 2 degrees of freedom; 28 is exceeded once in 10,000 tries.
    assert chi_square < 28


# Captions


def test_a_captioner_is_the_decoder_alone():
    model, batch = build(), batch_of()
    captioner = blip_captioner(model)
    tokens = model.image_tokens(batch["images"])
    close(
        captioner.word_logits(batch["input_ids"], tokens),
        model.word_logits(batch["input_ids"], tokens),
    )
    assert captioner.text_encoder is None


def test_the_prompt_is_given_and_not_learned():
    network, batch = blip_captioner(build()), batch_of()
    ids, valid = batch["input_ids"], batch["attention_mask"]
    logits = network.word_logits(ids, network.image_tokens(batch["images"]), valid)
    for length in (0, 1, 3):
        loss = BLIPCaptioning(network, length).losses(batch)["language_modeling"]
        # Word t is predicted after word t - 1; the first is never asked for.
        asked = valid[:, 1:] & (torch.arange(1, 7) >= length)
        log_probs = logits[:, :-1].log_softmax(-1)[asked]
        right = log_probs.gather(1, ids[:, 1:][asked][:, None])
        close(loss, -(0.9 * right.mean() + 0.1 * log_probs.mean()))
    with pytest.raises(ValueError, match="prompt_length must be at least 0, got -1"):
        BLIPCaptioning(network, -1)


def test_captions_begin_with_the_prompt_and_are_of_their_image():
    model, images = blip_captioner(build()), batch_of(6)["images"]
    prompt = torch.tensor([CLS, 7, 9])
    options = {"end_id": SEP, "max_length": 9, "min_length": 4}
    texts = generate_captions(model, images, prompt, num_beams=2, **options)
    assert (texts[:, :3] == torch.tensor([DEC, 7, 9])).all()
    alone = generate_captions(model, images[4:5], prompt, num_beams=2, **options)
    assert torch.equal(texts[4, : alone.shape[1]], alone[0])
    first, second = (
        sample_captions(model, images, generator=torch.Generator().manual_seed(3), **options)
        for _ in range(2)
    )
    assert torch.equal(first, second) and (first[:, 0] == DEC).all()
    drawn = sample_captions(model, images, generator=torch.Generator().manual_seed(4), **options)
    assert not torch.equal(drawn, first)


def test_sampled_words_come_from_the_decoders_nucleus():
    model, images = blip_captioner(build()), batch_of(3)["images"]
    options = {"end_id": SEP, "max_length": 6, "min_length": 6, "repetition_penalty": 1.0}
    generator = torch.Generator().manual_seed(0)
    texts = sample_captions(model, images, top_p=0.3, generator=generator, **options)
    probabilities = model.word_logits(texts, model.image_tokens(images)).softmax(-1)
    for row in range(3):
        for place in range(5):
            found = probabilities[row, place].clone()
            word = texts[row, place + 1]
            found[SEP] = 0
            found /= found.sum()
            assert found[found > found[word]].sum() < 0.3 + 1e-5


def test_captioning_learns_to_name_its_images():
    network, batch = blip_captioner(build()), batch_of(3)
    batch["input_ids"] = torch.tensor([[CLS, 7, 8, SEP], [CLS, 9, SEP, PAD], [CLS, 11, 12, SEP]])
    del batch["attention_mask"]
    module, optimizer = BLIPCaptioning(network), torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        loss = module.losses(batch)["language_modeling"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    texts = generate_captions(network, batch["images"], end_id=SEP, min_length=1, max_length=8)
    assert texts.tolist() == [[DEC, 7, 8, SEP], [DEC, 9, SEP, PAD], [DEC, 11, 12, SEP]]


# Questions


def question_batch():
    answers = torch.tensor([[CLS, 7, SEP, PAD], [CLS, 8, 9, SEP], [CLS, 9, SEP, PAD]])
    more = {"answer_ids": answers, "question_of": torch.tensor([0, 0, 1])}
    return batch_of(2) | more | {"weights": torch.tensor([0.6, 0.4, 0.5])}


def test_an_answerer_starts_as_both_parts_which_are_no_longer_shared():
    model = build()
    answerer = blip_answerer(model)
    for part in ("text_encoder", "text_decoder"):
        own, old = getattr(answerer, part), getattr(model, part)
        state = old.state_dict()
        assert all(torch.equal(t, state[k]) for k, t in own.state_dict().items())
    encoder = {p.data_ptr() for p in answerer.text_encoder.parameters()}
    assert not encoder & {p.data_ptr() for p in answerer.text_decoder.parameters()}


def test_a_wider_image_encoder_leaves_keys_and_values_of_the_answers_fresh():
    model = build(dim=20)
    answerer = blip_answerer(model)
    cross = answerer.text_decoder.blocks[0].cross_attention
    assert cross.k_proj.weight.shape == (24, 24)
    assert torch.equal(cross.k_proj.bias, model.text_decoder.blocks[0].cross_attention.k_proj.bias)
    encoder = answerer.text_encoder.blocks[0].cross_attention.k_proj.weight
    assert torch.equal(encoder, model.text_encoder.blocks[0].cross_attention.k_proj.weight)


def test_the_answer_loss_is_the_weighted_sum_over_answers():
    network, batch = blip_answerer(build()).eval(), question_batch()
    loss = BLIPQuestionAnswering(network).losses(batch)["answers"]
    total = 0.0
    rows = zip(batch["answer_ids"], batch["question_of"], batch["weights"], strict=True)
    for answer, row, weight in rows:
        log_probs, answer = scores(network, batch, row, answer)
        for place, word in enumerate(answer[1:]):
            smooth = 0.9 * log_probs[place, word] + 0.1 * log_probs[place].mean()
            total = total - weight * smooth
    close(loss, total / 2)


def scores(network, batch, row, answer):
    """The log-probabilities of one answer, computed alone, and the answer without padding."""
    answer = answer[answer != PAD]
    ids, valid = batch["input_ids"][row][None], batch["attention_mask"][row][None]
    tokens = network.image_tokens_of(batch["images"][row][None])
    question = network.ground(ids, tokens, valid)
    return network.answer_logits(answer[None], question, valid)[0].log_softmax(-1), answer


def test_answers_are_ranked_by_the_smoothed_loss():
    network, batch = blip_answerer(build()).eval(), question_batch()
    answers = torch.tensor([[1, 7, 2, 0], [1, 8, 9, 2], [1, 9, 2, 0], [1, 9, 8, 2], [1, 30, 2, 0]])
    tokens = network.image_tokens_of(batch["images"])
    valid = batch["attention_mask"]
    question = network.ground(batch["input_ids"], tokens, valid)
    worth = torch.zeros(2, 5)
    for row in range(2):
        for number, answer in enumerate(answers):
            log_probs, words = scores(network, batch, row, answer)
            steps = [
                0.9 * log_probs[place, word].item() + 0.1 * log_probs[place].mean().item()
                for place, word in enumerate(words[1:])
            ]
            worth[row, number] = math.fsum(steps)
    found, probabilities = rank_answers(
        network, question, valid, answers, k=10, label_smoothing=0.1
    )
    assert torch.equal(found, worth.argsort(descending=True))
    close(probabilities, worth.softmax(-1).sort(descending=True).values)
    plain, _ = rank_answers(network, question, valid, answers, k=1)
    assert plain.shape == (2, 1)


def test_generated_answers_know_nothing_of_padding():
    network, batch = blip_answerer(build()).eval(), question_batch()
    options = {"end_id": SEP, "num_beams": 2, "max_length": 6}
    ids, valid = batch["input_ids"], batch["attention_mask"]
    answers = generate_answers(network, batch["images"], ids, valid, **options)
    padded = F.pad(ids, (0, 2))
    assert torch.equal(generate_answers(network, batch["images"], padded, **options), answers)
    assert (answers[:, 0] == DEC).all() and answers.shape[1] <= 6


# Pairs of images


def test_each_image_gets_the_cross_attention_of_the_pretrained_model():
    model = build()
    pair = blip_classifier(model, 2, num_images=2)
    for block, old in zip(pair.text_encoder.blocks, model.text_encoder.blocks, strict=True):
        first, second = block.cross_attention
        state = old.cross_attention.state_dict()
        for attention in (first, second):
            assert all(torch.equal(t, state[k]) for k, t in attention.state_dict().items())
        assert first.k_proj.weight.data_ptr() != second.k_proj.weight.data_ptr()
        assert block.merge is None


def test_with_one_image_twice_averaging_changes_nothing():
    """Both cross-attentions start equal, so their mean is the pretrained one."""
    model, batch = build(), batch_of()
    pair = blip_classifier(model, 2, num_images=2)
    twice = batch["images"][:, None].expand(-1, 2, -1, -1, -1)
    grounded = pair.ground(batch["input_ids"], pair.image_tokens_of(twice))
    close(grounded, model(batch["input_ids"], batch["images"]).grounded)


def test_late_blocks_merge_what_two_images_say():
    model = build(merge_from=1)
    pair, batch = blip_classifier(model, 2, num_images=2), batch_of(images=(2, 3, 16, 16))
    first, second = pair.text_encoder.blocks
    assert first.merge is None and second.merge.weight.shape == (24, 48)
    ids, valid = batch["input_ids"], batch["attention_mask"]
    images = pair.image_tokens_of(batch["images"])
    mask = valid[:, None, None, :]
    x = pair.text_encoder.embeddings(torch.cat([torch.full((4, 1), ENC), ids[:, 1:]], 1))
    for block in (first, second):
        x = block.norm1(x + block.attention(x, mask=mask))
        looks = [a(x, image) for a, image in zip(block.cross_attention, images, strict=True)]
        merged = sum(looks) / 2 if block.merge is None else block.merge(torch.cat(looks, -1))
        x = block.cross_norm(x + merged)
        x = block.norm2(x + block.mlp(x))
    close(pair.ground(ids, images, valid), x)
    with pytest.raises(ValueError, match=r"images must have shape \(batch, 2, channels"):
        class_logits(pair, batch | {"images": batch["images"][:, 0]})


def test_the_order_of_the_images_matters_once_the_two_have_learned():
    torch.manual_seed(4)
    pair = blip_classifier(build(merge_from=1), 2, num_images=2).train()
    batch = batch_of(images=(2, 3, 16, 16)) | {"labels": torch.tensor([0, 1, 1, 0])}
    module = BLIPClassification(pair)
    optimizer, losses = torch.optim.Adam(pair.parameters(), lr=3e-3), []
    for _ in range(25):
        loss = module.losses(batch)["classes"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    swapped = class_logits(pair, batch | {"images": batch["images"].flip(1)})
    assert (swapped - class_logits(pair, batch)).abs().max() > 1e-3


def test_recomputed_pair_blocks_give_the_same_gradients():
    pair = blip_classifier(build(merge_from=1), 2, num_images=2)
    batch = batch_of(images=(2, 3, 16, 16)) | {"labels": torch.tensor([0, 1, 1, 0])}
    found = []
    for recompute in (False, True):
        pair.zero_grad()
        pair.activation_checkpointing = recompute
        BLIPClassification(pair).losses(batch)["classes"].backward()
        found.append(pair.text_encoder.blocks[1].merge.weight.grad.clone())
    close(*found)


# Filtering


def test_the_filter_gives_the_probability_of_a_match():
    model, batch = build(), batch_of()
    ids, images, valid = batch["input_ids"], batch["images"], batch["attention_mask"]
    logits = model.matching_logits(model(ids, images, valid).grounded)
    found = match_probabilities(model, images, ids, valid)
    close(found, (logits[:, 1] - logits[:, 0]).sigmoid())
    assert not found.requires_grad


def test_a_question_is_computed_once_for_all_its_answers():
    """The same scores as with each question repeated, from keys and values of two questions."""
    network, batch = blip_answerer(build()).eval(), question_batch()
    valid = batch["attention_mask"]
    tokens = network.image_tokens_of(batch["images"])
    question = network.ground(batch["input_ids"], tokens, valid)
    answers, rows = batch["answer_ids"], batch["question_of"]
    assert len(answers) > len(question)
    seen = []
    for block in network.text_decoder.blocks:
        project = block.cross_attention.k_proj
        project.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    once = network.answer_logits(answers, question, valid, question_rows=rows)
    assert set(seen) == {2}
    close(once, network.answer_logits(answers, question[rows], valid[rows]))
    assert (once - network.answer_logits(answers, question, valid, question_rows=1 - rows)).any()
    seen.clear()
    rank_answers(network, question, valid, answers, k=3)
    assert set(seen) == {2}
