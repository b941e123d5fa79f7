"""The public testing kit: what a program that embeds the engine needs to test itself, without sockets or waiting.

- `ScriptedDialer`: a dialer whose dials are completed, failed, fed and dropped by the test.
- `check_stream`: the oracle of a viewer's stream; `text_of` is what the viewer would show.
"""

from ._check_stream import Invariant as Invariant
from ._check_stream import InvariantViolation as InvariantViolation
from ._check_stream import StreamChecker as StreamChecker
from ._check_stream import check_stream as check_stream
from ._display import Display as Display
from ._display import Reconnected as Reconnected
from ._display import one_line as one_line
from ._display import text_of as text_of
from ._one_replica import Reply as Reply
from ._one_replica import ask as ask
from ._one_replica import open_test_engine as open_test_engine
from ._scripted_dialer import ScriptedDial as ScriptedDial
from ._scripted_dialer import ScriptedDialer as ScriptedDialer
from ._scripted_dialer import ScriptedLeg as ScriptedLeg
from ._scripted_dialer import Selection as Selection
from ._scripted_dialer import text_burst as text_burst
