"""The words of the scenes: what can be drawn, and how English and Chinese say it."""

from __future__ import annotations

from dataclasses import dataclass

from mmlab.datasets.checks import check_choice

SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
SIZES = ("small", "large")
TEXTURES = ("solid", "striped", "dotted", "checkered")
BACKGROUNDS = ("plain", "gradient", "cloudy", "checkered")
LANGUAGES = ("en", "zh")

# Chosen so that neighbours differ in lightness and not in hue alone: the closest two of the eight
# stay apart for readers with protanopia, deuteranopia or tritanopia (figures in data/scenes.md).
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (190, 18, 36),
    "orange": (238, 120, 14),
    "yellow": (254, 224, 64),
    "green": (10, 140, 84),
    "cyan": (104, 224, 236),
    "blue": (36, 104, 224),
    "purple": (116, 40, 152),
    "pink": (240, 116, 176),
}
COLORS = tuple(PALETTE)

POSITIONS = (
    ("upper left", "top", "upper right"),
    ("left", "center", "right"),
    ("lower left", "bottom", "lower right"),
)
"""Names of the nine ninths of the image, ``POSITIONS[row][column]``."""

INVERSE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "larger than": "smaller than",
    "smaller than": "larger than",
    "same color as": "same color as",
    "same shape as": "same shape as",
}
"""Every predicate of the scene graph, and the predicate that holds the other way round."""

SPATIAL = ("left of", "right of", "above", "below")

EXTREMES = {
    "leftmost": "left of",
    "rightmost": "right of",
    "highest": "above",
    "lowest": "below",
}
"""A superlative, and the relation in which its object stands to every other."""


@dataclass(frozen=True)
class Lexicon:
    """How one language says the words above; keys are always the English names."""

    shapes: dict[str, str]
    colors: dict[str, str]
    sizes: dict[str, str]
    textures: dict[str, str]
    backgrounds: dict[str, str]
    positions: dict[str, str]
    relations: dict[str, str]
    extremes: dict[str, str]
    numbers: tuple[str, ...]
    yes: str
    no: str


def _same(*words: str) -> dict[str, str]:
    return {word: word for word in words}


ENGLISH = Lexicon(
    shapes=_same(*SHAPES, "shape"),
    colors=_same(*COLORS),
    sizes=_same(*SIZES),
    textures=_same(*TEXTURES),
    backgrounds=_same(*BACKGROUNDS),
    positions={
        "upper left": "in the upper left",
        "top": "at the top",
        "upper right": "in the upper right",
        "left": "on the left",
        "center": "in the center",
        "right": "on the right",
        "lower left": "in the lower left",
        "bottom": "at the bottom",
        "lower right": "in the lower right",
    },
    relations={
        "left of": "to the left of",
        "right of": "to the right of",
        "above": "above",
        "below": "below",
        "larger than": "larger than",
        "smaller than": "smaller than",
    },
    extremes=_same(*EXTREMES),
    numbers=("no", "one", "two", "three", "four", "five", "six", "seven", "eight"),
    yes="yes",
    no="no",
)

CHINESE = Lexicon(
    shapes={
        "circle": "圆形",
        "square": "正方形",
        "triangle": "三角形",
        "diamond": "菱形",
        "star": "五角星",
        "heart": "心形",
        "cross": "十字形",
        "ring": "圆环",
        "shape": "图形",
    },
    colors={
        "red": "红色",
        "orange": "橙色",
        "yellow": "黄色",
        "green": "绿色",
        "cyan": "青色",
        "blue": "蓝色",
        "purple": "紫色",
        "pink": "粉色",
    },
    sizes={"small": "小", "large": "大"},
    textures={"solid": "纯色", "striped": "条纹", "dotted": "波点", "checkered": "格纹"},
    backgrounds={
        "plain": "纯色",
        "gradient": "渐变",
        "cloudy": "云纹",
        "checkered": "棋盘格",
    },
    positions={
        "upper left": "在画面的左上方",
        "top": "在画面的上方",
        "upper right": "在画面的右上方",
        "left": "在画面的左边",
        "center": "在画面的中间",
        "right": "在画面的右边",
        "lower left": "在画面的左下方",
        "bottom": "在画面的下方",
        "lower right": "在画面的右下方",
    },
    relations={"left of": "左边", "right of": "右边", "above": "上方", "below": "下方"},
    extremes={
        "leftmost": "最左边",
        "rightmost": "最右边",
        "highest": "最上方",
        "lowest": "最下方",
    },
    # 两, not 二, before a measure word.
    numbers=("零", "一", "两", "三", "四", "五", "六", "七", "八"),
    yes="是",
    no="否",
)

LEXICONS = {"en": ENGLISH, "zh": CHINESE}


def lexicon(language: str) -> Lexicon:
    """The words of ``language``; ValueError for a language that scenes do not speak."""
    return LEXICONS[check_choice("language", language, LANGUAGES)]
