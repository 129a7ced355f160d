from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab.analysis import count_parameters, record_attention
from mmlab.analysis.families import (
    BASE_WIDTH,
    BLOCKS,
    FAMILIES,
    TOY,
    LayerCost,
    Together,
    ToyConfig,
    attention_by_layer,
    block_mass,
    embed_patches,
    embed_words,
    hide_blocks,
    layer_costs,
    make_toy,
    meeting_layers,
    pair_costs,
    reach,
    retrieval_macs,
    who_looks,
)
from mmlab.analysis.families import WordsReadPatches as Reads

CAPTION = ["a", "red", "circle", "and", "a", "ring"]
OTHER = ["one", "blue", "star", "under", "no", "heart"]
JOINT = ("single_stream", "mixture_of_experts")


def picture(seed=0, size=32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)


def pair(caption=CAPTION, seed=0):
    return embed_words(caption), embed_patches(picture(seed), 8)


def jacobian(toy, words, patches):
    """Whether token i of the output changes with token j of the input: by calculus."""
    num_words = words.shape[1]

    def run(tokens):
        return torch.cat(toy(tokens[:, :num_words], tokens[:, num_words:]), dim=1)

    tokens = torch.cat([words, patches], dim=1).double()
    slopes = torch.autograd.functional.jacobian(run, tokens, vectorize=True)
    return slopes[0, :, :, 0].abs().amax(dim=(1, 3)) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_reach_is_what_calculus_says(family):
    toy = make_toy(family)
    words, patches = embed_words(["red", "ring", "on"]), embed_patches(picture(size=16), 8)
    known = reach(attention_by_layer(toy, words, patches))
    for layers in range(1, len(toy.layers) + 1):
        part = make_toy(family)
        part.layers = part.layers[:layers]
        assert torch.equal(known[layers - 1], jacobian(part.double(), words, patches))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_look_sum_to_one(family):
    attention = attention_by_layer(make_toy(family), *pair())
    sums = attention.sum(-1)
    assert attention.shape == (len(make_toy(family).layers), 22, 22)
    assert ((sums - 1).abs() < 1e-5).logical_or(sums == 0).all()
    waiting = {"fusion": 4 * 16}.get(family, 0)  # patches wait in four of fusion's layers
    assert (sums == 0).sum() == waiting


def test_the_matrix_holds_what_was_recorded():
    toy = make_toy("dual_stream")
    with record_attention(toy) as maps, torch.no_grad():
        toy(*pair())
    layer = attention_by_layer(toy, *pair())[2]
    assert torch.allclose(layer[:6, 6:], maps["layers.2.words.attention"][0].mean(0))
    assert torch.allclose(layer[6:, :6], maps["layers.2.patches.attention"][0].mean(0))
    assert layer[:6, :6].abs().sum() == layer[6:, 6:].abs().sum() == 0


def outputs(family, caption=CAPTION, seed=0):
    with torch.no_grad():
        return make_toy(family)(*pair(caption, seed))


def after(family, layers, caption):
    toy = make_toy(family)
    toy.layers = toy.layers[:layers]
    with torch.no_grad():
        return toy(*pair(caption))


def test_dual_encoder_never_meets():
    assert torch.equal(outputs("dual_encoder")[1], outputs("dual_encoder", OTHER)[1])
    assert torch.equal(outputs("dual_encoder")[0], outputs("dual_encoder", seed=1)[0])


def test_fusion_is_one_way():
    assert torch.equal(outputs("fusion")[1], outputs("fusion", OTHER)[1])
    assert not torch.allclose(outputs("fusion")[0], outputs("fusion", seed=1)[0])


def test_dual_stream_meets_at_the_first_co_attention():
    for layers in range(1, 7):
        same = torch.equal(
            after("dual_stream", layers, CAPTION)[1], after("dual_stream", layers, OTHER)[1]
        )
        assert same == (layers <= 2)
    assert meeting_layers("dual_stream") == (2, 2)


@pytest.mark.parametrize("family", JOINT)
def test_joint_families_meet_at_once(family):
    one, two = after(family, 1, CAPTION)[1], after(family, 1, OTHER)[1]
    assert not torch.allclose(one, two)
    assert meeting_layers(family) == (0, 0)


def test_co_attention_reads_the_state_before_it():
    layer = make_toy("dual_stream").layers[2]
    words, patches = pair()
    with torch.no_grad():
        new_words, new_patches = layer(words, patches)
        assert torch.equal(new_patches, layer.patches(patches, context=words))
        assert not torch.allclose(new_patches, layer.patches(patches, context=new_words))


def test_one_way_reading_agrees_with_pytorch():
    layer = Reads(TOY).look
    words, patches = pair()
    theirs = torch.nn.MultiheadAttention(TOY.dim, TOY.num_heads, batch_first=True)
    ours = layer.attention
    state = {
        "in_proj_weight": [ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight],
        "in_proj_bias": [ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias],
    }
    state = {name: torch.cat(parts) for name, parts in state.items()}
    state |= {"out_proj.weight": ours.out_proj.weight, "out_proj.bias": ours.out_proj.bias}
    theirs.load_state_dict(state)
    keys = layer.norm(patches)
    expected, _ = theirs(layer.norm(words), keys, keys)
    assert torch.allclose(layer(words, patches) - words, expected, atol=1e-6)


def test_experts_share_the_attention_and_choose_the_mlp_by_kind():
    layer = make_toy("mixture_of_experts").layers[0]
    words, patches = pair()
    with torch.no_grad():
        before = layer(words, patches)
        for parameter in layer.words.parameters():
            parameter.mul_(2)
        after_words, after_patches = layer(words, patches)
    assert torch.equal(after_patches, before[1])
    assert not torch.allclose(after_words, before[0])


