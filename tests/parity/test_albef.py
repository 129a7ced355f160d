"""ALBEF and MoCo against figures recorded from the official code, ALBEF's trunks against BLIP's."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from mmlab.hub import load_pretraining, pretraining_state
from mmlab.models.albef import ALBEF, ALBEFConfig, ALBEFPretraining
from mmlab.nn import FeatureQueue, update_average
from mmlab.objectives.contrastive import moco_logits
from tests.models.tiny import TINY_ALBEF

GOLDEN = Path(__file__).parents[1] / "golden"
ALBEF_FILE = load_file(GOLDEN / "albef.safetensors")
MOCO_FILE = load_file(GOLDEN / "moco.safetensors")

# The recorded model: salesforce/ALBEF, models/model_pretrain.py, with these sizes.
RECORDED = ALBEFConfig(
    image_size=32,
    dim=64,
    depth=2,
    num_heads=4,
    mlp_dim=256,
    vocab_size=100,
    context_length=32,
    text_dim=64,
    text_depth=2,
    fusion_depth=2,
    text_num_heads=4,
    text_mlp_dim=256,
    embed_dim=16,
)
BATCH = 4


def part(file, start):
    return {k.removeprefix(start): t for k, t in file.items() if k.startswith(start)}


def close(left, right, name=""):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5, msg=lambda m: f"{name}: {m}")


def recorded_module():
    module = ALBEFPretraining(ALBEF(RECORDED), queue_size=8, mask_id=3).eval()
    load_pretraining(module, "albef", part(ALBEF_FILE, "state."))
    return module


def recorded_batch(step):
    given, drawn = part(ALBEF_FILE, f"step{step}.in."), part(ALBEF_FILE, f"step{step}.out.")
    return {
        "images": given["image"],
        "input_ids": given["input_ids"],
        "attention_mask": given["attention_mask"],
        "negative_images": drawn["neg_image_idx"],
        "negative_texts": drawn["neg_text_idx"],
        "masked_ids": drawn["mlm_input_ids"],
        "labels": drawn["mlm_labels"],
    }


def our_outputs(module, step):
    """Everything under the names of the recording."""
    contrast, matching, words = step
    losses = step.losses()
    twin = module.momentum.network
    return {
        "image_embeds": contrast.image_tokens,
        "text_embeds": contrast.text_tokens,
        "image_embeds_m": contrast.momentum_images,
        "text_embeds_m": contrast.momentum_texts,
        "image_feat": contrast.image_features,
        "text_feat": contrast.text_features,
        "image_feat_m": contrast.momentum_image_features,
        "text_feat_m": contrast.momentum_text_features,
        "sim_i2t": contrast.image_to_text,
        "sim_t2i": contrast.text_to_image,
        "target_i2t": contrast.image_targets,
        "target_t2i": contrast.text_targets,
        "fusion_pos": matching.fused[:BATCH],
        "fusion_neg": matching.fused[BATCH:],
        "itm_logits": matching.logits,
        "mlm_hidden": words.fused,
        "mlm_logits": module.network.word_logits(words.fused),
        "mlm_logits_m": twin.word_logits(words.momentum_fused),
        "loss_ita": losses["contrastive"],
        "loss_itm": losses["matching"],
        "loss_mlm": losses["masked_words"],
        "queue_ptr_after": module.queue.pointer,
        "image_queue_after": module.queue.images,
        "text_queue_after": module.queue.texts,
        "momentum_text_q0_after": twin.text_encoder.blocks[0].attention.q_proj.weight,
        "momentum_vision_proj_after": twin.heads["contrast"].image_projection.weight,
    }


def test_two_steps_of_pretraining_equal_the_official_ones():
    module = recorded_module()
    drawn = {"neg_image_idx", "neg_text_idx", "mlm_input_ids", "mlm_labels"}
    for step in range(2):
        ours = our_outputs(module, module.step(recorded_batch(step)))
        theirs = part(ALBEF_FILE, f"step{step}.out.")
        assert theirs.keys() == ours.keys() | drawn
        for name, tensor in ours.items():
            close(tensor.detach(), theirs[name], f"step {step}, {name}")


def test_the_order_of_a_step_matters():
    """The twin moves before it is asked, the queue after: either way round the figures differ."""
    theirs = part(ALBEF_FILE, "step0.out.")
    still = recorded_module().step(recorded_batch(0), update=False).contrast
    assert (still.momentum_image_features - theirs["image_feat_m"]).abs().max() > 1e-5
    module = recorded_module()
    module.step(recorded_batch(0))
    again = module.step(recorded_batch(0), update=False).contrast
    assert (again.image_to_text - theirs["sim_i2t"]).abs().max() > 1e-2


def test_the_whole_state_comes_back():
    state = part(ALBEF_FILE, "state.")
    back = pretraining_state(recorded_module(), "albef")
    assert state.keys() - back.keys() == {
        f"text_encoder{m}.bert.embeddings.position_ids" for m in ("", "_m")
    }
    assert all(torch.equal(state[key], back[key]) for key in back)


class TinyEncoder(nn.Module):
    """That of the recorded MoCo."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(12, 20)
        self.fc = nn.Linear(20, 6)

    def forward(self, x):
        return nn.functional.normalize(self.fc(torch.tanh(self.l(x))), dim=1)


