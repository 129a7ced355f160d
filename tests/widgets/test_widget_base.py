import base64
import io
import json
import re
import string

import ipywidgets
import nbformat
import pytest
import torch
import traitlets
from nbclient import NotebookClient
from PIL import Image

from mmlab.widgets import PatchSplitter, TokenCalculator
from mmlab.widgets.base import listed, module_source, to_script_json, within
from mmlab.widgets.strings import STRINGS, strings_for

FIGURES = (
    "clip_search",
    "loss_laboratory",
    "masking",
    "patch_splitter",
    "similarity_matrix",
    "token_calculator",
    "transport_alignment",
)
VIEW = "application/vnd.jupyter.widget-view+json"


def picture(height=40, width=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def small_splitter(**options):
    return PatchSplitter({"noise": picture()}, patch_size=8, image_size=32, **options)


class Checked(traitlets.HasTraits):
    way = traitlets.Unicode("one")
    count = traitlets.Int(3)
    share = traitlets.Float(0.5)
    seed = traitlets.Int(0)

    @traitlets.validate("way")
    def _check_way(self, proposal):
        return listed(proposal, ("one", "two"))

    @traitlets.validate("count", "share", "seed")
    def _check_numbers(self, proposal):
        limits = {"count": (-1,), "share": (0.25, 1.0), "seed": (0, 2**32 - 1)}
        return within(proposal, *limits[proposal["trait"].name])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("way", "three", "way='three'; allowed are one, two"),
        ("count", -2, "count=-2; allowed are -1 and up"),
        ("share", 0.2, "share=0.2; allowed are 0.25 to 1"),
        ("share", float("nan"), "share=nan; allowed are 0.25 to 1"),
        ("seed", 2**32, "seed=4294967296; allowed are 0 to 4294967295"),
    ],
)
def test_a_refused_value_is_told_what_is_allowed(name, value, message):
    checked = Checked()
    with pytest.raises(ValueError) as caught:
        setattr(checked, name, value)
    assert str(caught.value) == message
    assert checked.trait_values() == Checked().trait_values()


def test_the_limits_themselves_are_allowed():
    Checked(way="two", count=-1, share=0.25, seed=2**32 - 1)
    Checked(count=10**6, share=1.0)


@pytest.fixture(params=[small_splitter, TokenCalculator], ids=["splitter", "calculator"])
def widget(request):
    return request.param()


def test_every_reader_finds_a_form_it_can_show(widget):
    data, _ = widget._repr_mimebundle_()
    assert {VIEW, "text/html", "text/plain", "image/png"} <= set(data)
    assert data[VIEW]["model_id"] == widget.model_id
    assert data["text/plain"] == widget.sentence()
    png = base64.b64decode(data["image/png"])
    assert min(Image.open(io.BytesIO(png)).size) > 200
    assert len(png) < 200_000


def test_still_picture_changes_with_the_values():
    splitter = small_splitter()
    before = splitter.to_png()
    splitter.order = "shuffled"
    assert splitter.to_png() != before


def test_the_page_gets_our_traits_and_none_of_the_machinery(widget):
    state = widget.page_state()
    assert "strings" in state
    assert not {"layout", "comm", "tabbable", "keys"} & set(state)
    assert not [name for name in state if name.startswith("_")]


@pytest.mark.parametrize("make", [small_splitter, TokenCalculator])
def test_same_figure_same_html(make):
    widget = make()
    assert widget.to_html() == make().to_html()


def test_script_json_cannot_end_its_script_and_carries_bytes():
    state = {"name": "</script><!-- <script>", "data": [b"\x00\xff"], "view": memoryview(b"ab")}
    text = to_script_json(state)
    assert "<" not in text
    assert json.loads(text)["name"] == state["name"]
    assert base64.b64decode(json.loads(text)["data"][0]["$bytes"]) == b"\x00\xff"
    assert base64.b64decode(json.loads(text)["view"]["$bytes"]) == b"ab"


@pytest.mark.parametrize(("value", "error"), [(float("nan"), ValueError), ({1, 2}, TypeError)])
def test_script_json_refuses_what_a_page_cannot_read(value, error):
    with pytest.raises(error):
        to_script_json({"x": value})


@pytest.mark.parametrize("name", FIGURES)
def test_module_is_self_contained(name):
    source = module_source(name)
    assert not re.search(
        r"^\s*import\b|\bimport\(|\bfetch\(|XMLHttpRequest|WebSocket", source, re.M
    )
    assert set(re.findall(r"https?://[^\s\"']+", source)) <= {"http://www.w3.org/2000/svg"}
    assert source.count("export default") == 1
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", source)


def places(text):
    return {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}


@pytest.mark.parametrize("language", sorted(STRINGS))
@pytest.mark.parametrize("name", FIGURES)
def test_every_language_has_the_same_words_and_places(language, name):
    english, other = strings_for(name), strings_for(name, language)
    assert english.keys() == other.keys()
    for key in english:
        assert places(english[key]) == places(other[key]), key
        assert other[key].count("*") % 2 == 0, key


@pytest.mark.parametrize("name", FIGURES)
def test_no_word_is_left_over(name):
    source = module_source(name)
    python_only = {"locale", "sentence", "sentence_uneven"}
    left_over = [key for key in strings_for(name) if not _is_used(key, source)]
    assert set(left_over) <= python_only


def _is_used(key, source):
    """Whether the source has the key, or puts it together from a beginning: "view_" + name."""
    parts = key.split("_")
    begins = ["_".join(parts[:n]) + "_" for n in range(1, len(parts))]
    return f'"{key}"' in source or any(f'"{b}"' in source or f"`{b}${{" in source for b in begins)


def test_unknown_language_is_refused():
    with pytest.raises(ValueError, match=r"language='tlh'; allowed are .*en"):
        TokenCalculator(language="tlh")


def test_lives_in_a_box_and_can_be_observed():
    calculator, seen = TokenCalculator(), []
    calculator.observe(lambda change: seen.append(change.new), "patch_size")
    box = ipywidgets.VBox([calculator])
    calculator.set_state({"patch_size": 32})
    assert seen == [32]
    assert calculator.cost.patches == 49
    assert box.children == (calculator,)


def test_a_notebook_shows_the_live_view_beside_the_page_form():
    code = "from mmlab.widgets import TokenCalculator\nTokenCalculator(384)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    assert {VIEW, "text/html", "text/plain", "image/png"} <= set(output.data)
    assert "576 patches" in output.data["text/plain"]
