"""The chat model as judge: what it is asked, what is made of its answer, what is kept of it."""

from __future__ import annotations

import json
import sqlite3

import httpx
import pytest

from crafter_pipeline.errors import DataError, FieldError, ModelError
from crafter_pipeline.judging.model import TURNS_PER_CALL, ModelJudge, read_json
from crafter_pipeline.judging.record import JudgeRecord
from crafter_pipeline.judging.rubric import read_rubrics

URL = "http://judge.test/v1"
OUTCOME = read_rubrics({"outcome": [{"id": "skill"}]})


def judge(chat, record=None):
    return ModelJudge(chat, url=URL, model="judge-1", record=record)


def answer(score=0.5, **more):
    return json.dumps({"scores": {"skill": {"reason": "so", "score": score}}, "summary": "fair", **more})


async def test_outcome_and_turns_are_scored_with_reasons(play, rubrics, make_chat, verdict):
    rollout, (chat, model) = play(TURNS_PER_CALL + 3), make_chat(verdict)
    review = await judge(chat).review(rollout, rubrics)
    assert review.outcome.total == 0.5 and review.outcome.summary == "fair"
    assert review.outcome.scores["survival_state"] == (0.5, "so")
    assert [card.total for card in review.events] == [0.5] * len(rollout.turns)
    assert len(model.bodies) == 3 == review.details["calls"]
    assert review.details["prompt_tokens"] == 33


async def test_the_model_sees_goal_criteria_and_episode_and_a_strict_schema(play, rubrics, make_chat, verdict):
    chat, model = make_chat(verdict)
    rollout = play(4)
    await judge(chat).review(rollout, rubrics.only(outcome=True, events=False))
    (body,) = model.bodies
    prompt = body["messages"][1]["content"]
    for part in ("Unlock achievements.", "- achievement_progression: How far it came.", "Turn 3", "collect wood"):
        assert part in prompt
    assert rollout.turns[0].observation in prompt and rollout.turns[-1].next_observation in prompt
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["additionalProperties"] is False
    assert (body["model"], body["temperature"]) == ("judge-1", 0.0)


async def test_a_long_episode_is_cut_in_the_middle_and_the_model_is_told(play, make_chat, monkeypatch):
    monkeypatch.setattr("crafter_pipeline.judging.model.TRANSCRIPT_CHARACTERS", 300)
    chat, model = make_chat(answer())
    await judge(chat).review(play(30), OUTCOME)
    prompt = model.bodies[0]["messages"][1]["content"]
    assert "turns in the middle are left out" in prompt
    assert "Turn 0\n" in prompt and "Turn 29\n" in prompt and "Turn 15\n" not in prompt


@pytest.mark.parametrize(
    "said",
    [
        answer(),
        f"```json\n{answer()}\n```",
        f"<think>let me see</think>Here it is: {answer()} I hope it helps.",
        '{"scores": {"skill": 0.5}}',
        {"content": "", "reasoning_content": answer()},
    ],
)
async def test_a_score_is_found_whatever_stands_around_it(make_rollout, make_chat, said):
    chat, model = make_chat(said)
    assert (await judge(chat).review(make_rollout(), OUTCOME)).outcome.total == 0.5
    assert len(model.bodies) == 1


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("no idea", "no JSON object"),
        ('{"scores": {', "no JSON object"),
        ('{"scores": {"skill": oops}}', "not valid JSON"),
        ('{"scores": [0.5]}', "no object `scores`"),
        ('{"scores": {}}', "skill is missing"),
        (answer(7), "not a number from 0 to 1"),
        (answer("high"), "not a number from 0 to 1"),
        (answer(True), "not a number from 0 to 1"),
    ],
)
async def test_an_answer_that_is_no_review_is_asked_for_once_more(make_rollout, make_chat, said, problem):
    chat, model = make_chat(lambda body, n: said if n == 0 else answer())
    review = await judge(chat).review(make_rollout(), OUTCOME)
    assert review.outcome.total == 0.5 and review.details["calls"] == 2
    assert problem in model.bodies[1]["messages"][-1]["content"]

    chat, model = make_chat(said)
    with pytest.raises(ModelError, match="no review in two answers") as caught:
        await judge(chat).review(make_rollout(), OUTCOME)
    assert caught.value.kind == "bad_answer" and len(model.bodies) == 2


async def test_a_turn_that_was_forgotten_is_asked_for_again(play, rubrics, make_chat, verdict):
    def forgetful(body, number):
        said = json.loads(verdict(body, number))
        return json.dumps({"turns": said["turns"][1:]} if number == 0 else said)

    chat, model = make_chat(forgetful)
    review = await judge(chat).review(play(3), rubrics.only(outcome=False, events=True))
    assert len(review.events) == 3
    assert "turn 0 is missing" in model.bodies[1]["messages"][-1]["content"]


async def test_a_model_that_refuses_is_a_model_error(make_rollout, make_chat):
    chat, _ = make_chat(lambda body, n: httpx.Response(404, json={"error": {"message": "no such model"}}))
    with pytest.raises(ModelError, match="no such model"):
        await judge(chat).review(make_rollout(), OUTCOME)


async def test_a_custom_total_is_refused_before_the_first_call(make_rollout, make_chat):
    chat, model = make_chat(answer())
    with pytest.raises(FieldError, match="plug-in"):
        await judge(chat).review(
            make_rollout(), read_rubrics({"outcome": {"criteria": [{"id": "a"}], "aggregation": "custom"}})
        )
    assert model.bodies == []


async def test_a_judged_episode_is_not_asked_about_again(play, rubrics, make_chat, verdict, tmp_path):
    chat, model = make_chat(verdict)
    first = await judge(chat, JudgeRecord(tmp_path / "judge.sqlite")).review(play(3), rubrics)
    again = await judge(chat, JudgeRecord(tmp_path / "judge.sqlite")).review(play(3), rubrics)
    assert len(model.bodies) == 2
    assert (again.outcome, again.events) == (first.outcome, first.events)
    assert (again.details["calls"], again.details["cached"]) == (0, 2)
    await judge(chat, JudgeRecord(tmp_path / "judge.sqlite")).review(play(4), rubrics)
    assert len(model.bodies) == 4


async def test_every_call_is_on_record_also_those_of_no_use(make_rollout, make_chat, tmp_path):
    chat, _ = make_chat(lambda body, n: "no idea" if n == 0 else answer())
    record = JudgeRecord(tmp_path / "judge.sqlite")
    await judge(chat, record).review(make_rollout(), OUTCOME)
    record.close()
    rows = sqlite3.connect(tmp_path / "judge.sqlite").execute("SELECT model, url, content, problem, request FROM calls")
    (first, second) = rows.fetchall()
    assert first[:2] == ("judge-1", f"{URL}/chat/completions") and "no JSON object" in first[3]
    assert second[2] == answer() and second[3] is None and "skill" in second[4]


def test_a_record_that_cannot_be_kept_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Choose another path"):
        JudgeRecord(tmp_path / "file" / "judge.sqlite")


def test_json_is_read_out_of_prose():
    assert read_json('so: {"a": {"b": 1}}.') == {"a": {"b": 1}}
