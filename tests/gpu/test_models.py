"""Small models with each choice: the reference's logits, one graph, a hundred steps, and how long a step takes."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from .choices import BATCH, CHOICES, DEVICE, LENGTH, VOCABULARY, Choice

EACH = pytest.mark.parametrize("choice", CHOICES, ids=str)
# Compilers and packages warn of what is theirs.
pytestmark = pytest.mark.filterwarnings("default")
STEPS = 100 if DEVICE == "cuda" else 5


def tokens(seed: int) -> Tensor:
    """Sequences that can be learned: each token follows from the one before."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(VOCABULARY, (BATCH, 1), generator=generator)
    return ((start + 7 * torch.arange(LENGTH)) % VOCABULARY).to(DEVICE)


def loss_of(model: nn.Module, seed: int) -> Tensor:
    batch = tokens(seed)
    return model(batch, labels=batch.roll(-1, dims=1))[:, :-1].mean()


@EACH
def test_model_agrees_with_the_reference(choice: Choice, tell):
    tell(choice.name, choice.versions, "parity", "passed")
    model, reference = choice.model(), choice.reference()
    for _ in range(choice.passes_before):
        loss_of(model, 0).backward()
        model.zero_grad()
    batch = tokens(0)
    with torch.no_grad():
        out, wanted = model(batch).float(), reference(batch).float()
    allowed = choice.tolerance * float(wanted.abs().max())
    assert float((out - wanted).abs().max()) <= allowed
    if choice.infers_only:
        return
    norms = []
    for each in (model, reference):
        loss_of(each, 0).backward()
        norms.append(float(nn.utils.clip_grad_norm_(each.parameters(), 1.0)))
    assert norms[0] == pytest.approx(norms[1], rel=2 * choice.tolerance)


@EACH
def test_model_compiles_in_one_graph(choice: Choice, tell):
    tell(choice.name, choice.versions, "fullgraph", "passed")
    plan = choice.plan()
    named = {node.resolution.chosen for node in plan.nodes() if not node.resolution.chosen.is_core}
    silent = sorted(each.name for each in named if each.card is not None and not each.card.compiles)
    if silent:
        pytest.skip(f"{choice.name}: {', '.join(silent)} is not declared to compile in one graph")
    if DEVICE == "cpu" and choice.name == "torch_flex":
        pytest.skip(f"{choice.name}: it does not compile on the cpu")
    torch.compiler.reset()  # graphs of other choices count towards the same limit
    model = choice.model()
    with torch.no_grad():
        wanted = model(tokens(0)).float()
        out = torch.compile(model, fullgraph=True)(tokens(0)).float()
    assert float((out - wanted).abs().max()) <= choice.tolerance * float(wanted.abs().max())
    if not choice.infers_only:
        loss = torch.compile(model, fullgraph=True)(tokens(1), labels=tokens(1)).mean()
        loss.backward()
        assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@EACH
def test_model_trains_as_the_reference_does(choice: Choice, tell):
    if choice.infers_only:
        tell(choice.name, choice.versions, "training", "infers only")
        choice.plan()
        return
    tell(choice.name, choice.versions, "training", "passed")
    curves = [_trained(each) for each in (choice.model(), choice.reference())]
    first, last = curves[0][0], curves[0][-1]
    assert last < first
    if DEVICE == "cuda":
        assert last < 0.5 * first
    assert last == pytest.approx(curves[1][-1], abs=0.1 * first)


def _trained(model: nn.Module) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@EACH
def test_a_step_is_timed(choice: Choice, tell):
    said = "skipped"
    try:
        ours, theirs = (_milliseconds(each, choice) for each in (choice.model(), choice.reference()))
        said = f"{ours:.2f} ms, reference {theirs:.2f} ms"
    finally:
        tell(choice.name, choice.versions, "benchmark", said)


def _milliseconds(model: nn.Module, choice: Choice) -> float:
    """Time forward (and backward), the fastest of several, after some that are not counted."""
    times = []
    for step in range(15 if DEVICE == "cuda" else 3):
        _wait()
        start = time.perf_counter()
        if choice.infers_only:
            with torch.no_grad():
                model(tokens(0))
        else:
            loss_of(model, 0).backward()
            model.zero_grad()
        _wait()
        if step >= 2:
            times.append(time.perf_counter() - start)
    return 1000 * min(times)


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
