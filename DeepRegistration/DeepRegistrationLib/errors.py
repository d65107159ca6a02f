"""Errors of the library: each is one sentence that says what was received, what was expected and what to do."""

from __future__ import annotations

import os
import traceback


class RegistrationError(Exception):
    """Base of every error that a user can act on (exit status 2 on the command line, no traceback)."""


class InputError(RegistrationError, ValueError):
    """An input cannot be used: a missing file, a wrong type, an image without content, a parameter out of range."""


class ConvergenceError(RegistrationError):
    """A computation ended without a usable answer, for example an inverse that does not exist."""


class Cancelled(Exception):
    """The user stopped the run; ``best_so_far`` is the last transform that was previewed, or None."""

    def __init__(self, best_so_far=None):
        super().__init__("the run was cancelled")
        self.best_so_far = best_so_far


def sentence(error: Exception) -> tuple[str, int]:
    """What a user reads for an error, and the exit status."""
    if isinstance(error, RegistrationError):
        return str(error), 2
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error).lower()):
        return "the memory ran out; use a preset with a coarser spacing, crop the images, or close other programs", 2
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
        return f"the file system refused{where} ({error.strerror or error}); check the path, the permissions and the free space", 2
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (f"a fault of the program, {type(error).__name__} in {os.path.basename(frame.filename)} line {frame.lineno} ({error}); "
            "please report it with the output of the same command under DEEPREGISTRATION_DEBUG=1"), 1
