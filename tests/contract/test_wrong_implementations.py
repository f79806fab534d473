"""Deliberately wrong implementations: each is caught by the case that is there for it."""

from __future__ import annotations

import pytest
from transom.testing import Case, cases_for
from transom.testing.report import run_case

WRONG = [
    # slot, what is wrong, the case that catches it, what it says
    ("core_attention", "InvertedMask", "agreement/causal[cpu-float32]", "output: "),
    ("core_attention", "MaskIgnored", "agreement/causal[cpu-float32]", "output: "),
    ("core_attention", "MaskIgnored", "agreement/padding_right[cpu-bfloat16]", "output: "),
    ("core_attention", "MaskIgnored", "agreement/keep[cpu-float16]", "output: "),
    ("core_attention", "BoolAsAdditive", "agreement/padding_left[cpu-float32]", "output: "),
    ("core_attention", "TopLeft", "agreement/causal_fewer_queries[cpu-float32]", "output: "),
    ("core_attention", "TopLeft", "agreement/causal_more_queries[cpu-float32]", "output: "),
    ("core_attention", "WindowOffByOne", "agreement/window_left[cpu-float32]", "output: "),
    ("core_attention", "WindowOffByOne", "agreement/window_none[cpu-float32]", "output: "),
    ("core_attention", "WindowReplacesMask", "agreement/window_padding[cpu-float32]", "output: "),
    ("core_attention", "WindowReplacesMask", "agreement/packed_window[cpu-float32]", "output: "),
    ("core_attention", "KeepReplacesCausal", "agreement/keep_causal[cpu-float32]", "output: "),
    ("core_attention", "KeepReplacesCausal", "agreement/combined[cpu-float32]", "output: "),
    ("core_attention", "PrefixForgotten", "agreement/prefix[cpu-float32]", "output: "),
    ("core_attention", "PrefixOfTheFirstRow", "agreement/prefix[cpu-float32]", "output: "),
    ("core_attention", "PaddingSegmentSeesItself", "agreement/packed_padded[cpu-float32]", "output: "),
    ("core_attention", "EmptySlotsSeen", "agreement/positions_rows[cpu-float32]", "output: "),
    ("core_attention", "LeftPaddingOnly", "agreement/padding_interior[cpu-float32]", "output: "),
    ("core_attention", "AlibiTopLeft", "agreement/alibi_fewer_queries[cpu-float32]", "output: "),
    ("core_attention", "WrongScale", "agreement/everyone[cpu-float32]", "output: "),
    ("core_attention", "ScaleArgumentIgnored", "agreement/scale[cpu-float32]", "output: "),
    ("core_attention", "LayerScalingNotUndone", "agreement/layer_scaling[cpu-float32]", "output: "),
    ("core_attention", "GroupsInterleaved", "agreement/grouped[cpu-float32]", "output: "),
    ("core_attention", "BiasTwice", "agreement/bias[cpu-float32]", "output: "),
    ("core_attention", "BiasScaled", "agreement/bias_shared[cpu-float32]", "output: "),
    ("core_attention", "BiasDetached", "agreement/bias_learned[cpu-float32]", "no gradient reaches bias"),
    ("core_attention", "SoftcapForgotten", "agreement/softcap[cpu-float32]", "output: "),
    ("core_attention", "SoftcapAfterBias", "agreement/softcap_bias[cpu-float32]", "output: "),
    ("core_attention", "SinkForgotten", "agreement/sink_off_by_one[cpu-float32]", "output: "),
    ("core_attention", "SinkForgotten", "agreement/sink_learned[cpu-float32]", "output: "),
    ("core_attention", "BlindRowsUniform", "agreement/padding_whole_row[cpu-float32]", "output: "),
    ("core_attention", "BlindRowsUniform", "agreement/causal_more_queries[cpu-float32]", "output: "),
    (
        "core_attention",
        "BlindRowsNanBackward",
        "agreement/keep_without_rows[cpu-float32]",
        "the gradient of query: nan",
    ),
    ("core_attention", "Overflows", "agreement/large_scores[cpu-float32]", "output: nan"),
    ("core_attention", "DropoutInEval", "agreement/dropout_in_eval[cpu-float32]", "the weights in evaluation: "),
    ("core_attention", "DropoutUnscaled", "agreement/dropout_share[cpu-float32]", "the weights that are kept"),
    ("core_attention", "DropoutOfTheConfig", "agreement/dropout_argument[cpu-float32]", "of the weights are dropped"),
    ("core_attention", "DropoutSharedByHeads", "agreement/dropout_differs[cpu-float32]", "two heads drop the same"),
    ("core_attention", "DropoutFromElsewhere", "agreement/dropout_seeded[cpu-float32]", "the bits differ"),
    (
        "core_attention",
        "DropoutForgottenBackward",
        "agreement/dropout_slope[cpu-float64]",
        "the derivative, against a difference quotient",
    ),
    ("core_attention", "GradientHalved", "agreement/everyone[cpu-float32]", "the gradient of key: "),
    ("core_attention", "WritesToItsInput", "agreement/everyone[cpu-float32]", "it wrote to its input 'query'"),
    ("core_attention", "ContiguousOnly", "agreement/sequence_first[cpu-float32]", "output: "),
    ("core_attention", "WideOutput", "agreement/everyone[cpu-bfloat16]", "torch.float32, expected torch.bfloat16"),
    ("core_attention", "Noisy", "module/deterministic[cpu-float32]", "the bits differ"),
    (
        "core_attention",
        "RemembersTheLastCall",
        "module/eval[cpu-float32]",
        "output after another call: the bits differ",
    ),
    ("core_attention", "AllocatesOnBuild", "module/meta[cpu-float32]", "it allocated table"),
    ("core_attention", "NotPicklable", "module/pickle[cpu-float32]", "lambda"),
    ("core_attention", "InferenceTable", "module/inference_mode[cpu-float32]", "Inference tensors cannot be saved"),
    ("core_attention", "ReadsItsLayer", "module/compile[cpu-float32]", "layer 2 was compiled anew"),
    ("core_attention", "BreaksTheGraph", "module/compile[cpu-float32]", "it does not compile in one graph"),
    ("core_attention", "WrongFakeKernel", "module/custom_ops[cpu-float32]", "wrong_parts.softmax"),
    ("core_attention", "RefusesSoftcap", "declared/softcap[cpu]", "refuses every request for it: softcap: no kernel"),
    ("core_attention", "SupportsFails", "card/supports", "its supports() failed: RuntimeError: libacme.so not found"),
    ("core_attention", "SupportsDraws", "card/supports", "supports() drew random numbers"),
    ("core_attention", "Undeclared", "card/readable", "[core_attention.Undeclared] is missing"),
    ("core_attention", "Undeclared", "refused/causal", "causal is not declared, and a request for it is not refused"),
    ("core_attention", "Missing", "card/importable", "has no attribute 'Missing'"),
    ("core_attention", "WrongSignature", "card/importable", "does not accept `layer_number`"),
    ("core_attention", "NoModule", "agreement/everyone[cpu-float32]", "made a NoModule, not a torch.nn.Module"),
    ("norm", "WithoutEps", "agreement/layernorm_small[cpu-float32]", "output: "),
    ("norm", "WithoutEps", "agreement/rmsnorm_zeros[cpu-float32]", "output: nan"),
    ("norm", "EpsOutsideTheRoot", "agreement/rmsnorm_small[cpu-float32]", "output: "),
    ("norm", "EpsOfTheConfig", "agreement/rmsnorm_eps[cpu-float32]", "output: "),
    ("norm", "UnbiasedVariance", "agreement/layernorm[cpu-float32]", "output: "),
    ("norm", "NarrowStatistics", "agreement/rmsnorm_large[cpu-float16]", "output: "),
    ("norm", "ZeroCenteredForgotten", "agreement/rmsnorm_zero_centered[cpu-float32]", "output: "),
    ("norm", "StartsAtZero", "contract/initial[cpu-float32]", "weight does not start at 1.0"),
    ("norm", "WideResult", "agreement/layernorm[cpu-bfloat16]", "torch.float32, expected torch.bfloat16"),
    ("norm", "NoReset", "module/reset_parameters[cpu-float32]", "has parameters and no reset_parameters()"),
    ("norm", "OtherNames", "contract/initial[cpu-float32]", "its parameters are "),
    ("activation", "TanhWhenFused", "agreement/gelu_fusion[cpu-float32]", "output: "),
    ("activation", "TanhForExact", "agreement/gelu[cpu-float32]", "output: "),
    ("activation", "GateSecond", "agreement/silu_gated[cpu-float32]", "output: "),
    ("activation", "GateClampedBelow", "agreement/silu_clamped[cpu-float32]", "output: "),
    ("activation", "OffsetForgotten", "agreement/gelu_offset[cpu-float32]", "output: "),
    ("activation", "OffsetBeforeClamp", "agreement/relu_both[cpu-float32]", "output: "),
    ("rotary", "OtherPairing", "agreement/half_split[cpu-float32]", "query: "),
    ("rotary", "OtherPairing", "agreement/interleaved[cpu-float32]", "query: "),
    ("rotary", "OtherDirection", "agreement/half_split[cpu-float32]", "query: "),
    ("rotary", "PositionsIgnored", "agreement/half_split_positions[cpu-float32]", "query: "),
    ("rotary", "PositionsOfTheFirstRow", "agreement/interleaved_rows[cpu-float32]", "query: "),
    ("rotary", "RotatesEverything", "agreement/half_split_partial[cpu-float32]", "query: "),
    ("rotary", "BaseIgnored", "agreement/half_split_base[cpu-float32]", "query: "),
    ("rotary", "NarrowAngles", "agreement/half_split_far[cpu-bfloat16]", "query: "),
    ("rotary", "ShortTable", "agreement/half_split_far[cpu-float32]", "query: "),
    ("rotary", "KeysUnturned", "agreement/half_split[cpu-float32]", "key: "),
    ("rotary", "AbsolutePositions", "contract/relative[cpu-float32]", "at the same distance"),
    ("column_linear", "BiasTwice", "agreement/bias[cpu-float32]", "output: "),
    ("column_linear", "BiasAddedAndReturned", "agreement/bias[cpu-float32]", "the bias is returned"),
    ("column_linear", "BiasAddedAndReturned", "agreement/skip_bias[cpu-float32]", "output: "),
    ("column_linear", "BiasForgotten", "agreement/bias[cpu-float32]", "output: "),
    ("column_linear", "Flattens", "agreement/four_dimensions[cpu-float32]", "shape [12, 40], expected [2, 3, 2, 40]"),
    ("column_linear", "BiasRandom", "contract/initial[cpu-float32]", "the bias does not start at zero"),
    ("column_linear", "InitIgnored", "contract/initial[cpu-float32]", "the init method did not fill the weight"),
    ("column_linear", "NoBackwardDw", "contract/backward_dw[cpu-float32]", "it has no backward_dw()"),
    ("column_linear", "OverwritesGradients", "contract/accumulates[cpu-float32]", "after two backward passes"),
    ("column_linear", "DelayForgotten", "contract/delay_wgrad[cpu-float32]", "has a gradient before backward_dw()"),
    ("embedding", "PaddingRow", "agreement/ids[cpu-float32]", "the gradient of weight: "),
    ("embedding", "ScaledByFrequency", "agreement/ids[cpu-float32]", "the gradient of weight: "),
    ("embedding", "ScaledByWidth", "agreement/ids[cpu-float32]", "output: "),
    ("embedding", "RowsOnly", "agreement/one_dimension[cpu-float32]", "not enough values to unpack"),
    ("embedding", "InitIgnored", "contract/initial[cpu-float32]", "the init method did not fill the weight"),
    ("bias_dropout_add", "BiasTwice", "agreement/bias[cpu-float32]", "output: "),
    (
        "bias_dropout_add",
        "BiasAfterDropout",
        "agreement/dropout_residual[cpu-float32]",
        "residual + dropout(x + bias): ",
    ),
    ("bias_dropout_add", "DropoutInEval", "agreement/evaluation[cpu-float32]", "output: "),
    (
        "bias_dropout_add",
        "DropsTheResidual",
        "agreement/dropout_residual[cpu-float32]",
        "residual + dropout(x + bias): ",
    ),
    ("bias_dropout_add", "DropoutUnscaled", "agreement/dropout_share[cpu-float32]", "the elements that are kept"),
    ("bias_dropout_add", "NarrowsTheResidual", "agreement/wide_residual[cpu-bfloat16]", "expected torch.float32"),
    ("bias_dropout_add", "AddsInPlace", "agreement/no_bias[cpu-float32]", ""),
    ("bias_dropout_add", "DropoutForgottenBackward", "agreement/dropout_backward[cpu-float32]", "the gradient of x: "),
    ("loss", "BiasForgotten", "agreement/bias[cpu-float32]", "loss: "),
    ("loss", "PenaltyForgotten", "agreement/z_loss[cpu-float32]", "loss: "),
    ("loss", "PenaltyOnIgnored", "agreement/z_loss_ignored[cpu-float32]", "loss: "),
    ("loss", "AlwaysMinus100", "agreement/ignore_index[cpu-float32]", "loss: "),
    ("loss", "Averaged", "agreement/cross_entropy[cpu-float32]", "shape [], expected [2, 5]"),
    ("loss", "Overflows", "agreement/large_logits[cpu-float32]", "loss: inf"),
    ("loss", "NarrowResult", "agreement/cross_entropy[cpu-bfloat16]", "torch.bfloat16, expected torch.float32"),
    ("loss", "WeightDetached", "agreement/cross_entropy[cpu-float32]", "no gradient reaches weight"),
    ("mlp", "SeesOtherTokens", "contract/by_token_llama[cpu-float32]", "outputs beside a token that changed"),
    ("mlp", "ScaleIgnored", "contract/token_scale_gpt[cpu-float32]", "does not depend on per_token_scale"),
    ("mlp", "ScaleAveraged", "contract/token_scale_llama[cpu-float32]", "the output of tokens whose scale is one"),
    ("mlp", "UnusedParameter", "contract/gradients_llama[cpu-float32]", "no gradient reaches spare"),
    ("mlp", "WidthIgnored", "contract/width_gpt[cpu-float32]", "was planned with output_size=48"),
    ("mlp", "AnnouncesAnotherBias", "contract/shapes_llama[cpu-float32]", "was planned with bias=True"),
    ("mlp", "OutputOnly", "contract/shapes_llama[cpu-float32]", ""),
    ("mlp", "AddsToItsInput", "contract/shapes_llama[cpu-float32]", "it wrote to its input"),
    ("self_attention", "MaskIgnored", "contract/causal_llama[cpu-float32]", "outputs before token 1"),
    ("self_attention", "LooksAhead", "contract/causal_gpt[cpu-float32]", "outputs before token 1"),
    ("self_attention", "CausalOnly", "contract/padding_llama[cpu-float32]", "outputs beside padding on the left"),
    ("self_attention", "CausalOnly", "contract/packed_llama[cpu-float32]", "packed sequences, against each alone"),
    ("self_attention", "PositionsIgnored", "contract/cache_llama[cpu-float32]", "decoding after a prompt of 1"),
    ("self_attention", "CacheForgotten", "contract/cache_gpt[cpu-float32]", "decoding after a prompt of 1"),
    ("self_attention", "MixesRows", "contract/rows_llama[cpu-float32]", "rows beside one that changed"),
    ("self_attention", "DropoutInEval", "contract/dropout_in_eval_llama[cpu-float32]", "the output in evaluation"),
    ("self_attention", "NoDropout", "contract/dropout_llama[cpu-float32]", "training drops nothing"),
    ("self_attention", "BlindRowsNan", "contract/blind_llama[cpu-float32]", "is not finite"),
    (
        "self_attention",
        "QueryProjectionDetached",
        "contract/gradients_llama[cpu-float32]",
        "no gradient reaches linear_qkv",
    ),
    ("self_attention", "Float32Output", "contract/shapes_gpt[cpu-bfloat16]", "torch.float32, expected torch.bfloat16"),
    ("cross_attention", "MaskIgnored", "contract/padding_llama[cpu-float32]", "beside a change of the padding"),
    ("cross_attention", "ReadsItself", "contract/by_token_gpt[cpu-float32]", ""),
    ("cross_attention", "MixesTokens", "contract/by_token_gpt[cpu-float32]", "outputs beside a token that changed"),
    ("cross_attention", "MixesRows", "contract/rows_llama[cpu-float32]", "the row beside one whose keys changed"),
    (
        "cross_attention",
        "ContextDetached",
        "contract/gradients_llama[cpu-float32]",
        "no gradient reaches key_value_states",
    ),
    ("layer", "LooksAhead", "contract/causal_llama[cpu-float32]", "outputs before token 1"),
    ("layer", "MaskForgotten", "contract/causal_llama[cpu-float32]", "outputs before token 1"),
    ("layer", "CacheForgotten", "contract/cache_llama[cpu-float32]", "decoding after a prompt of 1"),
    ("layer", "ContextMaskForgotten", "contract/context_llama[cpu-float32]", "beside a change of padding"),
    ("layer", "ContextSwallowed", "contract/context_llama[cpu-float32]", "is not the one that it was given"),
    ("layer", "ContextIgnored", "contract/context_llama[cpu-float32]", ""),
    ("layer", "AlwaysTraining", "contract/dropout_in_eval_llama[cpu-float32]", "the output in evaluation"),
    ("model", "BidirectionalByDefault", "contract/causal_by_default_llama[cpu-float32]", "logits without a mask"),
    ("model", "BoolMaskInverted", "contract/bool_mask_gpt[cpu-float32]", "logits with a triangle as mask"),
    ("model", "MaskReplaced", "contract/padding_llama[cpu-float32]", "outputs beside padding on the left"),
    ("model", "LabelsShifted", "contract/losses_llama[cpu-float32]", "a token without a label costs something"),
    ("model", "LossAveraged", "contract/losses_llama[cpu-float32]", "the losses has shape [], expected [2, 6]"),
    ("model", "NarrowLogits", "contract/shapes_llama[cpu-bfloat16]", "torch.bfloat16, expected torch.float32"),
    ("model", "PositionsIgnored", "contract/packed_gpt[cpu-float32]", "packed sequences, against each alone"),
    ("model", "SegmentsForgotten", "contract/packed_llama[cpu-float32]", "packed sequences, against each alone"),
    ("model", "CacheHalfKept", "contract/cache_llama[cpu-float32]", "decoding after a prompt of"),
]


