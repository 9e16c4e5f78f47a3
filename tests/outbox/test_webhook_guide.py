"""The programs of the page about webhooks verify the deliveries of the server."""

from __future__ import annotations

import json
from pathlib import Path

from server.agents.catalog import find_node

from ..repository.test_guides import program_of
from ..support.harness import Client, run_program
from ..support.receiver import SECRET, Receiver

PAGE = "howto/webhooks.md"
NODE = find_node()
CHECK = """
import { readFileSync } from "node:fs";
import { verify } from "./verify.mjs";
const [secret, cases] = JSON.parse(readFileSync(0, "utf8"));
const check = ([headers, body]) => verify(secret, headers, Buffer.from(body));
console.log(JSON.stringify(cases.map(check)));
"""


async def test_programs_accept_signed_deliveries_and_no_others(
    client: Client, receiver: Receiver, tmp_path: Path
) -> None:
    await receiver.register(client)
    await client.turn(await client.create(), "é 🙂")
    await receiver.next("turn_ended")
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    headers = {name: receiver.attempts[0][1][name] for name in names}
    body = receiver.bodies[0]
    old = {**headers, "webhook-timestamp": "1"}
    more = {**headers, "webhook-signature": f"v1,AAAA {headers['webhook-signature']}"}
    wrong = {**headers, "webhook-signature": "v1," + "A" * 43 + "="}
    cases = [(headers, body), (more, body), (headers, body + b" "), (old, body), (wrong, body)]
    expected = [True, True, False, False, False]

    names_of_module: dict[str, object] = {}
    exec(program_of(PAGE, "verify.py"), names_of_module)
    verify = names_of_module["verify"]
    assert callable(verify)
    assert [verify(SECRET, one, data) for one, data in cases] == expected

    (tmp_path / "verify.mjs").write_text(program_of(PAGE, "verify.mjs"), "utf-8")
    (tmp_path / "check.mjs").write_text(CHECK, "utf-8")
    asked = json.dumps([SECRET, [(one, data.decode()) for one, data in cases]])
    (tmp_path / "cases.json").write_text(asked, "utf-8")
    command = f"exec {NODE} {tmp_path / 'check.mjs'} < {tmp_path / 'cases.json'}"
    status, out, err = await run_program("bash", "-c", command)
    assert (status, err) == (0, "")
    assert json.loads(out) == expected
