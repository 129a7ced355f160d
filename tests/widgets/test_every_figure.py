"""What holds for every figure: safe, readable, translatable, usable by finger and by key."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe

from mmlab.datasets.tokenizer import train_wordpiece
from mmlab.models.clip import CLIP, CLIP_VIT_MINI
from mmlab.models.flip import FLIP_MINI
from mmlab.models.mae import MAE_MINI
from mmlab.models.vit import VIT_MINI, ViT
from mmlab.tasks.dual_encoder import DualEncoder
from mmlab.widgets import (
    AttentionDistance,
    CLIPSearch,
    LeagueTable,
    LossLaboratory,
    Masking,
    PatchSplitter,
    SimilarityMatrix,
    TokenCalculator,
    TransportAlignment,
    WordsAndPlaces,
)
from mmlab.widgets.league_table import Cell, Column, Row
from tests.browser import needs_chromium
from tests.widgets.figure_page import (
    ALL_TEXT,
    CONTRASTS,
    HOSTILE,
    latin_words,
    marked,
    settle,
    write_page,
)

pytestmark = [pytest.mark.browser, needs_chromium]


def pictures(names):
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=generator)
    return dict(zip(names, draw, strict=True))


def splitter(names=("1", "2"), **options):
    return PatchSplitter(pictures(names), patch_size=8, image_size=64, **options)


def distance(names=("1", "2"), **options):
    sizes = {"image_size": 40, "patch_size": 8, "dim": 24, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    models = {name: ViT(replace(VIT_MINI, **sizes, mlp_dim=32)) for name in names}
    return AttentionDistance(models, pictures(names), **options)


def calculator(names=(), **options):
    figure = TokenCalculator(**options)
    if names:
        figure.presets = [[name, 192 + i, 12] for i, name in enumerate(names)]
    return figure


def matrix(names=("1", "2"), **options):
    features = torch.eye(2), torch.tensor([[1.0, 0.2], [0.4, 0.9]])
    encoder = {"encode_text": lambda captions: torch.ones(len(captions), 2)}
    return SimilarityMatrix(pictures(names), list(names), *features, 2.66, **(encoder | options))


def laboratory(names=("1", "2"), **options):
    return LossLaboratory(names, **options)


def masking(names=("1", "2"), **options):
    image = pictures(("1", "2"))["1"]
    made = {75: image.repeat(1, 2, 2)[:, :48, :48]}
    return Masking(image, list(names), MAE_MINI, FLIP_MINI, reconstructions=made, **options)


def transport(names=("1", "2"), **options):
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(2, 9, generator=generator)
    own = WordsAndPlaces(names, cost=cost, attention=1 - cost, truth=cost > 0.7)
    other = WordsAndPlaces(names, cost=cost.flip(0))
    return TransportAlignment(pictures(("1", "2"))["1"], own, other, **options)


@cache
def clip():
    """A small CLIP, untrained; the words on the figure are all that its tests ask about."""
    words = train_wordpiece(["1 2", "a cat", "a dog"], vocab_size=60, min_count=1)
    sizes = {"dim": 16, "depth": 1, "text_dim": 16, "text_depth": 1, "embed_dim": 16}
    torch.manual_seed(0)
    network = CLIP(replace(CLIP_VIT_MINI, vocab_size=words.vocab_size, **sizes)).eval()
    return DualEncoder(network, words)


def search(names=("1", "2"), **options):
    return CLIPSearch(clip(), pictures(names), examples=("1", "2"), **options)


def league(names=("1", "2"), **options):
    rows = [Row("3", "8", baseline=True), Row("4", "9"), Row("5", "9")]
    columns = [Column(name, name, floor=0.2) for name in names]
    cells = {
        (row.name, name): Cell([(0, k / 4, "6"), (1, k / 3, "7")], 7 * k / 24, k / 20, blind=k == 1)
        for k, row in enumerate(rows)
        for name in names
    }
    return LeagueTable(rows, columns, cells, **options)


FIGURES = {
    "splitter": splitter,
    "splitter shuffled": lambda *a: splitter(*a, order="shuffled", positions=True),
    "distance of a patch": distance,
    "distance of the class token": lambda *a: distance(*a, view="class"),
    "distance by rollout": lambda *a: distance(*a, view="rollout"),
    "calculator": calculator,
    "calculator that does not fit": lambda *a: calculator(*a, image_size=230),
    "matrix": matrix,
    "matrix with captions exchanged": lambda *a: matrix(*a, order=[1, 0], view="cosine"),
    "laboratory": laboratory,
    "laboratory of the sigmoid": lambda *a: laboratory(*a, objective="sigmoid"),
    "search": search,
    "search with a picture chosen": lambda *a: search(*a, chosen=0, view="cosine"),
    "league": league,
    "league turned": lambda *a: league(*a, down=False, pinned=True, row=1),
    "masking": masking,
    "masking of a word": lambda *a: masking(*a, token=1, percent=50, measure="memory"),
    "transport": transport,
    "transport compared": lambda *a: transport(*a, view="compare", method="sinkhorn"),
}
every_figure = pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)

CHANGES = "input[type=radio]:not(:checked)"
SHOWN = "root => root.textContent + [...root.querySelectorAll('canvas')].map((c) => c.toDataURL())"


def shown(figure):
    return figure.evaluate(SHOWN)


@every_figure
def test_hostile_words_stay_text(make, show):
    figure = make((HOSTILE, "other"))
    figure.strings = {
        key: value if key == "locale" else value + HOSTILE for key, value in figure.strings.items()
    }
    page = show(figure)
    page.locator("details").evaluate_all("all => all.forEach((node) => node.open = true)")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.locator("option, .words label").first.text_content().startswith(HOSTILE)
    assert page.locator(".headline").first.text_content().endswith(HOSTILE)


@every_figure
def test_two_figures_do_not_disturb_each_other(make, show):
    page = show(make(), make())
    first, second = page.locator(".mmlab-widget").all()
    # Some draw their last board when the browser has time: until then it has the size of a new one.
    page.wait_for_function(
        "[...document.querySelectorAll('canvas')].every((c) => !c.offsetParent || c.width != 300)"
    )
    settle(page)
    before = [shown(first), shown(second)]
    assert before[0] == before[1]
    first.locator(f".segment:has({CHANGES})").first.click()
    settle(page)
    assert shown(first) != before[0]
    assert shown(second) == before[1]
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))


@every_figure
def test_works_from_the_disk(make, show):
    page = show(make(), url=lambda path: path.as_uri())
    before = shown(page.locator(".mmlab-widget"))
    page.locator(f".segment:has({CHANGES})").first.click()
    settle(page)
    assert shown(page.locator(".mmlab-widget")) != before


@every_figure
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_fits_the_screen_and_the_finger(make, width, show):
    page = show(make(), viewport=(width, 800), has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate(
        "[...document.querySelectorAll('select, button, .segment, .switch, .button, summary')]"
        ".map((node) => node.getBoundingClientRect())"
        ".map(({ width, height }) => Math.min(width, height))"
    )
    assert min(sizes) >= 24


@every_figure
def test_keys_stay_inside(make, show):
    page = show(make())
    page.evaluate("window.heard = 0; document.addEventListener('keydown', () => window.heard++)")
    page.locator(".mmlab-widget input, .mmlab-widget [tabindex='0']").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("a")
    assert page.evaluate("window.heard") == 0


@every_figure
def test_theme_changes_are_seen_at_once(make, show):
    page = show(make())
    before = shown(page.locator(".mmlab-widget"))
    assert min(page.evaluate(CONTRASTS).values()) >= 4.5
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    settle(page)
    assert shown(page.locator(".mmlab-widget")) != before
    assert min(page.evaluate(CONTRASTS).values()) >= 4.5


@every_figure
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(make, theme, show):
    page = show(make(("one", "two")))
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    page.locator("details").evaluate_all("all => all.forEach((node) => node.open = true)")
    settle(page)
    options = {"resultTypes": ["violations"], "preload": False}
    found = Axe().run(page, context=".mmlab-widget", options=options).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in found] == []


@every_figure
def test_nothing_is_shown_that_is_not_there(make, show):
    words = {word for text in show(make()).evaluate(ALL_TEXT) for word in text.split()}
    assert not {"null", "undefined", "NaN"} & words


@every_figure
def test_every_word_can_be_translated(make, show):
    figure = make()
    figure.strings = marked(figure.strings)
    texts = show(figure).evaluate(ALL_TEXT)
    # Names of models and special tokens are the same in every language.
    names = r"ViT-[A-Za-z]+|\[(CLS|SEP)\]"
    assert latin_words([re.sub(names, "", text) for text in texts]) == []


@pytest.mark.parametrize(
    ("make", "starter"),
    [
        (splitter, "button.primary"),
        (distance, CHANGES),
        (laboratory, "button.run"),
        (transport, "button.primary"),
    ],
    ids=["splitter", "distance", "laboratory", "transport"],
)
def test_motion_is_shown_only_to_those_who_allow_it(make, starter, show):
    frames = f"""new Promise((resolve) => {{
      let frames = 0;
      const request = requestAnimationFrame;
      window.requestAnimationFrame = (draw) => (frames++, request(draw));
      document.querySelector("{starter}").click();
      setTimeout(() => resolve(frames), 300);
    }})"""
    assert show(make(), reduced_motion="reduce").evaluate(frames) == 1
    assert show(make(), reduced_motion="no-preference").evaluate(frames) > 2


# What JupyterLab says of all lists in an output.
JUPYTERLAB = """
main dl, main dt, main dd { display: block; padding: 0; margin: 0; }
main dl { width: 100%; overflow: hidden; }
main dt { font-weight: bold; float: left; width: 20%; }
main dd { float: left; width: 80%; }
"""
# Within their list: what stands above it may still load.
PLACES = """[...document.querySelectorAll("dl, dt, dd")].map((node) => {
  const { x, y, width, height } = node.getBoundingClientRect();
  return [x, y - node.closest("dl").getBoundingClientRect().y, width, height];
})"""


@pytest.mark.parametrize("make", [matrix, laboratory, transport])
def test_jupyterlab_s_rules_for_lists_change_nothing(make, show):
    page = show(make())
    before = page.evaluate(PLACES)
    assert len(before) > 3
    page.evaluate(
        """(rules) => {
          document.querySelector("main").classList.add("lab");
          const style = document.createElement("style");
          style.textContent = rules;
          document.head.append(style);
        }""",
        JUPYTERLAB.replace("main", ".lab"),
    )
    settle(page)
    assert page.evaluate(PLACES) == before


@every_figure
def test_without_scripts_the_sentence_stands(make, chromium, site):
    figure = make()
    path = write_page(site / "plain.html", figure)
    page, _ = chromium(java_script_enabled=False)
    page.goto(path.name)
    assert figure.sentence() in page.locator("main").inner_text()
    page.context.close()
