"""The one policy of retries, and failures said once."""

import re

import httpx
import pytest

from crafter_pipeline.clients.http import REPEATABLE, json_object, send, service_client, service_root
from crafter_pipeline.errors import TaskAppError

TASK_APP = dict(raises=TaskAppError, service="task app", start_with="crafter-pipeline serve", key_name="THE_KEY")
PROXY = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><hr><center>nginx</center></body></html>"
WALL = "<!DOCTYPE html><html><head><title>Just a\n moment</title></head><body>" + "x" * 5000
LOGIN = "<!doctype html><title>Sign in</title><form>"


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
        (httpx.Response(401, json={"detail": "no"}), "asks for a key, and none is set. Set THE_KEY"),
        (httpx.Response(400, json={"detail": {"error": {"code": "c", "message": "bad seed"}}}), "400 .*bad seed"),
        (httpx.Response(422, json={"error": {"message": "odd"}}), "422 .*odd"),
        (httpx.Response(404, text="not here"), "404 .*not here"),
        (httpx.Response(502, text=PROXY), r"answered 502 to GET /x: an HTML page: 502 Bad Gateway, nginx$"),
        (
            httpx.Response(403, text=WALL, headers={"server": "cloudflare"}),
            r"an HTML page: Just a moment, cloudflare\)$",
        ),
        (httpx.Response(404, text="<html><p>gone</p>"), "404 to GET /x: an HTML page: without a title$"),
        (
            httpx.Response(302, headers={"location": "https://u:p@sso.test/login?token=secret"}),
            r"redirects \(302\) to https://sso.test/login, and keys follow no redirect\. Is this the task app's",
        ),
    ],
)
def test_every_failure_becomes_one_sentence(answer, words):
    with pytest.raises(TaskAppError, match=words):
        send(Script(*[answer] * 4).client(), "GET", "/x", **TASK_APP)


def test_a_key_that_is_refused_is_another_matter_than_one_that_is_missing():
    with pytest.raises(TaskAppError, match=r"refuses the key\. Set THE_KEY to its key\. \(no\)"):
        send(Script(httpx.Response(401, json={"detail": "no"})).client(api_key="k"), "GET", "/x", **TASK_APP)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("[1]", "No object."),
        ("half an ans", "No object."),
        (LOGIN, "No object. It is an HTML page: Sign in."),
    ],
)
def test_what_is_no_json_object_is_said_in_a_word(body, says):
    with pytest.raises(TaskAppError, match=re.escape(says) + "$"):
        json_object(httpx.Response(200, text=body), TaskAppError("No object."))


def test_an_address_without_a_scheme_is_said():
    with pytest.raises(TaskAppError, match="write http://host:port"):
        send(service_client("localhost:8001"), "GET", "/x", **TASK_APP)


def test_the_key_travels_in_headers():
    script = Script(200)
    script.client(api_key="k").get("/x")
    assert script.requests[0].headers["authorization"] == "Bearer k"
    assert script.requests[0].headers["x-api-key"] == "k"
