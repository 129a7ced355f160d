"""What a system can do right after pretraining."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mmlab import datasets
from mmlab.datasets.regions import Regions
from mmlab.datasets.scenes import BindingPair, SceneConfig, Scenes
from mmlab.hub import CheckpointError
from mmlab.league.probes import (
    WAYS,
    WITHOUT,
    Passes,
    ReadInStages,
    ReadTogether,
    Scorer,
    binding_figures,
    chance_of_recall,
    load_scorer,
    probe,
    retrieval_figures,
    ways_of,
)
from mmlab.tasks.reranking import Reranker, reranked_scores
from mmlab.training.recipe import SYSTEMS, Recipe
from mmlab.training.run import run
from tests.training.test_region_systems import RECIPES as REGIONS
from tests.training.tiny import (
    TINY_ALBEF,
    TINY_BLIP,
    TINY_BLIP2,
    TINY_CLIP,
    TINY_VILT,
    TINY_VLMO,
    write_vit,
)

RECIPES = {
    "clip": replace(TINY_CLIP, data="scenes", num_images=24),
    "vilt": TINY_VILT,
    "albef": TINY_ALBEF,
    "blip": TINY_BLIP,
    "blip2": TINY_BLIP2,
    "vlmo": TINY_VLMO,
    "vilbert": REGIONS["vilbert"],
    "oscar": replace(REGIONS["oscar"], pretraining={"texta_false_prob": 0.25}),
}
EVERY_WAY = ("albef", "blip", "blip2", "vlmo")
ONLY_DUAL = ("clip", "flip")
ONLY_FUSION = ("vilt", "vilbert", "lxmert", "uniter", "oscar", "unicoder-vl")
NUM = 10
SHOWN = torch.arange(NUM)


@pytest.fixture(scope="module")
def scenes():
    return datasets.scenes(20, "test", 64, num_objects=(2, 2))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each recipe with its weights, after two steps."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for name, recipe in RECIPES.items():
        start = write_vit(folder / "vit.safetensors") if name == "blip2" else ""
        made[name] = replace(recipe, steps=2, warmup=0, checkpoint_every=2, start=start)
        run(made[name], folder / name)
    return {name: (recipe, folder / name / "model.safetensors") for name, recipe in made.items()}


@pytest.fixture(scope="module")
def scorers(runs):
    return {name: load_scorer(*given) for name, given in runs.items()}


def model_of(scorer):
    """The model behind a scorer's ``read``."""
    return scorer.read.args[0]


def shown_to(name, scorer, scenes, num=NUM):
    size = 32 if name in ("vilt", *EVERY_WAY) else 48 if name == "clip" else 64
    drawn = datasets.scenes(20, "test", size, num_objects=(2, 2))
    rows = torch.arange(num)
    return scorer.prepared(drawn, rows), scenes.captions("en", "medium")[:num]


# Known scores.


class Known:
    """Reads that score by tables of picture numbers and text numbers."""

    def __init__(self, similarity, fit, images, texts):
        rows, columns = images[:, 0, 0, 0].long(), torch.tensor([int(text) for text in texts])
        self.tables = [table[rows][:, columns] for table in (similarity, fit)]
        self.passes = Passes()

    def similarities(self):
        self.passes.images += len(self.tables[0])
        self.passes.texts += self.tables[0].shape[1]
        return self.tables[0]

    def fits(self, image_rows, text_rows):
        self.passes.pairs += len(text_rows)
        return self.tables[1][image_rows, text_rows]


class Numbered(Scenes):
    """Ten pictures, whose captions are numbers."""

    numbers = tuple(range(NUM))

    def __init__(self):
        super().__init__(SceneConfig(num_images=NUM))

    def captions(self, language, kind):
        assert (language, kind) == ("en", "medium")
        return [str(number) for number in self.numbers]


def numbered(rows):
    """Pictures that show a number."""
    return rows.float()[:, None, None, None].expand(-1, 3, 1, 1)


