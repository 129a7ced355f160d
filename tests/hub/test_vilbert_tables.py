"""The ViLBERT table: no loss in either direction, the sheet's keys, a BERT to begin with."""

import pytest
import torch

from mmlab.hub import create_model, detect_layout, from_mmlab, read_checkpoint, save, to_mmlab
from mmlab.hub.mapping import CheckpointError
from mmlab.hub.starting import start_from_bert, untouched
from mmlab.hub.tables import LAYOUTS
from mmlab.models import vilbert
from mmlab.models.vilbert import BERT_PLACES, HEADS, ViLBERT, ViLBERTConfig
from tests.hub.states import assert_equal, with_random_weights

# All different, so that no two dimensions can be mixed up unseen.
SMALL = dict(
    vocab_size=17,
    context_length=5,
    max_positions=9,
    dim=12,
    depth=4,
    num_heads=3,
    mlp_dim=20,
    feature_dim=7,
    num_region_classes=11,
    region_dim=16,
    region_depth=3,
    region_num_heads=2,
    region_mlp_dim=18,
    fusion_dim=10,
    fusion_num_heads=5,
    text_connections=(1, 3),
    region_connections=(0, 1),
)
ALL = {"heads": HEADS, "num_classes": 6, "num_gqa_classes": 8, "num_tasks": 4}
CASES = {
    "pretraining": {},
    "backbone": {"heads": ()},
    "multi-task": ALL,
    "vqa": {"heads": ("answer",), "num_classes": 6},
    "features": {"region_target": "features"},
    "coattention off": {"coattention": False},
}


def random_state(**changes):
    torch.manual_seed(0)
    return with_random_weights(ViLBERT(ViLBERTConfig(**SMALL | changes))).state_dict()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_round_trip_is_exact_and_the_layout_is_recognised(case, prefix):
    ours = random_state(**CASES[case])
    theirs = from_mmlab("vilbert", ours)
    named = {prefix + key: tensor for key, tensor in theirs.items()}
    assert_equal(to_mmlab("vilbert", named), ours)
    assert_equal(from_mmlab("vilbert", to_mmlab("vilbert", named)), theirs)
    assert detect_layout(named) == "vilbert"
    shares = {name: table.share_of_known(named) for name, table in LAYOUTS.items()}
    assert shares.pop("vilbert") == 1 and max(shares.values()) < 1


