"""An alert is a line in the log, and goes through the block that is named."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
from prefect.blocks.webhook import Webhook
from prefect.logging import disable_run_logger
from prefect.variables import Variable

from crafter_pipeline.errors import ConfigError, ServiceError
from flows.alert import BLOCK_VARIABLE, alert
from tasks.messages import send_message

pytestmark = pytest.mark.usefixtures("prefect_server")
SAYS = "champion (rl:x) unlocks 2.00 achievements per episode, −1.00 [−1.50, −0.50]: worse."


class Ears(HTTPServer):
    """Hears what is posted, and answers with `status`."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: list[tuple[str, object]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/secret-hook"


class _Handler(BaseHTTPRequestHandler):
    server: Ears

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((self.path, json.loads(body)))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def ears() -> Iterator[Ears]:
    server = Ears()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def variable() -> Iterator[None]:
    """A webhook, named by the variable that is read when no block is."""
    Variable.set(BLOCK_VARIABLE, "webhook/alerts", overwrite=True)
    yield
    Variable.unset(BLOCK_VARIABLE)


def test_an_alert_is_a_warning_and_goes_through_the_block_of_the_variable(ears, variable, caplog):
    Webhook(url=ears.url).save("alerts", overwrite=True)
    with caplog.at_level(logging.WARNING):
        alert("champion", SAYS)
    assert any(SAYS in record.getMessage() and record.levelname == "WARNING" for record in caplog.records)
    assert ears.heard == [("/secret-hook", {"subject": "Crafter: champion plays worse", "body": SAYS})]


def test_a_notification_block_is_told_subject_and_body(ears):
    told = {"subject": "{{subject}}", "body": "{{body}}"}
    CustomWebhookNotificationBlock(name="ops", url=ears.url, json_data=told).save("ops", overwrite=True)
    with disable_run_logger():
        send_message.fn("custom-webhook/ops", "a subject", "a body")
    assert ears.heard == [("/secret-hook", {"subject": "a subject", "body": "a body"})]


def test_a_message_that_is_not_taken_is_an_error_without_the_address(ears):
    Webhook(url=ears.url).save("alerts", overwrite=True)
    ears.status = 500
    with pytest.raises(ServiceError, match="webhook/alerts was answered 500") as e:
        send_message.fn("webhook/alerts", "a subject", "a body")
    assert "secret-hook" not in str(e.value)


@pytest.mark.parametrize("block", ["ops", "webhook/nobody", "no-such-type/ops"])
def test_an_unknown_block_is_named_with_the_way_to_make_one(block):
    with pytest.raises(ConfigError, match="prefect block ls.*prefect block create"):
        send_message.fn(block, "a subject", "a body")


def test_a_block_that_sends_nothing_is_refused():
    Secret(value="s").save("mute", overwrite=True)
    with pytest.raises(ConfigError, match="sends no messages"):
        send_message.fn("secret/mute", "a subject", "a body")
