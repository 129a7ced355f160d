import pytest

from mmlab import datasets
from mmlab.tasks.describing import describe_well


@pytest.fixture(scope="module")
def scenes():
    return datasets.scenes(20, "test", 32)


def test_true_captions_are_exact_and_name_everything(scenes):
    for kind in ("short", "medium"):
        found = describe_well(scenes.captions("en", kind), scenes)
        assert found.exact == found.named == 1 and found.num_images == 20
        assert found.exact_wrong_image < 0.2 and 0 < found.named_wrong_image < 0.5
        assert found.num_different > 15


def test_any_true_wording_will_do(scenes):
    wordings = [[c.text for c in scenes.paraphrases(i, "en", "short")] for i in range(20)]
    assert any(len(set(own)) > 1 for own in wordings)
    for variant in range(4):
        assert describe_well([own[variant] for own in wordings], scenes).exact == 1


def test_captions_of_other_scenes_are_not(scenes):
    texts = scenes.captions("en", "short")
    turned = describe_well([*texts[1:], texts[0]], scenes)
    own = describe_well(texts, scenes)
    assert (turned.exact_wrong_image, turned.named_wrong_image) == (1, 1)
    assert turned.exact == pytest.approx(own.exact_wrong_image, abs=0.1)


def test_parts_count(scenes):
    first = scenes.scenes[0].objects[0]
    named = {f"{thing.color} {thing.shape}" for thing in scenes.scenes[0].objects}
    found = describe_well([f"many {first.color} {first.shape}s", *19 * ["nothing"]], scenes)
    assert found.named == pytest.approx(1 / len(named) / 20) and found.exact == 0
    assert found.num_different == 2


def test_there_must_be_one_for_each(scenes):
    with pytest.raises(ValueError, match="there must be 20 captions, one a scene, got 1"):
        describe_well(["a red circle"], scenes)
