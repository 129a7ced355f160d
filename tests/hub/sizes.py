"""Sizes for tests of tables: all different, so that no two dimensions can be mixed up unseen."""

SIZES = {
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 2,
    "dim": 12,
    "depth": 3,
    "num_heads": 3,
    "mlp_dim": 20,
    "vocab_size": 17,
    "context_length": 9,
    "text_dim": 16,
    "text_num_heads": 2,
    "text_mlp_dim": 24,
    "embed_dim": 6,
}
