import math
from dataclasses import replace

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab.analysis import count_parameters, record_attention
from mmlab.datasets import scenes, train_wordpiece
from mmlab.models import vilt
from mmlab.models.vilt import (
    ViLT,
    ViLTConfig,
    ViLTPretraining,
    choose_patches,
    inner_words,
    mean_shades,
    pad_images,
    start_from_vit,
)
from mmlab.models.vilt_tasks import (
    ViLTLessons,
    ViLTQuestionAnswering,
    ViLTReasoning,
    ViLTRetrieval,
    start_from_vilt,
    vilt_classifier,
    vilt_ranker,
)
from mmlab.models.vit import ViT, ViTConfig
from mmlab.nn import interpolate_positions
from mmlab.objectives.transport import word_patch_alignment_loss

TINY = ViLTConfig(
    image_size=24,
    patch_size=4,
    dim=24,
    depth=2,
    num_heads=3,
    mlp_dim=40,
    vocab_size=50,
    context_length=12,
    dropout=0.0,
)
ALL_HEADS = {"heads": vilt.HEADS, "num_classes": 7}


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return ViLT(replace(TINY, **changes)).eval()


def randomise(model, seed=0):
    """Noise on every parameter, so that no zero hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def texts(lengths=(7, 4, 5), seed=1):
    """Numbers from 5 on; the rows end in 3, like [SEP]; padding is 0."""
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, valid.shape, generator=generator).where(valid, 0)
    ids[:, 0] = 2
    ids[torch.arange(len(ids)), valid.sum(1) - 1] = 3
    return ids, valid


def square_images(batch=3, size=24, seed=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def ragged_images(seed=2):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(24, 16), (8, 36), (20, 20)]
    return pad_images([torch.randn(3, *shape, generator=generator) for shape in shapes])


def batch_of(ragged=True, **extra):
    ids, valid = texts()
    images, sizes = ragged_images() if ragged else (square_images(), None)
    batch = {"input_ids": ids, "attention_mask": valid, "images": images, **extra}
    return batch | ({"image_sizes": sizes} if ragged else {})


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


@pytest.fixture
def no_shape_checks():
    """torch.compile cannot trace the shape checker that the tests put around every function."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# Sizes


COUNTS = [
    ({"heads": ()}, 111_595_008),
    ({}, 135_660_092),
    ({"heads": ("words",), "tied_words": True}, 112_217_658),
    ({"heads": ("rank",)}, 111_595_777),
    ({"heads": ("answer",), "num_classes": 3129}, 117_588_537),
    ({"heads": ("answer",), "num_classes": 2, "num_images": 2}, 113_962_754),
]


@pytest.mark.parametrize(("changes", "expected"), COUNTS)
def test_parameter_counts(changes, expected):
    with torch.device("meta"):
        assert count_parameters(ViLT(replace(vilt.VILT_B_32, **changes))) == expected


def test_published_configurations_have_these_counts():
    named = [vilt.VILT_B_32, vilt.VILT_B_32_RETRIEVAL, vilt.VILT_B_32_VQA, vilt.VILT_B_32_NLVR2]
    counted = [ViLTConfig(**changes) for changes, _ in (COUNTS[1], *COUNTS[3:])]
    assert named == counted


def test_parameter_counts_of_the_parts():
    with torch.device("meta"):
        model = ViLT(vilt.VILT_B_32)
    parts = {
        "text_embeddings": 23_474_688,
        "patch_embedding": 2_360_064,
        "modality_embedding": 1_536,
        "blocks": 85_054_464,
        "norm": 1_536,
        "pooler": 590_592,
    }
    assert {name: count_parameters(getattr(model, name)) for name in parts} == parts
    assert model.class_token.numel() == 768
    assert model.position_embedding.numel() == 111_360
    assert count_parameters(model.heads["match"]) == 1_538
    assert count_parameters(model.heads["words"]) == 24_063_546
    assert model.mask_token is None


@pytest.mark.parametrize(("width", "gmacs"), [(384, 16.68), (608, 24.72)])
def test_multiplications_of_one_pair(width, gmacs):
    """The patches, 12 blocks of 40 + 1 + n tokens, and the pooler; nothing else multiplies."""
    with (
        torch.device("meta"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as count,
    ):
        model = ViLT(replace(vilt.VILT_B_32, heads=())).eval()
        model(torch.zeros(1, 40, dtype=torch.long), torch.zeros(1, 3, 384, width))
    n = 12 * width // 32
    tokens = 41 + n
    blocks = 12 * (12 * tokens * 768**2 + 2 * tokens**2 * 768)
    assert count.get_total_flops() == 2 * (n * 32**2 * 3 * 768 + blocks + 768**2)
    assert count.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=0.01)


def test_matrices_spread_as_published_or_with_the_width():
    published, narrow = build(), build(init="xavier")
    assert vilt.VILT_B_32.init == "normal"
    for model, spread in ((published, 0.02), (narrow, math.sqrt(2 / (24 + 40)))):
        for part in (model.blocks[0].mlp.fc1, model.blocks[1].mlp.fc2):
            assert part.weight.std().item() == pytest.approx(spread, rel=0.1)
    for part in (published.pooler.dense, narrow.heads["match"]):
        limit = math.sqrt(6 / sum(part.weight.shape))
        assert (part.weight.abs().max() > 0.9 * limit) == (part in narrow.modules())
    tables = (published.text_embeddings, narrow.text_embeddings)
    assert all(t.word_embedding.weight.std().item() == pytest.approx(0.02, rel=0.1) for t in tables)


