"""The layouts that mmlab knows: one file of tables a system."""

from mmlab.hub.tables import (
    albef,
    blip,
    blip2,
    clip,
    flip,
    lxmert,
    mae,
    oscar,
    uniter,
    vilbert,
    vilt,
    visualbert,
    vit,
    vlmo,
)

_TABLES = (
    vit,
    mae,
    clip,
    flip,
    vilt,
    albef,
    blip,
    blip2,
    vlmo,
    lxmert,
    visualbert,
    vilbert,
    uniter,
    oscar,
)

LAYOUTS = {layout.name: layout for table in _TABLES for layout in table.LAYOUTS}

# Models that are often handed over by mistake, told by one key; only error messages use this.
OTHER_MODELS = {
    "a BERT": r"(.*\.)?encoder\.layer\.\d+\.attention\.self\.query\.weight",
    "a ResNet": r"(.*\.)?layer1\.0\.conv1\.weight",
    "a Swin Transformer": r"(.*\.)?relative_position_bias_table",
    "a language model": r"(.*\.)?layers\.\d+\.self_attn\.q_proj\.weight|(.*\.)?h\.\d+\.attn\..*",
}
