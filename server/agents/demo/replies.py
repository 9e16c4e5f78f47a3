"""The script's entry point: matches a prompt to a command, or replies to free text."""

from __future__ import annotations

import re
from pathlib import Path

from .commands import COMMANDS, list_folder, recall, remember, user_texts
from .content import count_of, describe_block, shorten, split_attached, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .turn import DemoTurn


def reply_to_prompt(turn: DemoTurn) -> None:
    """Describe the attachments, then run the command or reply to the text."""
    files, text = split_attached(text_of(turn.prompt))
    for path in files:
        read_attachment(turn, Path(path))
    others = [f"- {describe_block(block)}" for block in turn.prompt if block["type"] != "text"]
    if others:
        turn.say("With your message came:\n\n" + "\n".join(others))
    name, argument = split_command(text)
    if name:
        COMMANDS[name][0](turn, argument)
    elif text.startswith("/"):
        turn.say(f"I know no command `{text.split()[0]}`. `help` lists those that I know.")
    elif not reply_from_memory(turn, text) and (text or not (others or files)):
        reply_to_free_text(turn, text)


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


def read_attachment(turn: DemoTurn, path: Path) -> None:
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


def reply_from_memory(turn: DemoTurn, text: str) -> bool:
    """Store or recall a fact about the user; returns False if the text asks for neither."""
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


def reply_to_free_text(turn: DemoTurn, text: str) -> None:
    turn.think(
        f"The user says “{shorten(text)}”. Let me see where I am before I answer.",
        "I have no model, so I have no opinion on it. The honest thing is to say so.",
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
        f"with no model. So I cannot truly answer\n\n{quote}\n\nbut what you see is "
        f"real: I thought, I looked into the working folder ({files}), and I streamed this word by "
        "word. I keep our conversation, too, even if I am killed."
    )
    turn.say(
        "Things to try:\n\n"
        "- `plan`: a plan whose steps get done\n"
        "- `diff`: a file edit that waits for your permission\n"
        "- `files`: a small web site, to look at, download or undo\n"
        "- `slow`: long work, for you to stop\n"
        "- `my name is …`, and later `what is my name?`\n\n"
        "`help` lists everything."
    )
