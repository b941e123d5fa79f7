"""relaytrio: one stream per viewer, for chat backends that run on several replicas.

Where things are (imports go downwards only):

    _errors.py           every public exception, the tree drawn at the top
    _protocol/           the rules, pure: events, chat transitions, what may be asked, resume, bursts, wires
    _settings.py         every default, named, with its reason
    _parts.py            part logs of this replica
    _bounded.py          a read of the store that hangs counts as failed
    _hints.py            who watches which chat; hints and the poll
    _dialer.py           what a relay asks of a dialer
    _relay.py            which worker to follow: the dial as a child scope, retry, hand-over
    _subscription.py     one viewer: watch, merge and relay in one nursery
    _watch.py, _merge.py what it knows of the store, and what the viewer gets next
    _turn.py, _record.py what a responder holds, and what it shares with its run
    _ownership.py, _run.py  one ownership of a chat: its dealings with the store, its supervisor
    _worker.py           acquire, run the responder, interrupt, recover, hand over at shutdown
    _presence.py         register, heartbeat, who is dead
    _engine.py           open_engine: one replica, wired
    stores/, pubsub/     databases and notifiers behind their protocols
    transport/           dialer and parts endpoint, ASGI app, viewer listener, grants between replicas
    client.py            ChatClient
    responders/          ready responders
    testing/             the public testing kit
    cli/                 the command `relaytrio`
"""

from __future__ import annotations

from ._dialer import Dialer as Dialer
from ._dialer import DialRequest as DialRequest
from ._dialer import Leg as Leg
from ._dialer import LegEnd as LegEnd
from ._engine import Engine as Engine
from ._engine import Stats as Stats
from ._engine import open_engine as open_engine
from ._errors import AnswerTooLarge as AnswerTooLarge
from ._errors import BadReplicaAddress as BadReplicaAddress
from ._errors import ChatBusy as ChatBusy
from ._errors import ChatDeleted as ChatDeleted
from ._errors import ChatNotFound as ChatNotFound
from ._errors import ChatTaken as ChatTaken
from ._errors import ConfigurationError as ConfigurationError
from ._errors import ContentTooLarge as ContentTooLarge
from ._errors import DialError as DialError
from ._errors import DialRefused as DialRefused
from ._errors import DialTimeout as DialTimeout
from ._errors import EngineFailed as EngineFailed
from ._errors import IdempotencyConflict as IdempotencyConflict
from ._errors import Interrupted as Interrupted
from ._errors import InvalidContent as InvalidContent
from ._errors import InvalidCursor as InvalidCursor
from ._errors import InvalidPart as InvalidPart
from ._errors import InvalidTransition as InvalidTransition
from ._errors import LegLost as LegLost
from ._errors import MessageNotFound as MessageNotFound
from ._errors import NotAllowed as NotAllowed
from ._errors import NotEditable as NotEditable
from ._errors import PubSubUnavailable as PubSubUnavailable
from ._errors import QueuedMessageNotFound as QueuedMessageNotFound
from ._errors import QueueFull as QueueFull
from ._errors import RelaytrioError as RelaytrioError
from ._errors import ReplicaDraining as ReplicaDraining
from ._errors import ReplicaNotFound as ReplicaNotFound
from ._errors import RequestError as RequestError
from ._errors import RequestFailed as RequestFailed
from ._errors import RetryableError as RetryableError
from ._errors import RunError as RunError
from ._errors import StoreError as StoreError
from ._errors import StoreUnavailable as StoreUnavailable
from ._errors import StoreUnusable as StoreUnusable
from ._errors import SubscriptionFailed as SubscriptionFailed
from ._errors import TurnError as TurnError
from ._errors import TurnOver as TurnOver
from ._errors import WireError as WireError
from ._frames import Frame as Frame
from ._protocol.burst import Burst as Burst
from ._protocol.chat import Answer as Answer
from ._protocol.chat import Chat as Chat
from ._protocol.chat import NewMessage as NewMessage
from ._protocol.content import user_message as user_message
from ._protocol.events import CaughtUp as CaughtUp
from ._protocol.events import ChatError as ChatError
from ._protocol.events import Cursor as Cursor
from ._protocol.events import Degraded as Degraded
from ._protocol.events import Episode as Episode
from ._protocol.events import ErrorEvent as ErrorEvent
from ._protocol.events import Event as Event
from ._protocol.events import HistoryReset as HistoryReset
from ._protocol.events import Message as Message
from ._protocol.events import MessageEvent as MessageEvent
from ._protocol.events import MessagePart as MessagePart
from ._protocol.events import MessageRef as MessageRef
from ._protocol.events import PreviewReset as PreviewReset
from ._protocol.events import QueueEntry as QueueEntry
from ._protocol.events import QueueUpdate as QueueUpdate
from ._protocol.events import Retry as Retry
from ._protocol.events import RetryState as RetryState
from ._protocol.events import Status as Status
from ._relay import MultiReplicaRelay as MultiReplicaRelay
from ._relay import Relay as Relay
from ._relay import RelayConfig as RelayConfig
from ._relay import RelayParams as RelayParams
from ._relay import StatusNotification as StatusNotification
from ._settings import Settings as Settings
from ._subscription import Subscription as Subscription
from ._turn import Responder as Responder
from ._turn import Turn as Turn
from .client import ChatClient as ChatClient
from .pubsub._base import Hint as Hint
from .pubsub._base import PubSub as PubSub
from .stores._base import Fingerprint as Fingerprint
from .stores._base import IdempotencyKey as IdempotencyKey
from .stores._base import Outcome as Outcome
from .stores._base import Replica as Replica
from .stores._base import Store as Store
from .stores._base import View as View
from .transport.viewers import serve_viewers as serve_viewers


def _fix_modules() -> None:
    """Make a traceback say `relaytrio.X`, where X can be imported from, not where it happens to stand.

    Exceptions only: the values are read from databases by their annotations, which are looked up in their own module.
    """
    for value in tuple(globals().values()):
        if isinstance(value, type) and issubclass(value, BaseException):
            value.__module__ = "relaytrio"


_fix_modules()
