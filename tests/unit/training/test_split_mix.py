from __future__ import annotations

import numpy as np
from transom.training.split_mix import hashed


def test_hashed_is_splitmix64():
    # The first three numbers of Vigna's reference splitmix64.c from the state 1234567.
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * gamma) % 2**64 for i in range(3)], dtype=np.uint64)
    assert hashed(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
