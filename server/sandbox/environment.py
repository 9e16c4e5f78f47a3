"""The environment that sandboxed programs get from the server, and the files that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import paths
from .logins import copy_logins, write_in_home
from .policy import Replaced, ReplaceKeys, SandboxSpec

CARRIED = frozenset(
    {*paths.FILES_IN_ENVIRON, "PATH", "NODE_PATH", "PYTHONPATH", "NODE_COMPILE_CACHE"}
)
"""Variables whose paths in the operator's home are not replaced: agents may read them there."""


class ProgramEnvironment:
    """The part of the server's environment that sandboxed programs get.

    Attributes:
        environ: the variables, with the keys of the operator.
        user_home: the home of the server's user.
        withheld: the names of variables that programs with a home of their own do not get.
        replace_keys: see :data:`ReplaceKeys`; None if programs get the keys themselves.
    """

    def __init__(self, environ: Mapping[str, str], withheld: frozenset[str] = frozenset()) -> None:
        self.environ = environ
        self.withheld = withheld
        self.replace_keys: ReplaceKeys | None = None
        home = environ.get("HOME", "")
        self.user_home = Path(home) if len(home) > 1 and home.startswith("/") else None

    @property
    def passed_on(self) -> dict[str, str]:
        """The variables that sandboxed programs may get."""
        return {name: self.environ[name] for name in self.environ.keys() - self.withheld}

    def own_variables(self, home: str, tmp: str) -> dict[str, str]:
        """The variables with paths in the home of the server's user, with those of a session."""
        environ = {
            name: home + value.removeprefix(str(self.user_home))
            for name, value in self.passed_on.items()
            if name not in CARRIED and self._is_in_home(value)
        }
        return {**environ, "HOME": home, "TMPDIR": tmp}

    def _is_in_home(self, value: str) -> bool:
        home = self.user_home
        return home is not None and value.startswith("/") and Path(value).is_relative_to(home)

    def replace(self, spec: SandboxSpec, environ: Mapping[str, str]) -> Replaced | None:
        """Replace the keys of a program. Blocking.

        Args:
            environ: the variables of the agent, its app and its session.
        """
        if self.replace_keys is None:
            return None
        chosen = spec.client_environ
        trusted = {name: value for name, value in environ.items() if name not in chosen}
        return self.replace_keys(spec, {**self.environ, **trusted}, chosen)

    def without_keys(
        self, environ: Mapping[str, str], replaced: Replaced | None, *, has_home: bool
    ) -> dict[str, Any]:
        """The parts ``environ`` and ``unset`` of a plan: *environ* with the keys replaced.

        Args:
            has_home: the program has a home of its own.
        """
        unset = {name for name in self.environ if name.startswith("XDG_") and has_home}
        if has_home:
            unset |= self.withheld
        if replaced is None:
            return {"environ": dict(environ), "unset": sorted(unset)}
        kept = {name: value for name, value in environ.items() if name not in replaced.unset}
        return {
            "environ": {**kept, **replaced.environ},
            "unset": sorted(unset.union(replaced.unset)),
        }

    def fill_home(
        self,
        spec: SandboxSpec,
        home: tuple[Path, *tuple[str, ...]],
        environ: Mapping[str, str],
        replaced: Replaced | None,
    ) -> None:
        """Copy the operator's logins into a program's home, and write what replaces keys there.

        Args:
            home: as :mod:`safe_files` takes it.
        """
        files = replaced.files if replaced is not None else {}
        if self.user_home is not None:
            copy_logins(spec.agent, self.user_home, home, {*self.passed_on, *environ}, files)
        for path, data in files.items():
            write_in_home(home, path, data)
