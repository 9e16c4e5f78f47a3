"""The scriptable mock agent: a real ACP agent (protocol version 1) that follows its prompt.

    python -I -S tests/stand_ins/start/mock_agent.py [flags]

The reply to plain text is one chunk, `echo: <text>` (one line per block; a block that is not text
is `[image]` and so on). A prompt whose text is JSON is a script:

    {"steps": [{"say": "hi"}, {"wait_for": "cancel"}]}     or the list alone, or a single step

Each step is an object with one key. Paths are relative to the session's cwd. `[Attached files]`
and the paths below it, or other blocks, may precede the script. An unknown step ends the turn with
an error (-32602).

Output
    {"say": TEXT | JSON}        an agent_message_chunk; a value that is not a string is sent as JSON
    {"think": TEXT}             an agent_thought_chunk
    {"update": {…}}             a session/update with just this update, known kind or not
    {"notify": {"method": M, "params": {…}}}     any notification, unchanged
    {"chunk": N}                one agent_message_chunk of N bytes of text
    {"burst": {"count": N, "text": T, "kind": K, "batch": 1000, "pause_ms": 0}}
                                N chunks with the texts "0:T", "1:T", …, one write per batch
    {"raw": TEXT | {"text": T | "base64": B, "newline": true}}    bytes on stdout; without a newline
                                the line is incomplete and the next message is lost
    {"bad_utf8": true}          a session/update with a byte that is not UTF-8
    {"stderr": TEXT}            a line on stderr
    {"repeat": {"times": N, "steps": […]}}       "{i}" in any string becomes 0, 1, …
Reports (each sends one chunk of JSON)
    {"echo": true}              the received content blocks
    {"history": true}           the texts of all prompts of this session, also to earlier processes
    {"report": true}            {pid, ppid, pgid, sid, cwd, argv, env: [names], fds, initialize,
                                opened: [method, params] of the request that opened the session,
                                session: {sessionId, cwd, params of session/new, config}}
    {"env": [NAME, …]}          {NAME: value or null}
Requests
    {"permission": true | {"title", "kind", "options", "toolCall": {…}}}
                                session/request_permission; sends {"permission": outcome}; an
                                outcome "cancelled" then ends the turn as cancelled. A list makes
                                all requests at once and sends {"permissions": [outcome, …]}
    {"write": PATH}             writes a file, after a permission request if the mode is "ask";
                                sends {"mode": M, "asked": b, "wrote": b}
    {"elicit": PARAMS}          elicitation/create; sends {"elicitation": result or error}. A list
                                makes all requests at once and sends {"elicitations": […]}. With
                                "withdraw": true in PARAMS the agent cancels its own request
    {"request": {"method": M, "params": {…}}}    any request (sessionId is added); sends
                                {"response": {"result" | "error": …}}
Waiting
    {"sleep": MS}
    {"gate": PATH}              until the file exists
    {"touch": PATH}             create that file
    {"wait_for": "cancel"}      then continue; the turn ends as "cancelled" unless a step ends it
    {"hang": true}              forever
    {"ignore_cancel": true}     from here on this process ignores session/cancel (does not hang)
  A cancel interrupts sleep, gate, hang, permission, elicit, request, burst and repeat, and no other
  step.
Ending
    {"stop": REASON}            respond {"stopReason": REASON} immediately; default "end_turn"
    {"result": {…}}             respond with any result
    {"error": {"code", "message", "data"}}       respond with an error
    {"late": {"delay_ms": MS, "steps": […]}}     run these after the response
    {"exit": CODE}              end the process without a response
    {"crash": "SIGKILL"}        die of a signal
Changing
    {"mode": M}                 change the mode and send current_mode_update
Misbehaving
    {"spawn": {"pid_file": P, "setsid": b, "double_fork": b, "ignore_sigterm": b, "clear_env": b,
               "hold_stdout": b, "seconds": 1000}}       a grandchild; continues when P has its pid
              {…, "hostile": KIND}   the same with hostile.py
    {"ignore_sigterm": true}
    {"ignore_eof": true}        keep running when stdin ends
    {"stop_reading": true}      stop reading stdin after the next message
    {"close_stdout": true}      close stdout and keep running

Flags
    --no-load           does not offer session/load
    --resume            offers session/resume
    --close             offers session/close
    --fork              offers session/fork
    --delete[=PATH]     offers session/delete, which appends the session's id to the file; without
                        PATH it gets no response
    --directories       accepts additional directories
    --mcp               accepts MCP servers over HTTP and SSE
    --plays=PATH        a JSON file that maps prompt texts to steps; such a prompt runs its steps
    --text-only         supports no image, audio or embedded context
    --commands          sends its commands after session/new, session/load and session/resume
    --modes             offers modes (ask, code) and config options (model, thought_level)
    --auto              with --modes: starts in a third mode, auto
    --resets            session/load and session/resume restore the first mode and the first value
                        of each option
    --models            offers the model with session/set_model, and not as an option
    --boolean           with --modes: offers an option that is true or false (verbose), if the
                        client announces them
    --options-only      offers the mode as an option, and not with session/set_mode
    --quiet             session/load and session/resume do not return the settings
    --model-sets-mode   a change of the model restores the first mode
    --refuse-mode=MODE  session/set_mode returns an error for that mode
    --pretend-mode      session/set_mode succeeds without a change of the mode
    --hang-mode         session/set_mode gets no response
    --set-file=PATH     appends a line METHOD=VALUE for each request to set something
    --fail-load[=CODE]  session/load and session/resume return an error (-32603)
    --fail-fork[=CODE]  session/fork returns an error (-32603)
    --fail-new[=CODE]   session/new returns an error (-32603; -32000 is "authentication required")
    --system-echo       the reply to plain text starts with a chunk `system: <JSON>`: the system
                        prompt of session/new (`systemPrompt` or `_meta.systemPrompt`)
    --login             offers a login method
    --login-file=PATH   offers the methods mock-login, mock-slow (which never responds) and
                        mock-terminal, and logout. It is logged in while the file exists; without it
                        session/new and session/load return -32000
    --steering          offers `_session/steering`: the turn says `steered: <text>`, and the text is
                        added to the history. The text {"steer": KIND} is handled in another way:
                        "refuse": an error; "failed": not added; "hang": no response; "exit": the
                        process ends; "late": the turn ends first; "end": the turn ends right after
                        it, in the same write; "after": as "end", with the responses swapped;
                        "starts": as "late", and the agent works on it by itself
    --die-at-start[=CODE]       exits at once (1)
    --silent            reads and never responds
    --slow-start=MS     waits before it reads stdin
    --stderr=TEXT       a line on stderr at the start
    --banner=TEXT       a line on stdout at the start, like an agent that announces an update
    --pid-file=PATH     appends a line with its pid at each start
    --ignore-eof, --ignore-sigterm      as the steps, from the start

Memory: the prompts and the text output (`say`, echo) are in `$MOCK_STATE_DIR/<sessionId>.json`, or
in `.mock-agent` in the session's cwd. They are stored before a prompt runs and again before its
response: session/load (which replays them) and session/resume have the context after any crash.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

from .methods import handle_line
from .turns import STEPS
from .wire import Switches, flags, print_stderr, write

__all__ = ["STEPS", "main"]

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from typing import Any, NoReturn
else:
    Any = object


def parse_flags(arguments: list[str]) -> dict[str, str]:
    """Parse `--name`, `--name=value` and, for a flag that needs a value, `--name value`."""
    known = set(re.findall(r"--([a-z][a-z-]+)", (__doc__ or "").partition("\nFlags\n")[2]))
    found: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.removeprefix("--").partition("=")
        if name not in known:
            sys.exit(f"mock agent: unknown flag {argument}")
        if not equals and name in ("slow-start", "stderr", "banner", "pid-file"):
            value = next(rest, "")
        found[name] = value
    return found


def on_sigterm(number: int, _: Any) -> None:
    if not Switches.ignore_sigterm:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def main() -> NoReturn:
    flags.update(parse_flags(sys.argv[1:]))
    signal.signal(signal.SIGTERM, on_sigterm)
    Switches.ignore_sigterm = "ignore-sigterm" in flags
    Switches.ignore_eof = "ignore-eof" in flags
    if "pid-file" in flags:
        with Path(flags["pid-file"]).open("a") as file:
            file.write(f"{os.getpid()}\n")
    if "stderr" in flags:
        print_stderr(flags["stderr"])
    if "banner" in flags:
        write(flags["banner"].encode() + b"\n")
    if "die-at-start" in flags:
        os._exit(int(flags["die-at-start"] or 1))
    time.sleep(int(flags.get("slow-start", 0)) / 1000)
    for line in sys.stdin.buffer:
        if "silent" not in flags and not line.isspace():
            handle_line(line)
        if Switches.stop_reading:
            break
    if not (Switches.ignore_eof or Switches.stop_reading):
        os._exit(0)
    while True:  # not `signal.pause`, which would miss a signal just before the call
        time.sleep(0.05)
