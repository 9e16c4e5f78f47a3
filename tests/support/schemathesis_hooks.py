"""In the process of schemathesis (``test_openapi.py``): who asks, and for which session."""

from __future__ import annotations

import os
from typing import Any

import schemathesis

SESSION = os.environ["FUZZ_SESSION"]
ADMIN_PATHS = ("/admin", "/metrics")


@schemathesis.auth(refresh_interval=None)
class Token:
    """The admin's on the operator's calls, else the app's."""

    def get(self, case: Any, context: Any) -> str:
        is_admin = case.operation.path.startswith(ADMIN_PATHS)
        return os.environ["FUZZ_ADMIN" if is_admin else "FUZZ_TOKEN"]

    def set(self, case: Any, data: str, context: Any) -> None:
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data}"}


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> Any:
    """Mostly a session that there is: what is made up is found by nobody."""
    if path_parameters and "session_id" in path_parameters:
        made_up = str(path_parameters["session_id"])
        if len(made_up) % 4 and context.operation.method != "delete":
            return {**path_parameters, "session_id": SESSION}
    return path_parameters
