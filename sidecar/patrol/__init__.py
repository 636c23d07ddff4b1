"""What is looked at again and again: sources that may move, and files that may vanish.

Nothing is done about either here; what follows from them is planned like everything else.
``rounds`` goes through all targets a share at a time, ``refresh`` looks at the sources that say
how often, ``losses`` guards the files of residents, and ``moves`` knows what a look means.
"""

from sidecar.patrol.losses import LossPatrol
from sidecar.patrol.moves import Moves, Sight
from sidecar.patrol.refresh import RefreshPatrol
from sidecar.patrol.rounds import Patrol

__all__ = ["LossPatrol", "Moves", "Patrol", "RefreshPatrol", "Sight"]
