"""Packages that only some algorithms need, asked for where they are used."""

from __future__ import annotations

from ..errors import InputError


def scikit_learn(purpose: str):
    """scikit-learn with what is used of it. InputError, which begins with ``purpose`` (plural), where it is not installed."""
    try:
        import sklearn.ensemble
        import sklearn.metrics
        import sklearn.mixture
    except ImportError:
        raise InputError(f"{purpose} need the package scikit-learn, which is not installed; install it with 'pip install scikit-learn' and "
                         "try again") from None
    return sklearn


def distributed():
    """Dask's package distributed. InputError where it is not installed."""
    try:
        import distributed
    except ImportError:
        raise InputError("a Dask scheduler needs the package distributed, which is not installed; install it with 'pip install distributed' and "
                         "try again") from None
    return distributed
