"""A module whose import changes the process."""

from __future__ import annotations

import os
import random
import warnings

import torch

from wrong_parts.norm import Right

os.environ["IMPOLITE"] = "1"
random.seed(0)
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(3)
warnings.simplefilter("ignore")
print("impolite was here")

Impolite = Right
