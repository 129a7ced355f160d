"""All models by name: which network, in which sizes, and what loading must know of it.

A new system is one ``Family`` here, and one file in ``mmlab/hub/tables`` if it has checkpoints in
the layouts of others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from mmlab.models import (
    albef,
    blip,
    blip2,
    clip,
    flip,
    lxmert,
    mae,
    oscar,
    unicoder_vl,
    uniter,
    vilbert,
    vilt,
    visualbert,
    vit,
    vlbert,
    vlmo,
)


@dataclass(frozen=True)
class Family:
    """A network and its sizes.

    - ``network`` makes the model of a configuration, a frozen dataclass.
    - ``sizes`` are its configurations by name.
    - ``layouts``: a glob for the layouts of its own in ``mmlab.hub.layouts()``.
    - ``positions``: its position tables that follow ``image_size`` over a square grid, and how many
      rows of each come before the grid. Those that do not learn are computed, not interpolated.
    - ``offsets``: its tables of relative positions, whose first rows are the offsets of patches
      (see ``mmlab.nn.relative_positions``); the configuration's ``grid`` tells how many.
    - ``behaviour``: settings that change what the network computes but no shape. What a file says
      about them is taken, unless the call to ``create_model`` says otherwise.
    """

    network: Callable[[object], nn.Module]
    sizes: Mapping[str, object]
    layouts: str = ""
    positions: Mapping[str, int] = field(default_factory=dict)
    offsets: tuple[str, ...] = ()
    behaviour: tuple[str, ...] = ("norm_eps", "activation")


FAMILIES = {
    "vit": Family(
        network=vit.ViT,
        sizes={
            "vit-ti-16": vit.VIT_TI_16,
            "vit-s-16": vit.VIT_S_16,
            "vit-s-32": vit.VIT_S_32,
            "vit-b-8": vit.VIT_B_8,
            "vit-b-16": vit.VIT_B_16,
            "vit-b-32": vit.VIT_B_32,
            "vit-l-16": vit.VIT_L_16,
            "vit-l-32": vit.VIT_L_32,
            "vit-h-14": vit.VIT_H_14,
            "vit-mini": vit.VIT_MINI,
            "deit-ti-16": vit.DEIT_TI_16,
            "deit-s-16": vit.DEIT_S_16,
            "deit-b-16": vit.DEIT_B_16,
            "deit-ti-16-distilled": vit.DEIT_TI_16_DISTILLED,
            "deit-s-16-distilled": vit.DEIT_S_16_DISTILLED,
            "deit-b-16-distilled": vit.DEIT_B_16_DISTILLED,
        },
        layouts="[vd]*it-*",
    ),
    "mae": Family(
        network=mae.MAE,
        sizes={
            "mae-b-16": mae.MAE_B_16,
            "mae-l-16": mae.MAE_L_16,
            "mae-h-14": mae.MAE_H_14,
            "mae-mini": mae.MAE_MINI,
        },
        layouts="mae*",
        positions={"encoder.position_embedding": 1, "decoder.position_embedding": 1},
    ),
    "clip": Family(
        network=clip.CLIP,
        sizes={
            "clip-vit-b-32": clip.CLIP_VIT_B_32,
            "clip-vit-b-16": clip.CLIP_VIT_B_16,
            "clip-vit-l-14": clip.CLIP_VIT_L_14,
            "clip-vit-l-14-336": clip.CLIP_VIT_L_14_336,
            "clip-rn50": clip.CLIP_RN50,
            "clip-rn101": clip.CLIP_RN101,
            "clip-rn50x4": clip.CLIP_RN50X4,
            "clip-rn50x16": clip.CLIP_RN50X16,
            "clip-rn50x64": clip.CLIP_RN50X64,
            "clip-mini": clip.CLIP_MINI,
            "clip-vit-mini": clip.CLIP_VIT_MINI,
        },
        layouts="clip-*",
        positions={
            "image_encoder.position_embedding": 1,
            "image_encoder.pool.position_embedding": 1,
        },
        behaviour=("norm_eps", "activation", "end_id"),
    ),
    "flip": Family(
        network=flip.FLIP,
        sizes={
            "flip-b-16": flip.FLIP_B_16,
            "flip-l-16": flip.FLIP_L_16,
            "flip-l-14": flip.FLIP_L_14,
            "flip-h-14": flip.FLIP_H_14,
            "flip-mini": flip.FLIP_MINI,
        },
        layouts="flip*",
        positions={"image_encoder.position_embedding": 1},
    ),
    "vilt": Family(
        network=vilt.ViLT,
        sizes={
            "vilt-b-32": vilt.VILT_B_32,
            "vilt-b-32-vqa": vilt.VILT_B_32_VQA,
            "vilt-b-32-nlvr2": vilt.VILT_B_32_NLVR2,
            "vilt-b-32-retrieval": vilt.VILT_B_32_RETRIEVAL,
            "vilt-mini": vilt.VILT_MINI,
        },
        layouts="vilt*",
        positions={"position_embedding": 1},
        behaviour=("norm_eps", "text_norm_eps", "activation"),
    ),
    "albef": Family(
        network=albef.ALBEF,
        sizes={
            "albef-b-16": albef.ALBEF_B_16,
            "albef-b-16-retrieval": albef.ALBEF_B_16_RETRIEVAL,
            "albef-b-16-vqa": albef.ALBEF_B_16_VQA,
            "albef-b-16-ve": albef.ALBEF_B_16_VE,
            "albef-b-16-nlvr2": albef.ALBEF_B_16_NLVR2,
            "albef-mini": albef.ALBEF_MINI,
        },
        layouts="albef*",
        positions={"image_encoder.position_embedding": 1},
        behaviour=("norm_eps", "text_norm_eps", "activation"),
    ),
    "blip": Family(
        network=blip.BLIP,
        sizes={
            "blip-b-16": blip.BLIP_B_16,
            "blip-b-16-retrieval": blip.BLIP_B_16_RETRIEVAL,
            "blip-b-16-captioning": blip.BLIP_B_16_CAPTIONING,
            "blip-b-16-vqa": blip.BLIP_B_16_VQA,
            "blip-b-16-nlvr2": blip.BLIP_B_16_NLVR2,
            "blip-l-16": blip.BLIP_L_16,
            "blip-l-16-retrieval": blip.BLIP_L_16_RETRIEVAL,
            "blip-l-16-captioning": blip.BLIP_L_16_CAPTIONING,
            "blip-l-16-vqa": blip.BLIP_L_16_VQA,
            "blip-mini": blip.BLIP_MINI,
        },
        layouts="blip*",
        positions={"image_encoder.position_embedding": 1},
        # transformers keeps no temperature.
        behaviour=("norm_eps", "text_norm_eps", "activation", "temperature"),
    ),
    "blip2": Family(
        network=blip2.BLIP2,
        sizes={
            "blip2-g-14": blip2.BLIP2_G_14,
            "blip2-g-14-retrieval": blip2.BLIP2_G_14_RETRIEVAL,
            "blip2-g-14-opt-2.7b": blip2.BLIP2_G_14_OPT_2_7B,
            "blip2-g-14-opt-6.7b": blip2.BLIP2_G_14_OPT_6_7B,
            "blip2-g-14-flan-t5-xl": blip2.BLIP2_G_14_FLAN_T5_XL,
            "blip2-g-14-flan-t5-xxl": blip2.BLIP2_G_14_FLAN_T5_XXL,
            "blip2-l-14": blip2.BLIP2_L_14,
            "blip2-l-14-opt-2.7b": blip2.BLIP2_L_14_OPT_2_7B,
            "blip2-mini": blip2.BLIP2_MINI,
        },
        layouts="blip2*",
        positions={"image_encoder.position_embedding": 1},
        # transformers keeps no temperature, and has one epsilon for all norms of the image.
        behaviour=("norm_eps", "image_norm_eps", "text_norm_eps", "activation", "temperature"),
    ),
    "vlmo": Family(
        network=vlmo.VLMo,
        sizes={
            "vlmo-b-16": vlmo.VLMO_B_16,
            "vlmo-b-16-retrieval": vlmo.VLMO_B_16_RETRIEVAL,
            "vlmo-b-16-vqa": vlmo.VLMO_B_16_VQA,
            "vlmo-b-16-nlvr2": vlmo.VLMO_B_16_NLVR2,
            "vlmo-b-plus-16": vlmo.VLMO_B_PLUS_16,
            "vlmo-b-plus-16-retrieval": vlmo.VLMO_B_PLUS_16_RETRIEVAL,
            "vlmo-b-plus-16-vqa": vlmo.VLMO_B_PLUS_16_VQA,
            "vlmo-b-plus-16-nlvr2": vlmo.VLMO_B_PLUS_16_NLVR2,
            "vlmo-l-16": vlmo.VLMO_L_16,
            "vlmo-l-16-retrieval": vlmo.VLMO_L_16_RETRIEVAL,
            "vlmo-l-16-vqa": vlmo.VLMO_L_16_VQA,
            "vlmo-l-16-nlvr2": vlmo.VLMO_L_16_NLVR2,
            "vlmo-mini": vlmo.VLMO_MINI,
        },
        layouts="vlmo*",
        positions={"position_embedding": 1},
        offsets=("position_bias.table",),
        behaviour=("norm_eps", "text_norm_eps", "activation"),
    ),
    "visualbert": Family(
        network=visualbert.VisualBERT,
        sizes={
            "visualbert-b-vqa-coco": visualbert.VISUALBERT_B_VQA_COCO,
            "visualbert-b-nlvr2-coco": visualbert.VISUALBERT_B_NLVR2_COCO,
            "visualbert-b-vcr-coco": visualbert.VISUALBERT_B_VCR_COCO,
            "visualbert-b-flickr-coco": visualbert.VISUALBERT_B_FLICKR_COCO,
            "visualbert-b-vqa": visualbert.VISUALBERT_B_VQA,
            "visualbert-b-nlvr2": visualbert.VISUALBERT_B_NLVR2,
            "visualbert-b-vcr": visualbert.VISUALBERT_B_VCR,
            "visualbert-b-flickr": visualbert.VISUALBERT_B_FLICKR,
            "visualbert-mini": visualbert.VISUALBERT_MINI,
        },
        layouts="visualbert*",
        # Where answers are read shows in no shape.
        behaviour=("norm_eps", "activation", "answer_from"),
    ),
    "lxmert": Family(
        network=lxmert.LXMERT,
        sizes={
            "lxmert-b": lxmert.LXMERT_B,
            "lxmert-b-vqa": lxmert.LXMERT_B_VQA,
            "lxmert-b-gqa": lxmert.LXMERT_B_GQA,
            "lxmert-b-nlvr2": lxmert.LXMERT_B_NLVR2,
            "lxmert-mini": lxmert.LXMERT_MINI,
        },
        layouts="lxmert*",
    ),
    "vilbert": Family(
        network=vilbert.ViLBERT,
        sizes={
            "vilbert-b-2": vilbert.VILBERT_B_2,
            "vilbert-b-4": vilbert.VILBERT_B_4,
            "vilbert-b-6": vilbert.VILBERT_B_6,
            "vilbert-b-8": vilbert.VILBERT_B_8,
            "vilbert-l-2": vilbert.VILBERT_L_2,
            "vilbert-l-4": vilbert.VILBERT_L_4,
            "vilbert-l-6": vilbert.VILBERT_L_6,
            "vilbert-roberta-b-6": vilbert.VILBERT_ROBERTA_B_6,
            "vilbert-12-in-1": vilbert.VILBERT_12_IN_1,
            "vilbert-mini": vilbert.VILBERT_MINI,
        },
        layouts="vilbert*",
        behaviour=(
            *("norm_eps", "activation", "fusion", "coattention"),
            *("text_connections", "region_connections"),
        ),
    ),
    "uniter": Family(
        network=uniter.UNITER,
        sizes={
            "uniter-b": uniter.UNITER_B,
            "uniter-l": uniter.UNITER_L,
            **uniter.UNITER_TASKS,
            "uniter-mini": uniter.UNITER_MINI,
        },
        layouts="uniter*",
    ),
    "unicoder-vl": Family(
        network=unicoder_vl.UnicoderVL,
        sizes={
            "unicoder-vl-b": unicoder_vl.UNICODER_VL_B,
            "unicoder-vl-b-retrieval": unicoder_vl.UNICODER_VL_B_RETRIEVAL,
            "unicoder-vl-b-vcr": unicoder_vl.UNICODER_VL_B_VCR,
            "unicoder-vl-mini": unicoder_vl.UNICODER_VL_MINI,
        },
    ),
    "oscar": Family(
        network=oscar.Oscar,
        sizes={
            "oscar-b": oscar.OSCAR_B,
            "oscar-b-vqa": oscar.OSCAR_B_VQA,
            "oscar-b-nlvr2": oscar.OSCAR_B_NLVR2,
            "oscar-b-retrieval": oscar.OSCAR_B_RETRIEVAL,
            "oscar-b-captioning": oscar.OSCAR_B_CAPTIONING,
            "oscar-l": oscar.OSCAR_L,
            "oscar-l-vqa": oscar.OSCAR_L_VQA,
            "oscar-l-nlvr2": oscar.OSCAR_L_NLVR2,
            "oscar-l-retrieval": oscar.OSCAR_L_RETRIEVAL,
            "oscar-l-captioning": oscar.OSCAR_L_CAPTIONING,
            "oscar-plus-b": oscar.OSCAR_PLUS_B,
            "oscar-plus-b-vqa": oscar.OSCAR_PLUS_B_VQA,
            "oscar-plus-b-nlvr2": oscar.OSCAR_PLUS_B_NLVR2,
            "oscar-plus-b-retrieval": oscar.OSCAR_PLUS_B_RETRIEVAL,
            "oscar-plus-b-captioning": oscar.OSCAR_PLUS_B_CAPTIONING,
            "oscar-plus-l": oscar.OSCAR_PLUS_L,
            "oscar-plus-l-vqa": oscar.OSCAR_PLUS_L_VQA,
            "oscar-plus-l-nlvr2": oscar.OSCAR_PLUS_L_NLVR2,
            "oscar-plus-l-retrieval": oscar.OSCAR_PLUS_L_RETRIEVAL,
            "oscar-plus-l-captioning": oscar.OSCAR_PLUS_L_CAPTIONING,
            "oscar-mini": oscar.OSCAR_MINI,
        },
        layouts="oscar*",
        behaviour=("norm_eps", "image_norm_eps", "activation"),
    ),
    "vlbert": Family(
        network=vlbert.VLBERT,
        sizes={
            "vlbert-b": vlbert.VLBERT_B,
            "vlbert-l": vlbert.VLBERT_L,
            "vlbert-b-vqa": vlbert.VLBERT_B_VQA,
            "vlbert-l-vqa": vlbert.VLBERT_L_VQA,
            "vlbert-mini": vlbert.VLBERT_MINI,
        },
    ),
}

MODELS = {name: config for family in FAMILIES.values() for name, config in family.sizes.items()}
"""Name → configuration."""


def family_of(name: str) -> Family:
    """The family that a model's name belongs to."""
    return next(family for family in FAMILIES.values() if name in family.sizes)
