"""Limits on sessions and prompts: of the whole server, and of each app."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from ..accounts.accounts import Accounts
from ..config import Settings
from ..errors import Error, ErrorCode
from ..limits import ByteQuota, TokenBucket, decrement
from ..storage.shared_limits import SharedLimits, free_session
from ..tasks import to_completion

SESSION_RETRY_SECS = 30
"""Seconds after which a client may retry to create a session that a limit refused."""


class SessionQuotas:
    """Counts open sessions, waiting prompts and prompts per minute.

    Args:
        accounts: the limits of apps that have their own.

    Attributes:
        waiting_bytes: the bytes of each app's waiting prompts.
        shared: counts the sessions and the prompts of all nodes; None without a cluster.
    """

    def __init__(self, settings: Settings, accounts: Accounts) -> None:
        self.waiting_bytes = ByteQuota(
            settings.max_waiting_prompt_bytes_per_app,
            "the app's waiting prompts have reached their limit; retry after some have run",
        )
        self.shared: SharedLimits | None = None
        self._accounts = accounts
        accounts.on_limits_changed.append(self._change_prompt_rate)
        self._max_sessions = settings.max_sessions
        self._max_sessions_per_app = settings.max_sessions_per_app
        self._prompts_per_min = settings.max_prompts_per_min
        self._open: Counter[str] = Counter()
        self._prompt_rates: dict[str, TokenBucket] = {}

    @property
    def open_sessions(self) -> int:
        """The number of open sessions, in a cluster on all nodes."""
        return self._open.total()

    def set_open_sessions(self, counts: Mapping[str, int]) -> None:
        """Set the number of each app's open sessions, as the database has it."""
        self._open = Counter(counts)

    async def reserve_session(self, app_name: str, reservation: str) -> None:
        """Count one more open session.

        Args:
            reservation: its name in the limits of a cluster, until :meth:`free_reservation`.

        Raises:
            Error: ``pool_full``; the limit of the server or of the app is reached. ``internal``;
                the database of the cluster is out of reach.
        """
        limit: str | None = None
        if self.shared is not None:
            limit = await to_completion(
                self.shared.reserve_session(
                    reservation,
                    app_name,
                    per_app=self._max_sessions_of(app_name),
                    total=self._max_sessions,
                )
            )
        elif self._open.total() >= self._max_sessions:
            limit = "server"
        elif self._open[app_name] >= self._max_sessions_of(app_name):
            limit = "app"
        if limit is not None:
            of_app = limit == "app"
            message = "session limit reached for this app" if of_app else "session limit reached"
            raise Error(ErrorCode.POOL_FULL, message, retry_after=SESSION_RETRY_SECS)
        if self.shared is None:
            self._open[app_name] += 1

    async def free_reservation(self, reservation: str) -> None:
        """Free the reservation of a session, which is stored or was not opened."""
        if self.shared is not None:
            await to_completion(self.shared.free(free_session(reservation)))

    def _max_sessions_of(self, app_name: str) -> int:
        own = self._accounts.limits_of(app_name).sessions
        return self._max_sessions_per_app if own is None else own

    def release_session(self, app_name: str) -> None:
        """Stop counting an open session. In a cluster, the database is asked again soon."""
        if self.shared is None:
            decrement(self._open, app_name)

    def check_prompt_rate(self, app_name: str) -> None:
        """Count a prompt of that app.

        Raises:
            Error: ``rate_limited``; the app sends too many prompts.
        """
        rate = self._prompt_rates.get(app_name)
        if rate is None:
            per_minute = self._prompts_per_min_of(app_name)
            rate = self._prompt_rates[app_name] = TokenBucket(per_minute / 60, per_minute)
        if not rate.try_acquire():
            raise self._rate_limited(app_name)

    def check_has_prompts(self, app_name: str) -> None:
        """Check that a prompt would be accepted now, without counting it.

        In a cluster, the check that counts it decides.

        Raises:
            Error: ``rate_limited``; the app sends too many prompts.
        """
        rate = self._prompt_rates.get(app_name)
        if rate is not None and not rate.has_token():
            raise self._rate_limited(app_name)

    async def check_shared_prompt_rate(self, app_name: str) -> None:
        """Count a prompt of that app on all nodes of the cluster.

        Raises:
            Error: ``rate_limited``; the app sends too many prompts. ``internal``; the database is
                out of reach.
        """
        assert self.shared is not None
        if not await self.shared.count_prompt(app_name, self._prompts_per_min_of(app_name)):
            raise self._rate_limited(app_name)

    def _rate_limited(self, app_name: str) -> Error:
        per_minute = self._prompts_per_min_of(app_name)
        message = f"an app may send {per_minute} prompts a minute"
        return Error(
            ErrorCode.RATE_LIMITED, message, retry_after=math.ceil(60 / max(1, per_minute))
        )

    def _prompts_per_min_of(self, app_name: str) -> int:
        own = self._accounts.limits_of(app_name).prompts_per_min
        return self._prompts_per_min if own is None else own

    def _change_prompt_rate(self, app_name: str) -> None:
        if (rate := self._prompt_rates.get(app_name)) is not None:
            per_minute = self._prompts_per_min_of(app_name)
            rate.change(per_minute / 60, per_minute)

    def forget_idle_apps(self) -> None:
        """Drop the prompt rates of apps that have sent no prompt lately."""
        self._prompt_rates = {
            app_name: rate for app_name, rate in self._prompt_rates.items() if not rate.is_full()
        }
