"""Networks that begin with a BERT or a ViT of transformers compute what these compute."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, ViTConfig, ViTModel

from mmlab.hub import read_checkpoint
from mmlab.hub.starting import start_from_bert, start_from_image_encoder
from mmlab.models.albef import ALBEF, ALBEFConfig
from mmlab.models.blip import BLIP, BLIPConfig
from mmlab.models.blip2 import BLIP2, BLIP2Config
from mmlab.nn import padding_mask

IMAGE = {"image_size": 32, "patch_size": 16, "dim": 32, "depth": 2, "num_heads": 4, "mlp_dim": 48}
TEXT = {"vocab_size": 30, "context_length": 16, "text_dim": 32, "text_num_heads": 4}
TEXT |= {"text_mlp_dim": 48, "embed_dim": 16, "dropout": 0.0}


def with_random_weights(model):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def bert(folder, kind, depth):
    """A saved BERT; types that change nothing, as BLIP and BLIP-2 have none."""
    config = BertConfig(
        vocab_size=30,
        hidden_size=32,
        num_hidden_layers=depth,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
    )
    model = with_random_weights(kind(config))
    if depth == 2:
        model.bert.embeddings.token_type_embeddings.weight.data.zero_()
    model.save_pretrained(folder)
    return model


IDS = torch.tensor([[1, 5, 9, 22, 2, 0, 0], [1, 29, 3, 3, 8, 4, 2]])


def hidden_states(model):
    valid = (IDS != 0).long()
    return model.bert(IDS, attention_mask=valid, output_hidden_states=True).hidden_states


def close(ours, theirs):
    # Padding is nobody's business.
    torch.testing.assert_close(ours[IDS != 0], theirs[IDS != 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining])
@torch.no_grad()
def test_albef_s_first_blocks_are_those_of_the_bert(kind, tmp_path):
    theirs = bert(tmp_path, kind, depth=3)
    ours = ALBEF(ALBEFConfig(**IMAGE | TEXT, text_depth=2, fusion_depth=1)).eval()
    places = (("text_encoder.", ""), ("heads.words.", "words."))
    taken = start_from_bert(ours, read_checkpoint(tmp_path), places)
    states = hidden_states(theirs)
    close(ours.text_tokens(IDS), states[2])
    # Without its fresh cross-attention the last block is the BERT's, too, and so are the words.
    last = ours.text_encoder.blocks[2](states[2], padding_mask(IDS != 0))
    close(last, states[3])
    logits = theirs.cls.predictions(states[3]) if kind is BertForPreTraining else theirs.cls(last)
    close(ours.word_logits(states[3]), logits)
    assert not [key for key in taken.unused if not key.startswith("pooler")]


@torch.no_grad()
def test_blip_s_encoder_reads_a_text_as_the_bert(tmp_path):
    theirs = bert(tmp_path, BertForMaskedLM, depth=2)
    ours = BLIP(BLIPConfig(**IMAGE | TEXT | {"vocab_size": 32}, text_depth=2)).eval()
    places = (("text_encoder.", ""), ("text_decoder.", ""))
    start_from_bert(ours, read_checkpoint(tmp_path), places, num_added=2)
    close(ours.text_tokens(IDS), hidden_states(theirs)[2])
    # The decoder's self-attentions are its own copies of the same.
    ones, twos = (
        part.blocks[1].attention.state_dict() for part in (ours.text_encoder, ours.text_decoder)
    )
    assert all(torch.equal(ones[key], twos[key]) for key in ones)


@torch.no_grad()
def test_the_q_former_reads_a_text_as_the_bert(tmp_path):
    theirs = bert(tmp_path, BertForMaskedLM, depth=2)
    config = BLIP2Config(**IMAGE | TEXT | {"vocab_size": 31}, text_depth=2, image_encoder="vit")
    ours = BLIP2(config).eval()
    places = (("qformer.", ""), ("heads.words.", "words."))
    start_from_bert(ours, read_checkpoint(tmp_path), places, num_added=1)
    close(ours.text_tokens(IDS), hidden_states(theirs)[2])


@torch.no_grad()
def test_albef_sees_as_the_vit_of_transformers(tmp_path):
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=32,
        patch_size=16,
        layer_norm_eps=1e-6,
    )
    theirs = with_random_weights(ViTModel(config))
    theirs.save_pretrained(tmp_path)
    ours = ALBEF(ALBEFConfig(**IMAGE | TEXT, text_depth=1, fusion_depth=1)).eval()
    start_from_image_encoder(ours, read_checkpoint(tmp_path))
    images = torch.randn(2, 3, 32, 32)
    found, expected = ours.image_tokens(images), theirs(images).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
