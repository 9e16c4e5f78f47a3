"""What the demo agent says and does: its commands, and its answers to free text.

A script is a function of `(turn, argument)` that tells its story through the turn's `think`,
`say`, `start_tool`, `may` and so on. `COMMANDS` is the whole list. Everything told is true: files
are read and written, the command is run, the picture is painted.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from server.agents.demo.demo_agent import Turn

    Json = dict[str, Any]
    Script = Callable[[Turn, str], None]

NOTES_FILE = "demo-notes.md"


def run(turn: Turn) -> None:
    """Look at what came beside the text, then do what the text asks."""
    files, text = split_attached(text_of(turn.prompt))
    for path in files:
        look_at_file(turn, Path(path))
    others = [f"- {describe(block)}" for block in turn.prompt if block["type"] != "text"]
    if others:
        turn.say("With your message came:\n\n" + "\n".join(others))
    name, argument = split_command(text)
    if name:
        COMMANDS[name][0](turn, argument)
    elif text.startswith("/"):
        turn.say(f"I know no command `{text.split()[0]}`. `help` lists those that I know.")
    elif not answer_from_memory(turn, text) and (text or not (others or files)):
        answer_freely(turn, text)


def split_command(text: str) -> tuple[str, str]:
    """Return the command and its argument, two empty strings if *text* is not a command.

    Examples: `/plan`, `plan`, `slow 5`, `show me a plan`.
    """
    slash = re.fullmatch(r"/(\w+)\s*(.*)", text, re.DOTALL)
    plain = re.fullmatch(r"(\w+)(?:\s+(\d+))?[.!?]?", text)
    polite = r"(?:please )?(?:show|draw|paint|make|give)(?: me)?(?: an?| the| some)? (\w+)()\W?"
    for match in (slash, plain, re.fullmatch(polite, text, re.IGNORECASE)):
        if match and match[1].lower() in COMMANDS:
            return match[1].lower(), (match[2] or "").strip()
    return "", ""


def split_attached(text: str) -> tuple[list[str], str]:
    """Part `[Attached files]` and the absolute paths under it from the prompt itself."""
    first, _, rest = text.partition("\n")
    if first.strip() != "[Attached files]":
        return [], text
    lines = rest.split("\n")
    count = 0
    while count < len(lines) and re.match(r"/.*/", lines[count]):  # `/help` is no path
        count += 1
    return lines[:count], "\n".join(lines[count:]).strip()


def text_of(content: list[Json]) -> str:
    return "\n".join(block["text"] for block in content if block["type"] == "text").strip()


def title_of(prompt: list[Json]) -> str:
    return shorten(split_attached(text_of(prompt))[1], 60) or "Attachment"


def shorten(text: str, length: int = 80) -> str:
    """The first line, or as much of it as fits."""
    line = (text.splitlines() or [""])[0].strip()
    return line if len(line) <= length else line[: length - 1] + "…"


def describe(block: Json) -> str:
    """One line about a content block."""

    def size(base64: str) -> str:
        return f"{len(base64) * 3 // 4 - base64[-2:].count('=')} bytes"

    kind = block["type"]
    if kind == "text":
        return str(block["text"])[:10_000] + "…"
    if kind in ("image", "audio"):
        return f"{kind}: `{block['mimeType']}`, {size(block['data'])}"
    if kind == "resource_link":
        return f"resource link: `{block['uri']}` ({block['name']})"
    resource = block["resource"]
    if "text" not in resource:
        return f"resource: `{resource['uri']}`, {size(resource['blob'])}"
    text = resource["text"]
    return f"resource: `{resource['uri']}`, {len(text)} characters, begins `{shorten(text)}`"


def count_of(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def user_texts(turn: Turn) -> list[str]:
    """What the user said so far, this prompt included."""
    texts = (split_attached(text_of(content))[1] for content in turn.session.messages_of("user"))
    return [text for text in texts if text]


# ---- free text


def look_at_file(turn: Turn, path: Path) -> None:
    tool = turn.start_tool(f"Read {path.name}", "read", locations=[{"path": str(path)}])
    try:
        if not path.is_file():  # a named pipe would block
            raise FileNotFoundError(f"not a file: {path}")
        with path.open("rb") as file:
            size, start = path.stat().st_size, file.read(4096)
    except OSError as error:
        turn.end_tool(tool, str(error), status="failed")
        turn.say(f"I could not read `{path}`.")
        return
    text = start.decode("utf-8", "replace")
    begins = "binary" if "\0" in text else f"begins `{shorten(text)}`"
    turn.end_tool(tool, f"{size} bytes, {begins}", rawOutput={"size": size})
    turn.say(f"Attached: **{path.name}**, {size} bytes, {begins}.")


def answer_from_memory(turn: Turn, text: str) -> bool:
    """Take in, or give back, what the user told; False if the text is about something else."""
    data, low = turn.session.data, text.lower()
    if re.search(r"what(?:'s|’s| is) my name|who am i\b", low):
        turn.think("That must be in what was said before.")
        name = data["name"]
        turn.say(f"Your name is **{name}**." if name else "You have not told me your name yet.")
    elif re.search(r"what (?:did|have) i (?:said|say|tell|told|ask)", low):
        turn.think("I will read what is stored.")
        said = [f"{n}. {shorten(line)}" for n, line in enumerate(user_texts(turn)[:-1], 1)]
        turn.say("You said:\n\n" + "\n".join(said[-20:]) if said else "This is your first message.")
    elif re.search(r"what do you (?:remember|know about me)", low):
        recall(turn, "")
    elif match := re.search(r"\bmy name is ([^.,;!?\n]{1,60})", text, re.IGNORECASE):
        data["name"] = match[1].strip()
        turn.say(f"Nice to meet you, **{data['name']}**. I will not forget it: ask me later.")
    elif match := re.match(r"(?:please )?remember (?:that )?(.+)", text, re.IGNORECASE | re.DOTALL):
        remember(turn, match[1])
    else:
        return False
    return True


def answer_freely(turn: Turn, text: str) -> None:
    turn.think(
        f"The user says “{shorten(text)}”. Let me see where I am before I answer.",
        "There is no model behind me, so I have no opinion on it. The honest thing is to say so.",
        "What I can do is show what an agent's work looks like: thoughts, tools, an answer.",
    )
    files = count_of(list_folder(turn), "file")
    name, nth = turn.session.data["name"], len(user_texts(turn))
    quote = "\n".join("> " + line for line in text.splitlines()[:5])
    if nth > 1:
        turn.say(
            f"I heard you{', ' + name if name else ''}:\n\n{quote}\n\nbut being a script, I have "
            f"nothing wise to say to it. This was message {nth} of our conversation, in a folder "
            f"of {files}. `help` lists what I can show."
        )
        return
    turn.say(f"## Hello{', ' + name if name else ''}")
    turn.say(
        "I am the **clawdforge demo agent**: a script that speaks the Agent Client Protocol, "
        f"with no model behind it. So I cannot truly answer\n\n{quote}\n\nbut what you see is "
        f"real: I thought, I looked into the working folder ({files}), and I streamed this word by "
        "word. I keep our conversation, too, even if I am killed."
    )
    turn.say(
        "Things to try:\n\n"
        "- `plan`: a plan whose steps get done\n"
        "- `diff`: a file edit that waits for your permission\n"
        "- `slow`: long work, for you to stop\n"
        "- `my name is …`, and later `what is my name?`\n\n"
        "`help` lists everything."
    )


def list_folder(turn: Turn) -> int:
    cwd = turn.session.cwd
    where: Json = {"rawInput": {"path": str(cwd)}, "locations": [{"path": str(cwd)}]}
    tool = turn.start_tool("List the working folder", "read", **where)
    names = sorted(path.name for path in cwd.iterdir() if not path.name.startswith("."))
    listing = "\n".join(names[:20]) or "(empty)"
    turn.end_tool(tool, f"```\n{listing}\n```", rawOutput={"entries": names[:100]})
    return len(names)


# ---- commands


def show_help(turn: Turn, _: str) -> None:
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


def show_plan(turn: Turn, _: str) -> None:
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


def show_diff(turn: Turn, _: str) -> None:
    """Add a line to a file of the working folder; the diff is what is then written."""
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
    if not turn.may(tool, title, "edit"):
        turn.end_tool(tool, "Not permitted.", status="failed", **shown)
        turn.say(f"I left `{NOTES_FILE}` as it was: {why_not(turn)}.")
        return
    turn.update("tool_call_update", toolCallId=tool, status="in_progress")
    turn.replace_file(path, new)
    turn.end_tool(tool, "Written.", **shown)
    turn.say(f"Done: `{NOTES_FILE}` now holds **{count_of(count, 'note')}**, really on the disk.")


def why_not(turn: Turn) -> str:
    plan = turn.session.data["config"]["mode"] == "plan"
    return "in mode `plan` I only read (`/mode ask` changes that)" if plan else "you said no"


def run_command(turn: Turn, _: str) -> None:
    code = "print(sum(range(1, 101)))"
    command, title = [sys.executable, "-I", "-S", "-c", code], f'python -c "{code}"'
    turn.think("To add one to a hundred I would run a command, and for that I need a permission.")
    tool = turn.start_tool(title, "execute", "pending", rawInput={"command": command})
    if not turn.may(tool, title, "execute"):
        turn.end_tool(tool, "Not permitted.", status="failed")
        turn.say(f"I did not run it: {why_not(turn)}.")
        return
    import subprocess  # here, since importing it takes longer than the rest of the start-up

    turn.update("tool_call_update", toolCallId=tool, status="in_progress")
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
    )
    output = {"exitCode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
    turn.end_tool(tool, f"```console\n$ {title}\n{done.stdout}{done.stderr}```", rawOutput=output)
    turn.say(f"The command ran, and the sum of 1 to 100 is **{done.stdout.strip()}**.")


def show_tools(turn: Turn, _: str) -> None:
    """One tool call of each kind that only looks."""
    turn.think("I will use each tool once, on what is surely there: this folder and my own source.")
    list_folder(turn)
    path, url = str(Path(__file__).resolve()), "data:text/plain,Hello%20from%20a%20data%20URL"
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    place: list[Json] = [{"path": path, "line": 1}]
    tool = turn.start_tool("Read my script", "read", locations=place, rawInput=place[0])
    turn.end_tool(tool, "```python\n" + "\n".join(lines[:6]) + "\n```")
    found = [{"path": path, "line": n} for n, line in enumerate(lines, 1) if line[:4] == "def "]
    tool = turn.start_tool("Search for functions", "search", rawInput={"pattern": "^def "})
    turn.end_tool(tool, f"{len(found)} found", locations=found)
    tool = turn.start_tool("Fetch a data: URL", "fetch", rawInput={"url": url})
    turn.end_tool(tool, url.partition(",")[2].replace("%20", " "))
    turn.say(
        f"I listed, read, searched ({len(found)} functions) and fetched. "
        "`permission` runs a command."
    )


def show_thoughts(turn: Turn, _: str) -> None:
    thoughts = (
        "What does it mean for a script to think?",
        "It lays out its words before it says them. That much I can do.",
        "A client keeps thoughts apart from the answer, and folds them away when they are long.",
        "So: think first, then answer in one line.",
    )
    turn.stream("agent_thought_chunk", "\n\n".join(thoughts))
    turn.say("I thought it over, in four steps. `/thought_level deep` makes me do so every time.")


def show_table(turn: Turn, _: str) -> None:
    turn.think("Figures side by side: a table.")
    rows = [(n, n * n, "yes" if n in (2, 3, 5, 7) else "no") for n in range(1, 9)]
    lines = "\n".join(f"| {n} | {square} | {prime} |" for n, square, prime in rows)
    turn.say(f"### Squares\n\n| n | n² | prime |\n| ---: | ---: | :---: |\n{lines}")


def show_code(turn: Turn, _: str) -> None:
    turn.think("A short function, and how it is called.")
    turn.say(CODE)


def show_image(turn: Turn, _: str) -> None:
    import base64

    turn.think("I will paint a small sunset, pixel by pixel.")
    data = base64.b64encode(paint_png(96, 64)).decode()
    turn.say("A sunset of 96 by 64 pixels, painted just now:")
    turn.show({"type": "image", "mimeType": "image/png", "data": data})


def paint_png(width: int, height: int) -> bytes:
    """A sun over a gradient, as an RGB PNG."""
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


def speak_long(turn: Turn, argument: str) -> None:
    count = min(int(argument), 20_000) if argument.isdigit() else 400
    words = LONG_SENTENCE.split()
    turn.say("### A long answer")
    for start in range(0, count, 60):
        paragraph = (words[n % len(words)] for n in range(start, min(start + 60, count)))
        turn.say(" ".join(paragraph) + ".")


def work_slowly(turn: Turn, argument: str) -> None:
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


def fail(turn: Turn, argument: str) -> None:
    turn.say("This turn is about to fail, as you asked.")
    if argument == "crash":
        turn.finish()
        os._exit(1)
    if argument != "refusal":
        turn.fail("This is the failure that you asked for", "nothing is wrong")
    turn.stop_reason = "refusal"


def remember(turn: Turn, argument: str) -> None:
    if not argument:
        turn.say("Remember what? Say `remember the milk`.")
        return
    turn.session.data["facts"].append(argument)
    turn.say(f"I will remember: {argument}")


def recall(turn: Turn, _: str) -> None:
    turn.think("I will look into what is stored.")
    data = turn.session.data
    facts = [f"- Your name is {data['name']}."] if data["name"] else []
    facts += [f"- {fact}" for fact in data["facts"]]
    turn.say("I remember:\n\n" + "\n".join(facts) if facts else "You told me nothing to remember.")
    count = count_of(len(user_texts(turn)), "message")
    turn.say(f"And what we said: {count} of yours, this one included.")


def show_usage(turn: Turn, _: str) -> None:
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


def set_option(key: str) -> Script:
    def script(turn: Turn, argument: str) -> None:
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

# Each command: its script, what it does ("and I …"), and a hint of its argument.
COMMANDS: dict[str, tuple[Script, str, str]] = {
    "help": (show_help, "list what I can do", ""),
    "plan": (show_plan, "make a plan and carry it out", ""),
    "diff": (show_diff, f"add a line to {NOTES_FILE}, with your permission", ""),
    "permission": (run_command, "run a command, with your permission", ""),
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
    "mode": (set_option("mode"), "show or change my mode", "[ask, auto or plan]"),
    "model": (set_option("model"), "show or change my model", "[demo or demo-fast]"),
    "thought_level": (set_option("thought_level"), "think more or less", "[off, brief or deep]"),
}


def available_commands() -> list[Json]:
    """ACP's `AvailableCommand[]`."""
    return [
        {"name": name, "description": what.capitalize(), "input": {"hint": hint} if hint else None}
        for name, (_, what, hint) in COMMANDS.items()
    ]