def test_the_mini_model_is_small():
    assert count_parameters(ViLT(vilt.VILT_MINI)) < 2_500_000


# The sequence


def test_shapes_of_features_and_heads():
    model, (ids, valid) = build(**ALL_HEADS), texts()
    images, sizes = ragged_images()
    features = model(ids, images, valid, sizes)
    assert features.text.shape == (3, 7, 24)
    # 6 x 4, 2 x 9 and 5 x 5 patches; the batch is as long as the largest image needs.
    assert features.patches.shape == (3, 25, 24)
    assert features.patch_valid.sum(1).tolist() == [24, 18, 25]
    assert features.class_token.shape == features.pooled.shape == (3, 24)
    assert features.pooled.abs().max() < 1
    assert model.word_logits(features).shape == (3, 7, 50)
    assert model.matching_logits(features).shape == (3, 2)
    assert model.patch_logits(features).shape == (3, 25, 3, 256)
    assert model.answer_logits(features).shape == (3, 7)
    assert model.rank_scores(features).shape == (3,)


def test_places_say_where_in_the_batch_a_patch_lies():
    model = randomise(build())
    images, sizes = ragged_images()
    features = model(texts()[0], images, image_sizes=sizes)
    columns = images.shape[-1] // 4
    for row, (height, width) in enumerate((sizes // 4).tolist()):
        places = features.places[row][features.patch_valid[row]]
        expected = [r * columns + c for r in range(height) for c in range(width)]
        assert places.tolist() == expected


def test_the_pooled_vector_is_that_of_the_first_word():
    model, (ids, _) = randomise(build()), texts()
    features = model(ids, square_images())
    close(features.pooled, torch.tanh(model.pooler.dense(features.text[:, 0])))


def test_padding_of_texts_and_images_changes_nothing():
    model, (ids, valid) = randomise(build()), texts()
    images, sizes = ragged_images()
    expected = model(ids, images, valid, sizes)
    rows, columns = (torch.arange(n) for n in images.shape[-2:])
    heights, widths = sizes[:, :, None].unbind(1)
    inside = ((rows < heights)[:, :, None] & (columns < widths)[:, None])[:, None]
    assert not inside.all()
    changed = torch.where(inside, images, 7.0)
    features = model(ids.where(valid, 9), changed, valid, sizes)
    close(features.text[valid], expected.text[valid])
    close(features.patches[features.patch_valid], expected.patches[expected.patch_valid])
    close(features.pooled, expected.pooled)


def test_a_pair_alone_is_the_same_as_in_a_padded_batch():
    model, (ids, valid) = randomise(build()), texts()
    images, sizes = ragged_images()
    together = model(ids, images, valid, sizes)
    for row, (height, width) in enumerate(sizes.tolist()):
        length = int(valid[row].sum())
        alone = model(ids[row : row + 1, :length], images[row : row + 1, :, :height, :width])
        close(together.pooled[row], alone.pooled[0])
        close(together.text[row, :length], alone.text[0])
        close(together.patches[row][together.patch_valid[row]], alone.patches[0])


def test_the_order_of_images_in_a_batch_is_the_order_of_the_features():
    model, (ids, valid) = randomise(build()), texts()
    images, sizes = ragged_images()
    forward, backward = (
        model(ids, images, valid, sizes),
        model(ids.flip(0), images.flip(0), valid.flip(0), sizes.flip(0)),
    )
    close(backward.pooled, forward.pooled.flip(0))


def test_a_patch_counts_if_its_first_pixel_does():
    model, images = build(), square_images(batch=2)
    valid = model.valid_patches(images, torch.tensor([[22, 17], [20, 16]])).reshape(2, 6, 6)
    assert valid[0, :, :5].all() and not valid[0, :, 5:].any()
    assert valid[1, :5, :4].all() and valid[1].sum() == 20


def test_sizes_of_whole_images_are_as_good_as_none():
    model, (ids, valid), images = randomise(build()), texts(), square_images()
    sizes = torch.tensor([[24, 24]] * 3)
    for left, right in zip(
        model(ids, images, valid), model(ids, images, valid, sizes), strict=True
    ):
        close(left, right)


# Positions


def test_positions_of_the_size_of_the_table_are_the_table():
    model = randomise(build())
    assert torch.equal(model._positions((6, 6), None), model.position_embedding[:, 1:])
    sizes = torch.tensor([[24, 24], [24, 24]])
    both = model._positions((6, 6), sizes)
    assert torch.equal(both, model.position_embedding[:, 1:].expand(2, -1, -1))


def test_each_image_has_the_table_stretched_over_its_own_patches():
    model = randomise(build())
    positions = model._positions((6, 9), torch.tensor([[24, 16], [8, 36], [24, 16]]))
    assert torch.equal(positions[0], positions[2])
    for row, grid in ((0, (6, 4)), (1, (2, 9))):
        own = interpolate_positions(model.position_embedding, (6, 6), grid, "bilinear_aligned")
        placed = positions[row].reshape(6, 9, 24)
        close(placed[: grid[0], : grid[1]].reshape(-1, 24), own[0, 1:])
        assert placed[grid[0] :].abs().sum() == placed[:, grid[1] :].abs().sum() == 0


def test_corners_keep_the_corners_of_the_table():
    model = randomise(build())
    table = model.position_embedding[0, 1:].reshape(6, 6, 24)
    stretched = model._stretched((3, 8), (3, 8)).reshape(3, 8, 24)
    close(stretched[[0, 0, -1, -1], [0, -1, 0, -1]], table[[0, 0, -1, -1], [0, -1, 0, -1]])


def test_shuffled_patches_with_their_positions_give_the_same_pooled_vector():
    model, (ids, _), images = randomise(build()), texts(), square_images()
    expected = model(ids, images)
    order = torch.stack([torch.randperm(36) for _ in range(3)])
    shuffled = model(ids, images, kept=order)
    close(shuffled.pooled, expected.pooled)
    assert torch.equal(shuffled.places, order)


# Choosing patches


def test_chosen_patches_are_the_valid_ones_in_order_then_padding():
    valid = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]]).bool()
    assert choose_patches(valid)[:, :3].tolist() == [[0, 2, 3], [1, 4, 0]]
    assert choose_patches(valid, limit=9).shape == (2, 3)


