from dataclasses import replace

import pytest
import torch

from mmlab import datasets
from mmlab.datasets import train_wordpiece
from mmlab.datasets.tokenizer import Tokenizer
from mmlab.datasets.transforms import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, normalize
from mmlab.hub import CheckpointError, save
from mmlab.models.clip import CLIP, CLIP_MINI, CLIP_VIT_MINI
from mmlab.models.flip import FLIP, FLIP_MINI
from mmlab.tasks.dual_encoder import (
    TOKENIZER,
    DualEncoder,
    dataset_retrieval,
    dataset_zero_shot,
    load_dual_encoder,
)
from mmlab.tasks.picture_search import default_index, embed, encode_question, model_id, search

CAPTIONS = datasets.emoji("train", "noto").captions("en")


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    tokenizer = train_wordpiece(CAPTIONS, 400)
    config = replace(CLIP_VIT_MINI, vocab_size=tokenizer.vocab_size, depth=1, text_depth=1)
    return DualEncoder(CLIP(config).eval(), tokenizer)


def test_images_of_the_data_set_and_as_pictures_are_encoded_alike(encoder):
    emoji = datasets.emoji("train", "noto")
    few = emoji.images(range(5))
    whole = encoder.encode_dataset(emoji)
    torch.testing.assert_close(encoder.encode_images(few), whole[:5], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.norm(dim=-1), torch.ones(len(emoji)))


def test_a_data_set_of_another_size_is_resized(encoder):
    stored, made = (
        datasets.emoji("held_out", "noto"),
        datasets.emoji("held_out", "noto", image_size=64),
    )
    larger = replace(CLIP_MINI, vocab_size=encoder.tokenizer.vocab_size)
    larger = DualEncoder(CLIP(larger).eval(), encoder.tokenizer)
    assert torch.equal(larger.encode_dataset(stored), larger.encode_dataset(made))


def test_pictures_of_any_size(encoder):
    pictures = [torch.zeros(3, h, w, dtype=torch.uint8) for h, w in ((1, 1), (48, 200), (300, 9))]
    features = encoder.encode_images(pictures)
    assert features.shape == (3, 128) and features.isfinite().all()


def test_flip_s_images_are_normalised_as_in_its_code(encoder):
    torch.manual_seed(0)
    flip = FLIP(replace(FLIP_MINI, depth=1, text_depth=1)).eval()
    images = datasets.emoji("train", "noto").images(range(4))
    features = DualEncoder(flip, encoder.tokenizer).encode_images(images)
    with torch.no_grad():
        expected = flip.encode_image(normalize(images, IMAGENET_MEAN, IMAGENET_STD))
        other = flip.encode_image(normalize(images, CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(features, expected)
    assert (features - other).abs().max() > 1e-3


def test_long_and_empty_sentences(encoder):
    features = encoder.encode_texts(["cat " * 10_000, "猫", "cat " * 100])
    torch.testing.assert_close(features[0], features[2])
    with pytest.raises(ValueError, match="captions\\[1\\] is empty"):
        encoder.encode_texts(["a cat", ""])


def test_an_untrained_encoder_is_at_chance(encoder):
    fluent = datasets.emoji("train", "fluent")
    result = dataset_retrieval(encoder, fluent)
    assert result.num_images == len(fluent) and result.num_texts == len(set(fluent.labels.tolist()))
    assert result.image_to_text.recall[1] < 0.01
    assert 0.3 * result.num_texts < result.image_to_text.median_rank < 0.7 * result.num_texts
    scenes = datasets.scenes(50, "test", 48)
    assert dataset_retrieval(encoder, scenes).num_texts == 50
    groups = dataset_zero_shot(encoder, fluent, ["{}", "a {}"], "group")
    assert groups.num_classes == 9 and groups.num_images == len(fluent)


def test_a_caption_of_several_vendors_is_one_text(encoder):
    two = datasets.emoji("held_out", ("noto", "twemoji"))
    result = dataset_retrieval(encoder, two, "zh")
    assert result.num_images == len(two) > result.num_texts == len(set(two.labels.tolist()))


def test_a_file_brings_its_tokenizer(encoder, tmp_path):
    file = tmp_path / "clip.safetensors"
    save(encoder.network, file, metadata={TOKENIZER: encoder.tokenizer.to_json()})
    loaded = load_dual_encoder("clip-vit-mini", file)
    texts = ["grinning face", "黑猫", "red heart"]
    assert torch.equal(loaded.encode_texts(texts), encoder.encode_texts(texts))
    assert loaded.network.config == encoder.network.config
    save(encoder.network, file)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_dual_encoder("clip-vit-mini", file)
    given = load_dual_encoder("clip-vit-mini", file, encoder.tokenizer)
    assert torch.equal(given.encode_texts(texts), encoder.encode_texts(texts))
    save(encoder.network, file, metadata={TOKENIZER: "{}"})
    with pytest.raises(ValueError, match="is not a tokenizer saved by mmlab"):
        load_dual_encoder("clip-vit-mini", file)


def test_a_tokenizer_as_text(encoder):
    again = Tokenizer.from_json(encoder.tokenizer.to_json())
    batch, other = again(CAPTIONS[:50]), encoder.tokenizer(CAPTIONS[:50])
    assert torch.equal(batch.input_ids, other.input_ids)


# Search in a folder.


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    images = datasets.emoji("train", "noto").images(range(12))
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


def test_search_ranks_by_the_cosine(encoder, pictures, tmp_path):
    done = embed(pictures, tmp_path / "index", encoder, "m")
    assert done.added == 12
    query = encode_question(encoder, "grinning face")
    hits = search(query, tmp_path / "index", k=12)
    images = datasets.emoji("train", "noto").images(range(12))
    scores = encoder.encode_images(images) @ query
    order = scores.argsort(descending=True)
    assert [int(hit.path.stem) for hit in hits] == order.tolist()
    assert hits[0].score == pytest.approx(scores.max().item(), abs=1e-5)


def test_wrong_questions_are_named(encoder, pictures, tmp_path):
    embed(pictures, tmp_path / "index", encoder, "m")
    with pytest.raises(ValueError, match="the question is empty"):
        encode_question(encoder, "  ")
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        search(encode_question(encoder, "x"), tmp_path / "index", k=0)


def test_an_index_is_kept_for_each_folder_and_model(tmp_path, monkeypatch):
    monkeypatch.setenv("MMLAB_CACHE", str(tmp_path))
    first = default_index("a", "m")
    assert first.is_relative_to(tmp_path) and first == default_index("a", "m")
    assert len({first, default_index("b", "m"), default_index("a", "n")}) == 3
    (tmp_path / "w").write_bytes(b"1")
    one = model_id("clip-vit-mini", tmp_path / "w")
    (tmp_path / "w").write_bytes(b"2")
    assert one.startswith("clip-vit-mini ") and model_id("clip-vit-mini", tmp_path / "w") != one
