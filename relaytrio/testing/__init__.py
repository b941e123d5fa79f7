"""The public testing kit: what a program that embeds the engine needs to test itself, without sockets or waiting.

- `ScriptedDialer`: a dialer whose dials are completed, failed, fed and dropped by the test.
- `check_stream`: the oracle of a viewer's stream; `text_of` is what the viewer would show.
- `open_simulated_cluster`: whole replicas on virtual time, in a world that fails as it is told; the same seed gives the
  same run. `check_cluster`: the oracle of such a run.
- `watch_seams`: stop the engine between two named steps (`Seam`), and act there.
- `ClusterMachine`: a cluster under random commands and faults, as a state machine for Hypothesis, to be extended.
- `run_history`: what people and faults do to a cluster, as a value, with the order of tasks as another (`Schedule`).
  `random_history` draws them by seed, `strategies` with Hypothesis; `shrink` makes them small.
"""

from typing import TYPE_CHECKING, Any

from ._check_cluster import ClusterInvariant as ClusterInvariant
from ._check_cluster import ClusterReport as ClusterReport
from ._check_cluster import ClusterViolation as ClusterViolation
from ._check_cluster import check_cluster as check_cluster
from ._check_stream import Invariant as Invariant
from ._check_stream import InvariantViolation as InvariantViolation
from ._check_stream import StreamChecker as StreamChecker
from ._check_stream import check_stream as check_stream
from ._display import Display as Display
from ._display import Reconnected as Reconnected
from ._display import one_line as one_line
from ._display import text_of as text_of
from ._explore import random_history as random_history
from ._explore import shrink as shrink
from ._history import EXPLORING as EXPLORING
from ._history import Break as Break
from ._history import Edit as Edit
from ._history import History as History
from ._history import HistoryReport as HistoryReport
from ._history import Mend as Mend
from ._history import Operation as Operation
from ._history import Outage as Outage
from ._history import Promote as Promote
from ._history import Send as Send
from ._history import SetBack as SetBack
from ._history import Silence as Silence
from ._history import Slow as Slow
from ._history import Step as Step
from ._history import Stop as Stop
from ._history import Unplug as Unplug
from ._history import Unqueue as Unqueue
from ._history import Watch as Watch
from ._history import run_history as run_history
from ._one_replica import Reply as Reply
from ._one_replica import ask as ask
from ._one_replica import open_test_engine as open_test_engine
from ._schedules import Schedule as Schedule
from ._schedules import Scheduler as Scheduler
from ._schedules import UnsupportedTrio as UnsupportedTrio
from ._schedules import scheduled as scheduled
from ._scripted_answers import AnswerPlan as AnswerPlan
from ._scripted_answers import ScriptedAnswers as ScriptedAnswers
from ._scripted_dialer import ScriptedDial as ScriptedDial
from ._scripted_dialer import ScriptedDialer as ScriptedDialer
from ._scripted_dialer import ScriptedLeg as ScriptedLeg
from ._scripted_dialer import Selection as Selection
from ._scripted_dialer import text_burst as text_burst
from ._scripted_viewer import ScriptedViewer as ScriptedViewer
from ._seams import Passing as Passing
from ._seams import Seam as Seam
from ._seams import Seams as Seams
from ._seams import SeamStop as SeamStop
from ._seams import watch_seams as watch_seams
from ._simulated_cluster import SimulatedCluster as SimulatedCluster
from ._simulated_cluster import open_simulated_cluster as open_simulated_cluster
from ._simulated_network import Network as Network
from ._simulated_pubsub import HintFaults as HintFaults
from ._simulated_replica import SimulatedReplica as SimulatedReplica
from ._simulated_store import Backup as Backup
from ._simulated_store import Commit as Commit
from ._simulated_store import Ledger as Ledger
from ._simulated_store import SimulatedStore as SimulatedStore

if TYPE_CHECKING:
    from ._cluster_machine import ClusterMachine as ClusterMachine


def __getattr__(name: str) -> Any:
    """What needs Hypothesis comes with its first use."""
    if name == "ClusterMachine":
        from ._cluster_machine import ClusterMachine

        return ClusterMachine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
