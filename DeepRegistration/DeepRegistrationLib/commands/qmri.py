"""qmri: quantitative slices into a volume.

Each action is a file ``qmri_<action>.py`` with ``add(actions)``.
"""

from __future__ import annotations

from . import options, qmri_bones, qmri_emulate, qmri_register

ACTIONS = (qmri_register, qmri_bones, qmri_emulate)


def add(commands) -> None:
    parser = commands.add_parser("qmri", help="quantitative 2D slices into a 3D volume", description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=options.Parser)
    for module in ACTIONS:
        module.add(actions)
