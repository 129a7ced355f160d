import math
import re

import pytest
import torch
import torch.nn.functional as F

from mmlab.hub.shipped import mini_checkpoint
from mmlab.objectives.contrastive import contrastive_loss
from mmlab.tasks.dual_encoder import load_dual_encoder
from mmlab.widgets import CLIPSearch, SimilarityMatrix
from mmlab.widgets.clip_search import FOLDER, shipped_encoder, shipped_weight_files, write_files
from mmlab.widgets.similarity_matrix import MAX_OWN_CAPTIONS
from tests.browser import needs_chromium
from tests.widgets.figure_page import ANSWER_TIMES, HOSTILE, boards, settle, write_page
from tests.widgets.small_clip import SENTENCES, encoder, needs_shipped, rounded

B, DIM = 5, 12
CAPTIONS = ["a red ring", "two small blue stars", "grey *cloud* {n}", "一只猫", "a heart"]
SWAPPED = [2, 1, 0, 4, 3]


def pictures(count=B):
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(0, 256, (count, 3, 24, 24), dtype=torch.uint8, generator=generator)
    return {f"p{i}": image for i, image in enumerate(draw)}


def features(count=B, seed=0):
    """Of pairs that are alike but not always each other's best."""
    generator = torch.Generator().manual_seed(seed)
    images = 3 * torch.randn(count, DIM, generator=generator)
    return images, images + 3 * torch.randn(count, DIM, generator=generator)


def encode(captions):
    generator = torch.Generator().manual_seed(len(captions[0]))
    return torch.randn(len(captions), DIM, generator=generator)


def matrix(scale=14.0, **options):
    return SimilarityMatrix(pictures(), CAPTIONS, *features(), math.log(scale), **options)


WORDS = ["a happy cat", "the red heart", "rain", "一只猫", "a dog and a fish"]


def encoded(model=None, folder="clip", **features):
    """A matrix whose model's text tower lies in ``folder`` of the site."""
    model = encoder() if model is None else model
    own = {
        "image_features": model.encode_images(list(pictures().values())),
        "text_features": model.encode_texts(WORDS),
    }
    options = {"logit_scale": math.log(14.0), "encoder": model, "folder": folder}
    return SimilarityMatrix(pictures(), WORDS, **own | features | options)


def exact_cosines(more=(), model=None, page=None):
    """Of all captions; ``page`` encodes those that the reader adds."""
    model = encoder() if model is None else model
    texts = torch.cat([model.encode_texts(WORDS), (page or model).encode_texts(more)])
    return model.encode_images(list(pictures().values())) @ texts.T


def reference(order, scale):
    """Logits and torch's gradient of the loss with respect to each, captions in given order."""
    images, texts = (F.normalize(x.double()) for x in features())
    logits = (scale * images @ texts.T).requires_grad_()
    own, pairs = torch.tensor(order), torch.arange(B)
    rows = F.cross_entropy(logits, own)
    columns = F.cross_entropy(logits[:, own].T, pairs)
    ((rows + columns) / 2).backward()
    return logits.detach(), logits.grad, rows.item(), columns.item()


# ---- Python


@pytest.mark.parametrize("order", [list(range(B)), SWAPPED], ids=["as given", "swapped"])
def test_loss_is_the_package_s(order):
    images, texts = features()
    expected = contrastive_loss(images, texts[order], 14.0).item()
    assert matrix(order=order).loss() == pytest.approx(expected, abs=1e-5)


def test_logit_scale_is_the_model_s_own_parameter():
    learned = SimilarityMatrix(pictures(), CAPTIONS, *features(), torch.tensor(2.659260))
    assert learned.scale == learned.learned_scale == pytest.approx(1 / 0.07, rel=1e-5)
    released = SimilarityMatrix(pictures(), CAPTIONS, *features(), 4.6052)
    assert released.scale == 100.0


