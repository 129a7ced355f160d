"""The engine behind the tables, on tables small enough to check by eye."""

import numpy as np
import pytest
import torch

from mmlab.hub.mapping import (
    UNUSED,
    CheckpointError,
    Layout,
    Row,
    Tie,
    as_tensors,
    convert,
    linear,
    norm,
    prefixed,
)

ROWS = (
    Row("embedding", "emb", "h w c dim -> dim c h w"),
    *linear("layers.{i}.fc", "l{i}/fc", "mlp dim"),
    Row(("layers.{i}.q", "layers.{i}.k"), "l{i}/qk", "(two out) dim -> two out dim"),
    Row("layers.{i}.heads", "l{i}/heads", "num_heads head_dim -> (num_heads head_dim)"),
    *norm("layers.{i}.extra", "l{i}/extra", group="extra"),
)
BACK = [row.reversed() for row in ROWS]


def state(num_layers: int = 2, extra: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"emb": (2, 5, 3, 4)}
    for i in range(num_layers):
        shapes |= {f"l{i}/fc.weight": (6, 4), f"l{i}/fc.bias": (6,)}
        shapes |= {f"l{i}/qk": (14, 4), f"l{i}/heads": (3, 2)}
    for i in extra:
        shapes |= {f"l{i}/extra.weight": (4,), f"l{i}/extra.bias": (4,)}
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def to_ours(theirs, **sizes):
    return convert("toy", ROWS, theirs, **sizes)[0]


def test_values_land_where_the_axes_say():
    theirs = state()
    ours = to_ours(theirs)
    assert torch.equal(ours["embedding"], theirs["emb"].permute(3, 2, 0, 1))
    assert torch.equal(ours["layers.1.q"], theirs["l1/qk"][:7])
    assert torch.equal(ours["layers.1.k"], theirs["l1/qk"][7:])
    assert torch.equal(ours["layers.0.heads"], theirs["l0/heads"].flatten())


def test_an_unused_slice_is_dropped_and_comes_back_as_zeros():
    rows = prefixed((Row(("q", UNUSED, "v"), "qkv", "(n out) -> n out"),), "a.", "b.")
    ours, _ = convert("toy", rows, {"b.qkv": torch.arange(6.0)})
    assert {key: t.tolist() for key, t in ours.items()} == {"a.q": [0, 1], "a.v": [4, 5]}
    back, _ = convert("toy", [row.reversed() for row in rows], ours)
    assert back["b.qkv"].tolist() == [0, 1, 0, 0, 4, 5]


@pytest.mark.parametrize("extra", [(), (1,), (0, 1)])
def test_reversed_rows_undo_the_conversion(extra):
    theirs = state(extra=extra)
    back, _ = convert("toy", BACK, to_ours(theirs), num_heads=3)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


def test_reversing_twice_changes_nothing():
    assert tuple(row.reversed().reversed() for row in ROWS) == ROWS


def test_sizes_of_named_axes_are_reported():
    _, sizes = convert("toy", ROWS, state())
    assert (sizes["num_heads"], sizes["head_dim"], sizes["mlp"], sizes["out"]) == (3, 2, 6, 7)


def test_all_missing_and_left_over_keys_are_counted():
    theirs = state()
    del theirs["l0/fc.bias"], theirs["emb"]
    theirs["l0/unknown"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        to_ours(theirs)
    assert "2 missing: 'emb', 'l0/fc.bias'" in str(error.value)
    assert "1 left over: 'l0/unknown'" in str(error.value)


def test_a_gap_between_layers_is_missing_keys():
    theirs = state(3)
    theirs = {key: tensor for key, tensor in theirs.items() if not key.startswith("l1/")}
    with pytest.raises(CheckpointError, match=r"4 missing: 'l1/fc.weight'"):
        to_ours(theirs)


def test_an_absurd_layer_number_is_a_left_over_key():
    with pytest.raises(CheckpointError, match=r"1 left over: 'l999999/fc.weight'"):
        to_ours(state() | {"l999999/fc.weight": torch.zeros(6, 4)})


def test_half_of_an_optional_group_is_missing_its_other_half():
    theirs = state(extra=(1,))
    del theirs["l1/extra.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: 'l1/extra.bias'"):
        to_ours(theirs)


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("l1/fc.weight", (6, 5), r"'l1/fc.weight' is \(6, 5\) instead of \(mlp=6, dim=4\)"),
        ("l1/qk", (15, 4), r"'l1/qk' is \(15, 4\) instead of \(two=2 x out=7, dim=4\)"),
        ("l1/heads", (6,), r"'l1/heads' is \(6,\) instead of \(num_heads=3, head_dim=2\)"),
    ],
)
def test_a_wrong_shape_is_named_with_the_right_one(key, shape, expected):
    with pytest.raises(CheckpointError, match=expected):
        to_ours(state() | {key: torch.zeros(shape)})


def test_an_axis_that_no_shape_tells_must_be_given():
    with pytest.raises(CheckpointError, match="pass num_heads="):
        convert("toy", BACK, to_ours(state()))


def test_a_number_of_heads_that_does_not_divide_is_an_error():
    with pytest.raises(CheckpointError, match="num_heads=4"):
        convert("toy", BACK, to_ours(state()), num_heads=4)


