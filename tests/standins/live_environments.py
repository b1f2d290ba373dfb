"""A task app's low-level routes over toy environments, in this process; defects are switched on by name."""

from __future__ import annotations

import copy
import itertools
import json
import random
import threading
from dataclasses import dataclass, field
from typing import Any

import httpx

from crafter_pipeline.clients.task_app import TaskAppClient
from crafter_pipeline.environments import EnvironmentInfo

KEY = "toy-key"


def _info(name: str, actions: tuple[str, ...], achievements: tuple[str, ...], tool: tuple[str, str, int]) -> Any:
    known = {
        "name": name, "app_names": (name,), "title": name, "actions": actions, "achievements": achievements,
        "observations": ("words",), "tool_name": tool[0], "tool_argument": tool[1], "max_actions": tool[2],
        "tiny_system_prompt": "", "vocabulary": (),
    }  # fmt: skip
    return EnvironmentInfo(**known)


WALK = _info("walk", ("noop", "left", "right", "dig"), ("near", "half", "there"), ("move", "actions", 4))
"""Twelve steps, each to the left or to the right as the seed wants it; a wrong one goes back. Each four are an
achievement."""
SUM = _info("sum", (), (), ("submit", "answer", 1))
"""Two numbers of three digits; the sum is the answer."""


class WalkExpert:
    """Goes where the text says that the goal is."""

    name = "expert"

    def act(self, text: str) -> str:
        return text.split()[-1]

    def overruled(self, action: str) -> None:
        """It has no memory."""


class SumExpert:
    """Adds."""

    name = "expert"

    def act(self, text: str) -> str:
        a, b = text.removeprefix("add ").split(" and ")[:2]
        return str(int(a) + int(b.split()[0]))

    def overruled(self, action: str) -> None:
        """It is asked once."""


@dataclass
class Toy:
    """One live environment."""

    kind: str
    seed: int
    limit: int
    shaped: bool
    x: int = 0
    turns: int = 0
    done: bool = False
    unlocked: list[str] = field(default_factory=list)