def test_noise_decides_which_patches_stay_and_padding_goes_first():
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    noise = torch.tensor([[0.3, 0.1, 0.9, 0.2], [0.99, 0.98, 0.0, 0.01]])
    assert choose_patches(valid, 2, noise).tolist() == [[1, 3], [0, 1]]
    assert choose_patches(valid, 3, noise)[1].tolist()[:2] == [0, 1]


def test_every_patch_is_equally_often_chosen():
    generator = torch.Generator().manual_seed(0)
    valid = torch.ones(2000, 10, dtype=torch.bool)
    kept = choose_patches(valid, 4, torch.rand(2000, 10, generator=generator))
    assert all(len(set(row)) == 4 for row in kept.tolist())
    share = kept.flatten().bincount() / 2000
    assert (share - 0.4).abs().max() < 0.05


def test_patches_that_are_not_kept_have_no_influence():
    model, (ids, _) = randomise(build()), texts()
    images = square_images().requires_grad_()
    kept = torch.tensor([[0, 7], [3, 8], [35, 20]])
    model(ids, images, kept=kept).pooled.square().sum().backward()
    moved = F.max_pool2d(images.grad.abs().amax(1, keepdim=True), 4).flatten(1) > 0
    assert [row.nonzero().flatten().tolist() for row in moved] == [[0, 7], [3, 8], [20, 35]]


def test_pretraining_keeps_at_most_max_patches(monkeypatch):
    model = ViLTPretraining(build(), mask_id=4, max_patches=20)
    counts = []
    model.network.register_forward_hook(lambda *args: counts.append(args[2].patches.shape[1]))
    model.losses(batch_of())
    model.losses(batch_of(ragged=False))
    model.max_patches = None
    model.losses(batch_of())
    assert counts == [20, 20, 20, 20, 25, 25]


# Modalities


def test_words_and_patches_are_told_apart_by_their_modality_rows():
    model, (ids, _), images = randomise(build()), texts(), square_images()
    expected = model(ids, images).pooled
    row = model.modality_embedding.weight.data[0].clone()
    close(model.embed_text(ids) - row, model.text_embeddings(ids))
    model.modality_embedding.weight.data[1] = row
    assert (model(ids, images).pooled - expected).abs().max() > 1e-3


def test_two_equal_images_with_equal_rows_give_equal_pooled_vectors():
    model = randomise(build(heads=("answer",), num_classes=2, num_images=2))
    (ids, _), images = texts(), square_images()
    first, second = (model(ids, images, image_number=n).pooled for n in (1, 2))
    assert (first - second).abs().max() > 1e-3
    rows = model.modality_embedding.weight
    assert len(rows) == 3
    rows.data[2] = rows.data[1]
    assert torch.equal(model(ids, images, image_number=2).pooled, first)


# Pre-training


def test_initial_losses_are_those_of_guessing():
    model = ViLTPretraining(build(vocab_size=1000, dim=96, heads=("words", "match", "patches")))
    ids, valid = texts((12,) * 32)
    batch = {"input_ids": ids, "attention_mask": valid, "images": square_images(32)}
    losses = model.losses(batch)
    assert losses["matching"].item() == pytest.approx(math.log(2), abs=0.02)
    assert losses["masked_words"].item() == pytest.approx(math.log(1000), abs=0.2)
    assert losses["masked_patches"].item() == pytest.approx(math.log(256), abs=0.2)
    assert losses["alignment"].abs() < 0.1


@pytest.mark.parametrize("size", [2, 3, 6, 7])
def test_exactly_half_of_the_rows_keep_their_image(size):
    model = ViLTPretraining(build(), mask_id=4, generator=torch.Generator().manual_seed(3))
    batch = {"images": square_images(size)}
    places = set()
    for _ in range(20):
        matched, images, _ = model._true_and_false(batch)
        same = (images == batch["images"]).flatten(1).all(1)
        assert torch.equal(same, matched)
        assert matched.sum() == size // 2
        places.add(tuple(matched.tolist()))
    assert len(places) > 1


