"""The command `qinjing`: words in, one library call, exit code out.

Exit codes: 0, everything asked for was done; 2, input that cannot be used, said in one sentence, or
a batch of which a part was refused; 1, a failure of ours, with the traceback in a log file; 130,
stopped by Ctrl-C. With `--json` standard output holds exactly one JSON object; all else goes to
standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qinjing.cli.arguments import Command, check_places, parse
from qinjing.cli.commands import COMMANDS
from qinjing.config import plain
from qinjing.errors import ConfigError, InputError

__all__ = ["main"]

# What the system refuses because of the place that the user named, not because of us.
USERS_ERRORS = (
    "EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EISDIR", "ENOTDIR", "EEXIST",
    "ENAMETOOLONG",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    command: Command | None = None
    try:
        command = parse(words, COMMANDS)
        result = _run(command, as_json)
        code = 2 if command.refusals(result) else 0
        if _is_first():
            object_ = json.dumps(plain(result), ensure_ascii=False) if as_json else ""
            _say(object_ or command.text(result))
        for sentence in command.refusals(result):
            _complain(sentence)
        return code
    except SystemExit:
        _flush()  # help or the version was printed
        raise
    except InputError as error:
        return _refuse(str(error), as_json, error.exit_code)
    except KeyboardInterrupt:
        after = f"; {command.after_stop()}" if command else ""
        return _refuse(f"stopped{after}", as_json, 130)
    except Exception as error:
        if os.environ.get("QINJING_DEBUG") == "1":
            raise
        if isinstance(error, OSError) and error.filename and _is_users(error):
            rule = "a place that can be read and written"
            refusal = ConfigError("file", rule, error.strerror, where=error.filename)
            return _refuse(str(refusal), as_json, 2)
        return _refuse(_failure(error, command, words), as_json, 1)


def _run(command: Command, as_json: bool) -> dict[str, Any]:
    check_places(command)
    if hasattr(command, "output"):
        # A record that cannot be signed must be known now, not after the work.
        from qinjing.evidence import load_private_key

        load_private_key()
    # Whatever a library prints must not stand between a machine and its one object.
    where = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with where:
        return command.run()


def _refuse(sentence: str, as_json: bool, code: int) -> int:
    if as_json:
        _say(json.dumps({"error": sentence}, ensure_ascii=False))
    _complain(sentence)
    return code


def _say(text: str) -> None:
    """Print to standard output."""
    if _is_first():
        with contextlib.suppress(BrokenPipeError):
            print(text)
        _flush()


def _flush() -> None:
    """Empty standard output; a reader that went away is no failure."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends; there it must find somebody to write to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_first() -> bool:
    """Whether this process speaks: of those that `torchrun` started, the first."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"


def _complain(sentence: str) -> None:
    if not _is_first():
        return
    with contextlib.suppress(BrokenPipeError):
        print(f"qinjing: {sentence}", file=sys.stderr, flush=True)


def _is_users(error: OSError) -> bool:
    import errno

    return errno.errorcode.get(error.errno or 0) in USERS_ERRORS


def _failure(error: Exception, command: Command | None, words: list[str]) -> str:
    """Write the traceback to a log file; return the sentence that names it."""
    name = f"qinjing-failure-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    patient = getattr(command, "patient", None)  # who it is, no log tells
    words = ["PATIENT" if word == patient else word for word in words]
    text = f"qinjing {' '.join(words)}\nPython {sys.version}\n\n{traceback.format_exc()}"
    output = getattr(command, "output", None)
    made = [output] if isinstance(output, Path) and output.is_dir() else []
    for folder in (*made, Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            log = folder / name
            log.write_text(text, encoding="utf-8")
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            return f"failed, and it is our fault ({what}); the details are in {log}"
    return f"failed, and it is our fault ({type(error).__name__}); no log could be written"
