"""PromptHandle: the object that decides whether a prompt may reach its agent."""

from __future__ import annotations

import pytest

from server.agents.base import agent_failed
from server.agents.prompt_handle import PromptHandle, PromptState
from server.errors import Error, internal
from server.states import IllegalTransitionError

BLOCKS = b'[{"type":"text","text":"hi"}]'


async def test_held_prompt_can_be_sent_only_after_it_is_admitted() -> None:
    handle = PromptHandle(BLOCKS, is_held=True)
    with pytest.raises(IllegalTransitionError):
        handle.mark_sent()
    assert not handle.admitted.done()
    handle.admit()
    assert handle.admitted.done()
    handle.mark_sent()
    assert handle.is_sent
    assert not handle.blocks
    assert not handle.done.done()


async def test_prompt_cancelled_before_it_is_sent_is_withdrawn() -> None:
    cancelled = []
    handle = PromptHandle(BLOCKS, is_held=True, cancel_sent=lambda: cancelled.append(True))
    handle.cancel()
    assert handle.is_withdrawn
    assert handle.admitted.done()  # nothing waits for it any more
    await handle.done
    handle.admit()
    with pytest.raises(IllegalTransitionError):
        handle.mark_sent()
    assert not cancelled


async def test_prompt_cancelled_after_it_is_sent_ends_with_its_response() -> None:
    cancelled = []
    handle = PromptHandle(BLOCKS, is_held=False, cancel_sent=lambda: cancelled.append(True))
    handle.mark_sent()
    handle.cancel()
    assert cancelled == [True]
    assert not handle.done.done()
    handle.finish()
    handle.cancel()
    assert (handle.state, cancelled) == (PromptState.DONE, [True])


async def test_prompt_ends_once() -> None:
    handle = PromptHandle(BLOCKS, is_held=False)
    handle.mark_sent()
    handle.finish(agent_failed("it ended"))
    handle.finish()
    with pytest.raises(Error) as failure:
        await handle.done
    assert failure.value.code == "agent_failed"


async def test_prompt_that_fails_before_it_is_sent_is_withdrawn() -> None:
    handle = PromptHandle(BLOCKS, is_held=True)
    handle.finish(agent_failed("it does not start"))
    assert handle.is_withdrawn
    with pytest.raises(Error):
        await handle.done


@pytest.mark.parametrize("is_held", [True, False])
async def test_prompt_is_withdrawn_after_its_awaiter_was_cancelled(is_held: bool) -> None:
    handle = PromptHandle(BLOCKS, is_held=is_held)
    handle.done.cancel()
    handle.cancel()
    assert handle.is_withdrawn
    assert handle.admitted.done()


async def test_failure_withdraws_a_prompt_whose_awaiter_was_cancelled() -> None:
    handle = PromptHandle(BLOCKS, is_held=False)
    handle.done.cancel()
    handle.finish(internal())
    assert handle.is_withdrawn