def test_four_steps_of_moco_equal_the_official_ones():
    state = part(MOCO_FILE, "state.")
    encoder, twin, queue = TinyEncoder(), TinyEncoder(), FeatureQueue(12, keys=6)
    encoder.load_state_dict(part(state, "encoder_q."))
    twin.load_state_dict(part(state, "encoder_k."))
    queue.load_state_dict({"keys": state["queue"], "pointer": state["queue_ptr"]})
    for step in range(4):
        given, theirs = part(MOCO_FILE, f"step{step}.in."), part(MOCO_FILE, f"step{step}.out.")
        update_average(twin, encoder, 0.9)
        keys = twin(given["k"])
        close(moco_logits(encoder(given["q"]), keys, queue.keys, 0.07), theirs["logits"])
        queue.enqueue(keys=keys)
        close(queue.keys, theirs["queue_after"])
        assert torch.equal(queue.pointer, theirs["ptr_after"])
        close(twin.l.weight.detach(), theirs["key_weight_after"])
        assert not theirs["labels"].any()


TINY = replace(TINY_ALBEF, image_size=24, depth=2, text_depth=2, fusion_depth=3)


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def their_vision(model):
    config = BlipVisionConfig(
        hidden_size=20,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=24,
        patch_size=8,
        layer_norm_eps=1e-6,
    )
    names = (
        ("embeddings.class_embedding", "class_token"),
        ("embeddings.position_embedding", "position_embedding"),
        ("embeddings.patch_embedding", "patch_embedding.projection"),
        ("post_layernorm", "norm"),
        ("encoder.layers", "blocks"),
        ("layer_norm", "norm"),
        ("self_attn.projection", "attention.out_proj"),
    )
    theirs, state = BlipVisionModel(config).eval(), dict(model.state_dict())
    for i in range(2):
        for kind in ("weight", "bias"):
            parts = [state[f"blocks.{i}.attention.{n}_proj.{kind}"] for n in "qkv"]
            state[f"blocks.{i}.self_attn.qkv.{kind}"] = torch.cat(parts)
    renamed = {}
    for key in theirs.state_dict():
        ours = key
        for old, new in names:
            ours = ours.replace(old, new)
        renamed[key] = state[ours]
    theirs.load_state_dict(renamed)
    return theirs


def their_text(model, first, last, crossing):
    """``BlipTextModel`` with blocks ``first`` to ``last`` of our text encoder."""
    config = BlipTextConfig(
        vocab_size=50,
        hidden_size=24,
        encoder_hidden_size=20,
        intermediate_size=36,
        num_hidden_layers=last - first,
        num_attention_heads=3,
        max_position_embeddings=12,
        hidden_act="gelu",
        is_decoder=crossing,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    theirs, state = BlipTextModel(config, add_pooling_layer=False).eval(), model.state_dict()
    words = state["embeddings.word_embedding.weight"] + state["embeddings.type_embedding.weight"][0]
    own = {
        "embeddings.word_embeddings.weight": words,
        "embeddings.position_embeddings.weight": state["embeddings.position_embedding.weight"],
        "embeddings.LayerNorm.weight": state["embeddings.norm.weight"],
        "embeddings.LayerNorm.bias": state["embeddings.norm.bias"],
    }
    parts = {
        "attention.self.query": "attention.q_proj",
        "attention.self.key": "attention.k_proj",
        "attention.self.value": "attention.v_proj",
        "attention.output.dense": "attention.out_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "attention.output.LayerNorm": "norm1",
        "output.LayerNorm": "norm2",
    }
    cross = {f"cross{k}": f"cross_{v}" for k, v in parts.items() if k.startswith("attention")}
    parts |= (cross | {"crossattention.output.LayerNorm": "cross_norm"}) if crossing else {}
    for i in range(last - first):
        for their_name, our_name in parts.items():
            for kind in ("weight", "bias"):
                ours = state[f"blocks.{first + i}.{our_name}.{kind}"]
                own[f"encoder.layer.{i}.{their_name}.{kind}"] = ours
    missing, left_over = theirs.load_state_dict(own, strict=False)
    assert not left_over and all("position_ids" in key for key in missing)
    return theirs


@pytest.mark.parametrize("gradients", [False, True])
def test_trunks_equal_those_of_transformers_blip(gradients):
    """transformers has no ALBEF, but BLIP's parts in another order (same blocks, same masks)."""
    model = randomised(ALBEF(TINY))
    images = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    images.requires_grad_(gradients)
    ids = torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(2))
    valid = torch.arange(7) < torch.tensor([[7], [4], [6]])
    ours = model(ids, images, valid)
    vision = their_vision(model.image_encoder)(images).last_hidden_state
    text = their_text(model.text_encoder, 0, 2, crossing=False)
    tokens = text(input_ids=ids, attention_mask=valid.long()).last_hidden_state
    fusion = their_text(model.text_encoder, 2, 5, crossing=True)
    fused = fusion(
        encoder_embeds=tokens,
        attention_mask=valid.long(),
        encoder_hidden_states=vision,
        is_decoder=False,
    ).last_hidden_state
    close(ours.images[0], vision)
    close(ours.text[valid], tokens[valid])
    close(ours.fused[valid], fused[valid])
    if gradients:
        (left,) = torch.autograd.grad(ours.fused[valid].square().sum(), images, retain_graph=True)
        (right,) = torch.autograd.grad(fused[valid].square().sum(), images)
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
        assert left.abs().max() > 1e-3
