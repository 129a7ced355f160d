"""The layouts that mmlab knows: one file of tables a system."""

from mmlab.hub.tables.vit import LAYOUTS as _VIT_LAYOUTS

LAYOUTS = {layout.name: layout for layout in _VIT_LAYOUTS}

# Models that are often handed over by mistake, told by one key; only error messages use this.
OTHER_MODELS = {
    "a CLIP of OpenAI or open_clip": r"visual\.transformer\.resblocks\.\d+\..*",
    "a CLIP of transformers": r"(vision|text)_model\.encoder\.layers\.\d+\.self_attn\..*",
    "a masked autoencoder": r"decoder_blocks\.\d+\..*|decoder\.decoder_layers\.\d+\..*",
    "a BERT": r"(.*\.)?encoder\.layer\.\d+\.attention\.self\.query\.weight",
    "a ResNet": r"(.*\.)?layer1\.0\.conv1\.weight",
    "a Swin Transformer": r"(.*\.)?relative_position_bias_table",
    "a language model": r"(.*\.)?layers\.\d+\.self_attn\.q_proj\.weight|(.*\.)?h\.\d+\.attn\..*",
}
