"""Rotary embeddings, without scaling."""

from __future__ import annotations

import torch
from torch import nn


class Right(nn.Module):
    def __init__(self, config, *, request):
        super().__init__()
        self.config, self.request, self.dim = config, request, request.rotary_dim
        self.interleaved = config.rotary_interleaved

    def forward(self, query, key, positions=None, /):
        angles = self.angles(query, positions)
        return self.rotate(query, angles), self.rotate(key, angles)

    def angles(self, x, positions):
        positions = torch.arange(x.shape[1], device=x.device) if positions is None else positions
        steps = torch.arange(0, self.dim, 2, dtype=torch.float32, device=x.device)
        return self.round((positions.unsqueeze(-1) * self.base() ** (-steps / self.dim)).unsqueeze(-2), x)

    def base(self):
        return self.config.rotary_base

    def round(self, angles, x):
        return angles

    def rotate(self, x, angles):
        turned, kept = x[..., : self.dim].float(), x[..., self.dim :]
        if self.interleaved:
            one, other = turned[..., 0::2], turned[..., 1::2]
        else:
            one, other = turned.chunk(2, dim=-1)
        cos, sin = angles.cos(), self.sine(angles)
        parts = one * cos - other * sin, other * cos + one * sin
        turned = torch.stack(parts, dim=-1).flatten(-2) if self.interleaved else torch.cat(parts, dim=-1)
        return torch.cat([turned.to(x.dtype), kept], dim=-1)

    def sine(self, angles):
        return angles.sin()


class OtherPairing(Right):
    def __init__(self, config, *, request):
        super().__init__(config, request=request)
        self.interleaved = not self.interleaved


class OtherDirection(Right):
    def sine(self, angles):
        return -angles.sin()


class PositionsIgnored(Right):
    def angles(self, x, positions):
        return super().angles(x, None)


class PositionsOfTheFirstRow(Right):
    def angles(self, x, positions):
        return super().angles(x, positions if positions is None or positions.dim() == 1 else positions[0])


class RotatesEverything(Right):
    def __init__(self, config, *, request):
        super().__init__(config, request=request)
        self.dim = request.head_size


class BaseIgnored(Right):
    def base(self):
        return 10_000.0


class NarrowAngles(Right):
    def round(self, angles, x):
        return angles.to(x.dtype).float()


class ShortTable(Right):
    """Clamps positions beyond its table."""

    def angles(self, x, positions):
        return super().angles(x, positions if positions is None else positions.clamp(max=2047))


class KeysUnturned(Right):
    def forward(self, query, key, positions=None, /):
        return super().forward(query, key, positions)[0], key


class AbsolutePositions(Right):
    """Adds angles instead of turning by them."""

    def rotate(self, x, angles):
        return x + torch.cat([angles, angles], dim=-1).to(x.dtype)