EXPECTED = {
    "bert.embeddings.word_embeddings.weight": (30522, 768),
    "bert.embeddings.position_embeddings.weight": (512, 768),
    "bert.embeddings.token_type_embeddings.weight": (2, 768),
    "bert.embeddings.LayerNorm.bias": (768,),
    "bert.v_embeddings.image_embeddings.weight": (1024, 2048),
    "bert.v_embeddings.image_location_embeddings.weight": (1024, 5),
    "bert.v_embeddings.LayerNorm.weight": (1024,),
    "bert.encoder.layer.11.attention.self.query.weight": (768, 768),
    "bert.encoder.layer.0.attention.output.LayerNorm.weight": (768,),
    "bert.encoder.layer.0.intermediate.dense.weight": (3072, 768),
    "bert.encoder.v_layer.5.attention.self.key.weight": (1024, 1024),
    "bert.encoder.v_layer.0.intermediate.dense.weight": (1024, 1024),
    "bert.encoder.c_layer.5.biattention.query1.weight": (1024, 1024),
    "bert.encoder.c_layer.5.biattention.query2.weight": (1024, 768),
    "bert.encoder.c_layer.0.biattention.key1.bias": (1024,),
    "bert.encoder.c_layer.0.biattention.value2.weight": (1024, 768),
    "bert.encoder.c_layer.0.biOutput.dense1.weight": (1024, 1024),
    "bert.encoder.c_layer.0.biOutput.dense2.weight": (768, 1024),
    "bert.encoder.c_layer.0.biOutput.q_dense1.weight": (1024, 1024),
    "bert.encoder.c_layer.0.biOutput.q_dense2.weight": (768, 1024),
    "bert.encoder.c_layer.0.biOutput.LayerNorm1.weight": (1024,),
    "bert.encoder.c_layer.0.biOutput.LayerNorm2.weight": (768,),
    "bert.encoder.c_layer.0.v_intermediate.dense.weight": (1024, 1024),
    "bert.encoder.c_layer.0.v_output.LayerNorm.bias": (1024,),
    "bert.encoder.c_layer.0.t_intermediate.dense.weight": (3072, 768),
    "bert.encoder.c_layer.0.t_output.dense.weight": (768, 3072),
    "bert.t_pooler.dense.weight": (1024, 768),
    "bert.v_pooler.dense.weight": (1024, 1024),
    "cls.predictions.bias": (30522,),
    "cls.predictions.transform.dense.weight": (768, 768),
    "cls.predictions.transform.LayerNorm.bias": (768,),
    "cls.predictions.decoder.weight": (30522, 768),
    "cls.bi_seq_relationship.weight": (2, 1024),
    "cls.imagePredictions.transform.dense.weight": (1024, 1024),
    "cls.imagePredictions.transform.LayerNorm.weight": (1024,),
    "cls.imagePredictions.decoder.weight": (1601, 1024),
}
TASKS = {
    "bert.embeddings.task_embeddings.weight": (20, 768),
    "vil_prediction.logit_fc.0.weight": (2048, 1024),
    "vil_prediction.logit_fc.2.bias": (2048,),
    "vil_prediction.logit_fc.3.weight": (3129, 2048),
    "vil_prediction_gqa.logit_fc.3.weight": (1533, 2048),
    "vil_binary_prediction.logit_fc.0.weight": (2048, 2048),
    "vil_binary_prediction.logit_fc.3.weight": (2, 2048),
    "vil_logit.weight": (1, 1024),
    "vil_tri_prediction.weight": (3, 1024),
    "vision_logit.weight": (1, 1024),
    "linguisic_logit.weight": (1, 768),
}
TABLE = 30522 * 768  # Written twice, counted once.


@pytest.mark.parametrize(
    ("config", "expected", "num_keys", "total"),
    [
        (vilbert.VILBERT_B_6, EXPECTED, 533, 250_044_029),
        (vilbert.VILBERT_12_IN_1, EXPECTED | TASKS, 560, 268_028_859),
    ],
)
def test_keys_and_shapes_of_the_published_files(config, expected, num_keys, total):
    with torch.device("meta"):
        theirs = from_mmlab("vilbert", ViLBERT(config).state_dict())
    assert {key: tuple(theirs[key].shape) for key in expected} == expected
    assert len(theirs) == num_keys
    assert sum(tensor.numel() for tensor in theirs.values()) == total + TABLE


def test_the_two_streams_are_not_mixed_up():
    """Regions ask with query1 and look at key2 and value2; the text the other way round."""
    ours = random_state()
    theirs = from_mmlab("vilbert", ours)
    layer = "bert.encoder.c_layer.1."
    pairs = {
        "regions.attention.q_proj": "biattention.query1",
        "regions.attention.k_proj": "biattention.key2",
        "regions.attention.v_proj": "biattention.value2",
        "regions.attention.out_proj": "biOutput.dense1",
        "regions.mlp.fc1": "v_intermediate.dense",
        "text.attention.q_proj": "biattention.query2",
        "text.attention.k_proj": "biattention.key1",
        "text.attention.v_proj": "biattention.value1",
        "text.attention.out_proj": "biOutput.dense2",
        "text.unused": "biOutput.q_dense2",
        "text.mlp.fc2": "t_output.dense",
    }
    for our_name, their_name in pairs.items():
        left, right = f"connections.1.{our_name}.weight", f"{layer}{their_name}.weight"
        assert torch.equal(ours[left], theirs[right]), our_name


