import re

import pytest
import torch

from mmlab.datasets import Alignment, Caption, Example, Region
from mmlab.objectives.contrastive import token_similarity
from mmlab.objectives.transport import ipot, sinkhorn, word_patch_alignment_loss
from mmlab.widgets import TransportAlignment, WordsAndPlaces, true_places
from mmlab.widgets.base import module_source
from mmlab.widgets.strings import strings_for
from mmlab.widgets.transport_alignment import METHODS
from tests.browser import needs_chromium
from tests.widgets.figure_page import HOSTILE, boards, settle

WORDS = ("a", "red", "ring", "above", "two", "stars")
NUM_WORDS = len(WORDS)
GRID = 4
SETTINGS = [
    ("ipot", 0.5, 50),
    ("ipot", 0.5, 1),
    ("ipot", 0.01, 200),
    ("sinkhorn", 0.1, 50),
    ("sinkhorn", 0.01, 200),
    ("sinkhorn", 1.0, 1),
]


def picture(size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)


def features(words=NUM_WORDS, places=GRID**2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 8, generator=generator) for n in (words, places))


def truth():
    right = torch.zeros(NUM_WORDS, GRID**2, dtype=torch.bool)
    right[1, 2:4] = right[2, 2:4] = right[5, 9] = True
    return right


def caption(words=WORDS, seed=0, **options):
    return WordsAndPlaces(words, *features(len(words), seed=seed), **options)


def aligned(**options):
    attention = torch.rand(NUM_WORDS, GRID**2, generator=torch.Generator().manual_seed(9))
    own = caption(attention=attention, truth=truth())
    return TransportAlignment(picture(), own, caption(WORDS[:4], seed=1), **options)


def reference(widget, method, regularization, iterations):
    """From the features, not from what the widget stores; in double precision."""
    words, places = (f.double() for f in features())
    cost = 1 - torch.nn.functional.normalize(words) @ torch.nn.functional.normalize(places).T
    solve = {"ipot": ipot, "sinkhorn": sinkhorn}[method]
    return solve(cost[None], None, None, regularization, iterations)[0]


# ---- Python


@pytest.mark.parametrize(("method", "regularization", "iterations"), SETTINGS)
def test_the_plan_is_that_of_the_objective(method, regularization, iterations):
    widget = aligned(method=method, regularization=regularization, iterations=iterations)
    expected = reference(widget, method, regularization, iterations)
    assert torch.allclose(widget.plan(), expected, atol=1e-5)


def test_the_loss_has_the_sign_of_the_objective():
    own, other = caption(), caption(seed=1)
    widget = TransportAlignment(picture(), own, other)
    pairs = [list(features(seed=seed)) for seed in (0, 1)]
    words, places = (torch.stack([pair[k] for pair in pairs]) for k in (0, 1))
    expected = word_patch_alignment_loss(words, places, torch.tensor([True, False])).item()
    assert widget.loss() == pytest.approx(expected, abs=1e-6)
    assert expected == pytest.approx((widget.distance(0) - widget.distance(1)) / 2, abs=1e-6)


def test_a_score_by_hand():
    cost = torch.ones(3, 4)
    cost[0, 0] = cost[1, 1] = cost[2, 2] = 0.0
    right = torch.zeros(3, 4, dtype=torch.bool)
    right[0, 0] = right[1, 3] = True  # the third word speaks of no place
    attention = torch.tensor([[3.0, 1, 0, 0], [0, 0, 0, 2], [1, 1, 1, 1]])
    widget = TransportAlignment(
        picture(), WordsAndPlaces("abc", cost=cost, attention=attention, truth=right)
    )
    assert widget.scores()["maximum"] == (0.5, 1)
    assert widget.scores()["attention"] == (0.875, 2)
    assert widget.scores()["plan"][1] == 1
    assert TransportAlignment(picture(), WordsAndPlaces("abc", cost=cost)).scores() == {}


def scene():
    regions = (Region((0.0, 0.0, 16.0, 16.0), "ring"), Region((20.0, 20.0, 22.0, 22.0), "star"))
    text = Caption("red ring, a star", alignment=(Alignment(0, 8, 0), Alignment(12, 16, 1)))
    return Example("s", picture(), "s", captions=(text,), regions=regions), text


