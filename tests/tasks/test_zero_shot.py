import pytest
import torch
import torch.nn.functional as F

from mmlab.tasks.zero_shot import TEMPLATES, check_templates, class_features, zero_shot


def encode(texts):
    """A vector that depends on every letter and its place, of varying length."""
    rows = [
        [sum(ord(c) * (i % k + 1) for i, c in enumerate(t)) % 97 for k in range(1, 7)]
        for t in texts
    ]
    return torch.tensor(rows, dtype=torch.float32) - 48


def test_a_class_is_the_mean_direction_of_its_sentences():
    features = class_features(encode, ["cat", "dog"], ["{}", "a {}!"])
    for row, name in zip(features, ["cat", "dog"], strict=True):
        first, second = F.normalize(encode([name, f"a {name}!"]), dim=-1)
        torch.testing.assert_close(row, (first + second) / (first + second).norm())


def test_one_template_is_the_sentence_itself():
    torch.testing.assert_close(
        class_features(encode, ["cat"], ["{}"]), F.normalize(encode(["cat"]), dim=-1)
    )


def test_names_with_braces_are_kept():
    seen = []

    def remember(texts):
        seen.extend(texts)
        return encode(texts)

    class_features(remember, ["{", "{0}", "a{}b"], ["a {}"])
    assert seen == ["a {", "a {0}", "a a{}b"]


def test_accuracy_by_hand():
    classes = torch.eye(6)
    images = torch.tensor([[9.0, 1, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5]])
    result = zero_shot(images, classes, torch.tensor([0, 1, 0]))
    assert (result.top1, result.num_images, result.num_classes) == (pytest.approx(1 / 3), 3, 6)
    assert result.top5 == pytest.approx(2 / 3)


def test_the_length_of_an_image_vector_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    images, classes = (
        torch.randn(20, 8, generator=generator),
        torch.randn(9, 8, generator=generator),
    )
    labels = torch.randint(9, (20,), generator=generator)
    scaled = images * torch.rand(20, 1, generator=generator)
    assert zero_shot(images, classes, labels) == zero_shot(scaled, classes, labels)


def test_fewer_than_five_classes():
    assert zero_shot(torch.eye(3), torch.eye(3), torch.tensor([1, 2, 0])).top5 == 1.0


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ([], "templates is empty"),
        (["a cat"], "must have one {} for the class, got 'a cat'"),
        (["{} {}"], "must have one {}"),
    ],
)
def test_wrong_templates_are_named(templates, message):
    with pytest.raises(ValueError, match=message):
        class_features(encode, ["cat"], templates)


def test_the_sets_of_templates_are_sound():
    for templates in TEMPLATES.values():
        assert check_templates(templates) == templates
