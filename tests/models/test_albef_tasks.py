import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmlab.models.albef import ALBEF
from mmlab.models.albef_tasks import (
    ALBEFClassification,
    ALBEFQuestionAnswering,
    ALBEFRetrieval,
    ALBEFTextAssignment,
    albef_answerer,
    albef_classifier,
    albef_retriever,
    rank_answers,
)
from mmlab.nn.momentum import NO_ID
from tests.models.tiny import TINY_ALBEF

TINY = replace(TINY_ALBEF, dim=24, text_depth=2, fusion_depth=2)


def build(seed=0, **changes):
    torch.manual_seed(seed)
    model = ALBEF(replace(TINY, **changes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


def batch_of(count=4, images=(3, 16, 16), seed=1):
    generator = torch.Generator().manual_seed(seed)
    valid = torch.arange(7) < (4 + torch.arange(count) % 4)[:, None]
    ids = torch.randint(4, 50, (count, 7), generator=generator).where(valid, 0)
    pictures = torch.randn(count, *images, generator=generator)
    return {"images": pictures, "input_ids": ids, "attention_mask": valid}


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


# Retrieval


def retrieval(**settings):
    torch.manual_seed(2)
    return ALBEFRetrieval(albef_retriever(build()), **({"queue_size": 8} | settings))


def test_retrieval_has_no_masked_words_and_no_clamp():
    module = retrieval()
    module.network.heads["contrast"].temperature.data.fill_(0.9)
    losses = module.losses(batch_of() | {"image_ids": torch.arange(4)})
    assert list(losses) == ["contrastive", "matching"]
    assert module.network.temperature.item() == pytest.approx(0.9)


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


def test_no_other_caption_of_the_image_is_a_negative():
    module = retrieval(generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([5, 6, 5, 7])
    contrast = module.step(batch_of() | {"image_ids": ids}).contrast
    for _ in range(300):
        for drawn in module._negatives({}, contrast):
            assert (ids[drawn] != ids).all()


# Classification


def test_a_classifier_keeps_the_trunks():
    model = build()
    entailment = albef_classifier(model, 3)
    batch = batch_of()
    close(
        entailment(batch["input_ids"], batch["images"]).fused,
        model(batch["input_ids"], batch["images"]).fused,
    )
    assert set(entailment.heads) == {"classes"}


def test_distilled_classification_is_the_formula():
    module = ALBEFClassification(albef_classifier(build(), 3), decay=0.5, alpha=0.4)
    for parameter in module.network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    batch = batch_of() | {"labels": torch.tensor([0, 2, 1, 1])}
    loss = module.losses(batch)["classes"]
    ids, images, valid = batch["input_ids"], batch["images"], batch["attention_mask"]
    network, twin = module.network, module.momentum.network
    logits = network.class_logits(network(ids, images, valid).fused)
    guess = twin.class_logits(twin(ids, images, valid).fused).softmax(-1)
    soft = -(guess * logits.log_softmax(-1)).sum(1).mean()
    close(loss, 0.6 * F.cross_entropy(logits, batch["labels"]) + 0.4 * soft)
    loss.backward()
    assert all(p.grad is None for p in module.momentum.parameters())
    before = twin.heads["classes"][0].weight.clone()
    module.losses(batch, update=False)
    assert torch.equal(before, twin.heads["classes"][0].weight)


def test_nlvr2_doubles_fusion_blocks_with_shared_keys_and_values():
    model = build()
    pair = albef_classifier(model, 2, num_images=2)
    blocks, old = pair.text_encoder.blocks, model.text_encoder.blocks
    assert len(blocks) == 2 + 2 * 2
    for fusion in range(2):
        first, second = blocks[2 + 2 * fusion], blocks[3 + 2 * fusion]
        for name in ("k_proj", "v_proj"):
            assert getattr(first.cross_attention, name) is getattr(second.cross_attention, name)
        assert first.cross_attention.q_proj is not second.cross_attention.q_proj
        assert first.mlp is not second.mlp
        for block in (first, second):
            state = block.state_dict()
            assert all(torch.equal(t, state[k]) for k, t in old[2 + fusion].state_dict().items())


def test_nlvr2_looks_at_both_images_in_turn():
    pair = albef_classifier(build(), 2, num_images=2).eval()
    batch = batch_of(images=(2, 3, 16, 16))
    ids, images, valid = batch["input_ids"], batch["images"], batch["attention_mask"]
    features = pair(ids, images, valid)
    text, mask = pair.text_tokens(ids, valid), valid[:, None, None, :]
    for number, block in enumerate(pair.text_encoder.blocks[2:]):
        text = block(text, mask, pair.image_tokens(images[:, number % 2]))
    close(features.fused, text)
    swapped = pair(ids, images.flip(1), valid)
    assert (features.fused - swapped.fused).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"images must have shape \(batch, 2, channels"):
        pair(ids, images[:, 0], valid)


def test_nlvr2_learns_and_its_twin_follows():
    module = ALBEFClassification(albef_classifier(build(), 2, num_images=2), decay=0.0)
    batch = batch_of(images=(2, 3, 16, 16)) | {"labels": torch.tensor([0, 1, 1, 0])}
    optimizer = torch.optim.Adam(module.network.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = module.losses(batch)["classes"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    module.momentum.update(module.network)
    own = module.network.state_dict()
    assert all(torch.equal(t, own[k]) for k, t in module.momentum.network.state_dict().items())


# Text assignment


def assignment():
    network = albef_classifier(build(), 3, num_images=2, hidden_head=False)
    return ALBEFTextAssignment(network, torch.Generator().manual_seed(0))


def test_text_assignment_draws_each_case_a_third_of_the_time():
    module = assignment()
    features = F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(3)), dim=-1)
    rows, counts = torch.arange(6), torch.zeros(3)
    for _ in range(500):
        first, second, labels = module.assign(features)
        assert torch.equal(labels == 0, first == rows)
        assert torch.equal(labels == 1, second == rows)
        assert (first != second).all()
        counts += labels.bincount(minlength=3)
    assert (counts / 3000 - 1 / 3).abs().max() < 0.04
    with pytest.raises(ValueError, match="only 1 wrong items for query 0, of 2 to draw"):
        module.assign(features[:2])


def test_similar_images_are_likely_partners():
    module = assignment()
    angles = torch.tensor([0.0, 0.2, 2.0, 2.5])
    features = torch.stack([angles.cos(), angles.sin()], 1)
    drawn = [module.assign(features) for _ in range(200)]
    others = [d.second[0].item() for d in drawn if d.labels[0] == 0]
    assert others.count(1) > 0.95 * len(others)


def test_given_pairs_are_taken_and_the_trained_model_goes_on_to_nlvr2():
    module, batch = assignment(), batch_of()
    first, second = torch.tensor([0, 3, 2, 1]), torch.tensor([1, 1, 0, 2])
    labels = torch.tensor([0, 1, 0, 2])
    given = {"first": first, "second": second, "labels": labels}
    loss = module.losses(batch | given)["assignment"]
    pairs = torch.stack([batch["images"][first], batch["images"][second]], 1)
    network = module.network
    logits = network.class_logits(network(batch["input_ids"], pairs).fused)
    close(loss, F.cross_entropy(logits, labels))
    loss.backward()
    nlvr2 = albef_classifier(network, 2, num_images=2)
    fused = nlvr2(batch["input_ids"], pairs).fused
    close(fused, network(batch["input_ids"], pairs).fused)


# Questions


def question_batch():
    answers = torch.tensor([[1, 7, 2, 0], [1, 8, 9, 2], [1, 9, 2, 0]])
    more = {"answer_ids": answers, "question_of": torch.tensor([0, 0, 1])}
    return batch_of(2) | more | {"weights": torch.tensor([0.6, 0.4, 0.5])}


def test_the_decoder_starts_as_the_fusion_blocks():
    model = build()
    answerer = albef_answerer(model)
    decoder = answerer.heads["answers"]
    for number, block in enumerate(decoder.blocks):
        old = model.text_encoder.blocks[2 + number].state_dict()
        assert all(torch.equal(t, old[k]) for k, t in block.state_dict().items())
    words = model.text_encoder.embeddings.word_embedding.weight
    assert torch.equal(decoder.embeddings.word_embedding.weight, words)
    assert torch.equal(decoder.words.dense.weight, model.heads["words"].dense.weight)


def test_an_answer_sees_its_own_past_and_the_whole_question():
    model = albef_answerer(build()).eval()
    batch = question_batch()
    question = model(batch["input_ids"], batch["images"], batch["attention_mask"]).fused
    ids, valid = batch["answer_ids"][:2], batch["attention_mask"]
    logits = model.answer_logits(ids, question, valid)
    later = ids.clone()
    later[:, 2] = 30
    changed = model.answer_logits(later, question, valid)
    close(changed[:, :2], logits[:, :2])
    assert (changed[:, 2:] - logits[:, 2:]).abs().max() > 1e-3
    padded = question.masked_fill(~valid[..., None], 9.0)
    close(model.answer_logits(ids, padded, valid), logits)
    assert (model.answer_logits(ids, question + 1, valid) - logits).abs().max() > 1e-3


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_the_answer_loss_is_the_weighted_sum_over_answers(alpha):
    module = ALBEFQuestionAnswering(albef_answerer(build()), decay=0.9, alpha=alpha).eval()
    for parameter in module.network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    batch = question_batch()
    loss = module.losses(batch)["answers"]

    def scores(model, row, answer):
        ids, valid = batch["input_ids"][row : row + 1], batch["attention_mask"][row : row + 1]
        question = model(ids, batch["images"][row : row + 1], valid).fused
        return model.answer_logits(answer[None], question, valid)[0].log_softmax(-1)

    total = 0.0
    rows = zip(batch["answer_ids"], batch["question_of"], batch["weights"], strict=True)
    for answer, row, weight in rows:
        answer = answer[answer != 0]
        own, guess = (scores(m, row, answer) for m in (module.network, module.momentum.network))
        for place, word in enumerate(answer[1:]):
            hard, soft = -own[place, word], -(guess[place].exp() * own[place]).sum()
            total = total + weight * ((1 - alpha) * hard + alpha * soft)
    close(loss, total / 2)


def test_answers_are_ranked_by_their_whole_likelihood():
    model = albef_answerer(build()).eval()
    batch = question_batch()
    question = model(batch["input_ids"], batch["images"], batch["attention_mask"]).fused
    answers = torch.tensor([[1, 7, 2, 0], [1, 8, 9, 2], [1, 9, 2, 0], [1, 9, 8, 2], [1, 30, 2, 0]])
    valid = batch["attention_mask"]
    likelihood = torch.zeros(2, 5)
    first = torch.zeros(2, 5)
    for row in range(2):
        for number, answer in enumerate(answers):
            answer = answer[answer != 0]
            logits = model.answer_logits(
                answer[None], question[row : row + 1], valid[row : row + 1]
            )
            scores = logits[0].log_softmax(-1).detach()
            steps = [scores[place, word].item() for place, word in enumerate(answer[1:])]
            likelihood[row, number], first[row, number] = math.fsum(steps), steps[0]
    found, probabilities = rank_answers(model, question, valid, answers, k=10)
    assert torch.equal(found, likelihood.argsort(descending=True))
    close(probabilities, likelihood.softmax(-1).sort(descending=True).values)
    found, _ = rank_answers(model, question, valid, answers, k=3)
    for row in range(2):
        assert set(found[row].tolist()) <= set(
            (first[row] >= first[row].sort(descending=True).values[2] - 1e-6)
            .nonzero()[:, 0]
            .tolist()
        )
    _, twice = rank_answers(model, question, valid, answers, k=5, first_word_weight=2.0)
    close(twice, (likelihood + first).softmax(-1).sort(descending=True).values)


def test_a_question_is_computed_once_for_all_its_answers():
    """The same scores as with each question repeated, from keys and values of two questions."""
    model, batch = albef_answerer(build()).eval(), question_batch()
    valid = batch["attention_mask"]
    question = model(batch["input_ids"], batch["images"], valid).fused
    answers, rows = batch["answer_ids"], batch["question_of"]
    assert len(answers) > len(question)
    seen = []
    for block in model.heads["answers"].blocks:
        project = block.cross_attention.k_proj
        project.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    once = model.answer_logits(answers, question, valid, question_rows=rows)
    assert seen == [2, 2]
    close(once, model.answer_logits(answers, question[rows], valid[rows]))
    assert (once - model.answer_logits(answers, question, valid, question_rows=1 - rows)).any()
    seen.clear()
    rank_answers(model, question, valid, answers, k=3)
    assert set(seen) == {2}