def _case(implementation, case_id: str) -> Case:
    return next(case for case in cases_for(implementation) if case.id == case_id)


@pytest.mark.parametrize(
    ("slot", "name", "case_id", "says"), WRONG, ids=[f"{slot}-{name}-{case_id}" for slot, name, case_id, _ in WRONG]
)
def test_wrong_implementation_is_caught_by_the_case_for_it(part, slot, name, case_id, says):
    outcome = run_case(_case(part(slot, name), case_id))
    assert outcome.status == "failed"
    assert says in outcome.detail


@pytest.mark.parametrize(
    ("slot", "case_id"),
    sorted(
        {(slot, case_id) for slot, name, case_id, _ in WRONG if "delay" not in case_id and "refused" not in case_id}
    ),
)
def test_right_implementation_passes_the_cases_that_catch_wrong_ones(part, slot, case_id):
    outcome = run_case(_case(part(slot, "Right"), case_id))
    assert (outcome.status, outcome.detail) == ("passed", "")


def test_impolite_import_is_caught(part):
    outcome = run_case(_case(part("norm", "Impolite", module="impolite"), "import/hygiene"))
    assert outcome.status == "failed"
    for what in (
        "the environment",
        "the warnings filters",
        "Python's random state",
        "torch's random state",
        "torch's default dtype",
        "the number of threads",
    ):
        assert what in outcome.detail
