"""The demo agent's files: a small web site that changes with each prompt.

Each version adds, changes and deletes files, so that a client can show what has changed, undo it,
and download the result.
"""

from __future__ import annotations

import base64
import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from .rpc import Json
    from .turn import DemoTurn

SITE_FOLDER = "demo-site"
COLOURS = ("#8a3b12", "#1d5c4f", "#3b2a78", "#7a1f4b")
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
"""A picture of one dot."""


def write_site(turn: DemoTurn, _: str) -> None:
    """Write the next version of the site: an edit of several files, with one permission."""
    folder = turn.session.cwd / SITE_FOLDER
    old = _text_in(folder / "index.html")
    version = _site_version(old) + 1
    texts = {"index.html": _site_page(version), "style.css": _site_style(version)}
    if version == 1:
        texts["draft.txt"] = "A first idea, to be deleted in the second version.\n"
    diffs = [_diff(folder / name, text) for name, text in texts.items()]
    title = f"{'Create' if version == 1 else 'Change'} {SITE_FOLDER}"
    where: list[Json] = [{"path": diff["path"]} for diff in diffs]
    turn.think(f"I will write version {version} of a small site, if I may.")
    raw: Json = {"folder": str(folder), "version": version}
    tool = turn.start_tool(title, "edit", "pending", locations=where, rawInput=raw, content=diffs)
    if not turn.is_permitted(tool, title, "edit"):
        turn.end_tool(tool, "Not permitted.", status="failed", content=diffs)
        turn.say(f"I left `{SITE_FOLDER}` as it was.")
        return
    turn.update("tool_call_update", toolCallId=tool, status="in_progress")
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        turn.replace_file(folder / name, text)
    if version == 1:
        (folder / "dot.png").write_bytes(PIXEL)
    else:
        (folder / "draft.txt").unlink(missing_ok=True)
    turn.end_tool(tool, "Written.", content=diffs)
    names = ", ".join(sorted(_files_in(folder)))
    turn.say(
        f"Version **{version}** of `{SITE_FOLDER}` is on the disk: {names}."
        " See what has changed, download it, or undo this turn. `files` again writes the next"
        " version."
    )


def _files_in(folder: Path) -> list[str]:
    return [f"`{name}`" for name in os.listdir(folder)]  # noqa: PTH208


def _text_in(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _diff(path: Path, text: str) -> Json:
    return {"type": "diff", "path": str(path), "oldText": _text_in(path), "newText": text}


def _site_version(page: str | None) -> int:
    match = re.search(r"Version (\d{1,9})", page or "")
    return int(match[1]) if match else 0


def _site_page(version: int) -> str:
    return f"""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Demo</title>
<link rel="stylesheet" href="style.css">
<h1>Version {version}</h1>
<p>Written by the demo agent.</p>
<img src="dot.png" alt="A dot" width="64" height="64">
</html>
"""


def _site_style(version: int) -> str:
    colour = COLOURS[version % len(COLOURS)]
    return f"body {{ font-family: sans-serif; }}\nh1 {{ color: {colour}; }}\n"
