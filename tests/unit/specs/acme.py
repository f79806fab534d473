"""The package of `acme-fakes`, which the fixture of that name installs: a small model of parts of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transom.transformer import parts as part


class Linear(nn.Module):
    def __init__(self, input_size, output_size, /, *, config, bias, init_method=None, **others):
        super().__init__()
        self.inner = nn.Linear(input_size, output_size, bias=bias)

    def forward(self, x, /):
        return self.inner(x), None

    def backward_dw(self):
        pass


class Norm(nn.Module):
    def __init__(self, config, hidden_size, eps):
        super().__init__()
        self.weight = nn.Parameter(nn.init.ones_(__import__("torch").empty(hidden_size)))

    def forward(self, x, /):
        return x * self.weight


class Embedding(nn.Module):
    def __init__(self, num_embeddings, embedding_dim, /, *, config, init_method, tp_group):
        super().__init__()
        self.weight = nn.Parameter(__import__("torch").zeros(num_embeddings, embedding_dim))

    def forward(self, ids, /):
        return self.weight[ids]


def linear(builder, config, input_size, output_size):
    return builder(
        input_size, output_size, config=config, init_method=None, bias=True, skip_bias_add=False, is_expert=False,
        tp_comm_buffer_name=None, tp_group=None,
    )  # fmt: skip


class MLP(nn.Module):
    @dataclass
    class Submodules:
        up: Any = None
        down: Any = None

    @dataclass
    class Options:
        times: int = 2

    @classmethod
    def parts(cls, request):
        config = request.config
        return {
            "up": part.column_linear(request, config.hidden_size, config.ffn_hidden_size, bias=True),
            "down": part.row_linear(request, config.ffn_hidden_size, config.hidden_size, bias=True),
        }

    @classmethod
    def describe(cls, request, options):
        return "" if options is None else f"{options.times} passes in layer {request.layer_number}"

    def __init__(
        self, config, submodules, is_expert=False, input_size=None, ffn_hidden_size=None, tp_group=None, *, options=None
    ):
        super().__init__()
        self.options = options
        self.up = linear(submodules.up, config, config.hidden_size, config.ffn_hidden_size)
        self.down = linear(submodules.down, config, config.ffn_hidden_size, config.hidden_size)

    def forward(self, hidden_states, per_token_scale=None):
        return self.down(self.up(hidden_states)[0].relu())


class EvenMLP(MLP):
    """Serves the layers of even number."""

    @classmethod
    def supports(cls, request):
        if request.layer_number % 2:
            yield f"layer {request.layer_number} is odd"


class Layer(nn.Module):
    @dataclass
    class Submodules:
        input_layernorm: Any = None
        mlp: Any = None

    @classmethod
    def parts(cls, request):
        return {
            "input_layernorm": part.norm(request, request.config.hidden_size),
            "mlp": part.mlp(request, request.layer_number),
        }

    def __init__(self, config, submodules, layer_number=1, *, tp_group=None):
        super().__init__()
        self.input_layernorm = submodules.input_layernorm(
            config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon
        )
        self.mlp = submodules.mlp(config, tp_group=tp_group)

    def forward(
        self, hidden_states, *, mask=None, context=None, context_mask=None, positions=None, cache=None
    ):  # fmt: skip
        return hidden_states + self.mlp(self.input_layernorm(hidden_states))[0], context


class Model(nn.Module):
    @dataclass
    class Submodules:
        word_embeddings: Any = None
        layers: Any = None

    @classmethod
    def parts(cls, request):
        return {
            "word_embeddings": part.embedding(
                request, request.vocab_size, request.config.hidden_size, path="embedding.word_embeddings"
            ),
            "layers": [part.layer(request, i + 1) for i in range(request.config.num_layers)],
        }

    def __init__(self, config, submodules, *, request, tp_group=None):
        super().__init__()
        self.embedding = nn.Module()
        self.embedding.word_embeddings = submodules.word_embeddings(
            request.vocab_size, config.hidden_size, config=config, init_method=None, tp_group=tp_group
        )
        self.layers = nn.ModuleList(
            build(config, layer_number=i + 1, tp_group=tp_group) for i, build in enumerate(submodules.layers)
        )

    def forward(self, tokens, *, mask=None, input_pos=None, labels=None):
        hidden = self.embedding.word_embeddings(tokens)
        for layer in self.layers:
            hidden, _ = layer(hidden)
        return hidden @ self.embedding.word_embeddings.weight.T
