"""The demo agent's commands, such as `plan` and `diff`.

A command is a function of `(turn, argument)` that calls the turn's `think`, `say`, `start_tool`,
`is_permitted` and so on. `COMMANDS` lists all of them. Their output is true: files are read and
written, the command is run, the picture is rendered.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from .content import count_of, split_attached, text_of
from .files import write_site
from .questions import ask_form, ask_link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .rpc import Json
    from .turn import DemoTurn

    Script = Callable[[DemoTurn, str], None]

NOTES_FILE = "demo-notes.md"


def user_texts(turn: DemoTurn) -> list[str]:
    """The texts of all prompts of the session, including this one."""
    texts = (split_attached(text_of(content))[1] for content in turn.session.messages_of("user"))
    return [text for text in texts if text]


def list_folder(turn: DemoTurn) -> int:
    cwd = turn.session.cwd
    where: Json = {"rawInput": {"path": str(cwd)}, "locations": [{"path": str(cwd)}]}
    tool = turn.start_tool("List the working folder", "read", **where)
    names = sorted(path.name for path in cwd.iterdir() if not path.name.startswith("."))
    listing = "\n".join(names[:20]) or "(empty)"
    turn.end_tool(tool, f"```\n{listing}\n```", rawOutput={"entries": names[:100]})
    return len(names)


def show_help(turn: DemoTurn, _: str) -> None:
    turn.say("## What I can show\n\nI am a demo, a script without a model. Say one of these:")
    rows = [
        f"| `{name}{' ' + hint if hint else ''}` | {what} |"
        for name, (_, what, hint) in COMMANDS.items()
    ]
    turn.say("| say | and I |\n| --- | --- |\n" + "\n".join(rows))
    turn.say(
        "With or without a slash before it (words after it need the slash). Also `my name is …`, "
        "`what is my name?`, `what did I say?`, and messages with files or images."
    )


def show_plan(turn: DemoTurn, _: str) -> None:
    turn.think("This has several steps. A plan will keep them in view.")
    steps = ["Look around", "Choose the words", "Say them", "Check that all is well"]
    priorities = ["high", "medium", "medium", "low"]
    for done in range(len(steps) + 1):
        states = ["completed"] * done + ["in_progress"] + ["pending"] * len(steps)
        rows = zip(steps, priorities, states, strict=False)
        turn.update(
            "plan", entries=[{"content": c, "priority": p, "status": s} for c, p, s in rows]
        )
        if done < len(steps):
            turn.pause(40)
    turn.say(f"All **{len(steps)} steps** are done. The plan changed as I went.")


def show_diff(turn: DemoTurn, _: str) -> None:
    """Add a line to a file of the working folder; the file is written as the diff shows it."""
    path = turn.session.cwd / NOTES_FILE
    old = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    before = old or "# Demo notes\n\n"
    count = before.count("\n- ") + 1
    new = f"{before}- Note {count}, written at {time.strftime('%H:%M:%S')}\n"
    shown: Json = {"content": [{"type": "diff", "path": str(path), "oldText": old, "newText": new}]}
    title = f"{'Edit' if old else 'Create'} {NOTES_FILE}"
    turn.think(f"I will add a line to {NOTES_FILE}, if I may.")
    where = [{"path": str(path)}]
    tool = turn.start_tool(title, "edit", "pending", locations=where, rawInput=where[0], **shown)
    if not turn.is_permitted(tool, title, "edit"):
        turn.end_tool(tool, "Not permitted.", status="failed", **shown)
        turn.say(f"I left `{NOTES_FILE}` as it was: {why_not(turn)}.")
        return
    turn.update("tool_call_update", toolCallId=tool, status="in_progress")
    turn.replace_file(path, new)
    turn.end_tool(tool, "Written.", **shown)
    turn.say(f"Done: `{NOTES_FILE}` now holds **{count_of(count, 'note')}**, really on the disk.")


def why_not(turn: DemoTurn) -> str:
    plan = turn.session.data["config"]["mode"] == "plan"
    return "in mode `plan` I only read (`/mode ask` changes that)" if plan else "you said no"


def run_command(turn: DemoTurn, _: str) -> None:
    code = "print(sum(range(1, 101)))"
    command, title = [sys.executable, "-I", "-S", "-c", code], f'python -c "{code}"'
    turn.think("To add one to a hundred I would run a command, and for that I need a permission.")
    tool = turn.start_tool(title, "execute", "pending", rawInput={"command": command})
    if not turn.is_permitted(tool, title, "execute"):
        turn.end_tool(tool, "Not permitted.", status="failed")
        turn.say(f"I did not run it: {why_not(turn)}.")
        return
    import subprocess  # its import takes longer than the rest of the start-up

    turn.update("tool_call_update", toolCallId=tool, status="in_progress")
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
    )
    output = {"exitCode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
    turn.end_tool(tool, f"```console\n$ {title}\n{done.stdout}{done.stderr}```", rawOutput=output)
    turn.say(f"The command ran, and the sum of 1 to 100 is **{done.stdout.strip()}**.")


def show_tools(turn: DemoTurn, _: str) -> None:
    """Make one tool call of each kind that changes nothing."""
    turn.think("I will use each tool once, on what is surely there: this folder and my own source.")
    list_folder(turn)
    path, url = str(Path(__file__).resolve()), "data:text/plain,Hello%20from%20a%20data%20URL"
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    place: list[Json] = [{"path": path, "line": 1}]
    tool = turn.start_tool("Read my script", "read", locations=place, rawInput=place[0])
    turn.end_tool(tool, "```python\n" + "\n".join(lines[:6]) + "\n```")
    functions = [{"path": path, "line": n} for n, line in enumerate(lines, 1) if line[:4] == "def "]
    tool = turn.start_tool("Search for functions", "search", rawInput={"pattern": "^def "})
    turn.end_tool(tool, f"{len(functions)} found", locations=functions)
    tool = turn.start_tool("Fetch a data: URL", "fetch", rawInput={"url": url})
    turn.end_tool(tool, url.partition(",")[2].replace("%20", " "))
    turn.say(
        f"I listed, read, searched ({len(functions)} functions) and fetched. "
        "`permission` runs a command."
    )


def show_thoughts(turn: DemoTurn, _: str) -> None:
    thoughts = (
        "What does it mean for a script to think?",
        "It lays out its words before it says them. That much I can do.",
        "A client keeps thoughts apart from the answer, and folds them away when they are long.",
        "So: think first, then answer in one line.",
    )
    turn.stream("agent_thought_chunk", "\n\n".join(thoughts))
    turn.say("I thought it over, in four steps. `/thought_level deep` makes me do so every time.")


def show_table(turn: DemoTurn, _: str) -> None:
    turn.think("Figures side by side: a table.")
    rows = [(n, n * n, "yes" if n in (2, 3, 5, 7) else "no") for n in range(1, 9)]
    lines = "\n".join(f"| {n} | {square} | {prime} |" for n, square, prime in rows)
    turn.say(f"### Squares\n\n| n | n² | prime |\n| ---: | ---: | :---: |\n{lines}")


def show_code(turn: DemoTurn, _: str) -> None:
    turn.think("A short function, and how it is called.")
    turn.say(CODE)


def show_image(turn: DemoTurn, _: str) -> None:
    import base64

    turn.think("I will paint a small sunset, pixel by pixel.")
    data = base64.b64encode(paint_png(96, 64)).decode()
    turn.say("A sunset of 96 by 64 pixels, painted just now:")
    turn.show({"type": "image", "mimeType": "image/png", "data": data})


def paint_png(width: int, height: int) -> bytes:
    """A sun over a gradient, as an RGB PNG; the sizes are pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        sum32 = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", sum32)

    def pixel(x: int, y: int) -> tuple[int, int, int]:
        if (x - width // 2) ** 2 + (y - height * 3 // 5) ** 2 < (height // 4) ** 2:
            return 255, 220, 120
        return 40 + 200 * y // height, 40 + 70 * y // height, 110 - 40 * y // height

    rows = (b"\0" + bytes(v for x in range(width) for v in pixel(x, y)) for y in range(height))
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(rows), 9))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def speak_long(turn: DemoTurn, argument: str) -> None:
    count = min(int(argument), 20_000) if argument.isdigit() else 400
    words = LONG_SENTENCE.split()
    turn.say("### A long answer")
    for start in range(0, count, 60):
        paragraph = (words[n % len(words)] for n in range(start, min(start + 60, count)))
        turn.say(" ".join(paragraph) + ".")


