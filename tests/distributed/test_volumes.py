"""What a plan says that ranks exchange is what they do: each collective of a step of training, to the byte."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import model_jobs
import pytest
import transom
import volume_jobs
from transom.specs.communication import communication
from transom.specs.step import Step
from transom.specs.world import World
from transom.testing.ranks import ranks

pytestmark = pytest.mark.multiprocess

SMALL = {"num_layers": 2, "hidden_size": 16, "ffn_hidden_size": 24, "num_attention_heads": 4}
TRAIN = {"batch_size": 4, "sequence_length": 24}


def spec(recipe: str, config: dict[str, Any], train: dict[str, Any], **top: Any) -> dict[str, Any]:
    """A recipe's model, small."""
    described = transom.load_spec(recipe).to_dict()
    described["config"] |= SMALL | ({"num_query_groups": 2} if recipe == "tiny-llama" else {}) | config
    described["train"] = described["train"] | TRAIN | train
    return described | {"use": model_jobs.PARALLEL | {"core_attention": "dot_product"}} | top


def planned(described: dict[str, Any], sizes: dict[str, int], place: int) -> volume_jobs.Counted:
    """Add up by axis and operation; what is said to all, or along one of two axes, where one axis has all of them."""
    alone = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "sequence_parallel": False}
    config = described["config"] | alone | {"virtual_pipeline_model_parallel_size": None}
    whole = transom.plan(described | {"config": config})
    world = World(**sizes, sp=described["config"].get("sequence_parallel", 0))
    said = communication(whole, world, Step.of(whole, world))[place]
    found: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for each in said:
        axis = "dp" if each.axis == "cp" else each.axis  # ranks that share sequences are data-parallel ones, too
        if axis == "all" and len(sizes) == 1:
            axis = next(iter(sizes)).replace("cp", "dp")
        found[axis, each.operation][0] += each.calls
        found[axis, each.operation][1] += each.bytes
    return found


SEQUENCE = {"sequence_parallel": True}
UNTIED = {"share_embeddings_and_output_weights": False}
BIASED = {"add_bias_linear": True, "normalization": "LayerNorm", "qk_layernorm": True}
NARROW = {"precision": "bfloat16"}
BOTH = {"tp": 2, "dp": 2}
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
MLP = {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
CORE = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
CASES: dict[str, tuple[str, dict[str, int], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "llama_tp": ("tiny-llama", {"tp": 2}, {}, {}, {}),
    "llama_tp_untied_accumulated": ("tiny-llama", {"tp": 2}, {}, {"accumulate": 2}, UNTIED),
    "llama_tp_biased": ("tiny-llama", {"tp": 2}, BIASED, {}, {}),
    "llama_sp": ("tiny-llama", {"tp": 2}, SEQUENCE, {}, {}),
    "llama_sp_biased": ("tiny-llama", {"tp": 2}, SEQUENCE | BIASED, {}, UNTIED),
    "llama_tp_narrow": ("tiny-llama", {"tp": 2}, {}, NARROW, {}),
    "llama_sp_narrow": ("tiny-llama", {"tp": 2}, SEQUENCE, NARROW, {}),
    "llama_tp_positions": ("tiny-llama", {"tp": 2}, {"position_embedding_type": "learned_absolute"}, {}, {}),
    "llama_tp_bfloat16": ("tiny-llama", {"tp": 2}, {"params_dtype": "bfloat16"}, {}, {}),
    "llama_tp_wide": ("tiny-llama", {"tp": 2}, {"params_dtype": "bfloat16", "fp32_residual_connection": True}, {}, {}),
    "llama_dp": ("tiny-llama", {"dp": 2}, {}, {}, {}),
    "llama_dp_accumulated": ("tiny-llama", {"dp": 2}, {}, {"accumulate": 2}, UNTIED),
    "llama_dp_narrow": ("tiny-llama", {"dp": 2}, {}, NARROW, {}),
    "llama_dp_bfloat16": ("tiny-llama", {"dp": 2}, {"params_dtype": "bfloat16"}, {}, {}),
    "llama_tp_recomputed": ("tiny-llama", {"tp": 2}, FULL | {"recompute_num_layers": 2}, {}, {}),
    "llama_sp_recomputed": ("tiny-llama", {"tp": 2}, SEQUENCE | FULL | {"hidden_dropout": 0.1}, {}, {}),
    "llama_sp_selected": ("tiny-llama", {"tp": 2}, SEQUENCE | MLP, {}, {}),
    "llama_cp_recomputed": ("tiny-llama", {"cp": 2}, CORE, {}, {}),
    "t5_tp_recomputed": ("tiny-t5", {"tp": 2}, FULL | {"num_layers": 3, "recompute_num_layers": 2}, {}, {}),
    "t5_tp": ("tiny-t5", {"tp": 2}, {}, {}, {}),
    "t5_dp": ("tiny-t5", {"dp": 2}, {}, {}, {}),
    "llama_both": ("tiny-llama", BOTH, {}, {}, {}),
    "llama_both_sp_biased": ("tiny-llama", BOTH, SEQUENCE | BIASED, {}, {}),
    "llama_both_sp_narrow": ("tiny-llama", BOTH, SEQUENCE, NARROW, {}),
    "llama_tp_shared_heads": ("tiny-llama", {"tp": 4}, {}, {}, {}),
    "llama_sp_shared_heads": ("tiny-llama", {"tp": 4}, SEQUENCE | BIASED, {}, {}),
    "llama_dp_padded": (
        "tiny-llama",
        {"dp": 4},
        {"hidden_size": 24, "ffn_hidden_size": 26} | BIASED,
        {},
        {"vocab_size": 258},
    ),
    "llama_pp": ("tiny-llama", {"pp": 2}, {}, {}, {}),
    "llama_pp_untied_accumulated": ("tiny-llama", {"pp": 2}, {}, {"accumulate": 2, "microbatches": 2}, UNTIED),
    "t5_pp": ("tiny-t5", {"pp": 2}, {}, {}, {}),
    "llama_pp_dp": ("tiny-llama", {"pp": 2, "dp": 2}, {}, {}, {}),
    "llama_pp_sp": ("tiny-llama", {"pp": 2, "tp": 2}, SEQUENCE, {}, {}),
    "llama_virtual": ("tiny-llama", {"pp": 2, "dp": 2, "vpp": 2}, {"num_layers": 4}, {}, {}),
    "llama_cp": ("tiny-llama", {"cp": 2}, {}, {}, {}),
    "llama_cp_tp": ("tiny-llama", {"cp": 2, "tp": 2}, {}, {}, {}),
    "t5_pp_four": ("tiny-t5", {"pp": 4}, {}, {}, {}),
    "t5_both": ("tiny-t5", BOTH, {}, {}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_planned_volume_is_what_ranks_say(case: str) -> None:
    recipe, sizes, config, train, top = CASES[case]
    virtual = {"virtual_pipeline_model_parallel_size": 2} if "vpp" in sizes else {}
    described = spec(recipe, config | {"tensor_model_parallel_size": sizes.get("tp", 1)}, train, **top)
    real = {name: size for name, size in sizes.items() if name != "vpp"}
    described["config"] |= virtual and {"pipeline_model_parallel_size": 2, **virtual}
    count, stages = math.prod(real.values()), sizes.get("pp", 1)
    for rank, found in enumerate(ranks(count).run(volume_jobs.measured, described, real)):
        assert found == planned(described, sizes, rank * stages // count), rank