def known(similarity, fit, weight=0.0):
    def read(images, texts):
        return Known(similarity, fit, images, texts)

    return Scorer(WAYS, lambda dataset, rows: numbered(rows), read, weight)


def recalls(figures):
    retrieval = figures["retrieval"]
    return [retrieval[way]["r@1"] for way in ("image_to_text", "text_to_image")]


def test_known_scores_have_known_figures():
    similarity, fit = torch.eye(NUM), torch.eye(NUM)
    # By features alone, picture 0 finds text 1 and text 1 finds picture 0.
    similarity[0, 1] = 2.0
    # The matching head would find them, but also takes text 5 for picture 4.
    fit[4, 5] = 3.0
    scorer = known(similarity, fit)
    ways = (("dual", 1), ("fusion", 1), ("reranked", 2), ("reranked", NUM))
    dual, fusion, two, all_of_them = (
        retrieval_figures(scorer, way, Numbered(), SHOWN, k) for way, k in ways
    )
    assert recalls(dual) == pytest.approx([0.9, 0.9])
    assert recalls(fusion) == pytest.approx([0.9, 0.9])
    assert recalls(all_of_them) == recalls(fusion)
    assert dual["retrieval"]["image_to_text"]["r@5"] == 1
    assert dual["retrieval"]["image_to_text"]["median_rank"] == 1
    assert dual["passed"] == {"images": NUM, "texts": NUM, "pairs": 0}
    assert fusion["passed"] == {"images": 0, "texts": 0, "pairs": NUM * NUM}
    assert two["passed"] == {"images": NUM, "texts": NUM, "pairs": 2 * NUM * 2}
    assert [f["passes"] for f in (dual, fusion, two)] == [20, 100, 60]
    chance = dual["retrieval"]["chance"]
    assert chance == pytest.approx({"r@1": 0.1, "r@5": 0.5, "r@10": 1.0})


def test_reranking_ranks_only_what_the_features_found():
    similarity = torch.eye(NUM)
    # For picture 0, its text comes third by features; the matching head knows it at once.
    similarity[0, :3] = torch.tensor([0.1, 0.3, 0.2])
    scorer = known(similarity, torch.eye(NUM))
    for k, found in ((2, 0.9), (3, 1.0)):
        figures = retrieval_figures(scorer, "reranked", Numbered(), SHOWN, k)
        assert recalls(figures)[0] == pytest.approx(found)


def test_the_dot_product_counts_by_its_weight_in_reranking():
    similarity, fit = torch.eye(NUM), torch.zeros(NUM, NUM)
    for weight, found in ((0.0, 0.0), (1.0, 1.0)):
        scorer = known(similarity, fit, weight)
        figures = retrieval_figures(scorer, "reranked", Numbered(), SHOWN, NUM)
        # Where the matching head says the same of all, nothing is found.
        assert recalls(figures) == [found, found]
        pairs = scorer.scores("reranked", numbered(torch.tensor([3, 4])), ["3", "5"])
        assert pairs.tolist() == [weight, 0.0]


def test_all_alike_finds_nothing():
    same = torch.ones(NUM, NUM)
    for way in WAYS:
        figures = retrieval_figures(known(same, same, 1.0), way, Numbered(), SHOWN, NUM)
        assert recalls(figures) == [0, 0]
        assert figures["retrieval"]["text_to_image"]["median_rank"] == NUM


def test_equal_captions_are_right_for_each_other():
    class Twins(Numbered):
        numbers = (0, 0, *range(2, NUM))

    similarity = torch.eye(NUM)
    # Text 0 is most like picture 1, whose caption reads the same.
    similarity[1, 0], similarity[0, 0] = 2.0, 0.5
    figures = retrieval_figures(known(similarity, similarity), "dual", Twins(), SHOWN)
    assert recalls(figures) == [1.0, 1.0]
    assert figures["retrieval"]["chance"]["r@1"] == pytest.approx((8 * 0.1 + 2 * 0.2) / 10)