def test_true_places_of_patches_and_of_regions():
    example, text = scene()
    spans = [match.span() for match in re.finditer(r"\w+", text.text)]
    regions = true_places(example, text, spans)
    assert regions.tolist() == [[True, False], [True, False], [False, False], [False, True]]
    patches = true_places(example, text, spans, grid=4)
    places = [row.nonzero().flatten().tolist() for row in patches]
    # The star holds no middle of a patch: it counts for the patch that holds its own.
    assert places == [[0, 1, 4, 5], [0, 1, 4, 5], [], [10]]


def test_sentence_and_still_say_what_is_there():
    widget = aligned(iterations=7)
    assert "“a red ring above two stars” (its own caption)" in widget.sentence()
    assert f"after 7 iterations the distance is {widget.distance():.4f}" in widget.sentence()
    assert aligned().to_png() != aligned(method="sinkhorn").to_png()


WRONG = {
    "no words": (lambda: caption(()), "words has 0 entries; allowed are 1 to 24"),
    "many words": (lambda: caption("word " * 10_000), "allowed are 1 to 24"),
    "nothing": (lambda: WordsAndPlaces("ab"), "give word_features and place_features, or cost"),
    "both": (lambda: caption(cost=torch.ones(6, 16)), "or cost, and not both"),
    "rows": (
        lambda: WordsAndPlaces("ab", cost=torch.ones(3, 4)),
        r"the cost has shape \(3, 4\) for 2 words",
    ),
    "nan": (lambda: WordsAndPlaces("a", cost=torch.tensor([[torch.nan]])), "no numbers from"),
    "dear": (lambda: WordsAndPlaces("a", cost=torch.full((1, 4), 9.0)), "numbers from 0 to 2"),
    "truth": (lambda: caption(truth=truth()[:, :3]), r"truth has shape \(6, 3\); allowed is"),
    "attention": (lambda: caption(attention=-torch.ones(6, 16)), "not finite or below 0"),
    "patches": (
        lambda: TransportAlignment(picture(), WordsAndPlaces("a", cost=torch.ones(1, 5))),
        "5 places without boxes; allowed is a square number of patches",
    ),
    "boxes": (
        lambda: TransportAlignment(picture(), caption(), boxes=[(0, 0, 1, 1)]),
        "boxes has 1 entries for 16 places",
    ),
    "box": (
        lambda: TransportAlignment(
            picture(), WordsAndPlaces("a", cost=torch.ones(1, 1)), boxes=[(5, 0, 99, 9)]
        ),
        r"boxes\[0\]=\(5, 0, 99, 9\); allowed are .* within 32 pixels",
    ),
    "heavy": (
        lambda: TransportAlignment(picture(), WordsAndPlaces("abcd", cost=torch.ones(4, 900))),
        "4 words with 900 places are 3,600 pairs; allowed are 2,048",
    ),
    "places": (
        lambda: TransportAlignment(
            picture(), caption(), WordsAndPlaces("a", cost=torch.ones(1, 4))
        ),
        "mismatched has 4 places and matched 16",
    ),
    "oblong": (
        lambda: TransportAlignment(picture()[:, :20], caption()),
        "allowed is a square, as the model saw it",
    ),
    "method": (lambda: aligned(method="emd"), "method='emd'; allowed are ipot, sinkhorn"),
    "view": (lambda: aligned(view="x"), "view='x'; allowed are plan, compare"),
    "iterations": (lambda: aligned(iterations=0), "iterations=0; allowed are 1 to 200"),
    "regularization": (lambda: aligned(regularization=0.0), "allowed are 0.01 to 1"),
    "caption": (lambda: aligned(caption=2), "caption=2; allowed are 0 to 1"),
    "word": (lambda: aligned(word=-1), "word=-1; allowed are 0 and up"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told_what_is_allowed(case):
    make, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_no_word_is_left_over():
    source = module_source("transport_alignment")
    made_of = ("method_", "view_", "card_", "sign_", "key_", "readout", "distance_", "matrix_")
    for key in set(strings_for("transport_alignment")) - {"locale", "sentence", "distance"}:
        assert f'"{key}"' in source or key.startswith(made_of), key


# ---- The browser


def table(page, rows=NUM_WORDS):
    """The plan in the page; opens the table."""
    page.locator("details").first.evaluate("node => node.open = true")
    page.wait_for_function("document.querySelector('details td')")
    settle(page)
    read = "all => all.map((node) => Number(node.dataset.value))"
    values = page.locator("details td").evaluate_all(read)
    return torch.tensor(values, dtype=torch.float64).view(rows, -1)


def fact(page, name):
    return float(page.locator(f"dd[data-name='{name}']").get_attribute("data-value"))


def cell(page, name):
    return float(page.locator(f"td[data-name='{name}']").get_attribute("data-value"))


def press(page, key, times=1):
    for _ in range(times):
        page.keyboard.press(key)
    settle(page)


def readout(page):
    return page.locator(".readout").text_content()


@pytest.mark.browser
@needs_chromium
class TestInBrowser:
    @pytest.mark.parametrize(("method", "regularization", "iterations"), SETTINGS)
    def test_plan_distance_and_loss_are_python_s(self, show, method, regularization, iterations):
        widget = aligned(method=method, regularization=regularization, iterations=iterations)
        page = show(widget)
        plan = table(page)
        expected = reference(widget, method, regularization, iterations)
        assert (plan - expected).abs().max() < 1e-5
        assert fact(page, "distance_matched") == pytest.approx(widget.distance(0), abs=1e-6)
        assert fact(page, "distance_other") == pytest.approx(widget.distance(1), abs=1e-6)
        assert fact(page, "loss") == pytest.approx(widget.loss(), abs=1e-6)
        error = (expected.sum(0) - 1 / GRID**2).abs().sum().item() / 2
        assert fact(page, "error") == pytest.approx(error, abs=1e-6)

    def test_stepping_goes_through_the_iterations(self, show):
        page = show(aligned(iterations=1, regularization=0.1))
        for iterations in (2, 3, 4):
            page.get_by_role("button", name="One more").click()
            settle(page)
            plan = ipot(aligned().cost()[None], None, None, 0.1, iterations)[0]
            assert (table(page) - plan).abs().max() < 1e-5
            assert f"After {iterations} iterations" in page.locator(".headline").text_content()

    def test_playing_ends_at_the_last_iteration(self, show):
        page = show(aligned(iterations=3))
        page.get_by_role("button", name="Play").click()
        settle(page)
        assert "After 200 iterations" in page.locator(".headline").text_content()

    def test_the_curves_meet_the_distances(self, show):
        widget = aligned(regularization=0.2)
        page = show(widget)
        chart = page.locator("canvas[aria-label*=Sinkhorn]")
        chart.wait_for()
        label = chart.get_attribute("aria-label")
        for method, name in zip(METHODS, ("IPOT", "Sinkhorn"), strict=True):
            expected = aligned(regularization=0.2, method=method).distance()
            assert f"{name} {expected:.4f}" in label

    def test_the_other_caption_changes_the_sign(self, show):
        page = show(aligned())
        assert "the loss counts +" in page.locator(".headline + p").text_content()
        page.locator("label.segment", has_text="another's caption").click()
        settle(page)
        assert "the loss counts −" in page.locator(".headline + p").text_content()
        plan = ipot(aligned().cost(1)[None])[0]
        assert (table(page, 4) - plan).abs().max() < 1e-5
        assert page.locator(".words .segment").count() == 4

    def test_scores_are_python_s(self, show):
        widget = aligned(view="compare")
        page = show(widget)
        for name, (share, hits) in widget.scores().items():
            assert cell(page, f"{name} share") == pytest.approx(share, abs=1e-6)
            assert cell(page, f"{name} hits") == hits
        named = truth()[truth().any(dim=1)].double()
        assert cell(page, "even share") == pytest.approx(named.mean().item())
        cards = page.locator("[data-card]").evaluate_all("all => all.map((n) => n.dataset.card)")
        assert cards == ["plan", "attention", "maximum", "truth"]

    def test_the_token_wise_maximum_is_filip_s(self, show):
        page = show(aligned(view="compare"))
        words, places = (torch.nn.functional.normalize(f)[None] for f in features())
        valid = [torch.ones(1, f.shape[1], dtype=torch.bool) for f in (words, places)]
        given = page.locator("p[data-places]")
        expected = token_similarity(words, places, *valid).item()
        assert float(given.get_attribute("data-places")) == pytest.approx(expected, abs=1e-6)
        expected = token_similarity(places, words, *valid[::-1]).item()
        assert float(given.get_attribute("data-words")) == pytest.approx(expected, abs=1e-6)

    def test_without_truth_and_attention_nothing_is_claimed(self, show):
        page = show(TransportAlignment(picture(), caption(), view="compare"))
        assert page.locator("[data-card]").count() == 2
        assert page.locator("td[data-name]").count() == 0
        assert "true places" not in readout(page)
        assert page.locator("label.segment", has_text="caption").count() == 0

    def test_a_word_says_where_it_goes(self, show):
        widget = aligned(word=2)
        page = show(widget)
        row = 100 * NUM_WORDS * widget.plan()[2]
        place = int(row.argmax())
        assert f"ring sends most, {row.max():.1f} %" in readout(page)
        assert f"row {place // GRID + 1}, column {place % GRID + 1}" in readout(page)
        assert f"2 in number, get {row[2:4].sum():.1f} %" in readout(page)
        page.locator(".words .segment").first.click()
        settle(page)
        assert "a speaks of no place" in readout(page)

    def test_a_place_chooses_the_word_that_sends_it_most(self, show):
        widget = aligned()
        page = show(widget)
        flow = boards(page)[0]
        box = flow.bounding_box()
        side = min(430, box["width"] * (1 - 0.14) - min(170, box["width"] * 0.24))
        x, y = box["width"] - side - 2, (box["height"] - side) / 2
        for place in (0, 7, 14):
            column, row = place % GRID + 0.5, place // GRID + 0.5
            position = {"x": x + column * side / GRID, "y": y + row * side / GRID}
            flow.hover(position=position)
            settle(page)
            word = WORDS[int(widget.plan()[:, place].argmax())]
            assert readout(page).startswith(f"{word} ")

    def test_regions_have_names_and_boxes(self, show):
        boxes = [(0, 0, 16, 32), (16, 8, 32, 24), (2, 2, 9, 9)]
        cost = torch.tensor([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])
        page = show(TransportAlignment(picture(), WordsAndPlaces("abc", cost=cost), boxes=boxes))
        assert "to the region 1" in readout(page)
        page.locator(".words .segment").nth(2).click()
        settle(page)
        assert "to the region 3" in readout(page)

    def test_keyboard_alone_is_enough(self, show):
        page = show(aligned())
        flow = boards(page)[0]
        flow.focus()
        press(page, "ArrowDown", 2)
        assert readout(page).startswith("ring ")
        press(page, "ArrowUp")
        assert readout(page).startswith("red ")
        slider = page.get_by_role("slider", name="Regularisation")
        slider.focus()
        press(page, "Home")
        assert slider.get_attribute("aria-valuetext") == "0.01"
        assert fact(page, "distance_matched") == pytest.approx(
            aligned(regularization=0.01).distance(), abs=1e-6
        )
        press(page, "End")
        assert slider.get_attribute("aria-valuetext") == "1"
        page.locator("input[value=ipot]").focus()
        press(page, "ArrowRight")
        assert "of Sinkhorn" in page.locator(".headline").text_content()

    def test_hostile_words_stay_text(self, show):
        page = show(TransportAlignment(picture(), caption((HOSTILE, "*", "{place}"))))
        for word, text in enumerate((HOSTILE, "* sends most", "{place} sends most")):
            page.locator(".words .segment").nth(word).click()
            settle(page)
            assert readout(page).startswith(text)
        assert page.evaluate("window.hacked") is None
        assert page.locator("img").count() == 0