def test_the_decoder_is_the_table_of_words():
    theirs = from_mmlab("vilbert", random_state())
    words, decoder = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    assert torch.equal(theirs[words], theirs[decoder])
    without = {key: tensor for key, tensor in theirs.items() if key != decoder}
    assert_equal(to_mmlab("vilbert", without), random_state())
    theirs[decoder] = theirs[decoder] + 1
    with pytest.raises(CheckpointError, match="must be the same tensor in layout 'vilbert'"):
        to_mmlab("vilbert", theirs)


def test_missing_and_left_over_keys_are_named():
    theirs = from_mmlab("vilbert", random_state())
    del theirs["bert.encoder.c_layer.0.biOutput.q_dense1.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: '.*c_layer.0.biOutput.q_dense1.bias'"):
        to_mmlab("vilbert", theirs)
    theirs = from_mmlab("vilbert", random_state()) | {"vil_other.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"1 left over: 'vil_other.weight'"):
        to_mmlab("vilbert", theirs)


# Loading by name


@pytest.mark.parametrize(
    ("name", "changes"), [("vilbert-b-6", {}), ("vilbert-12-in-1", ALL), ("vilbert-mini", {})]
)
def test_official_files_are_loaded_by_name(name, changes, tmp_path):
    ours = random_state(**changes)
    torch.save(from_mmlab("vilbert", ours), tmp_path / "pytorch_model_9.bin")
    options = SMALL | changes
    model = create_model(name, pretrained=tmp_path / "pytorch_model_9.bin", **options)
    assert_equal(model.state_dict(), ours)


def test_our_own_file_is_loaded_with_its_behaviour(tmp_path):
    """Where the streams meet shows in no shape, so the file has to tell."""
    options = SMALL | {"text_connections": (0, 2), "fusion": "sum", "coattention": False}
    model = create_model("vilbert-mini", **options)
    save(model, tmp_path / "a.safetensors")
    behaviour = ("text_connections", "region_connections", "fusion", "coattention")
    asked = {name: value for name, value in SMALL.items() if name not in behaviour}
    asked |= {"depth": 4, "region_depth": 3}
    loaded = create_model("vilbert-mini", pretrained=tmp_path / "a.safetensors", **asked)
    told = {name: getattr(model.config, name) for name in behaviour}
    assert {name: getattr(loaded.config, name) for name in behaviour} == told
    assert_equal(loaded.state_dict(), model.state_dict())


def test_a_file_without_a_head_is_refused(tmp_path):
    torch.save(from_mmlab("vilbert", random_state()), tmp_path / "a.bin")
    options = SMALL | {"heads": ("words", "regions", "match", "answer"), "num_classes": 6}
    with pytest.raises(CheckpointError, match=r"lacks 'heads.answer.transform.dense.weight'"):
        create_model("vilbert-b-6", pretrained=tmp_path / "a.bin", **options)


# Beginning with a BERT


def test_the_stream_of_words_begins_as_a_bert(tmp_path):
    """A file as old as the paper: norms have ``gamma`` and ``beta``, and there is a pooler."""
    source = from_mmlab("vilbert", random_state())
    heads = ("cls.predictions.bias", "cls.predictions.transform.")
    bert = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for key, t in source.items()
        if key.startswith(("bert.embeddings.", "bert.encoder.layer.", *heads))
    }
    bert |= {
        "bert.pooler.dense.weight": torch.ones(12, 12),
        "bert.pooler.dense.bias": torch.ones(12),
    }
    torch.save(bert, tmp_path / "bert.bin")
    model = ViLBERT(ViLBERTConfig(**SMALL))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    taken = start_from_bert(model, read_checkpoint(tmp_path / "bert.bin"), BERT_PLACES)
    theirs = random_state()
    begun = ("embeddings.", "text_blocks.", "heads.words.")
    for key, tensor in model.state_dict().items():
        expected = theirs if key.startswith(begun) else before
        assert torch.equal(tensor, expected[key]), key
    assert set(taken.unused) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert "region_blocks" in untouched(model, [taken])