def test_chance_is_the_mean_over_orders():
    belongs = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0]]).bool()
    # 1 - C(2, 1) / C(4, 1) and 1 - C(3, 1) / C(4, 1).
    expected = {"r@1": (0.5 + 0.25) / 2, "r@5": 1.0, "r@10": 1.0}
    assert chance_of_recall(belongs) == pytest.approx(expected)


def test_binding_is_counted_by_kind_and_ties_by_half():
    # Text 0 is true of every picture; text 1 fits less, text 2 more, text 3 as well.
    fit = torch.tensor([[1.0, 0.5, 2.0, 1.0]]).expand(4, 4)
    told = [("color", 1), ("color", 2), ("relation", 1), ("relation", 3), ("relation", 3)]
    pairs = [BindingPair(i % 4, "0", str(wrong), kind) for i, (kind, wrong) in enumerate(told)]
    scorer = known(fit, fit)
    for way in WAYS:
        figures = binding_figures(scorer, way, Numbered(), pairs)
        assert figures["accuracy"] == pytest.approx((1 + 0 + 1 + 0.5 + 0.5) / 5)
        assert figures["by_kind"] == pytest.approx({"color": 0.5, "relation": 2 / 3})
        assert figures["counts"] == {"color": 2, "relation": 3}
        assert figures["ties"] == pytest.approx(0.4)
        assert (figures["chance"], figures["num_items"]) == (0.5, 5)


def test_what_is_no_number_is_never_right():
    fit = torch.full((1, 2), torch.nan)
    pairs = [BindingPair(0, "0", "1", "color")]
    figures = binding_figures(known(fit, fit), "fusion", Numbered(), pairs)
    assert figures["accuracy"] == 0


def test_a_way_that_is_not_there_is_told():
    scorer = replace(known(torch.eye(2), torch.eye(2)), ways=("dual",))
    with pytest.raises(ValueError, match=r"way must be one of dual, got 'fusion'"):
        scorer.scores("fusion", numbered(torch.tensor([0])), ["0"])
    with pytest.raises(ValueError, match="did you mean 'reranked'"):
        scorer.tables("rerank", numbered(torch.tensor([0])), ["0"], 1)


# Which system has which.


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_its_ways_and_no_other(system):
    expected = ()
    if system in ONLY_DUAL:
        expected = ("dual",)
    elif system in ONLY_FUSION:
        expected = ("fusion",)
    elif system in EVERY_WAY:
        expected = WAYS
    else:
        assert system in WITHOUT
    assert ways_of(Recipe(system=system, data="scenes")) == expected


@pytest.mark.parametrize(
    ("system", "heads", "pretraining"),
    [
        ("vilt", ("words",), {}),
        ("vilt", ("answer",), {}),
        ("albef", ("answers",), {}),
        ("uniter", ("answer",), {}),
        ("vlmo", ("words",), {}),
        ("blip2", None, {"language_model": "smollm2"}),
    ],
)
def test_without_the_head_there_is_no_way(system, heads, pretraining):
    model = {} if heads is None else {"heads": heads}
    recipe = Recipe(system=system, data="scenes", model=model, pretraining=pretraining)
    assert ways_of(recipe) == ()
    with pytest.raises(ValueError, match="one that scores a picture with a text"):
        load_scorer(recipe, "nowhere")


def test_a_system_without_ways_says_why(scenes):
    for system in WITHOUT:
        found = probe(Recipe(system=system, data="scenes"), "nowhere", scenes, scenes, 5)
        assert found == {"ways": {}, "without": WITHOUT[system]}


# Trained networks.