def test_false_images_come_from_every_other_row_or_from_the_batch():
    model = ViLTPretraining(build(), mask_id=4, generator=torch.Generator().manual_seed(3))
    images = torch.arange(5.0)[:, None, None, None].expand(-1, 3, 4, 4)
    seen = set()
    for _ in range(100):
        false, _ = model._false_images({"images": images})
        seen |= set(enumerate(false[:, 0, 0, 0].long().tolist()))
    assert seen == {(i, j) for i in range(5) for j in range(5) if i != j}
    batch = {"images": images, "false_images": images + 10}
    matched, mixed, _ = model._true_and_false(batch)
    assert torch.equal(mixed[:, 0, 0, 0] >= 10, ~matched)


def test_sizes_go_with_their_images():
    model = ViLTPretraining(build(), mask_id=4, generator=torch.Generator().manual_seed(3))
    images, sizes = ragged_images()
    batch = {"images": images, "image_sizes": sizes}
    for _ in range(5):
        _, mixed, mixed_sizes = model._true_and_false(batch)
        for row in range(3):
            origin = next(i for i in range(3) if torch.equal(mixed[row], images[i]))
            assert torch.equal(mixed_sizes[row], sizes[origin])


def test_words_are_masked_whole_in_the_first_pass_and_not_in_the_second():
    model = ViLTPretraining(build(), mask_id=4, generator=torch.Generator().manual_seed(0))
    seen = []
    model.network.text_embeddings.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ids, valid = texts((12,) * 64)
    word_ids = torch.tensor([[-1, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, -1]]).expand(64, -1)
    batch = {"input_ids": ids, "attention_mask": valid, "images": square_images(64)}
    model.losses(batch | {"word_ids": word_ids})
    masked, unmasked = seen
    assert torch.equal(unmasked, ids)
    assert torch.equal(masked[:, [0, -1]], ids[:, [0, -1]])
    hidden = masked == 4
    assert hidden.any()
    # A word's tokens share one fate but for the 10 % + 10 % that are replaced or stay.
    changed = torch.stack([(masked != ids)[:, word_ids[0] == w].any(1) for w in range(4)], dim=1)
    inside = torch.stack([hidden[:, word_ids[0] == w].float().mean(1) for w in range(4)], dim=1)
    assert inside[changed].mean() > 0.7
    assert changed.float().mean() == pytest.approx(0.15, abs=0.05)


def test_alignment_is_a_tenth_of_the_loss_on_inner_words_and_valid_patches(monkeypatch):
    model = ViLTPretraining(randomise(build()), mask_id=4)
    order = torch.tensor([2, 0, 1])
    monkeypatch.setattr(model, "_permutation", lambda images: order)
    outputs = []
    model.network.register_forward_hook(lambda *args: outputs.append(args[2]))
    batch = batch_of()
    alignment = model.losses(batch)["alignment"]
    features, total = outputs[1], 0.0
    for row, sign in enumerate((-1, 1, -1)):
        words = features.text[row, 1 : batch["attention_mask"][row].sum() - 1]
        patches = features.patches[row][features.patch_valid[row]]
        matched = torch.ones(1, dtype=torch.bool)
        total += sign * word_patch_alignment_loss(words[None], patches[None], matched)
    assert total.abs() > 1e-3
    close(alignment, 0.1 * total / 3)


