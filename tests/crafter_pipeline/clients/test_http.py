"""The one policy of retries, and failures said once."""

import httpx
import pytest

from crafter_pipeline.clients.http import REPEATABLE, send, service_client, service_root
from crafter_pipeline.errors import TaskAppError

TASK_APP = dict(raises=TaskAppError, service="task app", start_with="crafter-pipeline serve", key_name="THE_KEY")


class Script:
    """Answers one thing after the other: a status, a response or an exception."""

    def __init__(self, *answers):
        self.answers, self.requests, self.waits = list(answers), [], []

    def __call__(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(answer, json={})

    def client(self, **options):
        transport = httpx.MockTransport(self)
        return service_client("http://t:1", transport=transport, sleep=self.waits.append, **options)


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/api", "http://h:1/api/v1/"])
def test_an_address_may_end_in_api(url):
    assert service_root(url) == "http://h:1"


@pytest.mark.parametrize(
    ("method", "extensions", "answers", "tries"),
    [
        ("GET", {}, [500, 502, 200], 3),
        ("POST", {}, [429, 503, 200], 3),
        ("POST", {}, [500, 200], 1),
        ("POST", REPEATABLE, [500, 200], 2),
        ("POST", {}, [httpx.ConnectError("refused"), 200], 2),
        ("POST", REPEATABLE, [httpx.ReadError("lost"), 200], 2),
        ("GET", {}, [404, 200], 1),
        ("GET", {}, [500] * 9, 4),
    ],
)
def test_what_is_tried_again(method, extensions, answers, tries):
    script = Script(*answers)
    response = script.client().request(method, "/x", extensions=extensions)
    assert len(script.requests) == tries and response.status_code == answers[tries - 1]


def test_a_request_that_may_have_been_done_is_not_sent_twice():
    script = Script(httpx.ReadError("lost"), 200)
    with pytest.raises(httpx.ReadError):
        script.client().post("/x")


def test_waits_double_unless_the_server_says_how_long():
    script = Script(429, 429, httpx.Response(429, headers={"Retry-After": "7"}), 200)
    script.client().get("/x")
    assert script.waits == [0.5, 1.0, 7.0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.ConnectError("x"), r"No task app at http://t:1/?\. Start one with `crafter-pipeline serve`"),
        (httpx.ReadTimeout("x"), "gave no answer to GET /x in time"),
        (httpx.Response(401, json={"detail": "no"}), "refuses the key. Set THE_KEY"),
        (httpx.Response(400, json={"detail": {"error": {"code": "c", "message": "bad seed"}}}), "400 .*bad seed"),
        (httpx.Response(422, json={"error": {"message": "odd"}}), "422 .*odd"),
        (httpx.Response(404, text="<html>"), "404 .*<html>"),
    ],
)
def test_every_failure_becomes_one_sentence(answer, words):
    with pytest.raises(TaskAppError, match=words):
        send(Script(*[answer] * 4).client(), "GET", "/x", **TASK_APP)


def test_an_address_without_a_scheme_is_said():
    with pytest.raises(TaskAppError, match="write http://host:port"):
        send(service_client("localhost:8001"), "GET", "/x", **TASK_APP)


def test_the_key_travels_in_headers():
    script = Script(200)
    script.client(api_key="k").get("/x")
    assert script.requests[0].headers["authorization"] == "Bearer k"
    assert script.requests[0].headers["x-api-key"] == "k"
