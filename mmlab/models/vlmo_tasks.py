"""VLMo after pre-training: retrieval, questions, statements about two images.

Bao et al. 2021 (arXiv 2111.02358), section 4; the losses as in microsoft/unilm
(``vlmo/modules/objectives.py``). The models come from ``continue_vlmo``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmlab.models.vlmo import VLMo
from mmlab.objectives.global_contrast import GlobalContrast, global_contrast


class VLMoRetrieval(nn.Module):
    """A ``VLMo`` as two encoders: each image finds its text, each text its image.

    Only the experts of the single modalities work, so features of images and texts can be computed
    apart and kept.
    """

    def __init__(self, network: VLMo):
        super().__init__()
        network.head("contrast")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Contrast over the batch of all processes; see ``mmlab.objectives.global_contrast``.

        ``batch`` has ``"images"``, ``"input_ids"`` and, where texts are padded with anything but 0,
        ``"attention_mask"``.
        """
        return {"contrastive": self.contrast(batch).loss()}

    def contrast(self, batch: dict[str, Tensor]) -> GlobalContrast:
        """The table of similarities."""
        network = self.network
        images = network.encode_image(batch["images"])
        texts = network.encode_text(batch["input_ids"], batch.get("attention_mask"))
        return global_contrast(images, texts, network.scale())


class VLMoQuestionAnswering(nn.Module):
    """A ``VLMo`` with an ``"answer"`` head learning to answer questions about an image (VQA)."""

    def __init__(self, network: VLMo):
        super().__init__()
        network.head("answer")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy with ``"scores"``, how right each answer is (0 to 1), summed.

        The other entries of ``batch`` are as in ``VLMoRetrieval``. The mean is over the batch.
        """
        features = self.network(batch["input_ids"], batch["images"], batch.get("attention_mask"))
        logits, scores = self.network.answer_logits(features), batch["scores"]
        loss = F.binary_cross_entropy_with_logits(logits, scores) * scores.shape[1]
        return {"answers": loss}


class VLMoReasoning(nn.Module):
    """A ``VLMo`` for pairs of images: is the text true of them? (NLVR2)."""

    def __init__(self, network: VLMo):
        super().__init__()
        network.head("answer")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of ``"labels"``; ``"images"`` is (batch, images, channels, height, width).

        Each image is read with the whole text, in a pass of its own.
        """
        images, ids, valid = batch["images"], batch["input_ids"], batch.get("attention_mask")
        features = [
            self.network(ids, images[:, i], valid, image_number=i + 1)
            for i in range(images.shape[1])
        ]
        logits = self.network.answer_logits(*features)
        return {"answers": F.cross_entropy(logits, batch["labels"])}
