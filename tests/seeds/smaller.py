"""What the tests type behind a command, so that jobs and evaluations for eight H100 take seconds on a laptop.

The stand-in for Qwen3 never learnt to stop: answers are cut, and its prompts are the short ones it was made for.
"""

from __future__ import annotations

TWO_STEPS = "--set hyperparameters.max_steps=2 --poll-interval 1"
SFT_SMALL = f"{TWO_STEPS} --examples 2"
_POLICY = ("observation=sparse", "use_tools=false", "max_tokens=8")
EVAL_SMALL = " ".join(("--max-turns 2", *(f"--set eval.policy_config.{setting}" for setting in _POLICY)))
FLAT_SMALL = " ".join(("--max-turns 2", *(f"--set policy_config.{setting}" for setting in _POLICY)))
_TINY_RL = (
    *("training.iterations_per_epoch=1", "training.batch_size=2", "training.group_size=2", "training.minibatches=1"),
    *("training.max_turns=2", "rollout.max_turns=2", "rollout.episodes_per_batch=4", "evaluation.instances=2"),
    *(f"rollout.policy_config.{setting}" for setting in _POLICY),
)
RL_SMALL = " ".join((*(f"--set {setting}" for setting in _TINY_RL), "--poll-interval 1"))
_TINY_MATH = (
    *("training.iterations_per_epoch=1", "training.batch_size=2", "training.group_size=2", "training.minibatches=1"),
    *("rollout.episodes_per_batch=4", "rollout.policy_config.max_tokens=8", "evaluation.instances=2"),
)
MATH_RL_SMALL = " ".join((*(f"--set {setting}" for setting in _TINY_MATH), "--poll-interval 1"))
MATH_EVAL_SMALL = "--seeds 0-4 --set eval.policy_config.max_tokens=8"
