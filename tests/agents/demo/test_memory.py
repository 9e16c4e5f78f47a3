"""The memory of the demo agent, also after a kill: conversations and settings."""

from __future__ import annotations

import base64
import json
import signal
from pathlib import Path
from typing import Any

from tests.stand_ins.stdio_client import Json, StdioAgent

from .conftest import NOTES, Start, text


def test_conversation_survives_sigkill(start: Start) -> None:
    first = start()
    session = first.open_session()
    said = first.prompt(session, "Hello, my name is Ada Lovelace, nice to be here").text
    first.prompt(session, "Please remember that the sky is green.")
    slow = "/slow 600"
    first.start_prompt(session, slow)
    first.until_update("tool_call")
    first.process.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL

    second = start()
    replay = second.load_session(session)
    assert [update["content"]["text"] for update in replay.of_kind("user_message_chunk")] == [
        "Hello, my name is Ada Lovelace, nice to be here",
        "Please remember that the sky is green.",
        slow,
    ]
    assert replay.of_kind("agent_message_chunk")[0]["content"]["text"] == said
    second.until_update("available_commands_update")
    assert "**Ada Lovelace**" in second.prompt(session, "What's my name?").text
    recalled = second.prompt(session, "what do you remember?").text
    assert "the sky is green" in recalled
    assert "2. Please remember" in second.prompt(session, "What did I say?").text


def test_resume_restores_the_context_without_a_replay(start: Start) -> None:
    first = start()
    session = first.open_session()
    first.prompt(session, "my name is Grace")
    first.process.kill()
    second = start()
    resumed = second.load_session(session, "session/resume")
    assert resumed.messages == []
    assert resumed.result["modes"]["currentModeId"] == "ask"
    assert "**Grace**" in second.prompt(session, "who am I?").text


def test_session_without_a_turn_can_be_loaded(start: Start) -> None:
    first = start()
    session = first.open_session()
    first.process.kill()
    assert start().load_session(session).messages == []


def test_new_session_has_no_facts_of_earlier_sessions(agent: StdioAgent) -> None:
    session = agent.open_session()
    assert "first message" in agent.prompt(session, "what did I say?").text
    assert "not told me" in agent.prompt(session, "what is my name?").text
    assert "nothing" in agent.prompt(session, "recall").text


def test_replay_contains_small_images_and_describes_large_ones(start: Start) -> None:
    first = start()
    session = first.open_session()
    small, big = base64.b64encode(b"x").decode(), base64.b64encode(bytes(150_000)).decode()
    images = [{"type": "image", "mimeType": "image/png", "data": data} for data in (small, big)]
    first.prompt(session, [text("image"), *images])
    first.process.kill()
    replay = start().load_session(session)
    blocks = [update["content"] for update in replay.of_kind("user_message_chunk")]
    assert blocks == [text("image"), images[0], text("image: `image/png`, 150000 bytes")]
    kinds = [update["content"]["type"] for update in replay.of_kind("agent_message_chunk")]
    assert kinds == ["text", "image"]


def test_settings_survive_sigkill(start: Start) -> None:
    first = start()
    session = first.open_session()
    first.call("session/set_mode", {"sessionId": session, "modeId": "plan"})
    option = {"sessionId": session, "configId": "thought_level", "value": "off"}
    first.call("session/set_config_option", option)
    first.process.kill()
    second = start()
    loaded = second.load_session(session).result
    assert loaded["modes"]["currentModeId"] == "plan"
    assert [option["currentValue"] for option in loaded["configOptions"]] == ["plan", "demo", "off"]


def test_session_folder_contains_no_temporary_file(agent: StdioAgent, tmp_path: Path) -> None:
    session = agent.open_session()
    agent.prompt(session, "hello")
    folder = tmp_path / ".demo-agent"
    assert {path.name for path in folder.iterdir()} == {".gitignore", f"{session}.json"}
    assert json.loads((folder / f"{session}.json").read_bytes())["messages"]


def test_unwritable_folder_keeps_the_conversation_in_memory(
    agent: StdioAgent, tmp_path: Path
) -> None:
    (tmp_path / ".demo-agent").write_text("in the way")
    session = agent.open_session()
    agent.prompt(session, "my name is Ada")
    assert "**Ada**" in agent.prompt(session, "what is my name?").text
    agent.close_stdin()
    agent.wait()  # then its stderr is complete
    assert "not stored" in "".join(agent.stderr)


# ---- settings


def test_mode_auto_requests_no_permission_and_plan_edits_nothing(
    agent: StdioAgent, tmp_path: Path
) -> None:
    session = agent.open_session()
    turn = agent.request("session/set_mode", {"sessionId": session, "modeId": "plan"})
    assert turn.of_kind("current_mode_update")[0]["currentModeId"] == "plan"
    assert turn.of_kind("config_option_update")[0]["configOptions"][0]["currentValue"] == "plan"
    assert "`plan`" in agent.prompt(session, "diff").text
    assert not (tmp_path / NOTES).exists()
    turn = agent.prompt(session, "/mode auto")
    assert turn.of_kind("current_mode_update")[0]["currentModeId"] == "auto"
    agent.prompt(session, "diff")
    assert (tmp_path / NOTES).exists()


def test_config_option_is_set_and_invalid_value_is_rejected(agent: StdioAgent) -> None:
    session = agent.open_session()

    def set_option(key: str, value: Any) -> Json:
        params = {"sessionId": session, "configId": key, "value": value}
        turn = agent.request("session/set_config_option", params)
        (update,) = turn.of_kind("config_option_update")
        assert update["configOptions"] == turn.result["configOptions"]
        return {option["id"]: option["currentValue"] for option in turn.result["configOptions"]}

    assert set_option("model", "demo-fast")["model"] == "demo-fast"
    assert set_option("mode", "auto")["mode"] == "auto"
    brief = agent.prompt(session, "so it goes").thoughts
    assert set_option("thought_level", "deep")["thought_level"] == "deep"
    assert len(agent.prompt(session, "so it goes").thoughts) > len(brief)
    set_option("thought_level", "off")
    assert agent.prompt(session, "so it goes").thoughts == ""
    for key, value in [("model", "gpt"), ("volume", 11), ("mode", None), ("model", ["demo"])]:
        params = {"sessionId": session, "configId": key, "value": value}
        assert agent.request("session/set_config_option", params).error["code"] == -32602


def test_system_prompt_is_stored(agent: StdioAgent) -> None:
    session = agent.open_session(_meta={"systemPrompt": "Be kind."})
    assert "Be kind." in agent.prompt(session, "usage").text