def test_families_are_told_apart_by_sizes_alone():
    kinds = [set(who_looks(make_toy(family)).values()) for family in FAMILIES]
    own = {("words", "words"), ("patches", "patches")}
    swap = {("words", "patches"), ("patches", "words")}
    assert kinds == [
        {("both", "both")},
        own | swap,
        own,
        own | {("words", "patches")},
        {("both", "both")},
    ]


@pytest.mark.parametrize("num_words", [1, 3, 16])
def test_equal_numbers_of_words_and_patches_are_no_trouble(num_words):
    words = embed_words([str(i) for i in range(num_words)])
    patches = embed_patches(picture(), 8)
    layer = attention_by_layer(make_toy("fusion"), words, patches)[3]
    assert (layer[:num_words, num_words:] > 0).all()
    assert layer[num_words:].sum() == layer[:, :num_words].sum() == 0


def test_block_mass_is_the_mean_share():
    attention = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.7, 0.3], [0.0, 0.0]])
    assert torch.allclose(block_mass(attention, num_words=2), expected)
    assert block_mass(attention.expand(4, 2, 3, 3), 2).shape == (4, 2, 2, 2)


def test_hidden_blocks_make_a_kind_independent():
    layer = Together(TOY)
    mask = hide_blocks(6, 16, ("words", "patches"), ("patches", "words"))
    (words, patches), (others, _) = pair(), pair(OTHER)
    with torch.no_grad():
        same = torch.equal(layer(words, patches, mask)[1], layer(others, patches, mask)[1])
        free = torch.allclose(layer(words, patches)[1], layer(others, patches)[1])
    assert same and not free
    assert hide_blocks(6, 16).all()
    assert (~hide_blocks(6, 16, BLOCKS[1])).sum() == 6 * 16


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [(5, 9), (9, 4), (3, 49)])
def test_costs_agree_with_pytorch_s_counter(family, sizes):
    config = ToyConfig(dim=48, num_heads=4, mlp_dim=100)
    toy = FAMILIES[family](config)
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
    ):
        toy(*(torch.zeros(1, n, config.dim) for n in sizes))
    costs = pair_costs(family, *sizes, config)
    assert 2 * sum(c.words + c.patches for c in costs) == counter.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_toy(family):
    with torch.device("meta"):
        toy = FAMILIES[family](BASE_WIDTH)
    layers = layer_costs(family)
    assert sum(layer.parameters for layer in layers) == count_parameters(toy)


def test_experts_add_one_mlp_a_layer():
    shared, experts = layer_costs("single_stream")[0], layer_costs("mixture_of_experts")[0]
    D, M = BASE_WIDTH.dim, BASE_WIDTH.mlp_dim
    assert experts.parameters - shared.parameters == 2 * D * M + D + M + 2 * D
    assert replace(experts, parameters=0, thinks=()) == LayerCost(
        shared.per_word, shared.per_patch, (("both", "both"),), (), 0
    )
    assert (shared.thinks, experts.thinks) == (("both",), ("words", "patches"))


def brute_force(family, images, captions, words, patches):
    """The same sum, image by image and caption by caption."""
    meets = meeting_layers(family)
    costs, total = pair_costs(family, words, patches), 0
    for layer, cost in enumerate(costs):
        kept_words, kept_patches = set(), set()
        for image in range(images):
            for caption in range(captions):
                if layer >= meets[0] or caption not in kept_words:
                    total += cost.words
                    kept_words.add(caption)
                if layer >= meets[1] or image not in kept_patches:
                    total += cost.patches
                    kept_patches.add(image)
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_retrieval_is_the_sum_over_all_runs(family):
    assert retrieval_macs(family, 3, 5, 7, 16) == brute_force(family, 3, 5, 7, 16)


def test_a_dual_encoder_s_search_is_linear():
    once = retrieval_macs("dual_encoder", 10, 50, 7, 16)
    assert retrieval_macs("dual_encoder", 20, 100, 7, 16) == 2 * once
    assert retrieval_macs("single_stream", 20, 100, 7, 16) == 4 * retrieval_macs(
        "single_stream", 10, 50, 7, 16
    )


def test_the_same_seed_is_the_same_toy_and_leaves_the_generator_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, two, other = make_toy("fusion"), make_toy("fusion"), make_toy("fusion", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [t.layers[0].words.attention.q_proj.weight for t in (one, two, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_word_has_the_same_vector_wherever_it_stands():
    places = embed_words(["_"] * 3) - embed_words(["_", "_", "_"])[:, :1]
    red = embed_words(["red", "ring", "red"]) - places
    assert torch.allclose(red[0, 0], red[0, 2], atol=1e-6)
    assert not torch.allclose(red[0, 0], red[0, 1])
    assert embed_words(["\ud800", "汉字", ""]).isfinite().all()


WRONG = {
    "family": (lambda: make_toy("trio"), "family must be one of single_stream.*got 'trio'"),
    "cost family": (lambda: layer_costs("trio"), "family must be one of"),
    "dim": (lambda: ToyConfig(dim=33), "dim must be a multiple of num_heads=2, got 33"),
    "heads": (lambda: ToyConfig(num_heads=0), "num_heads must be an integer of at least 1, got 0"),
    "block": (lambda: hide_blocks(2, 3, ("words", "sky")), "one of words → words.*words → sky"),
    "blind": (lambda: hide_blocks(2, 3, *BLOCKS[:2]), "blocks that leave each token a view"),
    "patches": (lambda: embed_patches(picture(), 5), "patch_size must divide the image"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_told_what_is_allowed(name):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        make()
