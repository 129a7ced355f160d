import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer as Engine
from tokenizers.models import BPE

from mmlab.datasets import emoji
from mmlab.datasets.transforms import CLIP_MEAN, CLIP_STD, center_crop, normalize, resize
from mmlab.models.clip import CLIP, CLIP_VIT_MINI
from mmlab.models.flip import FLIP, FLIP_MINI
from mmlab.tasks.dual_encoder import DualEncoder
from mmlab.widgets import CLIPSearch
from mmlab.widgets.base import module_source
from mmlab.widgets.clip_pack import (
    BITS,
    MAX_BYTES,
    pack_tower,
    pack_towers,
    page_tokenizer,
    script_parts,
    tower_contents,
)
from mmlab.widgets.clip_search import (
    GALLERY,
    gallery,
    packed_towers,
    shipped_encoder,
    shipped_weight_files,
)
from mmlab.widgets.strings import strings_for
from tests.browser import needs_chromium
from tests.widgets.figure_page import HOSTILE, settle, write_page
from tests.widgets.small_clip import (
    LENGTH,
    SENTENCES,
    encoder,
    needs_shipped,
    rounded,
    tokenizer,
    unpacked,
)

LIMIT = 3_000_000
HARD = [
    *SENTENCES,
    "",
    "   ",
    "\t\n a\r\nb\u3000c\u00a0d\u2028e\x85f\x0bg\x0ch",
    "😍🐈‍⬛ smiling 👩🏽‍🚀 🇨🇳",
    "CAFÉ Zürich e\u0301 n\u0303 İstanbul ǅ ß ﬁ Å",
    "ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ",
    "Кошка קוּפּ قطة แมว ネコ ﾈｺ が か\u3099 한국어",
    "red\x00 cir\u200bcle\ufffd soft\u00adhyphen \ue000 \U0010ffff",
    "a red [MASK] and [SEP] cats[UNK][CLS] [PAD] [sep] [[SEP]]",
    "x" * 100,
    "x" * 101,
    "𠀀𪜀𫝀 㐀 豈 〇 々 ー",
    "aren't it's rock'n'roll — “quoted” … ‹a› ¿qué? ¡sí!",
    "1+1=2 $5 <b> a^b `c` |d| ~e~ a_b #tag @you 50% & co",
    "€5 ©2024 ™ ½ ² № ① Ⅳ ∞ ≠ → ★",
    "half \ud83d a pair \ude00 left",
    "a\u0300\u0301\u0302b \u0300c \u20dd",
    "e" * 40 + " " + "猫" * 40,
    "O\u2019Neill \u2018a\u2019 \uff01\uff0c\u3002\u300c\u732b\u300d",
    HOSTILE,
]


def pictures(count=20, size=40):
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return {f"p{i}": image for i, image in enumerate(draw)}


def search(names=None, **options):
    named = pictures() if names is None else dict(zip(names, pictures().values(), strict=False))
    options = {"examples": ("a happy cat", "红心")} | options
    return CLIPSearch(encoder(), named, **options)


# ---- Packing


RESNET = {"stages": (1, 2, 1, 1), "dim": 4, "image_size": 32}
PACKED = [("text", {}, None), ("image", {}, None), ("image", {}, 5), ("image", RESNET, 6)]


@pytest.mark.parametrize(("tower", "options", "bits"), PACKED)
def test_packed_weights_are_off_by_half_a_step_at_most(tower, options, bits):
    original = encoder(**options)
    state = original.network.state_dict()
    header, tensors = unpacked(pack_tower(original, tower, bits))
    expected = {k for k in state if k.startswith(tower + "_") and "num_batches" not in k}
    assert tensors.keys() == expected
    coded = {entry["name"] for entry in header["tensors"] if entry["coded"]}
    assert coded
    for name, values in tensors.items():
        if name in coded:
            rows = state[name].flatten(1)
            levels = 2 ** ((bits or BITS[tower][0]) - 1)
            step = rows.abs().amax(dim=1, keepdim=True) / (levels - 1)
            assert ((values.flatten(1) - rows).abs() <= 0.501 * step).all(), name
        else:
            assert torch.equal(values, state[name]), name


