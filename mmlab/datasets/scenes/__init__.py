"""Scenes: generated images of colored shapes about which everything is known."""

from mmlab.datasets.scenes.binding import BindingPair
from mmlab.datasets.scenes.choices import Choice
from mmlab.datasets.scenes.dataset import TARGETS, SceneConfig, Scenes, scenes
from mmlab.datasets.scenes.entailment import Entailment
from mmlab.datasets.scenes.noise import NOISE_KINDS, SceneNoise
from mmlab.datasets.scenes.pairs import ImagePair
from mmlab.datasets.scenes.questions import QUESTION_KINDS
from mmlab.datasets.scenes.referee import judge, judge_entailment, judge_pair, referents
from mmlab.datasets.scenes.referring import ReferringExpression
from mmlab.datasets.scenes.vocabulary import BACKGROUNDS, COLORS, PALETTE, SHAPES, SIZES, TEXTURES
from mmlab.datasets.scenes.world import HELD_OUT, SPLITS, Scene, SceneObject

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "HELD_OUT",
    "NOISE_KINDS",
    "PALETTE",
    "QUESTION_KINDS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "TARGETS",
    "TEXTURES",
    "BindingPair",
    "Choice",
    "Entailment",
    "ImagePair",
    "ReferringExpression",
    "Scene",
    "SceneConfig",
    "SceneNoise",
    "SceneObject",
    "Scenes",
    "judge",
    "judge_entailment",
    "judge_pair",
    "referents",
    "scenes",
]
