"""The command ``webhooks``."""

from __future__ import annotations

import json

from server.storage import outbox as stored
from server.storage.database import Database
from server.storage.outbox import DeliveryFailureRow, DeliveryRow, WebhookRow

from ..support.engine import only_sqlite
from ..support.operator import Operator


@only_sqlite
async def test_webhooks_are_listed_without_secrets(operator: Operator) -> None:
    operator.data_dir.mkdir()
    database = await Database.open(operator.data_dir / "clawdforge.db")
    hook = WebhookRow("shop", "https://hooks.example.org/x?key=hidden", "[]", b"secret", 0.0)
    delivery = DeliveryRow(0, "msg_1", "shop", "s", "turn_ended", 1, 60.0, b'"a":1')
    failure = DeliveryFailureRow(
        "shop", 120.0, "msg_1", "s", "turn_ended", 1, 1, 503, "the receiver answered 503", 0
    )
    await database.write(
        [
            *stored.replace_webhook(hook),
            stored.insert_delivery(delivery),
            *stored.insert_failure(failure),
        ]
    )
    await database.close()
    printed, _ = await operator.run("webhooks")
    assert "https://hooks.example.org/x " in printed
    assert "1970-01-01 00:02 the receiver answered 503" in printed
    assert "hidden" not in printed
    (line,) = (await operator.run("webhooks", "--json"))[0].splitlines()
    found = json.loads(line)
    assert (found["app"], found["pending"], found["oldest_at"]) == ("shop", 1, 60.0)
    assert found["last_failure"]["status"] == 503
