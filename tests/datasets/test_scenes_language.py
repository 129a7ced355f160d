"""Scenes: every sentence is checked by the referee, who sees regions and text only."""

import re
from collections import Counter

import pytest

from mmlab.datasets.scenes import HELD_OUT, QUESTION_KINDS, judge, referents, scenes
from mmlab.datasets.scenes.language import KINDS
from mmlab.datasets.scenes.referee import View
from mmlab.datasets.scenes.vocabulary import LEXICONS

LANGUAGES = ("en", "zh")


@pytest.fixture(scope="module")
def train():
    return scenes(250, image_size=32)


@pytest.fixture(scope="module")
def examples(train):
    return list(train)


def test_every_caption_is_true_in_both_languages(examples):
    for example in examples:
        assert {(c.language, c.kind) for c in example.captions} == {
            (language, kind) for language in LANGUAGES for kind in KINDS
        }
        for caption in example.captions:
            assert judge(caption.text, example, caption.language) is True, caption


def test_paraphrases_are_different_and_true(train, examples):
    for i in range(25):
        for language in LANGUAGES:
            for kind in KINDS:
                said = [c.text for c in train.paraphrases(i, language, kind)]
                assert len(set(said)) == 4
                assert all(judge(text, examples[i], language) for text in said), said


def test_alignment_names_the_color_and_shape_of_its_region(examples):
    for example in examples:
        for caption in example.captions:
            words = LEXICONS[caption.language]
            for link in caption.alignment:
                span, region = caption.text[link.start : link.end], example.regions[link.region]
                assert words.shapes[region.category] in span
                assert words.colors[region.attributes[0]] in span
                if caption.kind == "detailed":
                    assert words.textures[region.attributes[2]] in span
                assert link.region in referents(span, example, caption.language)


def test_every_object_is_aligned_and_every_mention_is_aligned(examples):
    for example in examples:
        for caption in example.captions:
            assert {a.region for a in caption.alignment} == set(range(len(example.regions)))
            rest = caption.text
            for link in caption.alignment:
                rest = rest[: link.start] + "_" * (link.end - link.start) + rest[link.end :]
            for color in LEXICONS[caption.language].colors.values():
                assert not re.search(rf"\b{color}\b" if caption.language == "en" else color, rest)


def test_captions_get_longer_with_detail(examples):
    for example in examples:
        for language in LANGUAGES:
            lengths = [len(example.caption(language, kind)) for kind in KINDS]
            assert lengths[0] < lengths[2] and lengths[1] < lengths[2]


def test_english_and_chinese_tell_of_the_same_objects_in_the_same_order(examples):
    for example in examples:
        by_key = {(c.language, c.kind): c for c in example.captions}
        for kind in ("short", "detailed"):
            en, zh = ([a.region for a in by_key[k, kind].alignment] for k in LANGUAGES)
            assert en == zh


def test_grammar_details(train):
    english = " ".join(train.captions("en"))
    assert not re.search(r"\ba orange|\ban (?!orange|image)", english)
    assert not re.search(r"\b(two|three|four) \w+ (circle|square|star|ring|heart)\b", english)
    assert "crosss" not in english
    chinese = "".join(train.captions("zh"))
    assert "二个" not in chinese and "两个" in chinese and "个的" not in chinese
    assert "一个红色的" in chinese
    assert not re.search("[a-zA-Z]", chinese)
    for text in train.captions("en", "detailed"):
        assert all(s[0].isupper() for s in text.rstrip(".").split(". "))


def test_the_referee_finds_false_captions(train, examples):
    """A caption of another image is usually false; the referee must not say yes to all."""
    for language in LANGUAGES:
        for kind in KINDS:
            texts = train.captions(language, kind)
            verdicts = Counter(
                judge(texts[i - 1], examples[i], language) for i in range(len(examples))
            )
            assert verdicts[None] == 0
            assert verdicts[True] < (0.1 if kind == "short" else 0.02) * len(examples)


@pytest.mark.parametrize(
    ("text", "language", "verdict"),
    [
        ("a red circle and a blue square", "en", True),
        ("a blue circle and a red square", "en", False),
        ("two red circles", "en", False),
        ("a red circle and a circle", "en", False),
        ("a circle and a shape", "en", True),
        ("a red circle to the left of a blue square", "en", True),
        ("a blue square to the left of a red circle", "en", False),
        ("There are two shapes. The background is plain.", "en", True),
        ("There are three shapes.", "en", False),
        ("a large red circle", "en", False),
        ("A red circle is in the upper left.", "en", True),
        ("A red circle is in the center.", "en", False),
        ("IMG_2041.jpg", "en", None),
        ("a red dog", "en", None),
        ("", "en", None),
        ("<b>a red circle</b>", "en", None),
        ("一个红色的圆形在一个蓝色的正方形的左边", "zh", True),
        ("一个蓝色的正方形的左边有一个红色的圆形", "zh", True),
        ("一个蓝色的正方形的右边有一个红色的圆形", "zh", False),
        ("纯色背景上有两个图形。", "zh", True),
        ("渐变背景上有两个图形。", "zh", False),
        ("一个红色条纹的大正方形在画面的右边", "zh", False),
        ("红色的狗", "zh", None),
    ],
)
def test_referee_on_a_scene_made_by_hand(text, language, verdict):
    from mmlab.datasets import Region

    seen = View(
        (
            Region((2.0, 2.0, 6.0, 6.0), "circle", ("red", "small", "solid")),
            Region((20.0, 4.0, 30.0, 14.0), "square", ("blue", "large", "striped")),
        ),
        32,
        "plain",
    )
    assert judge(text, seen, language) is verdict


