"""The command line: ``python -m DeepRegistrationLib COMMAND``; commands/ has one file per command.

Exit status: 0 done; 1 batch with failed pairs, or a fault of the program; 2 an input that cannot be used, in one sentence;
130 stopped by Ctrl-C or SIGTERM. In every case but 0 nothing half-written is left behind.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback

BEGAN = time.perf_counter()

from .commands import atlas, batch, catalogue, evaluate, motion, options, qmri, register, serve, train, transform, warp  # noqa: E402
from .commands.output import note  # noqa: E402
from .errors import Cancelled, sentence  # noqa: E402
from .runtime import prepare_process  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    began = BEGAN if argv is None else time.perf_counter()
    try:
        with interruptible():
            arguments = build_parser().parse_args(argv)
            arguments.began = began
            arguments.run(arguments)
            sys.stdout.flush()
        return 0
    except (KeyboardInterrupt, Cancelled):
        note("stopped: the run was cancelled, nothing half-written was left")
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # the reader of our output has gone; the interpreter must not complain about it
        return 0
    except batch.Failed as failure:
        note(f"error: {failure}")
        return 1
    except Exception as error:
        if os.environ.get("DEEPREGISTRATION_DEBUG"):
            traceback.print_exc()
        text, status = sentence(error)
        note("error: " + " ".join(text.split()))
        return status


def build_parser() -> options.Parser:
    """All commands and their options."""
    parser = options.Parser(prog=os.environ.get("DEEPREGISTRATION_PROGRAM", "python -m DeepRegistrationLib"), description="Medical image registration.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=options.Parser)
    for module in (catalogue, register, warp, transform, evaluate, batch, train, atlas, motion, qmri, serve):
        module.add(commands)
    return parser


class interruptible:
    """Inside, SIGTERM is like Ctrl-C: a KeyboardInterrupt at once; a second signal cannot disturb the tidying up."""

    def __enter__(self):
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def _stop(self, number, frame):
        for each in self.before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def program() -> None:
    """Run the command line of this process and end it: at once where nothing else runs in it, since taking torch apart takes half a second,
    and after an interruption, since Python would report one that met it inside an import as a death by SIGINT, although it was handled."""
    from multiprocessing import active_children

    prepare_process()
    status = main()
    if status == 130 or threading.active_count() == 1 and not active_children():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    program()
