"""Muon: orthogonal steps, and one optimiser that a trainer can schedule, save and go on with."""

from __future__ import annotations

import copy

import torch

from train_app.workers.optimizers import MuonAndAdamW, orthogonal
from train_app.workers.students import make_tiny


def make_optimizer(model: torch.nn.Module) -> MuonAndAdamW:
    return MuonAndAdamW(model, lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        ids = torch.arange(40).view(2, 20) + step % 3
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def test_singular_values_of_a_step_end_near_one():
    torch.manual_seed(0)
    for shape in ((96, 288), (288, 96), (64, 64)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert 0.3 < float(values.min()) and float(values.max()) < 1.3


def test_matrices_of_the_blocks_go_to_muon_and_the_rest_to_adamw():
    model, _ = make_tiny(0)
    muon, adamw, undecayed = MuonAndAdamW(model, lr=0.01, betas=(0.9, 0.98), weight_decay=0.1).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert all("layers" in names[id(p)] and p.ndim == 2 for p in muon["params"])
    assert "model.embed_tokens.weight" in {names[id(p)] for p in adamw["params"]}
    assert [group["weight_decay"] for group in (muon, adamw, undecayed)] == [0.1, 0.1, 0.0]
    assert all("norm" in names[id(p)] for p in undecayed["params"])
    assert sum(len(group["params"]) for group in (muon, adamw, undecayed)) == len(names)


def test_a_model_learns_and_a_resumed_one_learns_the_same():
    model, _ = make_tiny(0)
    optimizer = make_optimizer(model)
    first = train(model, optimizer, range(6))
    twin = copy.deepcopy(model)
    state = copy.deepcopy(optimizer.state_dict())
    expected = train(model, optimizer, range(6, 10))
    assert expected[-1] < first[0] / 2

    resumed = make_optimizer(twin)
    resumed.load_state_dict(state)
    assert train(twin, resumed, range(6, 10)) == expected


def test_a_schedule_moves_both_learning_rates():
    model, _ = make_tiny(0)
    optimizer = make_optimizer(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.005] * 3
