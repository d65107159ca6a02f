"""Options that several commands share, and a parser whose complaints are one sentence."""

from __future__ import annotations

import argparse
import difflib
import re
from pathlib import Path

from ..errors import InputError
from ..runtime import Console, JsonLines, Monitor, Silent


NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$|-inf(inity)?$", re.IGNORECASE)
"""Negative numbers as people write them, none of which is an option; argparse itself knows no -1e3."""


class Parser(argparse.ArgumentParser):
    """argparse, except that a mistake is an InputError (one sentence, exit status 2) instead of a page of usage, and no option may be shortened."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, allow_abbrev=False, **options)
        self._negative_number_matcher = NEGATIVE
        self.register("type", int, whole)
        self.register("type", float, number)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's; a command complains itself about an option that it does not know, so that its own help is named."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            near = difflib.get_close_matches(rest[0], self._option_string_actions, n=1)
            self.error(f"unknown argument '{rest[0]}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
        return found, rest

    def error(self, message: str):
        raise InputError(f"{message}; '{self.prog} --help' explains the options")


def add_guides(parser: Parser) -> None:
    """Labels and points of both images."""
    for side in ("fixed", "moving"):
        parser.add_argument(f"--{side}-labels", type=Path, metavar="FILE", help=f"label map of the {side} image")
        parser.add_argument(f"--{side}-points", type=Path, metavar="FILE", help=f"points of the {side} image (.mrk.json, .fcsv, .csv)")


def add_masks(parser: Parser) -> None:
    """Masks of both images."""
    for side in ("fixed", "moving"):
        parser.add_argument(f"--{side}-mask", type=Path, metavar="FILE", help=f"only voxels above 0 of this image count in the {side} image")


def add_fill(parser: Parser) -> None:
    """What stands where the moving image says nothing."""
    parser.add_argument("--fill", type=float, metavar="VALUE", help="value outside of the field of view of the image that is warped, as -1000 for "
                        "CT, or nan (default: 0, or a low value of its border where that lies below 0, as the air around a CT)")


def add_color(parser: Parser) -> None:
    """What becomes of color pictures."""
    parser.add_argument("--color", choices=("refuse", "gray"), default="refuse",
                        help="gray takes the luminance of color pictures, as of histology; 'warp' carries the colors (default: %(default)s)")


def add_method(parser: Parser) -> None:
    """The method, its parameters and where it runs."""
    parser.add_argument("--method", default="instance-optimisation", metavar="ID[:PRESET]", help="see 'list' and 'show' (default: %(default)s)")
    parser.add_argument("--init", metavar="START",
                        help="header, center, moments, global, csngf, affine or a transform file (default: the method's own start); "
                             "the method begins exactly there")
    add_settings(parser)
    add_place(parser)
    parser.add_argument("--write", type=output_list, default=OUTPUTS, metavar="LIST",
                        help="what to write, comma separated; scores are similarity, folds and SDlogJ in result.json, which is always written "
                             f"(default: {','.join(OUTPUTS)})")


def add_settings(parser: Parser, what: str = "a parameter of the method") -> None:
    """Parameters by name, which ``settings`` reads."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=f"{what}; may be repeated")


def add_place(parser: Parser, threads: str = "CPU threads (default: all)") -> None:
    """Where a run computes, and the seed of it."""
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or mps (default: %(default)s)")
    add_seed(parser)
    parser.add_argument("--threads", type=count, default=0, metavar="N", help=threads)


def add_seed(parser: Parser) -> None:
    """The seed."""
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of every random choice (default: %(default)s)")


def add_results(parser: Parser) -> None:
    """The folder that ``output.staged`` fills."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results; those of an earlier run are replaced")


def add_voice(parser: Parser) -> None:
    """How a run tells of itself, see ``monitor``."""
    voice = parser.add_mutually_exclusive_group()
    voice.add_argument("--quiet", action="store_true", help="no progress and no summary")
    voice.add_argument("--json-progress", action="store_true", help="progress as one JSON object a line on stdout, no summary")


def monitor(arguments) -> Monitor:
    """The progress that ``add_voice`` was asked for: none, lines for a program, or a bar."""
    return Silent() if arguments.quiet else JsonLines() if arguments.json_progress else Console()


OUTPUTS = ("transform", "inverse", "affine", "warped", "jacobian", "scores")


def output_list(text: str) -> tuple[str, ...]:
    """'transform,warped' -> ('transform', 'warped'); ArgumentTypeError for a word that is no output."""
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    for word in words:
        if word not in OUTPUTS:
            raise argparse.ArgumentTypeError(f"'{word}' is no output; choose from {','.join(OUTPUTS)}")
    return tuple(word for word in OUTPUTS if word in words)


def settings(pairs: list[str]) -> dict[str, str]:
    """['a=1', 'b=2'] -> {'a': '1', 'b': '2'}; InputError where there is no '='."""
    out = {}
    for pair in pairs:
        key, equal, value = pair.partition("=")
        if not equal or not key.strip():
            raise InputError(f"--set was given '{pair}'; expected KEY=VALUE, where KEY is a parameter that 'show' names")
        out[key.strip()] = value.strip()
    return out


def whole(text: str) -> int:
    """A whole number; ArgumentTypeError otherwise."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' was given; expected a whole number") from None


def number(text: str) -> float:
    """A number; ArgumentTypeError otherwise."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' was given; expected a number") from None


def count(text: str) -> int:
    """A whole number of at least 1; ArgumentTypeError otherwise."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' was given; expected a whole number of at least 1")
    return int(text)