def test_probabilities_follow_the_view():
    assert torch.allclose(matrix().probabilities().sum(dim=1), torch.ones(B))
    columns = matrix(view="text_to_image").probabilities()
    assert torch.allclose(columns.sum(dim=0), torch.ones(B))
    expected = F.cosine_similarity(features()[0][:, None], features()[1][None], dim=-1)
    assert torch.allclose(matrix(view="cosine").probabilities(), expected, atol=1e-6)


def zeros_in_a_row():
    images, texts = features()
    return images, texts.index_fill(0, torch.tensor([1]), 0.0)


WRONG = {
    "no pair": (lambda: (pictures(1), CAPTIONS[:1], *features(1), 1.0), "images has 1 pictures"),
    "too many": (lambda: (pictures(13), CAPTIONS, *features(13), 1.0), "allowed are 2 to 12"),
    "captions": (
        lambda: (pictures(), CAPTIONS[:4], *features(), 1.0),
        "captions has 4 texts for 5",
    ),
    "a long caption": (
        lambda: (pictures(), ["x" * 201] * B, *features(), 1.0),
        r"captions\[0\].*at most 200",
    ),
    "rows": (
        lambda: (pictures(), CAPTIONS, *features(4), 1.0),
        r"image_features has shape \(4, 12\); allowed is \(5, 12\)",
    ),
    "dim": (
        lambda: (pictures(), CAPTIONS, features()[0], features()[1][:, :3], 1.0),
        r"text_features has shape \(5, 3\); allowed is \(5, 12\)",
    ),
    "nan": (
        lambda: (pictures(), CAPTIONS, features()[0] * math.nan, features()[1], 1.0),
        "image_features holds values that are not finite",
    ),
    "zeros": (
        lambda: (pictures(), CAPTIONS, *zeros_in_a_row(), 1.0),
        "text_features holds a row of zeros",
    ),
    "scale": (lambda: (pictures(), CAPTIONS, *features(), 14.0), "logit_scale=14 is a factor of"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told_what_is_allowed(case):
    make, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        SimilarityMatrix(*make())


@pytest.mark.parametrize(
    ("trait", "value"),
    [
        ("view", "both"),
        ("scale", 101.0),
        ("image", B),
        ("caption", -1),
        ("order", [0, 0, 1, 2, 3]),
        ("order", [0, 1, 2, 3, 9]),
    ],
)
def test_wrong_values_leave_the_old_ones(trait, value):
    figure = matrix()
    before = getattr(figure, trait)
    with pytest.raises(ValueError, match=f"{trait}=.*; allowed are"):
        setattr(figure, trait, value)
    assert getattr(figure, trait) == before


def test_sentence_and_still_say_what_is_there():
    figure = matrix(order=SWAPPED)
    found = sum(a == b for a, b in zip(figure.cosines().argmax(1).tolist(), SWAPPED, strict=True))
    assert f"{found} of {B} pictures" in figure.sentence()
    assert f"loss {figure.loss():.3f}" in figure.sentence()
    assert figure.to_png() != matrix(view="cosine").to_png()


class TestOwnCaption:
    def test_a_typed_caption_becomes_a_column(self):
        figure = matrix(encode_text=encode)
        before = figure.loss()
        figure.set_state({"typed": "  a new one "})
        assert figure.captions == [*CAPTIONS, "a new one"]
        assert (figure.caption, figure.problem) == (B, "")
        expected = F.cosine_similarity(features()[0], encode(["a new one"]))
        assert torch.allclose(figure.cosines()[:, B], expected, atol=1e-6)
        assert figure.loss() > before  # one more negative

    def test_what_goes_wrong_is_told(self):
        def refuse(captions):
            raise ValueError(f"{captions[0]} is not for me")

        figure = matrix(encode_text=refuse)
        figure.typed = "this"
        assert figure.problem == "this is not for me"
        assert figure.captions == CAPTIONS

    @pytest.mark.parametrize(
        "answer", [torch.ones(1, 3), torch.full((1, DIM), math.nan), torch.zeros(1, DIM)]
    )
    def test_wrong_features_are_refused(self, answer):
        figure = matrix(encode_text=lambda captions: answer)
        figure.typed = "this"
        assert figure.problem.startswith("encode_text's answer")
        assert len(figure.captions) == B

    def test_there_is_an_end_to_it(self):
        figure = matrix(encode_text=encode)
        for k in range(MAX_OWN_CAPTIONS + 1):
            figure.typed = "x" * (k + 1)
        assert len(figure.captions) == B + MAX_OWN_CAPTIONS
        assert "no more are allowed" in figure.problem
        figure.typed = "xx"
        assert figure.caption == B + 1

    def test_a_page_without_a_kernel_says_so(self):
        assert matrix(encode_text=encode).page_state()["own"] == "needs_kernel"
        assert matrix(encode_text=encode).own == "live"
        assert matrix().page_state()["own"] == "absent"
        assert encoded().own == "live"
        assert encoded().page_state()["own"] == "page"
        assert encoded(folder=None).page_state()["own"] == "needs_kernel"
        with pytest.raises(ValueError, match="encode_text is None"):
            matrix().add_caption("this")

    def test_with_a_kernel_the_encoder_answers(self):
        figure = encoded()
        figure.typed = "a dog"
        assert figure.captions[-1] == "a dog"
        assert torch.allclose(figure.cosines(), exact_cosines(["a dog"]), atol=1e-6)

    def test_features_of_another_model_are_refused(self):
        other = encoder(seed=1)
        images = other.encode_images(list(pictures().values()))
        with pytest.raises(ValueError, match="image_features are not what encoder makes"):
            encoded(image_features=images)
        with pytest.raises(ValueError, match="text_features are not what encoder makes"):
            encoded(text_features=other.encode_texts(WORDS))
        encoded(image_features=7 * encoder().encode_images(list(pictures().values())))

    @needs_shipped
    def test_the_shipped_model_runs_in_the_page(self):
        shipped = load_dual_encoder("clip-mini", mini_checkpoint("clip-mini"))
        figure = encoded(shipped, folder=None)
        assert figure.page_state()["own"] == "page"
        assert figure.tower == CLIPSearch(shipped).towers["text"]
        assert {f"{name}.js" for name in figure.tower["files"]} <= shipped_weight_files().keys()
        with torch.no_grad():
            shipped.network.text_projection.weight.mul_(1.001)
        assert encoded(shipped, folder=None).page_state()["own"] == "needs_kernel"


# ---- The browser


def losses(page):
    lead = page.locator(".headline")
    names = ("loss", "rows", "columns")
    data = lead.evaluate("node => ({ ...node.dataset })")
    assert set(names) <= set(data)
    return [float(data[name]) for name in names]


def reading(page, name):
    return float(page.locator(f"[data-name={name}]").get_attribute("data-value"))


def table(page, name):
    page.locator("details").first.evaluate("node => node.open = true")
    settle(page)
    cells = page.locator("tbody td").all()
    values = torch.tensor([float(c.get_attribute(f"data-{name}")) for c in cells]).double()
    return values.view(B, -1)


def choose(page, value):
    page.locator(f".segment:has(input[value='{value}'])").click()
    settle(page)


def middle(node):
    box = node.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def chips(page):
    return [text[3:] for text in page.locator(".chip .text").all_text_contents()]


@pytest.mark.browser
@needs_chromium
class TestInBrowser:
    @pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
    @pytest.mark.parametrize("order", [list(range(B)), SWAPPED], ids=["as given", "swapped"])
    def test_every_number_is_torch_s(self, show, scale, order):
        page = show(matrix(scale, order=order))
        logits, gradient, rows, columns = reference(order, scale)
        images, texts = features()
        expected = contrastive_loss(images, texts[order], scale).item()
        assert losses(page) == pytest.approx([expected, rows, columns], abs=1e-5)
        assert torch.allclose(table(page, "value"), logits.softmax(dim=1), atol=1e-5)
        assert torch.allclose(table(page, "gradient"), gradient, atol=1e-5)
        choose(page, "text_to_image")
        assert torch.allclose(table(page, "value"), logits.softmax(dim=0), atol=1e-5)
        choose(page, "cosine")
        assert torch.allclose(table(page, "value"), logits / scale, atol=1e-5)

    @pytest.mark.parametrize("cell", [(2, 2), (3, 1)], ids=["a pair", "no pair"])
    def test_a_cell_tells_its_story(self, show, cell):
        page = show(matrix(image=cell[0], caption=cell[1]))
        logits, gradient, _, _ = reference(list(range(B)), 14.0)
        rows, columns = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
        expected = {
            "cosine": logits / 14.0,
            "logit": logits,
            "to_text": rows.exp(),
            "to_image": columns.exp(),
            "gradient": gradient,
            "term": -(rows + columns) / (2 * B) * torch.eye(B),
        }
        for name, values in expected.items():
            assert reading(page, name) == pytest.approx(values[cell].item(), abs=1e-5), name
        text = page.locator(".readout").text_content()
        assert f"p{cell[0]}" in text and CAPTIONS[cell[1]] in text
        assert ("not a pair" in text) == (cell[0] != cell[1])

    def test_the_terms_of_the_pairs_add_up_to_the_loss(self, show):
        page = show(matrix())
        (board,) = boards(page)
        board.focus()
        total = 0.0
        for i in range(B):
            total += reading(page, "term")
            if i < B - 1:
                page.keyboard.press("ArrowDown")
                page.keyboard.press("ArrowRight")
                settle(page)
        assert total == pytest.approx(losses(page)[0], abs=1e-9)

    def test_a_pointer_chooses_a_cell(self, show):
        page = show(matrix())
        (board,) = boards(page)
        box = board.bounding_box()
        cell = (box["width"] - 50) / B
        board.click(position={"x": 50 + 3.5 * cell, "y": 104 + 58 * 1.5})
        settle(page)
        assert CAPTIONS[3] in page.locator(".readout").text_content()
        assert "Picture 2, p1" in page.locator(".readout").text_content()

    def test_enter_makes_a_pair_and_the_button_restores(self, show):
        page = show(matrix(image=0, caption=2))
        given = losses(page)
        (board,) = boards(page)
        board.focus()
        page.keyboard.press("Enter")
        settle(page)
        order = [2, 1, 0, 3, 4]
        assert chips(page) == [CAPTIONS[j] for j in order]
        _, _, rows, columns = reference(order, 14.0)
        assert losses(page)[1:] == pytest.approx([rows, columns], abs=1e-5)
        assert f"{given[0]:.4f}" in page.locator(".mmlab-widget").inner_text()
        page.get_by_role("button", name="Restore the pairs").click()
        settle(page)
        assert losses(page) == given

    def test_the_list_exchanges_captions(self, show):
        page = show(matrix())
        page.get_by_label("Caption of picture 4").select_option("1")
        settle(page)
        order = [0, 3, 2, 1, 4]
        assert chips(page) == [CAPTIONS[j] for j in order]
        assert page.get_by_label("Caption of picture 2").input_value() == "3"
        assert losses(page)[1] == pytest.approx(reference(order, 14.0)[2], abs=1e-5)

    @pytest.mark.parametrize("onto", ["line", "row"])
    def test_a_caption_is_dragged_to_another_picture(self, show, onto):
        page = show(matrix(), viewport=(1280, 1400))
        (board,) = boards(page)
        page.mouse.move(*middle(page.locator(".chip").nth(0)))
        page.mouse.down()
        if onto == "line":
            page.mouse.move(*middle(page.locator(".pairs canvas").nth(4)), steps=5)
        else:
            box = board.bounding_box()
            page.mouse.move(box["x"] + 20, box["y"] + 104 + 4.5 * 58, steps=5)
        assert page.locator(".pairs li.target").count() == 1
        page.mouse.up()
        settle(page)
        order = [4, 1, 2, 3, 0]
        assert chips(page) == [CAPTIONS[j] for j in order]
        assert losses(page)[1:] == pytest.approx(reference(order, 14.0)[2:], abs=1e-5)
        assert page.locator(".target, .dragged").count() == 0

    def test_a_caption_that_is_dropped_elsewhere_stays(self, show):
        page = show(matrix(), viewport=(1280, 1400))
        page.mouse.move(*middle(page.locator(".chip").nth(0)))
        page.mouse.down()
        page.mouse.move(5, 5, steps=3)
        page.mouse.up()
        settle(page)
        assert chips(page) == CAPTIONS

    def test_temperature_goes_to_the_ends_and_back_to_the_learned_one(self, show):
        page = show(matrix(14.285714))
        learned = losses(page)
        slider = page.get_by_role("slider", name="Temperature")
        slider.focus()
        page.keyboard.press("End")
        settle(page)
        assert slider.get_attribute("aria-valuetext") == "1 (cosines × 1)"
        assert losses(page)[1] == pytest.approx(reference(range(B), 1.0)[2], abs=1e-5)
        page.keyboard.press("Home")
        settle(page)
        assert losses(page)[1] == pytest.approx(reference(range(B), 100.0)[2], abs=1e-5)
        page.get_by_role("button", name="Learned: 0.07").click()
        settle(page)
        assert losses(page) == learned

    def test_own_captions_are_negatives_only(self, show):
        figure = matrix(encode_text=encode)
        figure.add_caption("a new one")
        page = show(figure)
        images, texts = features()
        every = F.normalize(torch.cat([texts, encode(["a new one"])]).double())
        logits = (14.0 * F.normalize(images.double()) @ every.T).requires_grad_()
        pairs = torch.arange(B)
        rows = F.cross_entropy(logits, pairs)
        columns = F.cross_entropy(logits[:, :B].T, pairs)
        ((rows + columns) / 2).backward()
        assert losses(page)[1:] == pytest.approx([rows.item(), columns.item()], abs=1e-5)
        assert losses(page)[0] == pytest.approx(figure.loss(), abs=1e-5)
        assert torch.allclose(table(page, "gradient"), logits.grad, atol=1e-5)
        page.get_by_label("Caption of picture 1").select_option(str(B))
        settle(page)
        assert chips(page) == ["a new one", *CAPTIONS[1:], CAPTIONS[0]]

    def test_where_no_caption_can_be_added_the_page_says_why(self, show):
        for figure, reason in (
            (matrix(encode_text=encode), "open this page as a notebook"),
            (matrix(), "the model that made these vectors is not at hand"),
        ):
            page = show(figure)
            assert reason in page.locator("p.own").inner_text()
            assert "vectors of two models cannot be compared" in page.locator("p.own").inner_text()
            assert page.get_by_label("Your own caption").count() == 0

    def test_with_a_kernel_it_asks_for_the_caption(self, show):
        class Live(SimilarityMatrix):
            def page_state(self):
                return super().page_state() | {"own": "live"}

        page = show(Live(pictures(), CAPTIONS, *features(), math.log(14.0), encode_text=encode))
        page.get_by_label("Your own caption").fill(f" {HOSTILE} ")
        page.keyboard.press("Enter")
        assert page.locator("[role=status]").text_content() == f"Encoding “{HOSTILE}”…"
        page.get_by_label("Your own caption").fill(CAPTIONS[3])
        page.get_by_role("button", name="Add").click()
        settle(page)
        assert CAPTIONS[3] in page.locator(".readout").text_content()

    def test_a_finger_drags_by_the_handle(self, show):
        page = show(matrix(), viewport=(390, 1000), has_touch=True)
        page.locator(".pairs").scroll_into_view_if_needed()
        client = page.context.new_cdp_session(page)
        x, y = middle(page.locator(".handle").nth(1))
        _, end = middle(page.locator(".pairs canvas").nth(2))
        touch = lambda kind, *points: client.send(  # noqa: E731
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": px, "y": py} for px, py in points]},
        )
        touch("touchStart", (x, y))
        for k in range(1, 5):
            touch("touchMove", (x, y + (end - y) * k / 4))
        touch("touchEnd")
        settle(page)
        assert chips(page) == [CAPTIONS[j] for j in (0, 2, 1, 3, 4)]

    def test_stars_and_braces_of_a_caption_are_its_own(self, show):
        page = show(matrix(image=2, caption=2))
        assert re.search(r"“grey \*cloud\* \{n\}”", page.locator(".readout").text_content())
        assert page.locator(".readout strong").all_text_contents() == ["Picture 3, p2"]

    def test_every_move_of_the_slider_is_drawn(self, show):
        many = SimilarityMatrix(pictures(12), ["caption"] * 12, *features(12), 2.6)
        page = show(many)
        page.locator("details").first.evaluate("node => node.open = true")
        settle(page)
        spent = page.evaluate(ANSWER_TIMES)
        assert len(spent) == 15 and min(spent) > 0


def add(page, caption):
    page.get_by_label("Your own caption").fill(caption)
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('progress').classList.contains('hidden')")
    page.wait_for_function("""!document.querySelector("[role=status]").textContent.includes("…")""")
    settle(page)


def status(page):
    return page.locator(".mmlab-similarity-matrix [role=status]").inner_text()


def column_labels(page):
    page.locator("details").first.evaluate("node => node.open = true")
    settle(page)
    return [text[3:] for text in page.locator("thead th").all_text_contents()[1:]]


@pytest.fixture(scope="module")
def weights(site):
    search().write_weights(site / "clip")


def search():
    return CLIPSearch(encoder(), pictures(), examples=WORDS[:2], folder="clip")


@pytest.mark.browser
@needs_chromium
@pytest.mark.usefixtures("weights")
class TestEncoderInThePage:
    def test_an_own_caption_takes_part_in_everything(self, show):
        page = show(encoded())
        before = losses(page)
        assert re.search(r"the text encoder, [\d.]+ MB, is loaded", status(page))
        add(page, " something to drink ")
        assert "was read as [CLS]" in status(page) and "[SEP]." in status(page)
        assert "something to drink" in page.locator(".readout").text_content()
        assert column_labels(page) == [*WORDS, "something to drink"]

        cosines = exact_cosines(["something to drink"], page=rounded(encoder())).double()
        pairs = torch.arange(B)
        for key, scale in (("", 14.0), ("End", 1.0), ("Home", 100.0)):
            page.get_by_role("slider", name="Temperature").focus()
            if key:
                page.keyboard.press(key)
                settle(page)
            logits = (scale * cosines).requires_grad_()
            rows = F.cross_entropy(logits, pairs)
            columns = F.cross_entropy(logits[:, :B].T, pairs)
            ((rows + columns) / 2).backward()
            assert losses(page)[1:] == pytest.approx([rows.item(), columns.item()], abs=2e-4)
            assert torch.allclose(table(page, "value"), logits.softmax(dim=1), atol=2e-4)
            assert torch.allclose(table(page, "gradient"), logits.grad, atol=2e-4)
            choose(page, "text_to_image")
            assert torch.allclose(table(page, "value"), logits.softmax(dim=0), atol=2e-4)
            choose(page, "image_to_text")
        page.get_by_role("button", name="Learned: 0.0714").click()
        settle(page)
        assert losses(page)[1] > before[1]  # one more negative in each row
        assert losses(page)[2] == pytest.approx(before[2], abs=1e-9)

    def test_an_own_caption_can_become_a_picture_s(self, show):
        page = show(encoded())
        add(page, "a dog")
        page.get_by_label("Caption of picture 2").select_option(str(B))
        settle(page)
        order = [0, B, 2, 3, 4]
        assert chips(page) == ["a happy cat", "a dog", *WORDS[2:], WORDS[1]]
        logits = 14.0 * exact_cosines(["a dog"], page=rounded(encoder()))
        rows = F.cross_entropy(logits, torch.tensor(order)).item()
        columns = F.cross_entropy(logits[:, order].T, torch.arange(B)).item()
        assert losses(page)[1:] == pytest.approx([rows, columns], abs=1e-4)

    def test_there_is_room_for_some(self, show):
        page = show(encoded())
        for k in range(MAX_OWN_CAPTIONS):
            add(page, f"{k} cats")
        add(page, "1 cats")
        assert "“1 cats”" in page.locator(".readout").text_content()
        add(page, "one too many")
        assert status(page) == f"There are {B + MAX_OWN_CAPTIONS} captions already; no more fit."
        assert column_labels(page) == [*WORDS, *(f"{k} cats" for k in range(MAX_OWN_CAPTIONS))]

    def test_works_from_the_disk(self, show):
        page = show(encoded(), url=lambda path: path.as_uri())
        add(page, "a dog")
        expected = exact_cosines(["a dog"], page=rounded(encoder()))
        choose(page, "cosine")
        assert torch.allclose(table(page, "value"), expected.double(), atol=1e-4)

    def test_the_weights_come_once_for_all_figures_of_a_page(self, show):
        page = show(encoded(), search(), encoded())
        scripts = []
        page.on("request", lambda request: scripts.append(request.url.split("/")[-1]))
        matrices = page.locator(".mmlab-similarity-matrix").all()
        for figure in matrices:
            figure.get_by_label("Your own caption").fill("a dog")
        # All at once: the second and the third ask while the first is still loading.
        page.evaluate("document.querySelectorAll('form').forEach((form) => form.requestSubmit())")
        page.wait_for_function(
            "[...document.querySelectorAll('[role=status]')]"
            ".every((node) => /was read as|Every letter/.test(node.textContent))"
        )
        settle(page)
        assert sorted(scripts) == sorted(f"{name}.js" for name in encoded().tower["files"])
        assert [figure.locator(".chip").count() for figure in matrices] == [B + 1, B + 1]
        page.get_by_label("A caption").fill("a red dog")
        settle(page)
        assert "a red dog" in page.locator(".mmlab-clip-search .headline").inner_text()

    def test_missing_weights_are_told_and_asked_for_again(self, chromium, site):
        write_page(site / "missing.html", encoded(folder="late"))
        page, _ = chromium()
        page.goto("missing.html")
        page.wait_for_selector(".headline:not(:empty)")
        add(page, "a dog")
        assert "could not be loaded" in status(page) and "late/" in status(page)
        assert page.locator(".chip").count() == B
        search().write_weights(site / "late")
        add(page, "a dog")
        assert "was read as" in status(page)
        assert page.locator(".chip").count() == B + 1
        page.context.close()

    def test_progress_is_shown(self, show):
        page = show(encoded())
        page.get_by_label("Your own caption").fill("a dog")
        values = page.evaluate("""() => new Promise((resolve) => {
          const bar = document.querySelector("progress"), seen = [];
          new MutationObserver(() => {
            seen.push([bar.classList.contains("hidden"), bar.getAttribute("value")]);
            if (seen.length > 1 && seen.at(-1)[0]) resolve(seen);
          }).observe(bar, { attributes: true });
          document.querySelector("form").requestSubmit();
        })""")
        assert values[0][0] is False and values[-1] == [True, "1"]

    def test_hostile_captions_stay_text(self, show):
        page = show(encoded())
        add(page, HOSTILE)
        assert page.evaluate("window.hacked") is None
        assert page.locator("img").count() == 0
        assert HOSTILE in page.locator(".readout").text_content()

    @needs_shipped
    def test_the_shipped_model_agrees_to_a_thousandth(self, show, site):
        write_files(shipped_weight_files(), site / FOLDER)
        shipped = shipped_encoder()
        new = [text for text in SENTENCES if len(text) <= 200 and text not in WORDS]
        assert len(new) >= 20
        for k in range(0, len(new), MAX_OWN_CAPTIONS):
            captions = new[k : k + MAX_OWN_CAPTIONS]
            page = show(encoded(shipped, folder=None))
            for caption in captions:
                add(page, caption)
            choose(page, "cosine")
            assert column_labels(page) == [*WORDS, *captions]
            expected = exact_cosines(captions, shipped).double()
            assert (table(page, "value") - expected).abs().max() < 1e-3
