"""Official and Hugging Face checkpoints → our names, and back; models by name."""

from mmlab.hub.conversion import detect_layout, from_mmlab, layouts, to_mmlab
from mmlab.hub.create import create_model, list_models, model_config, save
from mmlab.hub.files import CheckpointFile, read_checkpoint
from mmlab.hub.mapping import CheckpointError
from mmlab.hub.pretraining import load_pretraining, pretraining_state
from mmlab.hub.shipped import list_mini_checkpoints, mini_checkpoint

__all__ = [
    "CheckpointError",
    "CheckpointFile",
    "create_model",
    "detect_layout",
    "from_mmlab",
    "layouts",
    "list_mini_checkpoints",
    "list_models",
    "load_pretraining",
    "mini_checkpoint",
    "model_config",
    "pretraining_state",
    "read_checkpoint",
    "save",
    "to_mmlab",
]