@pytest.mark.parametrize("name", RECIPES)
def test_a_finished_run_is_probed(name, runs, scenes):
    recipe, weights = runs[name]
    found = probe(recipe, weights, scenes, scenes, 6, seed=1, k=2)
    assert tuple(found["ways"]) == ways_of(recipe) and found["ways"]
    staged = name in ("albef", "blip", "blip2")
    expected = {"dual": 12, "fusion": 36 + 12 * staged, "reranked": 12 + 2 * 6 * 2}
    for way, figures in found["ways"].items():
        assert figures["passes"] == expected[way]
        assert figures["seconds"] > 0
        assert figures["retrieval"]["num_images"] == figures["retrieval"]["num_texts"] == 6
        assert sum(figures["binding"]["counts"].values()) == len(scenes)
        assert 0 <= figures["binding"]["accuracy"] <= 1


def test_a_seed_decides_what_is_asked(runs, scenes):
    def figures(seed):
        found = probe(*runs["vilbert"], scenes, scenes, 6, seed)["ways"]["fusion"]
        return {name: value for name, value in found.items() if name != "seconds"}

    assert figures(1) == figures(1) != figures(2)


def test_more_pictures_than_there_are_cannot_be_searched(runs, scenes):
    for wrong in (0, 21):
        with pytest.raises(ValueError, match=f"num_retrieved must be at most 20, .* got {wrong}"):
            probe(*runs["clip"], scenes, scenes, wrong)


def test_weights_of_another_model_are_refused(runs):
    with pytest.raises(CheckpointError):
        load_scorer(runs["vilt"][0], runs["clip"][1])


