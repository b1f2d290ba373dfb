"""Play on dev seeds during a training, and the weights that played best."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from crafter_pipeline.config import DevSeeds  # noqa: E402
from crafter_pipeline.errors import DataError  # noqa: E402
from train_app.workers.rollouts.dev_evaluation import (  # noqa: E402
    Best,
    BestKeeper,
    DevEvaluator,
    DevScore,
    achievements_of,
    success_metrics,
)


class Player:
    """Plays with the sampler's weights: every episode returns their sum."""

    def __init__(self, sampler):
        self.sampler, self.asked = sampler, []

    def evaluate(self, seeds, temperature, label):
        self.asked.append((seeds, temperature, label))
        reward = float(sum(tensor.sum() for tensor in self.sampler.weights.values()))
        return DevScore({seed: reward + seed for seed in seeds}, {seed: {"a", "b", "c"} for seed in seeds}, ("a", "z"))


class Sampler:
    def publish(self, weights, version):
        self.weights, self.version = weights, version


class Tied(torch.nn.Module):
    """Two names for one weight, a second weight, and one that does not train."""

    def __init__(self, value=1.0):
        super().__init__()
        self.inside, self.frozen = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        self.head = torch.nn.Linear(2, 2)
        self.head.weight = self.inside.weight
        self.frozen.requires_grad_(False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(value)


def values(model):
    return {name: float(parameter.detach().mean()) for name, parameter in model.named_parameters()}


def test_weights_are_scored_on_the_dev_seeds_and_the_numbers_are_recorded():
    sampler, told = Sampler(), []
    player = Player(sampler)
    dev = DevSeeds(every=3, seeds=(0, 1, 2), temperature=0.5)
    evaluator = DevEvaluator(player, sampler, dev, lambda step, numbers: told.append((step, numbers)))
    assert [step for step in range(1, 10) if evaluator.is_due(step)] == [3, 6, 9]
    score = evaluator.score(6, {"w": torch.ones(2)})
    assert (score.reward, score.mean_achievements, sampler.version) == (3.0, 3.0, 6)
    assert player.asked == [((0, 1, 2), 0.5, "dev6")]
    ((step, numbers),) = told
    assert step == 6 and numbers["dev.reward"] == 3.0 and numbers["dev.achievements"] == 3.0
    assert 2.0 <= numbers["dev.reward_low"] < 3.0 < numbers["dev.reward_high"] <= 4.0
    assert numbers["dev.episodes"] == 3.0 and numbers["dev.achievements_low"] == numbers["dev.achievements_high"] == 3.0
    assert {name: rate for name, rate in numbers.items() if "success" in name} == {
        "dev.success.a": 1.0,
        "dev.success.z": 0.0,  # the environment has it, nobody unlocked it
        "dev.success.b": 1.0,
        "dev.success.c": 1.0,
    }


def test_a_success_rate_is_the_share_of_episodes_that_unlocked_it():
    rates = success_metrics([{"collect_wood"}, {"collect_wood", "eat_cow"}, (), ()], achievements_of("crafter"))
    assert len(rates) == 22 and sum(rates.values()) == 0.75
    assert (rates["success.collect_wood"], rates["success.eat_cow"]) == (0.5, 0.25)
    assert success_metrics([{"x"}, ()], achievements_of("somebody-elses")) == {"success.x": 0.5}


def test_the_best_weights_are_kept_and_come_back(tmp_path):
    keeper, model = BestKeeper(tmp_path / "best"), Tied(1.0)
    assert keeper.best is None
    offers = [(1, 1.0, 0.5), (2, 2.0, 0.9), (3, 3.0, 0.9), (4, 4.0, 0.1), (5, 5.0, float("nan"))]
    kept = []
    for step, value, reward in offers:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)
        kept.append(keeper.offer(step, reward, model))
    assert kept == [True, True, False, False, False]
    assert keeper.restore(model) == Best(2, 0.9)
    assert values(model) == {"frozen.weight": 5.0, "frozen.bias": 5.0} | dict.fromkeys(
        ("inside.weight", "inside.bias", "head.bias"), 2.0
    )
    assert model.head.weight is model.inside.weight


def test_a_restarted_worker_still_knows_the_best(tmp_path):
    BestKeeper(tmp_path).offer(7, 0.1 + 0.2, Tied(3.0))
    again, model = BestKeeper(tmp_path), Tied(1.0)
    assert again.best == Best(7, 0.1 + 0.2)
    assert not again.offer(8, 0.3, model)
    again.restore(model)
    assert values(model)["inside.weight"] == 3.0


def test_half_written_weights_are_never_the_best(tmp_path, monkeypatch):
    keeper = BestKeeper(tmp_path)
    keeper.offer(1, 0.5, Tied(1.0))

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train_app.workers.rollouts.dev_evaluation.save_file", full)
    with pytest.raises(DataError, match="No space left on device"):
        keeper.offer(2, 0.9, Tied(2.0))
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    model = Tied(9.0)
    assert BestKeeper(tmp_path).restore(model) == Best(1, 0.5) and values(model)["head.bias"] == 1.0


def test_what_was_never_kept_or_is_of_another_model_cannot_come_back(tmp_path):
    keeper = BestKeeper(tmp_path)
    with pytest.raises(DataError, match="no evaluation"):
        keeper.restore(Tied())
    keeper.offer(1, 0.5, Tied())
    with pytest.raises(DataError, match="of another model"):
        keeper.restore(torch.nn.Linear(2, 2))
