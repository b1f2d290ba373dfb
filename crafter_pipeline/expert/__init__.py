"""The scripted player: a teacher without a model.

It sees only the text of a request, as any chat model does, and keeps its own map per conversation:

    expert = Expert()
    decision = expert.act(parse(text))   # decision.action, decision.thought
"""

from .errands import Decision
from .parsing import View, parse
from .player import Expert
from .vocabulary import ACHIEVEMENTS, ACTIONS, ITEMS, KINDS, THOUGHTS

__all__ = ["ACHIEVEMENTS", "ACTIONS", "ITEMS", "KINDS", "THOUGHTS", "Decision", "Expert", "View", "parse"]
