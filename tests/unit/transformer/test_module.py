from __future__ import annotations

import torch
from transom.transformer.module import Module


class Caching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.is_first_microbatch = False


def test_module_knows_its_config(make_config):
    config = make_config()
    assert Module(config).config is config


def test_set_is_first_microbatch_tells_all_below_that_want_to_know(make_config):
    root, middle, leaf, other = Module(make_config()), torch.nn.Module(), Caching(), torch.nn.Linear(2, 2)
    middle.leaf = leaf
    root.middle, root.other = middle, other
    root.set_is_first_microbatch()
    assert leaf.is_first_microbatch is True
    assert not hasattr(other, "is_first_microbatch")
    assert not hasattr(root, "is_first_microbatch")
