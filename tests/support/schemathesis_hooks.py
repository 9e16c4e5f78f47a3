"""Hooks in the process of schemathesis (``test_openapi.py``): tokens and session ids."""

from __future__ import annotations

import os
from typing import Any

import schemathesis

SESSION = os.environ["FUZZ_SESSION"]
ADMIN_PATHS = ("/admin", "/metrics")


@schemathesis.auth(refresh_interval=None)
class Token:
    """Uses the admin token for the operator's calls, and the app's token otherwise."""

    def get(self, case: Any, context: Any) -> str:
        is_admin = case.operation.path.startswith(ADMIN_PATHS)
        return os.environ["FUZZ_ADMIN" if is_admin else "FUZZ_TOKEN"]

    def set(self, case: Any, data: str, context: Any) -> None:
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data}"}


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> Any:
    """Use an existing session in most cases, because generated ids do not exist."""
    if path_parameters and "session_id" in path_parameters:
        generated = str(path_parameters["session_id"])
        if len(generated) % 4 and context.operation.method != "delete":
            return {**path_parameters, "session_id": SESSION}
    return path_parameters
