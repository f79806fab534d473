"""What makes a config impossible although each field by itself is possible."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from transom.transformer._config_errors import refuse
from transom.transformer.pipeline_layout import PipelineLayout

if TYPE_CHECKING:
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["check_together", "head_size"]

Rule = tuple[str, bool, str]
"""A field, whether it is wrong, and what would be right."""


def head_size(hidden_size: int, heads: int) -> int:
    """Derive the head size, refusing to round it.

    Raises:
        ConfigError: the heads do not divide the hidden size.
    """
    if hidden_size % heads:
        right = f"a multiple of num_attention_heads ({heads}) is needed, or kv_channels must be given"
        refuse("hidden_size", hidden_size, right)
    return hidden_size // heads


def check_together(config: TransformerConfig) -> None:
    """Check fields against each other, after all are derived.

    Raises:
        ConfigError: of the first that contradicts another.
    """
    for rules in (_heads_and_norms, _mlp, _dtypes, _rope, _patterns, _relative, _recompute, _tensor, _pipeline):
        for field, is_wrong, right in rules(config):
            if is_wrong:
                refuse(field, getattr(config, field), right)


def _heads_and_norms(c: TransformerConfig) -> Iterator[Rule]:
    heads = c.num_attention_heads
    yield "num_query_groups", heads % c.num_query_groups != 0, f"a divisor of num_attention_heads ({heads}) is needed"
    yield "qk_l2_norm", c.qk_l2_norm and c.qk_layernorm, "it cannot be combined with qk_layernorm; choose one"
    has_norm = c.qk_l2_norm or c.qk_layernorm
    across = c.qk_layernorm_across_heads
    yield "qk_layernorm_across_heads", across and not c.qk_layernorm, "it needs qk_layernorm"
    yield "qk_norm_before_rope", not c.qk_norm_before_rope and not has_norm, "it needs qk_layernorm or qk_l2_norm"


def _mlp(c: TransformerConfig) -> Iterator[Rule]:
    yield "ffn_dropout", c.ffn_dropout > 0 and c.use_te_activation_func, "it needs use_te_activation_func: false"
    plain = not c.gated_linear_unit
    yield "glu_linear_offset", plain and c.glu_linear_offset != 0, "it needs gated_linear_unit"
    yield (
        "activation_func_clamp_value",
        plain and c.activation_func_clamp_value is not None,
        "it needs gated_linear_unit",
    )


def _dtypes(c: TransformerConfig) -> Iterator[Rule]:
    yield "fp16", c.fp16 and c.bf16, "it cannot be combined with bf16; choose one"
    yield "params_dtype", c.fp16 and c.params_dtype != "float16", "fp16 is set; leave one of them out"
    yield "params_dtype", c.bf16 and c.params_dtype != "bfloat16", "bf16 is set; leave one of them out"


def _rope(c: TransformerConfig) -> Iterator[Rule]:
    needs = "it needs position_embedding_type: rope"
    is_rope = c.position_embedding_type == "rope"
    yield "rope_scaling", c.rope_scaling is not None and not is_rope, needs
    yield "seq_len_interpolation_factor", c.seq_len_interpolation_factor is not None and not is_rope, needs
    yield "no_rope_freq", c.no_rope_freq is not None and not is_rope, needs
    yield "rotary_interleaved", c.rotary_interleaved and not is_rope, needs
    yield "rotary_percent", c.rotary_percent != 1 and not is_rope, needs
    both = c.seq_len_interpolation_factor is not None and c.rope_scaling is not None
    yield "seq_len_interpolation_factor", both, "it cannot be combined with rope_scaling; choose one"
    rotated = int(c.kv_channels * c.rotary_percent)
    yield "rotary_percent", is_rope and rotated < 2, f"at least 2 of the head's {c.kv_channels} components must rotate"
    divisors = None if c.rope_scaling is None else c.rope_scaling.frequency_divisors
    one_each = divisors is not None and len(divisors) != rotated // 2
    yield "rope_scaling", one_each, f"a divisor for each of the {rotated // 2} pairs that RoPE rotates is needed"
    what = "kv_channels" if c.rotary_percent == 1 else "rotary_percent"
    yield what, is_rope and rotated % 2 == 1, f"RoPE rotates pairs, and {rotated} components is an odd number"


def _patterns(c: TransformerConfig) -> Iterator[Rule]:
    one_each = f"one entry for each of the {c.num_layers} layers is needed"
    skip, no_rope = c.window_attn_skip_freq, c.no_rope_freq
    yield "window_attn_skip_freq", skip is not None and c.window_size is None, "it needs window_size"
    yield "window_attn_skip_freq", isinstance(skip, tuple) and len(skip) != c.num_layers, one_each
    yield "no_rope_freq", isinstance(no_rope, tuple) and len(no_rope) != c.num_layers, one_each


def _relative(c: TransformerConfig) -> Iterator[Rule]:
    is_relative = c.position_embedding_type == "relative"
    buckets = c.relative_attention_num_buckets
    yield "relative_attention_num_buckets", is_relative and buckets < 4, "at least 4 are needed, 2 for each direction"
    too_near = is_relative and c.relative_attention_max_distance <= buckets // 2
    yield "relative_attention_max_distance", too_near, f"more than half of the {buckets} buckets is needed"


def _recompute(c: TransformerConfig) -> Iterator[Rule]:
    is_full, is_selective = c.recompute_granularity == "full", c.recompute_granularity == "selective"
    method, layers = c.recompute_method, c.recompute_num_layers
    yield "recompute_method", is_full and method is None, "recompute_granularity: full needs uniform or block"
    yield "recompute_method", not is_full and method is not None, "it needs recompute_granularity: full"
    yield "recompute_num_layers", is_full and layers is None, "recompute_granularity: full needs a number of layers"
    yield "recompute_num_layers", not is_full and layers is not None, "it needs recompute_granularity: full"
    yield "recompute_num_layers", (layers or 0) > c.num_layers, f"at most num_layers ({c.num_layers}) is needed"
    modules = bool(c.recompute_modules)
    yield "recompute_modules", is_selective and not modules, "recompute_granularity: selective needs a module's name"
    yield "recompute_modules", modules and not is_selective, "it needs recompute_granularity: selective"


def _tensor(c: TransformerConfig) -> Iterator[Rule]:
    tp, heads, groups = c.tensor_model_parallel_size, c.num_attention_heads, c.num_query_groups
    yield "sequence_parallel", c.sequence_parallel and tp == 1, "it needs tensor_model_parallel_size above 1"
    yield "tensor_model_parallel_size", heads % tp != 0, f"a divisor of num_attention_heads ({heads}) is needed"
    shared = groups % tp != 0 and tp % groups != 0
    yield "tensor_model_parallel_size", shared, f"a divisor or a multiple of num_query_groups ({groups}) is needed"
    split_norm = tp > 1 and c.qk_layernorm_across_heads
    yield "tensor_model_parallel_size", split_norm, "qk_layernorm_across_heads needs all heads on one rank"
    ffn = c.ffn_hidden_size
    yield "tensor_model_parallel_size", ffn % tp != 0, f"a divisor of ffn_hidden_size ({ffn}) is needed"


def _pipeline(c: TransformerConfig) -> Iterator[Rule]:
    stages, virtual = c.pipeline_model_parallel_size, c.virtual_pipeline_model_parallel_size
    first, last = c.num_layers_in_first_pipeline_stage, c.num_layers_in_last_pipeline_stage
    embedding, loss = c.account_for_embedding_in_pipeline_split, c.account_for_loss_in_pipeline_split
    needs = "it needs pipeline_model_parallel_size above 1"
    yield "virtual_pipeline_model_parallel_size", virtual is not None and stages == 1, needs
    yield "num_layers_in_first_pipeline_stage", first is not None and stages == 1, needs
    yield "num_layers_in_last_pipeline_stage", last is not None and stages == 1, needs
    yield "account_for_embedding_in_pipeline_split", embedding and stages == 1, needs
    yield "account_for_loss_in_pipeline_split", loss and stages == 1, needs
    choose = "it cannot be combined with account_for_embedding/loss_in_pipeline_split; choose one"
    yield "num_layers_in_first_pipeline_stage", first is not None and (embedding or loss), choose
    yield "num_layers_in_last_pipeline_stage", last is not None and (embedding or loss), choose
    layout = c.pipeline_model_parallel_layout
    others = embedding or loss or first is not None or last is not None
    yield "pipeline_model_parallel_layout", layout is not None and stages == 1, needs
    choose = "it cannot be combined with other ways to split the layers; choose one"
    yield "pipeline_model_parallel_layout", layout is not None and others, choose
    split = c.pipeline_model_parallel_split_rank
    yield "pipeline_model_parallel_split_rank", split is not None and stages == 1, needs
    yield "pipeline_model_parallel_split_rank", (split or 0) >= stages, f"the decoder has none of the {stages} stages"
    others = others or layout is not None or virtual is not None
    yield "pipeline_model_parallel_split_rank", split is not None and others, choose
    if layout is not None:
        PipelineLayout.parse(layout).check(c.num_layers, stages, virtual or 1)
    elif stages > 1:
        yield from _division(c)


def _division(c: TransformerConfig) -> Iterator[Rule]:
    """Whether the layers divide over the stages, those of the first and the last aside where they are given."""
    first, last = c.num_layers_in_first_pipeline_stage, c.num_layers_in_last_pipeline_stage
    units = c.num_layers + c.account_for_embedding_in_pipeline_split + c.account_for_loss_in_pipeline_split
    rest = units - (first or 0) - (last or 0)
    stages = c.pipeline_model_parallel_size - (first is not None) - (last is not None)
    stages -= c.pipeline_model_parallel_split_rank or 0  # an encoder's layers are not among these
    yield "num_layers", rest < 0, "the first and the last pipeline stage ask for more layers than there are"
    yield "num_layers", stages == 0 and rest != 0, f"the two pipeline stages leave {rest} layers over"
    virtual = c.virtual_pipeline_model_parallel_size or 1
    each = f"a multiple of virtual_pipeline_model_parallel_size ({virtual}) is needed"
    yield "num_layers_in_first_pipeline_stage", (first or 0) % virtual != 0, each
    yield "num_layers_in_last_pipeline_stage", (last or 0) % virtual != 0, each
    chunks = max(1, stages * virtual)
    counted = f"{rest} layers (embedding and loss counted as asked)"
    yield "num_layers", rest % chunks != 0, f"{counted} do not divide over {chunks} pipeline chunks"
