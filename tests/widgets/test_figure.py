import base64
import io

import numpy as np
import pytest
from PIL import Image

from mmlab.widgets.figure import DARK, LIGHT, Figure


def bars(figure, theme):
    figure.subplots().bar([0, 1], [1, 2], color=theme.accent)


def test_both_themes_are_drawn_in_their_own_colours():
    seen = []
    Figure(lambda figure, theme: seen.append(theme), alt="nothing")._repr_mimebundle_()
    assert {LIGHT, DARK} == set(seen)


def test_html_holds_two_pictures_with_escaped_alt_text():
    page = Figure(bars, alt='two "bars" & <more>')._repr_mimebundle_()["text/html"]
    assert page.count("<img") == 2
    assert page.count('alt="two &quot;bars&quot; &amp; &lt;more&gt;"') == 2
    assert "http://" not in page and "https://" not in page


def test_caption_is_text_never_markup():
    page = Figure(bars, alt="bars", caption="<script>")._repr_mimebundle_()["text/html"]
    assert "&lt;script&gt;" in page and "<script>" not in page


@pytest.mark.parametrize("format", ["svg", "webp"])
def test_png_for_everything_else_uses_the_light_colours(format):
    bundle = Figure(bars, alt="bars", format=format)._repr_mimebundle_()
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))))
    accent = np.array([int(LIGHT.accent[i : i + 2], 16) for i in (1, 3, 5)])
    assert (pixels[..., :3] == accent).all(-1).mean() > 0.05


def test_same_figure_same_bytes():
    first, second = (Figure(bars, alt="bars")._repr_mimebundle_() for _ in range(2))
    assert first == second


def test_empty_alt_and_unknown_format_are_refused():
    with pytest.raises(ValueError, match="alt is empty"):
        Figure(bars, alt=" ")
    with pytest.raises(ValueError, match="'svg' and 'webp'"):
        Figure(bars, alt="bars", format="pdf")


def contrast(a: str, b: str) -> float:
    def luminance(colour):
        channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    high, low = sorted([luminance(a), luminance(b)], reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda t: t.name)
@pytest.mark.parametrize("name", ["ink", "muted", "accent", "warm"])
def test_text_colours_pass_wcag_aa(theme, name):
    assert contrast(getattr(theme, name), theme.surface) >= 4.5
