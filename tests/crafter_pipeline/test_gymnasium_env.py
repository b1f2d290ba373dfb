"""Crafter through Gymnasium's door: its own checker, seeds, ends, options, and several worlds at once."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env  # noqa: E402

from crafter_pipeline.errors import FieldError  # noqa: E402
from crafter_pipeline.expert import Expert, parse  # noqa: E402
from crafter_pipeline.game import ACTIONS, DIFFICULTIES, KINDS, Game, render_text  # noqa: E402
from crafter_pipeline.gymnasium_env import ID, CrafterEnv  # noqa: E402

FORMS = ("pixels", "dict", "sparse", "compact", "rich", "synth", "balrog")


@pytest.mark.parametrize("observation", FORMS)
def test_gymnasiums_own_check_passes_without_a_warning(observation):
    env = gymnasium.make(ID, observation=observation, render_mode="rgb_array").unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)


def test_it_is_made_by_module_and_name_alone():
    code = f"import gymnasium; print(gymnasium.make('crafter_pipeline.gymnasium_env:{ID}').spec.id)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ID


def test_a_seed_is_the_games_seed():
    env = CrafterEnv(observation="rich", max_steps=50)
    observation, info = env.reset(seed=7)
    game = Game(7, max_steps=50)
    assert info["seed"] == 7
    for action in (1, 1, 5, 3, 5):
        assert observation == render_text(game.observe(), "rich")
        observation, reward, *_ = env.step(action)
        assert reward == game.step(ACTIONS[action]).reward


def test_worlds_after_a_seed_differ_and_repeat_with_it():
    def worlds():
        env = CrafterEnv(observation="dict")
        return [env.reset(seed=3)[1]["seed"], *(env.reset()[1]["seed"] for _ in range(3))]

    assert worlds() == worlds()
    assert len(set(worlds())) == 4


def test_the_limit_truncates_and_death_terminates():
    env = CrafterEnv(observation="dict", max_steps=2)
    env.reset(seed=3)
    assert env.step(0)[2:4] == (False, False)
    assert env.step(0)[2:4] == (False, True)
    env = CrafterEnv(observation="dict", difficulty="hard")
    env.reset(seed=3)
    terminated = truncated = False
    while not terminated and not truncated:
        *_, terminated, truncated, info = env.step(0)
    assert (terminated, truncated, info["inventory"]["health"]) == (True, False, 0)


def test_info_tells_what_was_unlocked():
    env, expert = CrafterEnv(observation="sparse", max_steps=60), Expert()
    observation, info = env.reset(seed=3)
    found, truncated, terminated = [], False, False
    while not truncated and not terminated:
        action = ACTIONS.index(expert.act(parse(observation)).action)
        observation, reward, terminated, truncated, info = env.step(action)
        found += info["unlocked"]
        assert bool(info["unlocked"]) == (reward > 0.5)
    assert found and sorted(found) == sorted(name for name, count in info["achievements"].items() if count)


def test_the_dict_says_what_the_text_says():
    env = CrafterEnv(observation="dict")
    observation, _ = env.reset(seed=3)
    seen = Game(3).observe()
    assert [[KINDS[code] for code in row] for row in observation["view"]] == [list(row) for row in seen.view]
    assert observation["inventory"].tolist() == list(seen.inventory.values())


def test_pixels_are_the_games_picture():
    env = CrafterEnv(size=96, render_mode="rgb_array", render_size=300)
    observation, _ = env.reset(seed=3)
    assert (observation == Game(3).render((96, 96))).all()
    assert env.render().shape == (300, 300, 3)
    assert CrafterEnv().render() is None


def test_options_are_of_one_episode():
    env = CrafterEnv(observation="dict", difficulty="easy")
    assert env.game.world == DIFFICULTIES["easy"]
    env.reset(seed=3, options={"difficulty": "peaceful", "world": {"day_length": 100}})
    assert (env.game.world.zombie_spawn_rate, env.game.world.day_length) == (0, 100)
    env.reset(seed=3)
    assert env.game.world == DIFFICULTIES["easy"]
    env.reset(seed=3, options={"difficulty": "normal", "start": "holding-stone-pickaxe"})
    assert env.game.inventory["stone_pickaxe"] == 1


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"observation": "pixel"}, "did you mean 'pixels'"),
        ({"difficulty": "esay"}, "did you mean 'easy'"),
        ({"world": {"coal": 1}}, "world.coal: .*coal_density"),
        ({"start": "night"}, "night-energy-3"),
        ({"start": "hungry", "difficulty": "hard"}, "brings its own world"),
        ({"render_mode": "human"}, "rgb_array"),
        ({"size": 10}, "size: send 18 to"),
    ],
)
def test_what_is_wrong_is_said_when_it_is_made(wrong, words):
    with pytest.raises(FieldError, match=words):
        CrafterEnv(**wrong)


def test_unknown_options_and_bad_seeds_are_refused():
    env = CrafterEnv()
    with pytest.raises(FieldError, match="options.dificulty: .*did you mean 'difficulty'"):
        env.reset(options={"dificulty": "easy"})
    with pytest.raises(ValueError, match="seed must be an int from 0"):
        env.reset(seed=2**63)
    for action in (-1, 17):
        with pytest.raises(ValueError, match="no action"):
            env.step(action)


@pytest.mark.parametrize("observation", ["pixels", "dict"])
def test_several_worlds_at_once(observation):
    envs = gymnasium.make_vec(ID, num_envs=3, observation=observation, max_steps=5)
    seen, info = envs.reset(seed=10)
    assert info["seed"].tolist() == [10, 11, 12]
    single = CrafterEnv(observation=observation)
    first, _ = single.reset(seed=11)
    if observation == "pixels":
        assert seen.shape == (3, 64, 64, 3) and (seen[1] == first).all()
    else:
        assert (seen["view"][1] == first["view"]).all()
    for _ in range(5):
        seen, rewards, terminated, truncated, info = envs.step(np.zeros(3, int))
    assert truncated.all() and not terminated.any() and rewards.shape == (3,)
    envs.step(np.zeros(3, int))
    assert envs.step(np.zeros(3, int))[4]["steps"].tolist() == [1, 1, 1]
    envs.close()
