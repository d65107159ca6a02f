"""evaluate: score a transform by similarity, overlap, landmarks, folds and the error of its inverse.

The definitions are in ``evaluate/metrics.py``.
"""

from __future__ import annotations

import json
from pathlib import Path

from . import options
from .output import say, staged
from .warp import CHAIN, read_chain


def add(commands) -> None:
    parser = commands.add_parser("evaluate", help="score a transform", description=__doc__.splitlines()[0])
    parser.add_argument("--transform", type=Path, nargs="+", required=True, metavar="FILE", help=CHAIN)
    parser.add_argument("--fixed", type=Path, required=True, metavar="FILE", help="the fixed image")
    parser.add_argument("--moving", type=Path, required=True, metavar="FILE", help="the moving image")
    parser.add_argument("--inverse", type=Path, metavar="FILE", help="moving -> fixed (default: the transform is inverted)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON here as well")
    options.add_color(parser)
    options.add_masks(parser)
    options.add_guides(parser)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Print the scores as JSON. Raises InputError for a file that cannot be used."""
    from ..evaluate.metrics import evaluate_pair
    from ..io import read_transform
    from .register import read_pair

    pair = read_pair(arguments)
    transform = read_chain(arguments.transform, pair.dim)
    inverse = transform.inverse() if arguments.inverse is None else read_transform(arguments.inverse, pair.dim)
    scores = evaluate_pair(transform, pair.fixed, pair.moving, pair.fixed_labels, pair.moving_labels, pair.fixed_points, pair.moving_points, inverse)
    text = json.dumps(scores, indent=1, allow_nan=False)
    if arguments.out is not None:
        with staged(arguments.out.resolve().parent) as folder:
            (folder / arguments.out.name).write_text(text + "\n", "utf-8")
    say(text)