def test_inner_words_are_all_but_the_first_and_the_last_valid():
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    expected = [[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert inner_words(valid).int().tolist() == expected


def test_the_generator_alone_decides():
    def losses(seed):
        generator = torch.Generator().manual_seed(seed)
        network = build(heads=("words", "match", "patches"))
        model = ViLTPretraining(network, mask_id=4, max_patches=20, generator=generator)
        before = torch.get_rng_state()
        drawn = {name: loss.item() for name, loss in model.losses(batch_of()).items()}
        assert torch.equal(torch.get_rng_state(), before)
        return drawn

    assert losses(1) == losses(1) != losses(2)


def test_a_tied_words_head_uses_the_table_of_words():
    model = randomise(build(tied_words=True))
    assert "heads.words.decoder.weight" not in model.state_dict()
    features = model(texts()[0], square_images())
    before = model.word_logits(features)
    model.text_embeddings.word_embedding.weight.data[11] *= 2
    changed = (model.word_logits(features) - before).abs().amax((0, 1)) > 0
    assert changed.nonzero().flatten().tolist() == [11]


# Masked patches


def test_mean_shades():
    image = torch.zeros(1, 3, 8, 4)
    image[:, 0, :4], image[:, 1, 4:], image[:, 2, 4:, :2] = 1, -1, 1
    # 0.5 is shade 127; half of a patch at 1 and half at 0 has the mean 0.75.
    assert mean_shades(image, 4).tolist() == [[[255, 127, 127], [127, 0, 191]]]


def test_the_mask_token_replaces_the_pixels_but_not_the_position():
    model, (ids, _) = randomise(build(**ALL_HEADS)), texts()
    images = square_images().requires_grad_()
    masked = torch.zeros(3, 36, dtype=torch.bool)
    masked[0, [1, 5]] = masked[2, 9] = True
    tokens = model.embed_image(images, masked_patches=masked).tokens
    row = model.mask_token[0, 0] + model.modality_embedding.weight[1]
    close(tokens[0, 6], row + model.position_embedding[0, 6])
    model(ids, images, masked_patches=masked).pooled.square().sum().backward()
    still = F.max_pool2d(images.grad.abs().amax(1, keepdim=True), 4).flatten(1) == 0
    assert torch.equal(still, masked)


def test_only_valid_patches_are_to_be_predicted(monkeypatch):
    network = build(heads=("words", "match", "patches"))
    model = ViLTPretraining(network, mask_id=4, generator=torch.Generator().manual_seed(0))
    labels = []

    def spy(logits, targets):
        labels.append(targets)
        return logits.sum() * 0

    monkeypatch.setattr(vilt, "masked_language_loss", spy)
    outputs = []
    network.register_forward_hook(lambda *args: outputs.append(args[2]))
    asked = []
    for _ in range(30):
        model.losses(batch_of())
        wanted = labels[-1].unflatten(1, (-1, 3)) >= 0
        assert not wanted[~outputs[-1].patch_valid].any()
        assert torch.equal(wanted.any(-1), wanted.all(-1))
        asked.append(wanted[outputs[-1].patch_valid].float().mean())
    assert torch.stack(asked).mean() == pytest.approx(0.15, abs=0.03)


def test_labels_follow_patches_that_were_chosen(monkeypatch):
    network = build(heads=("words", "match", "patches"))
    generator = torch.Generator().manual_seed(0)
    model = ViLTPretraining(network, mask_id=4, max_patches=20, generator=generator)
    labels, outputs = [], []

    def spy(logits, targets):
        labels.append(targets)
        return logits.sum() * 0

    monkeypatch.setattr(vilt, "masked_language_loss", spy)
    network.register_forward_hook(lambda *args: outputs.append(args[2]))
    images = torch.full((3, 3, 24, 24), -1.0)
    images[:, :, :12] = 1
    seen = set()
    for _ in range(5):
        model.losses(batch_of(ragged=False) | {"images": images})
        found, places = labels[-1].unflatten(1, (20, 3)), outputs[-1].places
        shades = torch.where(places < 18, 255, 0)[..., None].expand_as(found)
        assert torch.equal(found[found >= 0], shades[found >= 0])
        seen |= set(found.unique().tolist())
    assert seen == {-100, 0, 255}


# Fine-tuning


def test_answers_start_at_the_loss_of_indifference():
    model = build(heads=("answer",), num_classes=3129)
    for parameter in model.heads["answer"].fc2.parameters():
        parameter.data.zero_()
    scores = torch.rand(3, 3129, generator=torch.Generator().manual_seed(0))
    loss = ViLTQuestionAnswering(model).losses(batch_of(scores=scores))["answers"]
    assert loss.item() == pytest.approx(3129 * math.log(2), rel=1e-5)
    assert loss.item() == pytest.approx(2168.9, abs=0.1)


def test_ranking_is_cross_entropy_over_the_texts_of_one_image():
    model = randomise(build(heads=("rank",)))
    ids = torch.stack([texts(seed=seed)[0] for seed in range(4)], dim=1)
    valid = texts()[1][:, None].expand(-1, 4, -1)
    images, sizes = ragged_images()
    batch = {"input_ids": ids, "attention_mask": valid, "images": images, "image_sizes": sizes}
    loss = ViLTRetrieval(model).losses(batch)["ranking"]
    scores = [model.rank_scores(model(ids[:, j], images, valid[:, j], sizes)) for j in range(4)]
    expected = F.cross_entropy(torch.stack(scores, dim=1), torch.zeros(3, dtype=torch.long))
    close(loss, expected)


def test_reasoning_reads_both_images_in_their_order():
    model = randomise(build(heads=("answer",), num_classes=2, num_images=2))
    (ids, valid), labels = texts(), torch.tensor([0, 1, 1])
    images, sizes = ragged_images()
    pair = {"images": torch.stack([images, images.flip(0)], dim=1)}
    pair["image_sizes"] = torch.stack([sizes, sizes.flip(0)], dim=1)
    batch = {"input_ids": ids, "attention_mask": valid, "labels": labels, **pair}
    loss = ViLTReasoning(model).losses(batch)["answers"]
    first = model(ids, images, valid, sizes)
    second = model(ids, images.flip(0), valid, sizes.flip(0), image_number=2)
    close(loss, F.cross_entropy(model.answer_logits(first, second), labels))
    assert (model.answer_logits(second, first) - model.answer_logits(first, second)).abs().max() > 0


def test_a_classifier_starts_from_the_pretrained_model():
    model, (ids, valid), images = randomise(build()), texts(), square_images()
    for num_images in (1, 2):
        classifier = vilt_classifier(model, 5, num_images).eval()
        assert list(classifier.heads) == ["answer"]
        for number in range(1, num_images + 1):
            features = classifier(ids, images, valid, image_number=number)
            assert torch.equal(features.pooled, model(ids, images, valid).pooled)
    rows, old = classifier.modality_embedding.weight, model.modality_embedding.weight
    assert torch.equal(rows, old[[0, 1, 1]])


def test_a_ranker_starts_as_the_logit_for_a_match():
    model, (ids, valid), images = randomise(build()), texts(), square_images()
    ranker = vilt_ranker(model).eval()
    scores = ranker.rank_scores(ranker(ids, images, valid))
    close(scores, model.matching_logits(model(ids, images, valid))[:, 1])
    with pytest.raises(ValueError, match="no 'match' head"):
        vilt_ranker(build(heads=("words",)))


VIT = ViTConfig(image_size=16, patch_size=4, dim=24, depth=2, num_heads=3, mlp_dim=40)


def test_the_trunk_can_start_from_a_vit():
    model, vit, images = build(), randomise(ViT(VIT)).eval(), square_images(size=16)
    before = model.text_embeddings.word_embedding.weight.clone()
    start_from_vit(model, vit)
    for name, tensor in vit.blocks.state_dict().items():
        assert torch.equal(model.blocks.state_dict()[name], tensor)
    expected = interpolate_positions(vit.position_embedding, (4, 4), (6, 6), "bilinear_aligned")
    assert torch.equal(model.position_embedding, expected)
    assert torch.equal(model.text_embeddings.word_embedding.weight, before)
    # With the table of the same size the image tokens are those of the ViT.
    same = build(image_size=16)
    start_from_vit(same, vit)
    tokens = same.embed_image(images).tokens - same.modality_embedding.weight[1]
    close(tokens, vit.embed(images))


@pytest.mark.parametrize("changes", [{"dim": 48}, {"depth": 3}, {"distilled": True}])
def test_a_vit_of_another_shape_is_refused(changes):
    with pytest.raises(ValueError, match="must have the same shape"):
        start_from_vit(build(), ViT(replace(VIT, **changes)))


def test_a_vilt_starts_from_another_with_the_heads_that_fit():
    old = randomise(build(heads=("words", "match", "answer"), num_classes=3))
    new = build(seed=1, heads=("match", "answer", "rank"), num_classes=5)
    fresh = {key: tensor.clone() for key, tensor in new.heads["answer"].state_dict().items()}
    start_from_vilt(new, old)
    ids, images = texts()[0], square_images()
    before, after = old(ids, images), new(ids, images)
    assert torch.equal(after.pooled, before.pooled)
    assert torch.equal(new.matching_logits(after), old.matching_logits(before))
    close(new.rank_scores(after), old.matching_logits(before)[:, 1])
    # Three answers are not five: the last layer stays fresh, what is of the same shape does not.
    head = new.heads["answer"]
    assert torch.equal(head.fc2.weight, fresh["fc2.weight"])
    assert torch.equal(head.fc1.weight, old.heads["answer"].fc1.weight)


@pytest.mark.parametrize("changes", [{"dim": 48}, {"depth": 3}, {"vocab_size": 51}])
def test_a_vilt_of_another_shape_is_refused(changes):
    with pytest.raises(ValueError, match="the two ViLTs must have the same shape; they differ in"):
        start_from_vilt(build(), build(**changes))


# All heads at once


def lessons_batch():
    """Everything that the data can tell, for three rows."""
    pretraining = batch_of(ragged=False, masked_share=torch.tensor(0.5))
    ids = pretraining["input_ids"]
    pretraining |= {
        "masked_ids": ids.clone().index_fill_(1, torch.tensor([1]), 4),
        "labels": torch.full_like(ids, -100).index_copy_(1, torch.tensor([1]), ids[:, 1:2]),
        "matched": torch.tensor([True, False, True]),
        "false_images": square_images(seed=5),
    }
    asked, valid = texts(seed=3)
    answers = {"question_ids": asked, "question_mask": valid, "scores": torch.eye(7)[:3]}
    ranked = {"text_ids": torch.stack([ids, asked], 1), "text_mask": torch.stack([valid] * 2, 1)}
    return pretraining | answers | ranked


def test_all_heads_learn_side_by_side():
    heads = ("words", "match", "answer", "rank")
    model, batch = randomise(build(heads=heads, num_classes=7)), lessons_batch()
    losses = ViLTLessons(model, mask_id=4).losses(batch)
    alone = ViLTPretraining(model, mask_id=4).losses(batch)
    assert torch.equal(losses["masked_words"], 0.5 * alone["masked_words"])
    assert torch.equal(losses["matching"], alone["matching"])
    texts_of = {
        "answers": (ViLTQuestionAnswering, "question_ids", "question_mask"),
        "ranking": (ViLTRetrieval, "text_ids", "text_mask"),
    }
    for name, (module, ids, valid) in texts_of.items():
        given = {"input_ids": batch[ids], "attention_mask": batch[valid]}
        given |= {"images": batch["images"]}
        given |= {"scores": batch["scores"]} if name == "answers" else {}
        assert torch.equal(losses[name], module(model).losses(given)[name])
    assert losses.keys() == {*alone, *texts_of}


@pytest.mark.parametrize(("heads", "losses"), [("answer", "answers"), ("rank", "ranking")])
def test_a_single_head_learns_alone(heads, losses):
    model = build(heads=(heads,), num_classes=7 if heads == "answer" else 0)
    module = ViLTLessons(model)
    assert module.losses(lessons_batch()).keys() == {losses}
    # The network is there once: a checkpoint does not hold it twice.
    assert {key.split(".")[0] for key in module.state_dict()} == {"network"}


def test_without_a_head_there_is_nothing_to_learn():
    with pytest.raises(ValueError, match="heads must be the heads to train, and not empty"):
        ViLTLessons(build(heads=()))
    with pytest.raises(ValueError, match="no 'match' head"):
        ViLTLessons(build(heads=("words",)), mask_id=4)


def test_words_that_the_data_have_masked_stay_as_they_are():
    """And rows that they have matched; so two processes can share what one would draw."""
    model, batch = randomise(build()), lessons_batch()
    torch.manual_seed(0)
    first = ViLTPretraining(model, mask_id=4).losses(batch)
    torch.manual_seed(1)
    assert ViLTPretraining(model, mask_id=4).losses(batch) == first
    images, (ids, valid) = batch["images"], texts()
    logits = model.word_logits(model(batch["masked_ids"], images, valid))[:, 1]
    close(first["masked_words"], F.cross_entropy(logits, ids[:, 1]))
    shown = torch.stack([images[0], batch["false_images"][1], images[2]])
    logits = model.matching_logits(model(ids, shown, valid))
    close(first["matching"], F.cross_entropy(logits, torch.tensor([1, 0, 1])))


# Learning


def scene_batch(num=8):
    data = scenes(split="train")
    captions = data.captions(kind="short")
    tokenizer = train_wordpiece(captions[:300], vocab_size=120)
    tokens = tokenizer(captions[:num], max_length=32)
    batch = {
        "input_ids": tokens.input_ids,
        "attention_mask": tokens.attention_mask,
        "word_ids": tokens.word_ids,
        "images": data.images(list(range(num))).float() / 127.5 - 1,
    }
    return batch, tokenizer


def learn(model, batch, steps, rate=2e-3):
    """The losses of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    history = []
    for _ in range(steps):
        losses = model.losses(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    return {name: [losses[name] for losses in history] for name in history[0]}


def mean(values):
    return sum(values) / len(values)


SCENE_SIZE = dict(image_size=64, patch_size=16, dim=48, num_heads=4, mlp_dim=96, context_length=32)


def test_every_pretraining_loss_goes_down_on_a_handful_of_scenes():
    batch, tokenizer = scene_batch()
    heads = ("words", "match", "patches")
    network = build(**SCENE_SIZE, vocab_size=tokenizer.vocab_size, heads=heads).train()
    generator = torch.Generator().manual_seed(0)
    model = ViLTPretraining(network, tokenizer.token_id("[MASK]"), generator=generator)
    history = learn(model, batch, steps=300, rate=3e-3)
    for name, most in (("masked_words", 0.3), ("matching", 0.8), ("masked_patches", 0.7)):
        assert mean(history[name][-40:]) < most * mean(history[name][:5]), name
    assert mean(history["alignment"][-40:]) < mean(history["alignment"][:5]) - 0.005


def test_answers_and_ranks_are_learnt():
    batch, tokenizer = scene_batch()
    network = build(**SCENE_SIZE, vocab_size=tokenizer.vocab_size)
    batch.pop("word_ids")
    answers = ViLTQuestionAnswering(vilt_classifier(network, 4))
    history = learn(answers, batch | {"scores": F.one_hot(torch.arange(8) % 4, 4).float()}, 150)
    assert history["answers"][-1] < 0.2 * history["answers"][0]
    false = torch.stack([batch["input_ids"].roll(shift, 0) for shift in range(4)], dim=1)
    valid = torch.stack([batch["attention_mask"].roll(shift, 0) for shift in range(4)], dim=1)
    texts_of = {"input_ids": false, "attention_mask": valid}
    history = learn(ViLTRetrieval(vilt_ranker(network)), batch | texts_of, 200)
    assert history["ranking"][0] == pytest.approx(math.log(4), abs=0.05)
    assert history["ranking"][-1] < 0.2 * history["ranking"][0]


# Precision, compilation, checkpointing, attention


def gradients(model, batch):
    model.zero_grad()
    model.generator.manual_seed(0)
    sum(model.losses(batch).values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def pretraining(**changes):
    network = build(heads=("words", "match", "patches"), **changes)
    return ViLTPretraining(network, mask_id=4, generator=torch.Generator().manual_seed(0))


def test_activation_checkpointing_gives_the_same_gradients():
    model = pretraining()
    randomise(model)
    expected = gradients(model, batch_of())
    assert all(
        gradient.abs().max() > 0 for name, gradient in expected.items() if "k_proj.bias" not in name
    )
    model.network.activation_checkpointing = True
    runs = []
    model.network.blocks[0].norm1.register_forward_hook(lambda *_: runs.append(1))
    for name, gradient in gradients(model, batch_of()).items():
        assert torch.equal(gradient, expected[name]), name
    assert len(runs) == 6  # three passes forward, and again during backward


def test_bf16_autocast_stays_close():
    model, batch = pretraining(), batch_of()
    expected = model.losses(batch)
    model.generator.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(batch)
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        # bfloat16 keeps 8 bits: relative steps of 2^-8.
        assert loss.item() == pytest.approx(expected[name].item(), rel=2**-5, abs=2**-7)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("size", [24, 32])
def test_equal_sizes_compile_without_graph_breaks(size, no_shape_checks):
    model, (ids, valid), images = build(depth=1), texts(), square_images(size=size)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for arguments in ((ids, images), (ids, images, valid)):
        for left, right in zip(compiled(*arguments), model(*arguments), strict=True):
            close(left, right)


def test_compiles_with_checkpointing_and_autocast(no_shape_checks):
    model, (ids, valid), images = build(depth=1), texts(), square_images()
    model.activation_checkpointing = True
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        expected, features = model(ids, images, valid), compiled(ids, images, valid)
    torch.testing.assert_close(features.pooled, expected.pooled, rtol=2**-5, atol=2**-6)


@pytest.mark.slow
def test_compiles_to_machine_code(no_shape_checks):
    model, (ids, valid), images = build(), texts(), square_images()
    compiled = torch.compile(model, fullgraph=True)
    close(compiled(ids, images, valid).pooled, model(ids, images, valid).pooled)


def test_attention_is_recorded_over_words_and_patches_and_not_over_padding():
    model, (ids, valid) = build(), texts()
    images, sizes = ragged_images()
    with record_attention(model) as maps:
        features = model(ids, images, valid, sizes)
    assert list(maps) == ["blocks.0.attention", "blocks.1.attention"]
    seen = torch.cat([valid, torch.ones(3, 1, dtype=torch.bool), features.patch_valid], dim=1)
    for weights in maps.values():
        assert weights.shape == (3, 3, 33, 33)
        close(weights.sum(-1), torch.ones(3, 3, 33))
        to_keys = weights.amax((1, 2))
        assert (to_keys[~seen] == 0).all() and (to_keys[seen] > 0).all()


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@gpu
@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    model, batch = pretraining(), batch_of()
    expected = model.losses(batch)
    model.generator.manual_seed(0)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        losses = model.cuda().losses({key: tensor.cuda() for key, tensor in batch.items()})
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), abs=1e-4)


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 100}, "image_size must be a multiple of patch_size=32, got 100"),
        ({"dim": 770}, "dim must be a multiple of num_heads=12, got 770"),
        ({"num_images": 0}, "num_images must be an integer of at least 1, got 0"),
        ({"heads": ("sound",)}, "heads must be a tuple of some of 'words', .* got"),
        ({"heads": ("words", "words")}, "heads must be free of repetitions"),
        ({"heads": ("answer",)}, "num_classes must be at least 1 with the head 'answer', got 0"),
        ({"num_classes": 3}, "num_classes must be 0 without 'answer', got 3"),
        ({"activation": "silu"}, "activation must be one of"),
        ({"init": "zeros"}, "init must be one of 'normal', 'xavier', got 'zeros'"),
        ({"text_norm_eps": 0.0}, "text_norm_eps must be positive"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ViLTConfig(**changes)


def test_wrong_inputs_are_refused():
    model, (ids, _), images = build(), texts(), square_images()
    with pytest.raises(ValueError, match="a text may have 12 tokens, this one has 13"):
        model(torch.ones(3, 13, dtype=torch.long), images)
    with pytest.raises(ValueError, match="patch_size must divide the image: got 4"):
        model(ids, square_images(size=22))
    with pytest.raises(ValueError, match=r"images must have shape \(batch, 3, height, width\)"):
        model(ids, images[:, :1])
    with pytest.raises(ValueError, match=r"image_sizes .* \(24, 24\) pixels, got \(24, 25\) for"):
        model(ids, images, image_sizes=torch.tensor([[24, 24], [24, 25], [24, 24]]))
    with pytest.raises(ValueError, match="image_number must be from 1 to num_images=1, got 2"):
        model(ids, images, image_number=2)
    with pytest.raises(ValueError, match="images must hold at least one image"):
        pad_images([])


def test_heads_that_are_not_there_are_named():
    model = build()
    features = model(texts()[0], square_images())
    for call in (model.patch_logits, model.answer_logits, model.rank_scores):
        with pytest.raises(ValueError, match=r"no '\w+' head; it has heads=\('words', 'match'\)"):
            call(features)
    masked = torch.ones(3, 36, dtype=torch.bool)
    with pytest.raises(ValueError, match="no 'patches' head"):
        model(texts()[0], square_images(), masked_patches=masked)
    with pytest.raises(ValueError, match="no 'match' head"):
        ViLTPretraining(build(heads=("words",)), mask_id=4)
    with pytest.raises(ValueError, match="mask_id must be from 0 to below vocab_size=50, got 103"):
        ViLTPretraining(build())
    pair = build(heads=("answer",), num_classes=2, num_images=2)
    with pytest.raises(ValueError, match="for num_images=2 images, got 1"):
        pair.answer_logits(features)


def test_a_single_row_has_no_false_image_of_its_own():
    batch = {key: tensor[:1] for key, tensor in batch_of(ragged=False).items()}
    with pytest.raises(ValueError, match="a batch of one row needs 'false_images'"):
        ViLTPretraining(build(), mask_id=4).losses(batch)


def test_false_images_come_with_their_sizes():
    batch = batch_of()
    batch |= {"false_images": batch["images"]}
    with pytest.raises(ValueError, match="'image_sizes' and 'false_image_sizes' must be given"):
        ViLTPretraining(build(), mask_id=4).losses(batch)
