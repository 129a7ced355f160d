"""BLIP-2, stage 2: a frozen language model tells what the queries have seen.

Li et al. 2023 (arXiv 2301.12597), section 3.2; the official code is salesforce/LAVIS
(``blip2_opt.py``, ``blip2_t5.py``). The language model is one of ``transformers``, or anything that
is called like those: it takes ``inputs_embeds``, ``attention_mask`` and ``labels``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from mmlab.models.blip2 import BLIP2, freeze
from mmlab.models.checks import check
from mmlab.nn import valid_tokens
from mmlab.objectives.masked_language import IGNORED


class BLIP2Language(nn.Module):
    """A ``BLIP2`` that speaks through a frozen language model (BLIP-2, figure 3).

    ``network`` needs the head ``"prefix"``, as wide as the word vectors of ``language_model``. The
    projected queries stand before the words. A decoder such as OPT goes on writing after both; an
    encoder-decoder such as FlanT5 reads both in its encoder and writes in its decoder.

    The language model gets no gradient, hence no state of an optimiser, and stays in evaluation
    mode; it may be in half precision. Texts are token numbers of its own tokenizer, whose padding
    is ``language_model.config.pad_token_id`` where no attention mask is given. LAVIS runs FlanT5
    with ``dense_act_fn="gelu"`` instead of its own ``"gelu_new"``. ValueError if widths differ.
    """

    def __init__(self, network: BLIP2, language_model: nn.Module):
        super().__init__()
        network.head("prefix")
        width = language_model.get_input_embeddings().weight.shape[1]
        prefix_dim = network.config.prefix_dim
        check(prefix_dim == width, "prefix_dim", prefix_dim, f"{width} for this language model")
        self.network = network
        self.language_model = freeze(language_model)

    frozen = ("language_model.",)
    """What the names of the weights that never change begin with (see ``BLIP2.frozen``)."""

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the language model reads and writes with two stacks."""
        return bool(self.language_model.config.is_encoder_decoder)

    def train(self, mode: bool = True) -> BLIP2Language:
        """As in every module, but the language model stays in evaluation mode."""
        super().train(mode)
        self.language_model.eval()
        return self

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """How well the language model foretells each text, given the image.

        ``batch`` has ``"images"`` and ``"input_ids"``: for a decoder the whole text, with its end;
        of its tokens the first ``"prompt_lengths"`` (one number a row, none if missing) are given
        and not to be foretold. For an encoder-decoder it is what the encoder reads after the
        queries, and may be missing; ``"output_ids"`` is then what the decoder writes. The texts'
        attention masks are ``"attention_mask"`` and ``"output_mask"``.
        """
        ids = self._ids(batch)
        valid = self._valid(ids, batch.get("attention_mask"))
        embeds, mask = self.inputs(batch["images"], ids, valid)
        labels = self._output_labels(batch) if self.is_encoder_decoder else None
        if labels is None:
            labels = self._text_labels(ids, valid, batch.get("prompt_lengths"))
        output = self.language_model(
            inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False
        )
        return {"language_modeling": output.loss.float()}

    def inputs(
        self,
        images: Float[Tensor, "batch channels height width"],
        input_ids: Int[Tensor, "batch tokens"],
        text_valid: Bool[Tensor, "batch tokens"],
    ) -> tuple[Float[Tensor, "batch sequence prefix_dim"], Int64[Tensor, "batch sequence"]]:
        """What the language model is given: queries, then words; and its attention mask."""
        words = self.language_model.get_input_embeddings()(input_ids)
        prefix = self.network.prefix(self.network.image_tokens(images))
        mask = F.pad(text_valid, (prefix.shape[1], 0), value=True)
        return torch.cat([prefix.to(words.dtype), words], dim=1), mask.long()

    @torch.no_grad()
    def generate(
        self,
        images: Float[Tensor, "batch channels height width"],
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
        **search: object,
    ) -> Int64[Tensor, "batch new_tokens"]:
        """The text that the language model writes after the image and a prompt, in its tokens.

        ``input_ids`` is the prompt of each image, such as "a photo of" or "Question: … Answer:". A
        decoder begins right after it: pad prompts of different lengths at their front. ``search``
        are options of ``generate`` in ``transformers``; LAVIS searches with 5 beams, and ends OPT's
        texts with ``eos_token_id`` of a line break. What is returned has no prompt.
        """
        batch = {"images": images} | ({} if input_ids is None else {"input_ids": input_ids})
        ids = self._ids(batch)
        embeds, mask = self.inputs(images, ids, self._valid(ids, text_valid))
        return self.language_model.generate(inputs_embeds=embeds, attention_mask=mask, **search)

    def _ids(self, batch: dict[str, Tensor]) -> Int[Tensor, "batch tokens"]:
        images = batch["images"]
        nothing = torch.zeros(len(images), 0, dtype=torch.long, device=images.device)
        return batch.get("input_ids", nothing)

    def _valid(
        self,
        ids: Int[Tensor, "batch tokens"],
        valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None,
    ) -> Bool[Tensor, "batch tokens"]:
        return valid_tokens(ids, valid, self.language_model.config.pad_token_id)

    def _text_labels(
        self,
        ids: Int[Tensor, "batch tokens"],
        valid: Bool[Tensor, "batch tokens"],
        prompt_lengths: Int[Tensor, " batch"] | None,
    ) -> Int64[Tensor, "batch sequence"]:
        """Words after the prompt; nothing where queries, prompt and padding stand."""
        wanted = valid
        if prompt_lengths is not None:
            # Counted over valid tokens, so that padding may stand at either end.
            wanted = valid & (valid.cumsum(1) > prompt_lengths[:, None])
        labels = ids.long().masked_fill(~wanted, IGNORED)
        return F.pad(labels, (self.network.config.num_queries, 0), value=IGNORED)

    def _output_labels(self, batch: dict[str, Tensor]) -> Int64[Tensor, "batch output_tokens"]:
        ids = batch["output_ids"]
        return ids.long().masked_fill(~self._valid(ids, batch.get("output_mask")), IGNORED)
