"""The base class of the reference transformer's modules, and a wrapper that runs a model in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from transom.errors import ConfigError
from transom.transformer.sharding import Offset, ShardedModule, ShardedStateDict, sharded_state_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["Float16Module", "Module"]

_HALVES = frozenset({torch.float16, torch.bfloat16})


class Module(ShardedModule):
    """A module that knows the config it was made from.

    Args:
        config: the model's config.
        tp_group: tensor-parallel process group; `None` = one process.
    """

    def __init__(self, config: TransformerConfig, tp_group: ProcessGroup | None = None) -> None:
        super().__init__()
        self.config = config
        self.tensor_parallel_rank = None if tp_group is None else tp_group.rank()

    def set_is_first_microbatch(self) -> None:
        """Tell all modules below that the next forward pass is an optimizer step's first.

        Kernels that keep something derived from a weight, a copy in a narrower dtype say, have an attribute
        ``is_first_microbatch`` and make it anew when it is true.
        """
        for module in self.modules():
            if hasattr(module, "is_first_microbatch"):
                setattr(module, "is_first_microbatch", True)  # noqa: B010 - not an attribute of every nn.Module


@final
class Float16Module(Module):
    """A model in float16 or bfloat16 that is called with, and returns, float32.

    The model's floating parameters are cast in place, each keeping its identity; buffers stay as they are, since
    tables are kept in float32 on purpose. Float32 tensors among the arguments are cast, at any depth of tuples, lists
    and dicts; other dtypes and other objects pass as they are. Of pipeline stages only the first casts its inputs
    (``pre_process``) and only the last its outputs (``post_process``); a model without these attributes is both.

    States have the model's own names: what was saved with the wrapper loads without it and the other way round. Wrap
    the outermost module, since a module around this one finds its parameters under ``module``.

    Args:
        config: of which ``fp16`` or ``bf16`` says the dtype.
        module: the model.

    Raises:
        ConfigError: neither is set.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1, bf16=True)
        >>> model = Float16Module(config, nn.Linear(4, 2))
        >>> model.module.weight.dtype, model(torch.ones(1, 4)).dtype, sorted(model.state_dict())
        (torch.bfloat16, torch.float32, ['bias', 'weight'])
    """

    def __init__(self, config: TransformerConfig, module: nn.Module) -> None:
        super().__init__(config)
        self.dtype = _half_of(config)
        self.module = module
        self._casts_inputs = bool(getattr(module, "pre_process", True))
        self._casts_outputs = bool(getattr(module, "post_process", True))
        for parameter in module.parameters():
            _cast_in_place(parameter, self.dtype)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the model on what its own ``forward`` takes, and return what it returns, in float32."""
        if self._casts_inputs:
            wanted = frozenset({torch.float32})
            inputs, options = _cast(inputs, wanted, self.dtype), _cast(options, wanted, self.dtype)
        outputs = self.module(*inputs, **options)
        return _cast(outputs, _HALVES, torch.float32) if self._casts_outputs else outputs

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Give the model what the pipeline stage before it returned."""
        stage: Any = self.module
        stage.set_input_tensor(input_tensor)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Return the model's state, under its own names; the arguments are those of `torch.nn.Module.state_dict`."""
        return self.module.state_dict(*args, **options)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state of the model; the arguments and the result are those of `torch.nn.Module.load_state_dict`."""
        return self.module.load_state_dict(state_dict, strict=strict, assign=assign)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe the model's state, under its own names."""
        return sharded_state_of(self.module, prefix, sharded_offsets, metadata)


def _half_of(config: TransformerConfig) -> torch.dtype:
    if config.fp16 or config.bf16:
        return torch.float16 if config.fp16 else torch.bfloat16
    raise ConfigError(
        "neither fp16 nor bf16 is set; there is no half precision to run the model in.",
        hint="set one of them, or leave the wrapper out",
        field="bf16",
        value=False,
        path="config.bf16",
        file=None,
        line=None,
    )


def _cast_in_place(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    if not parameter.is_floating_point():
        return
    grad, parameter.grad = parameter.grad, None  # a gradient must have its parameter's dtype throughout
    parameter.data = parameter.data.to(dtype)
    parameter.grad = None if grad is None else grad.to(dtype)


def _cast(value: Any, wanted: frozenset[torch.dtype], dtype: torch.dtype) -> Any:
    """Cast the tensors whose dtype is among ``wanted``, in tuples (named ones too), lists and dicts."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.dtype in wanted else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_cast(item, wanted, dtype) for item in value))
    if type(value) in (tuple, list):
        return type(value)(_cast(item, wanted, dtype) for item in value)
    if type(value) is dict:
        return {key: _cast(item, wanted, dtype) for key, item in value.items()}
    return value