def test_towers_keep_their_axis_sizes_apart():
    rows = prefixed(ROWS, "vision.", "v/") + prefixed(ROWS, "text.", "t/")
    vision, text = state(1), state(2, extra=(1,))
    text = {
        key: tensor.repeat(1, 2) if key.endswith("qk") else tensor for key, tensor in text.items()
    }
    text = {key: tensor.repeat(1, 2) if "fc.w" in key else tensor for key, tensor in text.items()}
    text["emb"] = text["emb"].repeat(1, 1, 1, 2)
    text |= {key: text[key].repeat(2) for key in text if "extra" in key}
    both = {f"v/{k}": t for k, t in vision.items()} | {f"t/{k}": t for k, t in text.items()}
    ours, _ = convert("toy", rows, both)
    assert ours["vision.layers.0.q"].shape == (7, 4)
    assert ours["text.layers.1.q"].shape == (7, 8)


def test_prefixes_are_stripped_only_if_all_keys_have_them():
    layout = Layout("toy", ROWS, "test", strip=("module.",))
    assert layout.table_keys(["module.a", "module.b"]) == {"module.a": "a", "module.b": "b"}
    assert layout.table_keys(["module.a", "b"]) == {"module.a": "module.a", "b": "b"}


def test_ignored_keys_are_left_out():
    layout = Layout("toy", ROWS, "test", ignored=(r".*position_ids",))
    assert layout.table_keys(["a", "text.position_ids"]) == {"a": "a"}
    assert layout.share_of_known(["emb", "text.position_ids", "b", "l12/qk"]) == 2 / 3


def test_the_input_is_not_changed_and_the_parts_have_storage_of_their_own():
    theirs = state()
    before = {key: tensor.clone() for key, tensor in theirs.items()}
    ours = to_ours(theirs)
    ours["layers.0.q"].zero_()
    assert all(torch.equal(theirs[key], before[key]) for key in before)
    assert ours["layers.0.k"].untyped_storage().nbytes() == ours["layers.0.k"].nbytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype):
    theirs = {key: tensor.to(dtype) for key, tensor in state().items()}
    assert {tensor.dtype for tensor in to_ours(theirs).values()} == {dtype}


def test_numpy_arrays_become_tensors_bit_for_bit():
    values = np.linspace(-3, 3, 8, dtype=np.float32)
    big_endian = values.astype(">f4")
    # How JAX leaves bfloat16 in an .npz: two opaque bytes a value.
    opaque = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy().view("V2")
    tensors = as_tensors({"little": values, "big": big_endian, "bfloat16": opaque})
    assert torch.equal(tensors["little"], torch.from_numpy(values))
    assert torch.equal(tensors["big"], torch.from_numpy(values))
    assert torch.equal(tensors["bfloat16"], torch.from_numpy(values).bfloat16())


def test_an_array_of_strings_is_an_error():
    with pytest.raises(CheckpointError, match="'names' is no numeric array"):
        as_tensors({"names": np.array(["a", "b"])})


TIES = (
    Tie("head.weight", "words.weight", beside="head.bias"),
    Tie("head.decoder.bias", "head.bias"),
)
TIED_ROWS = (
    Row("words", "words.weight", "vocab dim"),
    Row("head", "head.bias", "vocab", group="head"),
)
TIED = Layout("tied", TIED_ROWS, "test", tied=TIES)


def tied_state(head: bool = True) -> dict[str, torch.Tensor]:
    words, bias = torch.randn(5, 3), torch.randn(5)
    copies = {"head.bias": bias, "head.weight": words.clone(), "head.decoder.bias": bias.clone()}
    return {"words.weight": words, **(copies if head else {})}


@pytest.mark.parametrize("head", [True, False])
def test_tied_tensors_are_read_once_and_written_twice(head):
    theirs = tied_state(head)
    once = TIED.without_copies(theirs)
    assert once.keys() == ({"words.weight", "head.bias"} if head else {"words.weight"})
    twice = TIED.with_copies(once)
    assert twice.keys() == theirs.keys()
    assert all(torch.equal(twice[key], theirs[key]) for key in theirs)


def test_files_without_the_copies_or_without_the_original_are_read():
    whole = tied_state()
    for absent in ("head.weight", "words.weight"):
        state = {key: tensor for key, tensor in whole.items() if key != absent}
        assert torch.equal(TIED.without_copies(state)["words.weight"], whole["words.weight"])


def test_copies_that_differ_are_an_error_that_names_them():
    state = tied_state()
    state["head.weight"][0, 0] += 1e-6
    with pytest.raises(CheckpointError, match=r"'head.weight' and 'words.weight' must be the same"):
        TIED.without_copies(state)


def test_copies_count_as_known_keys():
    assert TIED.share_of_known(tied_state()) == 1


def test_a_scope_of_each_layer_lets_layers_differ():
    row = Row("layers.{i}.w", "l{i}/w", "rows columns -> columns rows", scope="layer {i}")
    theirs = {"l0/w": torch.zeros(2, 3), "l1/w": torch.zeros(4, 5)}
    assert convert("toy", [row], theirs)[0]["layers.1.w"].shape == (5, 4)
    row = Row("layers.{i}.w", "l{i}/w", "rows columns -> columns rows")
    with pytest.raises(CheckpointError, match=r"'l1/w' is \(4, 5\)"):
        convert("toy", [row], theirs)


def test_a_single_number_is_converted():
    ours, _ = convert(
        "toy", [Row("scale", "theirs.scale", "")], {"theirs.scale": torch.tensor(2.0)}
    )
    assert ours["scale"].shape == () and ours["scale"] == 2
    with pytest.raises(CheckpointError, match=r"'theirs.scale' is \(1,\) instead of \(\)"):
        convert("toy", [Row("scale", "theirs.scale", "")], {"theirs.scale": torch.ones(1)})