def work_slowly(turn: DemoTurn, argument: str) -> None:
    seconds = min(int(argument), 3600) if argument.isdigit() else 30
    turn.say(f"This takes {count_of(seconds, 'second')}. Stop me whenever you like.")
    title = f"Work for {count_of(seconds, 'second')}"
    tool = turn.start_tool(title, "other", rawInput={"seconds": seconds})
    for second in range(seconds):
        text = {"type": "text", "text": f"{second} of {count_of(seconds, 'second')}"}
        progress = [{"type": "content", "content": text}]
        turn.update("tool_call_update", toolCallId=tool, status="in_progress", content=progress)
        turn.sleep(1)
    turn.end_tool(tool, "Done.")
    turn.say("Done, and nobody stopped me.")


def fail(turn: DemoTurn, argument: str) -> None:
    turn.say("This turn is about to fail, as you asked.")
    if argument == "crash":
        turn.finish()
        os._exit(1)
    if argument != "refusal":
        turn.fail("This is the failure that you asked for", "nothing is wrong")
    turn.stop_reason = "refusal"


def remember(turn: DemoTurn, argument: str) -> None:
    if not argument:
        turn.say("Remember what? Say `remember the milk`.")
        return
    turn.session.data["facts"].append(argument)
    turn.say(f"I will remember: {argument}")