class ToyTaskApp:
    """Behaves well, unless one of these defects is named:

    unstable: rewards are partly random; seedless: all worlds are alike; forgetful: a snapshot loses the place;
    pays_noop, pays_dig: an idle or a repeatable action pays (dig: only if the reward is shaped); nothing: no reward;
    tells: the solution stands in /create; prints: it stands in the text; whispers: it stands among other text;
    lenient: an answer that holds the sum counts; open: no key is asked for; rollouts_only: no low-level routes.
    """

    def __init__(self, kind: str = "walk", *defects: str) -> None:
        self.kind, self.defects = kind, set(defects)
        self.live: dict[str, Toy] = {}
        self.snapshots: dict[str, Toy] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._ids, self._lock = itertools.count(), threading.Lock()

    def client(self, key: str | None = KEY) -> TaskAppClient:
        """A client of this app."""
        headers = {"X-API-Key": key} if key else {}
        transport = httpx.MockTransport(self._handle)
        return TaskAppClient(httpx.Client(transport=transport, base_url="http://toy", headers=headers))

    def _handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if "open" not in self.defects and request.headers.get("x-api-key") != KEY:
            return httpx.Response(401, json={"detail": {"error": {"code": "unauthorised", "message": "key"}}})
        if path == "/info":
            return httpx.Response(200, json={"service": {"task": {"id": self.kind}}})
        if path == "/task_info":
            seeds = request.url.params.get_list("seed")
            found = [{"environment": self.kind, "task": {"id": self.kind}, "seed": int(s)} for s in seeds]
            return httpx.Response(200, json=found[0] if len(found) == 1 else found)
        body = json.loads(request.content or b"{}")
        route = getattr(self, f"_{path.strip('/')}", None)
        if route is None or "rollouts_only" in self.defects:
            return httpx.Response(404, json={"detail": "Not Found"})
        with self._lock:
            self.requests.append((path, body))
            try:
                return httpx.Response(200, content=json.dumps(route(body)))
            except KeyError as e:
                return httpx.Response(422, json={"detail": f"{e} is missing or unknown"})

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        config = body["config"]
        return self._keep(Toy(self.kind, body["seed"], config["max_env_steps"], "step_rewards" in config))

    def _reset(self, body: dict[str, Any]) -> dict[str, Any]:
        toy = self.live[body["env_id"]]
        self.live[body["env_id"]] = toy = Toy(toy.kind, body["seed"], toy.limit, toy.shaped)
        return {"env_id": body["env_id"], **self._view(toy)}

    def _snapshot(self, body: dict[str, Any]) -> dict[str, Any]:
        snapshot_id = f"snap_{next(self._ids)}"
        self.snapshots[snapshot_id] = copy.deepcopy(self.live[body["env_id"]])
        if "forgetful" in self.defects:
            self.snapshots[snapshot_id].x = 0
        return {"snapshot_id": snapshot_id, "path": "", "rl_run_id": None, "size": 1}

    def _restore(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._keep(copy.deepcopy(self.snapshots[body["snapshot_id"]]))

    def _terminate(self, body: dict[str, Any]) -> dict[str, Any]:
        del self.live[body["env_id"]]
        return {"ok": True}

    def _step(self, body: dict[str, Any]) -> dict[str, Any]:
        toy = self.live[body["env_id"]]
        arguments = body["tool_calls"][0]["arguments"]
        toy.turns += 1
        reward, added = self._walk(toy, arguments) if self.kind == "walk" else (self._sum(toy, arguments), [])
        if "unstable" in self.defects:
            reward += random.random()
        if "nothing" in self.defects:
            reward = 0.0
        toy.done = toy.done or toy.turns >= toy.limit
        info = {"achievements_added": added}
        return {**self._view(toy), "info": info, "done": toy.done, "truncated": False, "reward": reward}

    def _walk(self, toy: Toy, arguments: dict[str, Any]) -> tuple[float, list[str]]:
        (action,) = arguments["actions"]
        if action in ("left", "right"):
            toy.x = toy.x + 1 if action == self._way(toy) else max(toy.x - 1, 0)
        reached = [name for n, name in ((4, "near"), (8, "half"), (12, "there")) if toy.x >= n]
        added = [name for name in reached if name not in toy.unlocked]
        toy.unlocked += added
        toy.done = "there" in toy.unlocked
        pays = ("pays_noop" in self.defects and action == "noop") or (
            "pays_dig" in self.defects and action == "dig" and toy.shaped
        )
        return float(len(added)) + pays, added

    def _sum(self, toy: Toy, arguments: dict[str, Any]) -> float:
        toy.done = True
        said, answer = arguments["answer"], str(sum(self._numbers(toy)))
        lenient = "lenient" in self.defects and ("," in said or said == answer)
        return 1.0 if said == answer or lenient else 0.0

    def _keep(self, toy: Toy) -> dict[str, Any]:
        env_id = f"env_{next(self._ids)}"
        self.live[env_id] = toy
        return {"env_id": env_id, **self._view(toy), "info": {}}

    def _view(self, toy: Toy) -> dict[str, Any]:
        sky = random.Random(0 if "seedless" in self.defects else toy.seed).randrange(10**6)
        observation: dict[str, Any] = {"x": toy.x, "turns": toy.turns, "sky": sky}
        if self.kind == "walk":
            observation["text"] = f"at {toy.x}, the way is {self._way(toy)}"
        else:
            a, b = self._numbers(toy)
            observation["text"] = f"add {a} and {b}" + (f" (it is {a + b})" if "prints" in self.defects else "")
            if "tells" in self.defects:
                observation["raw_solution"] = a + b
            if "whispers" in self.defects:
                observation["hint"] = f"think of {a + b}, maybe"
        return {"observation": observation, "step_idx": toy.turns}

    def _way(self, toy: Toy) -> str:
        seed = 0 if "seedless" in self.defects else toy.seed
        return random.Random(f"{seed} {toy.x}").choice(("left", "right"))

    def _numbers(self, toy: Toy) -> tuple[int, int]:
        return 100 + toy.seed * 37 % 800, 1000 + toy.seed * 91 % 800
