"""Networks small enough to build in every test."""

from mmlab.models.albef import ALBEFConfig
from mmlab.models.blip import BLIPConfig
from mmlab.models.blip2 import BLIP2Config
from mmlab.models.vlmo import VLMoConfig

_TINY = {
    "image_size": 16,
    "patch_size": 8,
    "dim": 20,
    "depth": 1,
    "num_heads": 2,
    "mlp_dim": 40,
    "vocab_size": 50,
    "context_length": 12,
    "text_dim": 24,
    "text_num_heads": 3,
    "text_mlp_dim": 36,
    "embed_dim": 8,
    "dropout": 0.0,
}
TINY_ALBEF = ALBEFConfig(text_depth=1, fusion_depth=1, **_TINY)
TINY_BLIP = BLIPConfig(text_depth=2, **_TINY)
TINY_BLIP2 = BLIP2Config(text_depth=4, num_queries=4, **_TINY)

TINY_VLMO = VLMoConfig(
    image_size=12,
    patch_size=4,
    dim=24,
    depth=3,
    num_heads=3,
    mlp_dim=40,
    fusion_depth=1,
    vocab_size=50,
    context_length=10,
    longest_text=12,
    layer_scale=0.5,
    dropout=0.0,
    drop_path=0.0,
)
