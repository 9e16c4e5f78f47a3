"""The client of clawdforge, a realtime server for coding agents.

async with Clawdforge("http://127.0.0.1:8800", token) as forge:
    session = await forge.create_session()
    async for text in session.prompt("help").text():
        print(text, end="", flush=True)
"""

from .client import Clawdforge
from .errors import ClawdforgeError, ConnectionLostError, RunError, TurnError
from .files import Files
from .notifications import Push, Webhook
from .runs import BackgroundRun, RunStream
from .session import Session
from .shapes import (
    Entry,
    Json,
    PermissionRequest,
    Prompt,
    Question,
    RunResult,
    State,
    TurnResult,
    Usage,
    text_of,
)
from .turn import Turn
from .watch import Watch, WatchEvent

__version__ = "0.3.0"

__all__ = [
    "BackgroundRun",
    "Clawdforge",
    "ClawdforgeError",
    "ConnectionLostError",
    "Entry",
    "Files",
    "Json",
    "PermissionRequest",
    "Prompt",
    "Push",
    "Question",
    "RunError",
    "RunResult",
    "RunStream",
    "Session",
    "State",
    "Turn",
    "TurnError",
    "TurnResult",
    "Usage",
    "Watch",
    "WatchEvent",
    "Webhook",
    "text_of",
]
