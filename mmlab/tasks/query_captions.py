"""Captions by a trained BLIP-2: of its Q-Former after stage 1, of a language model after 2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmlab.datasets import Scenes
from mmlab.datasets.tokenizer import Tokenizer
from mmlab.datasets.transforms import normalize
from mmlab.models.blip2 import BLIP2
from mmlab.models.blip2_language import BLIP2Language
from mmlab.nn import beam_search
from mmlab.tasks.language_models import LanguageModel
from mmlab.tasks.preparation import image_statistics

BATCH_SIZE = 64
LONGEST_CAPTION = 32
"""In tokens, of which a caption of medium length has twenty."""


@dataclass(frozen=True)
class Describer:
    """A BLIP-2 and the words it writes in: its own word pieces, or a language model.

    ``num_beams`` of 1 takes the likeliest word each time.
    """

    network: BLIP2
    words: Tokenizer | LanguageModel
    num_beams: int = 3

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def describe(self, dataset: Scenes) -> list[str]:
        """One caption of each scene. ValueError without the head that writes."""
        statistics = image_statistics(self.network.config)
        captions = []
        for rows in torch.arange(len(dataset)).split(BATCH_SIZE):
            images = normalize(dataset.images(rows), *statistics).to(self.device)
            captions += self.write(images)
        return captions

    @torch.no_grad()
    def write(self, images: Float[Tensor, "batch 3 height width"]) -> list[str]:
        """One caption of each image, which is normalised already."""
        speaks = isinstance(self.words, LanguageModel)
        return self._speak(images) if speaks else self._write(images)

    def _write(self, images: Float[Tensor, "batch 3 height width"]) -> list[str]:
        network, words = self.network, self.words
        writing = network.start_writing(network.image_tokens(images))
        prompt = torch.full((len(images), 1), network.config.decoder_id, device=images.device)
        length = min(LONGEST_CAPTION, network.config.context_length)
        found = beam_search(writing, prompt, words.sep_id, self.num_beams, length)
        return words.decode(found[:, 1:])

    def _speak(self, images: Float[Tensor, "batch 3 height width"]) -> list[str]:
        language = self.words
        model = BLIP2Language(self.network, language.network.to(images.device)).eval()
        search = {"num_beams": self.num_beams, "do_sample": False, "pad_token_id": language.pad_id}
        search |= {"max_new_tokens": LONGEST_CAPTION, "eos_token_id": language.end_id}
        if language.is_encoder_decoder:
            return language.decode(model.generate(images, **search))
        prompt = language.prompt(len(images)).to(images.device)
        return language.decode(model.generate(images, prompt, torch.ones_like(prompt), **search))
