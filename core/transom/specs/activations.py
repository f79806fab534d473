"""What a rank keeps between forward and backward pass, in bytes: an estimate from a plan's requests.

Counted is what the backward passes of the equations read, each once, on one rank of p tensor-parallel ones, for each of
its tokens, with e bytes a number:

- norm: its input, h·e, and one number of its statistics; under sequence parallelism for 1/p of the tokens;
- column linear: its input, in·e, and, where an activation reads it, its output, out/p·e;
- core attention: queries, keys and values, (n + 2g)·d/p·e, and the logarithm of each row's sum;
- row linear: its input, in/p·e, which is what attention or the activation made;
- loss: its input, h·e, and the logits in float32, v/p, where the vocabulary is split; else they are made again.

Attention that keeps its scores keeps several times n/p·t numbers a token more; dropout keeps what it drops. What
implementations keep beside is theirs.

Where layers are recomputed, only the input of each chunk of layers stays, and the largest chunk is there once. A
pipeline stage holds several parts of a batch: under 1F1B as many as there are stages from it to the last; under the
interleaved schedule those of Narayanan et al. 2021, section 2.2.

Source: Korthikanti et al. 2022, section 4, whose counting this follows; ours takes the model's own sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transom.slots.core_attention import CoreAttentionRequest
from transom.slots.embedding import EmbeddingRequest
from transom.slots.linear import LinearRequest
from transom.slots.loss import LossRequest
from transom.slots.norm import NormRequest
from transom.specs.stage_nodes import stages_of
from transom.transformer.recompute import LayerRecompute

if TYPE_CHECKING:
    from transom.specs.node import Node
    from transom.specs.plan import Plan
    from transom.specs.stage_nodes import StageNodes
    from transom.specs.step import Step
    from transom.specs.world import World

__all__ = ["activations"]


def activations(plan: Plan, world: World, step: Step) -> tuple[int, ...]:
    """Estimate what one rank of every pipeline stage keeps for the backward pass.

    Args:
        plan: of the whole model.
        world: how many ranks there are.
        step: what is computed.

    Returns:
        bytes, one number a stage; zeros for a plan without training.

    Raises:
        ParallelError: the layers cannot be cut like this.

    Example:
        >>> from transom import plan
        >>> from transom.specs.step import Step
        >>> from transom.specs.world import World
        >>> made = plan("tiny-llama")
        >>> activations(made, World(), Step.of(made, World()))
        (95707136,)
    """
    if plan.context.mode != "train":
        return (0,) * world.pp
    kept = _Kept(plan, world, step)
    return tuple(kept.of_stage(nodes) for nodes in stages_of(plan, world))


@dataclass(frozen=True)
class _Kept:
    """What places keep of one forward pass."""

    plan: Plan
    world: World
    step: Step

    def of_stage(self, nodes: StageNodes) -> int:
        """Give what a rank keeps of all parts of a batch that are on their way."""
        ends = sum(self._of_place(node) for node in nodes.ends)
        layers, again = self._of_layers([self._of_place(layer) for layer in nodes.layers])
        return (ends + layers) * self._parts(nodes.number) // len(nodes.chunks) + again

    def _of_layers(self, layers: list[int]) -> tuple[int, int]:
        """Give what layers keep, and what the largest recomputed chunk of them does while it is run again."""
        recompute = LayerRecompute.of(self.plan.config)
        if recompute is None or not layers:
            return sum(layers), 0
        one = self.step.hidden_bytes(self.plan.config, self.world)
        chunks = [(sum(layers[chunk.start : chunk.stop]), again) for chunk, again in recompute.chunks(len(layers))]
        return sum(one if again else size for size, again in chunks), max(size * again for size, again in chunks)

    def _parts(self, stage: int) -> int:
        """Count the forward passes of a stage, or of its virtual stages, that have not met their backward pass."""
        stages, virtual, parts = self.world.pp, self.world.vpp, self.step.parts
        if virtual == 1:
            return min(parts, stages - stage)
        return min(parts * virtual, 2 * (stages - stage - 1) + (virtual - 1) * stages + 1)

    def _of_place(self, top: Node) -> int:
        return sum(int(self.step.tokens(node.path) * self._a_token(node)) for node in top.nodes())

    def _a_token(self, node: Node) -> float:
        request, step, tp = node.request, self.step, self.world.tp
        if isinstance(request, NormRequest) and not node.path.endswith(("q_layernorm", "k_layernorm")):
            return (request.hidden_size * step.exchanged_width + 4) / (tp if self.world.sp else 1)
        if isinstance(request, LinearRequest) and not node.path.endswith("output_layer"):
            return self._of_linear(node, request)
        if isinstance(request, CoreAttentionRequest):
            return self._of_attention(request)
        if isinstance(request, LossRequest):
            logits = self.plan.spec.vocab_size * 4 / tp if tp > 1 else 0
            return self.plan.config.hidden_size * step.exchanged_width + logits
        return 8 if isinstance(request, EmbeddingRequest) else 0  # ids

    def _of_linear(self, node: Node, request: LinearRequest) -> float:
        width, tp = self.step.product_width, self.world.tp
        if node.slot == "row_linear":
            return request.input_size * width / tp
        is_activated = not node.path.endswith(("linear_qkv", "linear_q", "linear_kv"))
        return request.input_size * width + is_activated * request.output_size * width / tp

    def _of_attention(self, request: CoreAttentionRequest) -> float:
        config, tp = self.plan.config, self.world.tp
        heads, groups = config.num_attention_heads / tp, max(config.num_query_groups / tp, 1)
        numbers = (heads + groups) * request.head_size + groups * request.value_head_size
        return numbers * self.step.product_width + heads * 4
