from __future__ import annotations

import pytest
import torch
from transom.errors import ConfigError
from transom.transformer.utils import torch_dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_torch_dtype_finds_dtype_by_name(dtype):
    assert torch_dtype(str(dtype).removeprefix("torch.")) is dtype


@pytest.mark.parametrize("name", ["int64", "float23", "nn"])
def test_torch_dtype_refuses_what_parameters_cannot_have(name):
    with pytest.raises(ConfigError) as caught:
        torch_dtype(name)
    assert caught.value.what == f"params_dtype is {name!r}; a floating dtype is needed."
    assert caught.value.available == ("float32", "bfloat16", "float16", "float64")
    assert (caught.value.field, caught.value.value) == ("params_dtype", name)