def recall(turn: DemoTurn, _: str) -> None:
    turn.think("I will look into what is stored.")
    data = turn.session.data
    facts = [f"- Your name is {data['name']}."] if data["name"] else []
    facts += [f"- {fact}" for fact in data["facts"]]
    turn.say("I remember:\n\n" + "\n".join(facts) if facts else "You told me nothing to remember.")
    count = count_of(len(user_texts(turn)), "message")
    turn.say(f"And what we said: {count} of yours, this one included.")


def show_usage(turn: DemoTurn, _: str) -> None:
    session = turn.session
    rows = [(option["name"], f"`{option['currentValue']}`") for option in session.config_options()]
    rows += [
        ("Your words", count_of(session.tokens("user"), "token")),
        ("Mine", count_of(session.tokens("agent"), "token")),
        ("Cost", "nothing: I am a script"),
        ("System prompt", f"`{session.data['system']}`"),
        ("Session", f"`{session.id}`, in process {os.getpid()}"),
    ]
    turn.say("| | |\n| --- | --- |\n" + "\n".join(f"| {key} | {value} |" for key, value in rows))


def option_command(key: str) -> Script:
    """A command that shows or changes one config option."""

    def script(turn: DemoTurn, argument: str) -> None:
        option = next(o for o in turn.session.config_options() if o["id"] == key)
        values = [value["value"] for value in option["options"]]
        if argument in values:
            turn.session.set_option(turn.client, key, argument)
        now = turn.session.data["config"][key]
        turn.say(f"{option['name']}: **{now}** (of `{'`, `'.join(values)}`)")

    return script


CODE = """\
A **prime sieve**:

```python
def primes(limit: int) -> list[int]:
    sieve = bytearray([1]) * (limit + 1)
    for n in range(2, int(limit**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(sieve[n * n :: n]))
    return [n for n in range(2, limit + 1) if sieve[n]]
```

and its use:

```console
$ python -c 'print(primes(20))'
[2, 3, 5, 7, 11, 13, 17, 19]
```
"""
LONG_SENTENCE = "the stream runs on and every word finds its place in the log before anyone sees it"

# Each command: its function, its description ("and I …") and a hint for its argument.
COMMANDS: dict[str, tuple[Script, str, str]] = {
    "help": (show_help, "list what I can do", ""),
    "plan": (show_plan, "make a plan and carry it out", ""),
    "diff": (show_diff, f"add a line to {NOTES_FILE}, with your permission", ""),
    "files": (write_site, "write a small web site, with your permission", ""),
    "permission": (run_command, "run a command, with your permission", ""),
    "form": (ask_form, "ask you questions with a form", ""),
    "link": (ask_link, "ask you to open a link", ""),
    "tools": (show_tools, "list, read, search and fetch", ""),
    "think": (show_thoughts, "think aloud", ""),
    "table": (show_table, "show a table", ""),
    "code": (show_code, "show code", ""),
    "image": (show_image, "paint a picture", ""),
    "long": (speak_long, "speak at length", "[words]"),
    "slow": (work_slowly, "work slowly, for you to stop me", "[seconds]"),
    "fail": (fail, "end the turn badly", "[error, refusal or crash]"),
    "remember": (remember, "keep something in mind", "<fact>"),
    "recall": (recall, "say what I have in mind", ""),
    "usage": (show_usage, "show this session's figures", ""),
    "mode": (option_command("mode"), "show or change my mode", "[ask, auto or plan]"),
    "model": (option_command("model"), "show or change my model", "[demo or demo-fast]"),
    "thought_level": (
        option_command("thought_level"),
        "think more or less",
        "[off, brief or deep]",
    ),
}


def available_commands() -> list[Json]:
    """ACP's `AvailableCommand[]`."""
    return [
        {"name": name, "description": what.capitalize(), "input": {"hint": hint} if hint else None}
        for name, (_, what, hint) in COMMANDS.items()
    ]
