#!/usr/bin/env python3
"""A fake ``claude -p`` that follows a script, for behaviour that the real program rarely shows.

The prompt is a JSON list of steps, each an object with one key. Any other prompt is returned as the
result.

    {"result": TEXT, …}     print the result as JSON; further keys are added to it
    {"report": true}        the same with the result {pid, argv, cwd, env, prompt_bytes}
    {"read": PATH}          print the content of the file as the result, or the error
    {"structured": VALUE}   print VALUE as the structured output of a result
    {"print": TEXT} {"stderr": TEXT}
    {"flood": N}            print N MiB
    {"sleep": SECONDS}
    {"gate": PATH}          wait until the file exists
    {"touch": PATH}         create the file, with the program's pid in it
    {"ignore_sigterm": true}
    {"on_sigterm": PATH}    on SIGTERM, create the file like `touch`, and exit
    {"spawn": PATH}         start a process in its own session, with its pid in the file
    {"exit": CODE} {"signal": NAME}
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GRANDCHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"


def write_out(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def say(result: str, **more: Any) -> None:
    message = {"type": "result", "subtype": "success", "is_error": False, "result": result}
    write_out(json.dumps({**message, "stop_reason": "end_turn", "num_turns": 1, **more}))


def write_file(path: str, text: str) -> None:
    """Create the file atomically."""
    whole = Path(f"{path}.new")
    whole.write_text(text, encoding="utf-8")
    whole.rename(path)


def do(name: str, value: Any, more: dict[str, Any], prompt: str) -> None:
    match name:
        case "result":
            say(value, **more)
        case "report":
            report = {
                "pid": os.getpid(),
                "argv": sys.argv[1:],
                "cwd": str(Path.cwd()),
                "env": dict(os.environ),
                "prompt_bytes": len(prompt.encode()),
            }
            say(json.dumps(report))
        case "read":
            try:
                say(Path(value).read_text())
            except OSError as error:
                say(f"error: {error.strerror}")
        case "structured":
            say("as JSON", structured_output=value, **more)
        case "print":
            write_out(value)
        case "stderr":
            sys.stderr.write(f"{value}\n")
        case "flood":
            for _ in range(value):
                sys.stdout.write("x" * (1 << 20))
        case "sleep":
            time.sleep(value)
        case "gate":
            while not Path(value).exists():
                time.sleep(0.005)
        case "touch":
            write_file(value, str(os.getpid()))
        case "ignore_sigterm":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "on_sigterm":

            def clean_up(*_: object) -> None:
                write_file(value, str(os.getpid()))
                sys.exit(0)

            signal.signal(signal.SIGTERM, clean_up)
        case "spawn":
            child = subprocess.Popen([sys.executable, "-c", GRANDCHILD], start_new_session=True)
            write_file(value, str(child.pid))
        case "exit":
            sys.exit(value)
        case "signal":
            os.kill(os.getpid(), signal.Signals[value])


def main() -> None:
    if "--version" in sys.argv:
        write_out("0.0.1 (fake)")
        return
    prompt = sys.stdin.read()
    # The script follows the list of attached files.
    script = prompt[prompt.find("[{") :] if "[{" in prompt else ""
    if not script:
        say(prompt)
        return
    for step in json.loads(script):
        name, value = next(iter(step.items()))
        do(name, value, {k: v for k, v in step.items() if k != name}, prompt)


if __name__ == "__main__":
    main()
