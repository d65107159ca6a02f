"""atlas: build an atlas of a cohort, and use it for other subjects.

Each action is a file ``atlas_<action>.py`` with ``add(actions)``.
"""

from __future__ import annotations

from . import atlas_apply, atlas_build, atlas_identify, atlas_structure, options

ACTIONS = (atlas_build, atlas_apply, atlas_structure, atlas_identify)


def add(commands) -> None:
    parser = commands.add_parser("atlas", help="build an atlas of a cohort and use it", description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=options.Parser)
    for module in ACTIONS:
        module.add(actions)