@pytest.mark.parametrize("name", ["clip", *EVERY_WAY])
def test_dual_scores_are_products_of_the_two_encoders(name, scorers, scenes):
    scorer = scorers[name]
    images, texts = shown_to(name, scorer, scenes)
    model = model_of(scorer)
    tables = scorer.tables("dual", images, texts, 1)
    assert torch.equal(tables.to_images, tables.to_texts.T)
    if name == "clip":
        expected = model.encode_images(images) @ model.encode_texts(texts).T
    else:
        with torch.no_grad():
            seen = model.network.encode_image(images)
            expected = seen @ model.network.encode_text(model.tokens(texts)).T
        # Of a BLIP-2's queries, the likest counts.
        expected = expected.amax(1) if name == "blip2" else expected
    torch.testing.assert_close(tables.to_texts, expected, atol=1e-5, rtol=1e-4)
    assert tables.to_texts.std() > 1e-4
    pairs = scorer.scores("dual", images, texts)
    torch.testing.assert_close(pairs, expected.diagonal(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["albef", "blip", "blip2"])
def test_reranked_tables_are_those_of_the_official_codes(name, scorers, scenes):
    scorer = scorers[name]
    model = model_of(scorer)
    assert isinstance(model, Reranker)
    images, texts = shown_to(name, scorer, scenes)
    tables = scorer.tables("reranked", images, texts, 3)
    to_texts, to_images = reranked_scores(model.network, images, model.tokens(texts), k=3)
    torch.testing.assert_close(tables.to_texts, to_texts)
    torch.testing.assert_close(tables.to_images, to_images)


@pytest.mark.parametrize("name", EVERY_WAY)
def test_with_all_as_candidates_reranking_is_fusion_and_the_cosine(name, scorers, scenes):
    """ALBEF adds none, so that the order is that of its matching head."""
    scorer = scorers[name]
    given = shown_to(name, scorer, scenes)
    dual, fusion, reranked = (scorer.tables(way, *given, NUM) for way in WAYS)
    weight = 0.0 if name == "albef" else 1.0
    expected = fusion.to_texts + weight * dual.to_texts
    torch.testing.assert_close(reranked.to_texts, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(reranked.to_images, expected.T, atol=1e-5, rtol=1e-4)
    pairs = scorer.scores("reranked", *given)
    torch.testing.assert_close(pairs, expected.diagonal(), atol=1e-5, rtol=1e-4)
    if name == "albef":
        orders = [table.to_texts.argsort(1) for table in (fusion, reranked)]
        assert torch.equal(*orders)


@pytest.mark.parametrize("name", ["vilt", "vlmo", "vilbert", "oscar"])
def test_fusion_scores_all_pairs_by_the_matching_head(name, scorers, scenes):
    scorer = scorers[name]
    images, texts = shown_to(name, scorer, scenes)
    tables = scorer.tables("fusion", images, texts, 1)
    expected = model_of(scorer).match_all(images, texts)
    torch.testing.assert_close(tables.to_texts, expected, atol=1e-5, rtol=1e-4)
    pairs = scorer.scores("fusion", images, texts)
    torch.testing.assert_close(pairs, expected.diagonal(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "output"), [("vilbert", 0), ("oscar", 0), ("vilt", 1)])
def test_fusion_reads_the_output_that_means_that_it_fits(name, output, scorers, scenes):
    scorer = scorers[name]
    head = model_of(scorer).network.heads["match"]
    last = [module for module in head.modules() if isinstance(module, torch.nn.Linear)][-1]
    kept = {key: value.clone() for key, value in last.state_dict().items()}
    images, texts = shown_to(name, scorer, scenes, 3)
    try:
        for raised in range(len(last.bias)):
            with torch.no_grad():
                last.weight.zero_()
                last.bias.copy_(4.0 * (torch.arange(len(last.bias)) == raised))
            said = scorer.scores("fusion", images, texts)
            assert (said > 0).all() == (raised == output)
    finally:
        last.load_state_dict(kept)


# Passes, as the networks see them.


def rows_through(network, names, act):
    """How many rows pass through each module in ``names`` while ``act`` runs."""
    seen, hooks = Counter(), []
    for name in names:

        def count(module, given, made, name=name):
            made = made[0] if isinstance(made, tuple) else made
            seen[name] += len(made)

        hooks.append(network.get_submodule(name).register_forward_hook(count))
    act()
    for hook in hooks:
        hook.remove()
    return [seen[name] for name in names]


@pytest.mark.parametrize("name", ["clip", "vilt", "vilbert", "albef", "vlmo"])
def test_passes_are_what_the_networks_see(name, scorers, scenes):
    """The blocks that images and texts go through count them row by row."""
    scorer = scorers[name]
    model = model_of(scorer)
    images, texts = shown_to(name, scorer, scenes)
    given = (images, texts, 3)
    made = {}

    def through(way, *names):
        return rows_through(
            model.network, names, lambda: made.update({way: scorer.tables(way, *given).passes})
        )

    if name == "clip":
        seen = through("dual", "image_encoder.blocks.0", "text_encoder.blocks.0")
        assert seen == [made["dual"].images, made["dual"].texts] == [NUM, NUM]
    elif name in ("vilt", "vilbert"):
        seen = through("fusion", "heads.match")
        assert seen == [made["fusion"].pairs] == [NUM * NUM]
    elif name == "albef":
        parts = ("image_encoder.blocks.0", "heads.match")
        for way, pairs in (("dual", 0), ("fusion", NUM * NUM), ("reranked", 2 * NUM * 3)):
            assert through(way, *parts) == [NUM, pairs]
            assert made[way] == Passes(NUM, NUM, pairs)
    else:
        # All that it reads, alone or together, goes through the same blocks.
        for way, total in (("dual", 20), ("fusion", 100), ("reranked", 80)):
            assert through(way, "blocks.0.attention") == [made[way].total] == [total]


def test_readers_are_of_two_kinds(scorers, scenes):
    for name, scorer in scorers.items():
        images, texts = shown_to(name, scorer, scenes, 2)
        staged = name in ("albef", "blip", "blip2")
        assert isinstance(scorer.read(images, texts), ReadInStages if staged else ReadTogether)
        assert isinstance(images, Regions) == (name in ("vilbert", "oscar"))