def answer_again(text: str, example, language: str):
    """The answer worked out from the regions, by other means than the generator's."""
    regions = example.regions
    patterns = {
        "en": {
            "exists": r"Is there an? (.+)\?",
            "count": r"How many (.+) are there\?",
            "color": r"What color is the (.+)\?",
            "shape": r"What shape is the (.+) one\?",
            "texture": r"What is the texture of the (.+)\?",
            "more": r"Are there more (.+) than (.+)\?",
            "size": r"Is the (.+) (larger|smaller) than the (.+)\?",
            "relation": r"Is the (.+?) (to the left of|to the right of|above|below) the (.+)\?",
        },
        "zh": {
            "relation": r"(.+?)在(.+)的(左边|右边|上方|下方)吗？",
            "exists": r"图中有(.+)吗？",
            "count": r"图中有几个(.+)？",
            "color": r"(.+)是什么颜色？",
            "shape": r"(.+)是什么形状？",
            "texture": r"(.+)是什么花纹？",
            "more": r"(.+)比(.+)多吗？",
            "size": r"(.+)比(.+)(大|小)吗？",
        },
    }[language]
    words, (kind, parts) = (
        LEXICONS[language],
        next((kind, m.groups()) for kind, p in patterns.items() if (m := re.fullmatch(p, text))),
    )
    yes_no = {True: words.yes, False: words.no}

    def find(phrase):
        found = referents(phrase, example, language)
        assert found is not None, phrase
        return found

    def the(phrase):
        (only,) = find(phrase)
        return regions[only]

    if kind == "exists":
        return yes_no[len(find(parts[0])) > 0]
    if kind == "count":
        return str(len(find(parts[0])))
    if kind == "color":
        return words.colors[the(parts[0]).attributes[0]]
    if kind == "texture":
        return words.textures[the(parts[0]).attributes[2]]
    if kind == "shape":
        return words.shapes[the(parts[0] + (" shape" if language == "en" else "")).category]
    if kind == "more":
        return yes_no[len(find(parts[0])) > len(find(parts[1]))]
    if kind == "size":
        a, b = (parts[0], parts[2]) if language == "en" else parts[:2]
        widths = [the(p).attributes[1] == "large" for p in (a, b)]
        larger = ("larger" in parts) or ("大" in parts)
        return yes_no[widths == [larger, not larger]]
    a, b, word = (parts[0], parts[2], parts[1]) if language == "en" else parts
    phrase = f"shape {word} the {b}" if language == "en" else f"{b}{word}的图形"
    return yes_no[find(a)[0] in find(phrase)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_worked_out_again(examples, language):
    kinds = Counter()
    for example in examples:
        for question in example.questions:
            if question.language == language:
                assert answer_again(question.text, example, language) == question.answer, question
                kinds[question.kind] += 1
    assert set(kinds) == set(QUESTION_KINDS)
    assert min(kinds.values()) > 100


def test_yes_and_no_are_balanced(examples):
    asked = (q for example in examples for q in example.questions)
    answers = Counter((q.kind, q.answer) for q in asked if q.answer in ("yes", "no"))
    for kind in ("existence", "relation", "comparison"):
        yes, no = answers[kind, "yes"], answers[kind, "no"]
        # Four standard errors of a fair coin.
        assert abs(yes - no) < 4 * (yes + no) ** 0.5


def test_questions_ask_the_same_in_both_languages(examples):
    for example in examples:
        en, zh = ([q for q in example.questions if q.language == k] for k in LANGUAGES)
        assert [q.kind for q in en] == [q.kind for q in zh]
        same = {"yes": "是", "no": "否"}
        for a, b in zip(en, zh, strict=True):
            if a.answer in same or a.kind == "count":
                assert same.get(a.answer, a.answer) == b.answer


def test_training_text_never_names_a_held_out_combination(examples):
    forbidden = re.compile("|".join(rf"\b{color} {shape}" for color, shape in HELD_OUT))
    for example in examples:
        said = [c.text for c in example.captions] + [q.text for q in example.questions]
        assert not list(filter(forbidden.search, said))


def test_tags_are_the_categories(train, examples):
    for i, example in enumerate(examples):
        assert set(example.tags) == {r.category for r in example.regions}
        assert len(set(example.tags)) == len(example.tags)
        assert train.tags("zh")[i] == tuple(LEXICONS["zh"].shapes[t] for t in example.tags)


def test_captions_of_the_data_set_are_those_of_the_examples(train, examples):
    for language in LANGUAGES:
        for kind in KINDS:
            assert train.captions(language, kind) == [e.caption(language, kind) for e in examples]


def test_unknown_language_or_kind(train):
    with pytest.raises(ValueError, match=r"'de'.*en, zh"):
        train.captions("de")
    with pytest.raises(ValueError, match=r"'long'.*short, medium, detailed"):
        train.captions(kind="long")
    with pytest.raises(ValueError, match="'de'"):
        judge("ein roter Kreis", View((), 32), "de")