@pytest.mark.parametrize("size", [1, 14, 15, 135_000, 135_001, 300_000])
def test_scripts_carry_every_byte(size):
    packed = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    bits = []
    for name, script in script_parts(packed).items():
        text = script.decode("utf-16")  # obeys the mark, which stands first
        head, content, tail = text.split('"')[:2], text.split('"')[3], text.split('"')[4]
        assert head == ["(globalThis.mmlabParts ??= {})[", name] and tail == ";\n"
        codes = np.array([ord(c) for c in content]) - 0x100
        assert codes.min() >= 0 and codes.max() < 2**15
        bits.append(((codes[:, None] >> np.arange(15)) & 1).astype(np.uint8).flatten())
    found = np.packbits(np.concatenate(bits), bitorder="little").tobytes()
    assert found[:size] == packed


def test_what_a_page_cannot_run_is_refused():
    words = tokenizer()
    flip = FLIP(replace(FLIP_MINI, vocab_size=words.vocab_size))
    with pytest.raises(ValueError, match="encoder holds a FLIP; a page can run a CLIP only"):
        pack_tower(DualEncoder(flip, words), "text")
    for strange in (encoder_with_another_image_tower(), encoder_with_another_stem()):
        with pytest.raises(ValueError, match=r"encoder holds a .*; a page can run CLIP's transf"):
            pack_tower(strange, "image")


