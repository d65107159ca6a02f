"""Errors of the library: each is one sentence that says what was received, what was expected and what to do."""


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
