"""Changes an agent's settings for clients, through acpx."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import Error, bad_request, internal
from ...tasks import Tasks
from .. import reported_settings
from ..base import agent_failed
from .acpx_session import AcpxSession, message_of
from .agent_process import AgentProcess
from .binding import Binding
from .calls import CallError, HostGoneError
from .settings_sync import SettingsSync

logger = logging.getLogger(__name__)


class SettingChanges:
    """Changes the agent's mode, model and options through acpx, one at a time.

    Args:
        has_prompt: returns whether a turn is in progress.
    """

    def __init__(
        self,
        binding: Binding,
        process: AgentProcess,
        sync: SettingsSync,
        session: AcpxSession,
        tasks: Tasks,
        has_prompt: Callable[[], bool],
    ) -> None:
        self._binding = binding
        self._process = process
        self._sync = sync
        self._session = session
        self._tasks = tasks
        self._has_prompt = has_prompt
        self._unanswered: asyncio.Future[Any] | None = None

    async def change(self, op: str, **fields: Any) -> Mapping[str, Any]:
        """Have acpx change a setting. The change continues if the caller is cancelled.

        Args:
            op: an operation of ``host.mjs``.
            fields: its arguments; the last one is the value.

        Returns:
            The agent's own result.

        Raises:
            Error: the agent does not start, refuses the value, or does not respond.
        """
        result: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._tasks.spawn(self._run(result, op, fields), f"{op}-{self._binding.key}")
        return await result

    async def _run(
        self, result: asyncio.Future[Mapping[str, Any]], op: str, fields: Mapping[str, Any]
    ) -> None:
        failure = agent_failed("the server is stopping")
        try:
            # acpx may be starting the agent, even if the caller has stopped waiting.
            with self._process.acpx_call():
                value = await self._change(op, fields)
                if not result.done():
                    result.set_result(value)
        except Error as error:
            failure = error
        except Exception:
            failure = internal()
            raise  # its task logs it
        finally:
            if not result.done():
                result.set_exception(failure)
        self._process.report_if_stopped()

    async def _change(self, op: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._session.open()
        async with self._sync.acpx_changes:
            self._sync.begin_acpx_change()
            self._process.failed_proxy = self._process.refusal = None
            option = reported_settings.option_of(self._sync.reported, "mode")
            if op == "set_mode" and option is not None and not self._sync.reported.modes:
                # The agent offers its modes in this form only.
                op, fields = "set_config_option", {"option": option["id"], "value": fields["mode"]}
            self._unanswered = asyncio.ensure_future(self._session.call(op, **fields))
            try:
                if not await self.wait_answered():
                    if not self._has_prompt():  # else it may respond after the turn
                        await self.kill_unresponsive()
                    *_, value = fields.values()
                    raise agent_failed(
                        f"{op}: the agent did not answer when it was set to {value!r}"
                    )
                await self._unanswered
            except CallError as error:
                if self._session.did_not_start(error, has_refused=self._sync.has_refused):
                    raise await self._session.start_error(error) from None
                raise bad_request(f"the agent refused: {message_of(error)}") from None
            except HostGoneError:
                raise agent_failed("the agent did not answer") from None
            # If the agent had to start first, acpx may have sent other requests before this one.
            return self._sync.results.get(f"session/{op}", {})

    async def set_boolean(self, key: str, value: bool) -> Mapping[str, Any]:
        """Set an option that is true or false, which acpx cannot.

        An agent that does not run gets the value before its next prompt.

        Raises:
            Error: as :meth:`change`.
        """
        if not self._process.has_conversation:
            reported = self._sync.reported
            option = reported_settings.option_of(reported, key)
            if reported.config_options and (option is None or option.get("type") != "boolean"):
                raise bad_request(f"{key}: the agent has no such option that is true or false")
            return {}
        async with self._sync.acpx_changes:
            return await self._sync.set_option(key, value)

    @property
    def is_unanswered(self) -> bool:
        """Whether the agent has not responded to a change yet."""
        return self._unanswered is not None and not self._unanswered.done()

    async def wait_answered(self) -> bool:
        """Wait until the agent has responded to the last change. False if it does not."""
        if (unanswered := self._unanswered) is None:
            return True
        answered = asyncio.gather(unanswered, return_exceptions=True)
        await asyncio.wait({answered}, timeout=self._sync.timeouts.setting)
        return unanswered.done()

    async def kill_unresponsive(self) -> None:
        """Kill an agent that does not respond: until it does, acpx ignores other calls for it."""
        logger.warning("session %s: the agent does not respond; killing it", self._binding.key)
        await self._process.kill()
        await self.wait_answered()