class OtherTower(torch.nn.Module):
    """An image encoder that no page knows."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 24)

    def forward(self, images):
        return self.layer(images.mean(dim=(2, 3)))


def encoder_with_another_image_tower():
    network = CLIP(encoder().network.config).eval()
    network.image_encoder, network.image_projection = OtherTower(), None
    return DualEncoder(network, tokenizer())


def encoder_with_another_stem():
    network = CLIP(encoder(stem="conv").network.config).eval()
    network.image_encoder.patch_embedding.layers[1][2] = torch.nn.ReLU()
    return DualEncoder(network, tokenizer())


def packed_bits(packed):
    return tower_contents(packed)["bits"]


def test_without_an_image_tower_that_runs_the_page_gets_the_text_tower():
    assert pack_towers(encoder()).keys() == {"text", "image"}
    assert pack_towers(encoder(**RESNET)).keys() == {"text", "image"}
    for strange in (encoder_with_another_image_tower(), encoder_with_another_stem()):
        packed = pack_towers(strange)
        assert packed == {"text": pack_tower(strange, "text")}
        figure = CLIPSearch(strange, pictures(), examples=("a happy cat",))
        assert figure.towers.keys() == {"text"}
        figure.asked = ["image", "text"]
        assert (figure.text_weights, figure.image_weights) == (packed["text"], b"")


def test_the_image_tower_takes_the_bits_that_there_is_room_for():
    def size(packed):
        return sum(map(len, script_parts(packed).values()))

    text = size(pack_tower(encoder(), "text"))
    sizes = {bits: size(pack_tower(encoder(), "image", bits)) for bits in BITS["image"]}
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    for bits, image in sizes.items():
        packed = pack_towers(encoder(), text + image)
        assert packed_bits(packed["image"]) == bits
        assert sum(map(size, packed.values())) == text + image
    assert pack_towers(encoder(), text + min(sizes.values()) - 1).keys() == {"text"}


def test_the_tokenizer_of_another_kind_is_refused():
    other = replace(tokenizer(), engine=Engine(BPE()))
    with pytest.raises(ValueError, match="tokenizer is BPE; a page can run WordPiece only"):
        page_tokenizer(other, LENGTH)


# ---- Python


def test_the_gallery_is_of_a_style_that_nobody_trained_on():
    examples = gallery()
    assert len(examples) == len(GALLERY) == len(set(GALLERY)) > 150
    assert {example.extra["vendor"] for example in examples} == {"fluent"}
    assert len({example.label for example in examples}) == len(examples)


def test_wrong_input_is_told_what_is_allowed():
    one = dict(list(pictures().items())[:1])
    with pytest.raises(ValueError, match="images has 1 pictures; allowed are 2 to 400"):
        CLIPSearch(encoder(), one)
    with pytest.raises(ValueError, match="examples is empty"):
        CLIPSearch(encoder(), pictures(), examples=())
    for trait, value in (("view", "both"), ("chosen", 21), ("chosen", -2)):
        with pytest.raises(ValueError, match=f"{trait}=.*; allowed are"):
            setattr(search(), trait, value)


def test_ranking_and_sentence_are_the_model_s():
    figure = search(query="a dog")
    images = encoder().encode_images(list(pictures().values()))
    scores = (encoder().network.scale() * images @ encoder().encode_texts(["a dog"])[0]).softmax(0)
    expected = {f"p{i}": p for i, p in enumerate(scores.tolist())}
    found = figure.ranking()
    assert dict(found) == pytest.approx(expected, abs=1e-4)
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    assert "20 pictures" in figure.sentence() and found[0][0] in figure.sentence()
    assert figure.to_png() != search(query="红心").to_png()


def test_captions_are_the_names_in_both_languages():
    data = emoji("all", "fluent").__getitems__([3, 50, 900])
    figure = CLIPSearch(encoder(), data)
    texts = [(c.text, i) for i, e in enumerate(data) for c in e.captions if c.kind == "name"]
    assert [(c["text"], c["picture"]) for c in figure.captions] == texts
    assert len(texts) == 6


def test_the_page_has_no_weights_until_it_asks():
    figure = search()
    assert figure.text_weights == b""
    before = figure.to_html()
    figure.set_state({"asked": ["text"]})
    assert figure.text_weights == pack_tower(encoder(), "text")
    assert figure.image_weights == b""
    assert figure.to_html() == before


def test_weights_are_written_under_the_names_that_the_page_asks_for(tmp_path):
    figure = search()
    figure.write_weights(tmp_path / "new" / "folder")
    asked = {f"{name}.js" for tower in figure.towers.values() for name in tower["files"]}
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == asked


def test_everything_together_stays_under_three_megabytes():
    words = tokenizer()
    config = replace(CLIP_VIT_MINI, vocab_size=4000)
    big = DualEncoder(CLIP(config).eval(), words)
    packed = pack_towers(big)
    weights = sum(len(s) for data in packed.values() for s in script_parts(data).values())
    assert weights <= MAX_BYTES
    figure = CLIPSearch(encoder(), gallery())
    rows = len(figure.names) + len(figure.captions) + len(figure.examples)
    gallery_bytes = len(figure.sprite) + 2 * rows * config.embed_dim
    assert weights + gallery_bytes * 4 / 3 < LIMIT


@needs_shipped
def test_the_shipped_model_stays_under_three_megabytes():
    figure, plain = CLIPSearch(), len(module_source("clip_search", "wordpiece", "clip_network"))
    assert figure.weight_files() == shipped_weight_files()
    weights = sum(map(len, shipped_weight_files().values()))
    assert weights + len(figure.to_html()) - plain < LIMIT


def test_module_is_self_contained_and_leaves_no_word_over():
    source = CLIPSearch._esm
    assert not re.search(r"^\s*import\b|\bimport\(|\bfetch\(|XMLHttpRequest", source, re.M)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", source)
    assert set(re.findall(r"https?://[^\s\"']+", source)) <= {"http://www.w3.org/2000/svg"}
    for key in set(strings_for("clip_search")) - {"locale", "sentence"}:
        assert f'"{key}"' in source or key.startswith("view_"), key


# ---- The model in the page, beside PyTorch

MODULE = "clip_search", "wordpiece", "clip_network", "weights"
NAMES = "cleaned, splitWords, createTokenizer, encodeText, encodeImage, unpackTower, prepared, h"


@pytest.fixture(scope="module")
def lab(chromium, site):
    """A page with the functions of the modules in ``lab``."""
    script = f"{module_source(*MODULE)}\nglobalThis.lab = {{ {NAMES} }};"
    (site / "lab.html").write_text(
        f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">'
        f'<script type="module">{script.replace("</script>", "")}</script>',
        encoding="utf-8",
    )
    page, log = chromium()
    page.goto("lab.html")
    page.wait_for_function("globalThis.lab")
    yield page
    page.context.close()
    assert log.errors == log.external == []


UNPACK = """async ([name, data]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  lab[name] = await lab.unpackTower(new Blob([bytes]));
}"""


def give(lab, original, tower):
    packed = packed_towers(original)[tower]
    lab.evaluate(UNPACK, [tower, base64.b64encode(packed).decode()])


def text_features(lab, original, texts):
    give(lab, original, "text")
    tokens = lab.evaluate("(texts) => texts.map(lab.createTokenizer(lab.text.tokenizer))", [*texts])
    ids = [entry["ids"] for entry in tokens]
    rows = lab.evaluate("(ids) => ids.map((row) => [...lab.encodeText(lab.text, row)])", ids)
    return torch.tensor(rows)


def image_features(lab, original, images):
    give(lab, original, "image")
    size = original.network.config.image_size
    pixels = normalize(images, CLIP_MEAN, CLIP_STD).flatten(1).tolist()
    run = """([pixels, size]) => pixels.map((data) =>
      [...lab.encodeImage(lab.image, { data: Float32Array.from(data), channels: 3, size })])"""
    return torch.tensor(lab.evaluate(run, [pixels, size]))


VARIANTS = {
    "as it ships": {},
    "linear patches": {"stem": "linear", "activation": "gelu"},
    "end of the vocabulary": {"end_id": None, "activation": "gelu_tanh"},
    "relu": {"activation": "relu", "norm_eps": 1e-3, "text_depth": 1, "patch_size": 16},
    "a ResNet": RESNET,
    "a wider ResNet": {"stages": (1, 1, 2, 1), "dim": 8, "image_size": 64},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.mark.browser
@needs_chromium
class TestNetworkInThePage:
    @every_variant
    def test_text_features_are_torch_s(self, lab, variant):
        original = encoder(**VARIANTS[variant])
        found = text_features(lab, original, SENTENCES)
        assert torch.allclose(found, rounded(original).encode_texts(SENTENCES), atol=2e-6)
        assert len(SENTENCES) >= 20

    @every_variant
    def test_image_features_are_torch_s(self, lab, variant):
        original = encoder(**VARIANTS[variant])
        size = original.network.config.image_size
        images = torch.stack(list(pictures(4, size).values()))
        expected = rounded(original).encode_images(images)
        assert torch.allclose(image_features(lab, original, images), expected, atol=2e-6)

    @pytest.mark.parametrize("size", [(32, 32), (90, 64), (31, 47), (20, 33), (200, 333)])
    def test_pictures_are_prepared_as_by_the_package(self, lab, size):
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        expected = normalize(
            center_crop(resize(image, 32, "bicubic"), 32)[None], CLIP_MEAN, CLIP_STD
        )
        pixels = torch.cat([image, torch.full((1, *size), 255)]).permute(1, 2, 0).flatten()
        run = """([pixels, height, width, mean, std]) => {
          const canvas = lab.h("canvas", { width, height });
          const data = new ImageData(Uint8ClampedArray.from(pixels), width, height);
          canvas.getContext("2d").putImageData(data, 0, 0);
          return [...lab.prepared(canvas, 32, mean, std).data];
        }"""
        data = [pixels.tolist(), *size, list(CLIP_MEAN), list(CLIP_STD)]
        found = torch.tensor(lab.evaluate(run, data)).view(3, 32, 32)
        step = 1 / 255 / min(CLIP_STD)
        assert ((found - expected[0]).abs() <= 1.01 * step).all()
        assert (found - expected[0]).abs().mean() < 0.05 * step

    @needs_shipped
    def test_the_shipped_model_agrees_to_a_thousandth(self, lab):
        shipped = shipped_encoder()
        texts = text_features(lab, shipped, SENTENCES)
        images = emoji("all", "fluent").images(list(range(0, 1500, 60)))
        exact_texts, exact_images = shipped.encode_texts(SENTENCES), shipped.encode_images(images)
        assert (texts - exact_texts).abs().max() < 1e-3
        assert (texts @ exact_images.T - exact_texts @ exact_images.T).abs().max() < 1e-3

    @needs_shipped
    def test_own_pictures_of_the_shipped_model_agree_to_two_hundredths(self, lab):
        shipped = shipped_encoder()
        packed = packed_towers(shipped).get("image")
        if packed is None:
            pytest.skip("the page does not get this image tower")
        size = shipped.network.config.image_size
        images = emoji("all", "fluent", image_size=size).images(list(range(0, 1500, 60)))
        pictures, texts = image_features(lab, shipped, images), shipped.encode_texts(SENTENCES)
        difference = (pictures - shipped.encode_images(images)) @ texts.T
        # One bit less doubles the error.
        assert difference.abs().max() < 2e-2 * 2 ** (BITS["image"][0] - packed_bits(packed))


@pytest.mark.browser
@needs_chromium
class TestTokenizerInThePage:
    def test_tokens_are_the_package_s(self, lab):
        words = tokenizer()
        give(lab, encoder(), "text")
        found = []
        for text in HARD:
            # Half a pair of surrogates travels as an escape only.
            run = f"lab.createTokenizer(lab.text.tokenizer)({json.dumps(text)})"
            found.append(lab.evaluate(run))
        batches = [words(text, LENGTH, allow_empty=True) for text in HARD]
        assert [f["ids"] for f in found] == [b.input_ids[0].tolist() for b in batches]
        assert [f["dropped"] for f in found] == [b.num_dropped.item() for b in batches]
        assert len(HARD) >= 30

    def test_every_character_is_cleaned_and_split_as_by_the_package(self, lab):
        """Of the scripts that have not grown since Unicode 8, whose tables ``tokenizers`` has."""
        blocks = [(0x0, 0x600), (0x1E00, 0x2E42), (0x2E80, 0xA4D0), (0xAC00, 0xD7A4)]
        blocks += [(0xF900, 0x10000), (0x1F300, 0x20000), (0x2F800, 0x2FA20), (0xE0001, 0xE0200)]
        newer = {*range(0x1DF5, 0x1DFB)}
        codes = [c for block in blocks for c in range(*block) if c not in newer and c != 0x7C]
        engine = tokenizer().engine
        text = " | ".join(f"a{chr(code)}b" for code in codes)
        split, clean = engine.pre_tokenizer.pre_tokenize_str, engine.normalizer.normalize_str
        found = lab.evaluate("(text) => lab.splitWords(lab.cleaned(text, true))", text)
        expected = [word for word, _ in split(clean(text))]
        found, expected = ("\n".join(words).split("\n|\n") for words in (found, expected))
        assert len(found) == len(expected) == len(codes)
        triples = zip(codes, found, expected, strict=True)
        assert [(hex(code), f, e) for code, f, e in triples if f != e] == []


# ---- The figure


def cosines(page, place="results"):
    bars = page.locator(f".{place} .score").all()
    return [float(bar.get_attribute("data-cosine")) for bar in bars]


def best_cosines(text, original):
    """Of the first twelve pictures; ``original`` encodes the caption."""
    images = encoder().encode_images(list(pictures().values()))
    cosines = images @ original.encode_texts([text])[0]
    return pytest.approx(cosines.sort(descending=True).values[:12].tolist(), abs=1e-4)


def loaded(page):
    page.wait_for_function(
        "document.querySelector('[role=status]').textContent.includes('Every letter')"
    )
    settle(page)


def type_and_search(page, text):
    page.get_by_label("A caption").fill(text)
    page.keyboard.press("Enter")


def told(page):
    return page.locator(".mmlab-widget").inner_text()


class Live(CLIPSearch):
    """A page on which the kernel has already answered."""

    def page_state(self):
        return super().page_state() | {"source": "live", "text_weights": self._packed["text"]}


@pytest.fixture
def weights(site):
    search().write_weights(site / "_static" / "clip")


@pytest.mark.browser
@needs_chromium
@pytest.mark.usefixtures("weights")
class TestFigure:
    def test_examples_need_no_weights_and_a_caption_of_one_s_own_does(self, show):
        page = show(search())
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        settle(page)
        assert cosines(page) == best_cosines("a happy cat", encoder())
        page.get_by_role("button", name="红心").click()
        settle(page)
        assert cosines(page) == best_cosines("红心", encoder())
        page.get_by_label("A caption").fill("a dog")
        settle(page)
        assert requests == []
        page.keyboard.press("Enter")
        loaded(page)
        assert cosines(page) == best_cosines("a dog", rounded(encoder()))
        names = {url.split("/")[-1] for url in requests if "_static/clip" in url}
        assert names == {f"{name}.js" for name in search().towers["text"]["files"]}
        assert page.evaluate("Object.keys(globalThis.mmlabParts)") == []

    def test_letters_ask_anew_once_the_model_is_there(self, show):
        page = show(search())
        type_and_search(page, "猫")
        loaded(page)
        for text in ("two red hearts", "两颗红心"):
            page.get_by_label("A caption").fill(text)
            settle(page)
            assert cosines(page) == best_cosines(text, rounded(encoder()))
            assert text in page.locator(".headline").inner_text()

    def test_it_tells_how_far_it_is_from_torch(self, show):
        page = show(search())
        type_and_search(page, "猫")
        loaded(page)
        page.locator("details").evaluate("node => node.open = true")
        check = page.locator("details p").last
        assert "on the 2 examples" in check.inner_text()
        images = encoder().encode_images(list(pictures().values()))
        exact, found = (
            e.encode_texts(["a happy cat", "红心"]) for e in (encoder(), rounded(encoder()))
        )
        expected = (images @ (found - exact).T).abs().max().item()
        assert float(check.get_attribute("data-difference")) == pytest.approx(expected, abs=5e-5)

    def test_works_from_the_disk(self, show):
        page = show(search(), url=lambda path: path.as_uri())
        type_and_search(page, "a dog")
        loaded(page)
        assert cosines(page) == best_cosines("a dog", rounded(encoder()))

    def test_a_page_in_a_folder_finds_the_root_of_the_site(self, show):
        page = show(search(folder="clip"))
        page.evaluate("document.documentElement.dataset.content_root = './_static/'")
        type_and_search(page, "a dog")
        loaded(page)

    def test_with_a_kernel_the_weights_come_in_a_trait(self, show):
        figure = Live(encoder(), pictures(), examples=("a happy cat",), folder="nowhere")
        page = show(figure)
        type_and_search(page, "a dog")
        loaded(page)
        assert cosines(page) == best_cosines("a dog", rounded(encoder()))

    def test_missing_weights_are_told_and_asked_for_again(self, chromium, site):
        write_page(site / "missing.html", search(folder="late"))
        page, _ = chromium()
        page.goto("missing.html")
        page.wait_for_selector(".results li")
        type_and_search(page, "a dog")
        page.wait_for_function(
            "document.querySelector('[role=status]').textContent.includes('not be')"
        )
        assert "late/" in page.get_by_role("status").inner_text()
        assert page.locator("progress").is_hidden()
        assert cosines(page) == best_cosines("a happy cat", encoder())
        search().write_weights(site / "late")
        type_and_search(page, "a dog")
        loaded(page)
        page.context.close()

    def test_progress_is_shown(self, show):
        page = show(search())
        values = page.evaluate("""() => new Promise((resolve) => {
          const bar = document.querySelector("progress"), seen = [];
          new MutationObserver(() => {
            seen.push([bar.classList.contains("hidden"), bar.getAttribute("value")]);
            if (seen.length > 1 && seen.at(-1)[0]) resolve(seen);
          }).observe(bar, { attributes: true });
          document.querySelector("form").requestSubmit();
        })""")
        assert values[0][0] is False and values[-1][0] is True
        assert "1" in [value for _, value in values]

    def test_what_the_model_cannot_read_is_told(self, show):
        page = show(search(query="a happy cat"))
        assert page.locator(".token").all_inner_texts()[:2] == ["[CLS]", "a"]
        type_and_search(page, "cat \N{UNICORN FACE} zyzzyva")
        loaded(page)
        assert page.locator(".token.unknown").all_inner_texts() == ["[UNK]"]
        assert "Unknown: “\N{UNICORN FACE}”" in told(page)
        assert "read in pieces: “zyzzyva”" in told(page)
        page.get_by_label("A caption").fill("猫" * 40)
        settle(page)
        assert f"It reads {LENGTH} tokens at most; the last {42 - LENGTH} are left out." in told(
            page
        )
        page.get_by_label("A caption").fill(" ")
        settle(page)
        assert len(cosines(page)) == 12

    def test_a_picture_is_chosen_by_pointer_key_and_name(self, show):
        page = show(search())
        gallery = page.locator("canvas[role=application]")
        gallery.focus()
        page.keyboard.press("ArrowRight")
        settle(page)
        assert page.get_by_label("Picture", exact=True).input_value() == "1"
        page.get_by_label("Picture", exact=True).select_option("7")
        settle(page)
        assert "Chosen: p7." in gallery.get_attribute("aria-label")
        page.locator(".results button").nth(3).click()
        settle(page)
        name = page.locator(".results .name").nth(3).inner_text().removeprefix("4. ")
        assert page.locator(".readout strong").first.inner_text() == name
        gallery.click(position={"x": 10, "y": 10})
        settle(page)
        assert page.locator(".readout strong").first.inner_text() == "p0"

    def test_captions_of_a_picture_are_torch_s(self, show):
        page = show(search(chosen=4))
        image = encoder().encode_images(list(pictures().values()))[4]
        texts = encoder().encode_texts([*pictures(), "a happy cat"])
        expected = (texts @ image).sort(descending=True)
        assert cosines(page, "captions") == pytest.approx(expected.values[:6].tolist(), abs=1e-4)
        place = expected.indices.tolist().index(20) + 1
        assert f"is number {place} of 21" in page.locator(".readout").inner_text()

    def test_a_picture_of_one_s_own_goes_through_the_image_encoder(self, show, tmp_path):
        page = show(search())
        image = pictures(1, 90)["p0"]
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "mine.png")
        page.locator("input[type=file]").set_input_files(tmp_path / "mine.png")
        page.wait_for_function("document.querySelector('.readout').textContent.includes('mine')")
        features = encoder().encode_images([image])[0]
        texts = encoder().encode_texts([*pictures(), "a happy cat"])
        expected = (texts @ features).sort(descending=True).values[:6]
        assert cosines(page, "captions") == pytest.approx(expected.tolist(), abs=5e-3)
        page.locator("input[type=file]").set_input_files(__file__)
        page.wait_for_function("document.body.textContent.includes('is not a picture')")

    def test_without_an_image_tower_no_picture_of_one_s_own_is_offered(self, show, site):
        strange = encoder_with_another_image_tower()
        figure = CLIPSearch(strange, pictures(), examples=("a happy cat",), folder="strange")
        figure.write_weights(site / "strange")
        page = show(figure)
        assert page.locator("input[type=file]").count() == 0
        assert "only the text encoder runs in this page" in told(page)
        page.locator("details").evaluate("node => node.open = true")
        assert "the weights of the text encoder are rounded to 11 bits" in told(page)
        type_and_search(page, "a dog")
        loaded(page)
        assert len(cosines(page)) == 12

    def test_probabilities_are_softmax_over_all(self, show):
        page = show(search())
        bars = page.locator(".results .score").all()
        found = [float(bar.get_attribute("data-probability")) for bar in bars]
        scale = encoder().network.scale().item()
        images = encoder().encode_images(list(pictures().values()))
        cosine = images @ encoder().encode_texts(["a happy cat"])[0]
        expected = (scale * cosine).softmax(0).sort(descending=True).values
        assert found == pytest.approx(expected[:12].tolist(), abs=1e-4)
        first = page.locator(".results .value").first
        assert float(first.inner_text()) == pytest.approx(found[0], abs=5e-4)
        page.locator(".segment:has(input[value=cosine])").click()
        settle(page)
        assert float(first.inner_text().replace("−", "-")) == pytest.approx(
            cosines(page)[0], abs=5e-4
        )
