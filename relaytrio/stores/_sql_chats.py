"""An SQL store's transactions on chats: each function is a whole one, on a session that nobody else uses.

They take the chat's row for themselves before they read what they decide on, so that two of them on one chat are one
after the other. Where another transaction can still be first (a new chat, a create's key), they raise `Again`.

Must not know: threads, cancellation, which database it is. Who calls: `SqlStore`, in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import attrs

from .._errors import ChatNotFound, IdempotencyConflict, InvalidTransition
from .._protocol.chat import Answer, Chat, ChatState, Command, Create, EditMessage, Transition, create, decide
from .._protocol.events import Message, MessageRef, QueueEntry
from .._settings import Settings
from ._base import Fingerprint, IdempotencyKey, Outcome, View
from ._fresh import Fresher, hours
from ._page import Known, start_of_page, take_page
from ._sql_rows import columns, from_row, names, places, to_answer, to_json, to_row
from ._sql_session import Again, Session

PURGED_AT_ONCE = 100
"""Keys past their time that one transaction with a key removes: more than it brings, and never many."""

_READ_CHAT = f"SELECT {columns(Chat)} FROM chats WHERE id = :chat_id"
_LOCK_CHAT = f"{_READ_CHAT} {{lock}}"
_READ_QUEUE = f"SELECT {columns(QueueEntry)} FROM queue WHERE chat_id = :chat_id ORDER BY position"
_READ_MESSAGE = f"SELECT {columns(Message)} FROM messages WHERE chat_id = :chat_id AND id = :message_id"
_KNOWN = "SELECT stamp, deleted FROM messages WHERE chat_id = :chat_id AND id = :message_id"
_LAST_LIVE_BELOW = """
    SELECT id, stamp FROM messages WHERE chat_id = :chat_id AND id < :message_id AND {live} ORDER BY id DESC LIMIT 1
"""
_NEWEST = f"SELECT {columns(Chat)} FROM chats ORDER BY seq DESC LIMIT :limit"
_NEWEST_BEFORE = f"""
    SELECT {columns(Chat)} FROM chats
    WHERE seq < (SELECT seq FROM chats WHERE id = :chat_id) ORDER BY seq DESC LIMIT :limit
"""
_INSERT_CHAT = f"""
    INSERT INTO chats (changed, {columns(Chat)}) VALUES ({{next_change}}, {places(Chat)}) ON CONFLICT (id) DO NOTHING
"""
_CHANGING = tuple(name for name in names(Chat) if name != "id")
"""The id stays out: a database would look for messages and queue entries of the former one, each time."""
_UPDATE_CHAT = (
    f"UPDATE chats SET changed = {{next_change}}, {', '.join(f'{name} = :{name}' for name in _CHANGING)} WHERE id = :id"
)
_INSERT_MESSAGE = f"INSERT INTO messages (chat_id, {columns(Message)}) VALUES (:chat_id, {places(Message)})"
_DELETE_FROM = "UPDATE messages SET deleted = TRUE WHERE chat_id = :chat_id AND id >= :message_id AND {live}"
_INSERT_ENTRY = (
    f"INSERT INTO queue (chat_id, position, {columns(QueueEntry)}) VALUES (:chat_id, :position, {places(QueueEntry)})"
)
_EMPTY_QUEUE = "DELETE FROM queue WHERE chat_id = :chat_id"
_FINGERPRINTS = """
    SELECT id, snapshot_version, run_id, (
        SELECT stamp FROM messages WHERE chat_id = chats.id AND {live} ORDER BY messages.id DESC LIMIT 1
    ) FROM chats WHERE id {among_ids}
"""
_PURGE_KEYS = f"""
    DELETE FROM idempotency WHERE (for_create, scope, key) IN (
        SELECT for_create, scope, key FROM idempotency WHERE until_seconds <= :now_seconds
        ORDER BY until_seconds LIMIT {PURGED_AT_ONCE} {{skip_locked}}
    )
"""
_KEPT_ANSWER = """
    SELECT request_hash, chat_id, answer FROM idempotency
    WHERE for_create = :for_create AND scope = :scope AND key = :key AND until_seconds > :now_seconds
"""
_KEEP_ANSWER = """
    INSERT INTO idempotency (for_create, scope, key, request_hash, chat_id, answer, until_seconds)
    VALUES (:for_create, :scope, :key, :request_hash, :chat_id, :answer, :until_seconds)
    ON CONFLICT (for_create, scope, key) DO UPDATE SET
        request_hash = excluded.request_hash, chat_id = excluded.chat_id,
        answer = excluded.answer, until_seconds = excluded.until_seconds
    WHERE idempotency.until_seconds <= :now_seconds
"""


@attrs.frozen
class Context:
    """What the transactions need beside their arguments."""

    settings: Settings
    fresher: Fresher


# ------------------------------------------------------------------------------------------ transitions


def create_chat(
    session: Session, context: Context, chat_id: str, command: Create, key: IdempotencyKey | None
) -> Outcome:
    with session.transaction("write"):
        kept = _kept_answer(session, context, True, key)
        if kept is not None:
            first_chat_id, answer = kept
            return Outcome(answer=answer, chat=_chat(session, first_chat_id), changed=False)
        transition = create(chat_id, command, context.fresher.fresh(command))
        session.count_change()
        if session.execute(_INSERT_CHAT, to_row(transition.chat)).rowcount == 0:
            raise InvalidTransition(f"there is a chat {chat_id} already")
        _write_messages(session, transition)
        _keep_answer(session, context, True, key, transition)
        return Outcome(answer=transition.answer, chat=transition.chat, changed=True)


def apply(session: Session, context: Context, chat_id: str, command: Command, key: IdempotencyKey | None) -> Outcome:
    with session.transaction("write"):
        chat = _chat(session, chat_id, _LOCK_CHAT)
        kept = _kept_answer(session, context, False, key)
        if kept is not None:
            return Outcome(answer=kept[1], chat=chat, changed=False)
        transition = decide(
            ChatState(chat, _queue(session, chat_id)),
            command,
            context.fresher.fresh(command),
            target=_message(session, chat_id, command.message_id) if isinstance(command, EditMessage) else None,
            queue_limit=context.settings.queue_entries,
        )
        if transition.changed:
            _write(session, transition)
        _keep_answer(session, context, False, key, transition)
        return Outcome(answer=transition.answer, chat=transition.chat, changed=transition.changed)


def delete_chat(session: Session, context: Context, chat_id: str) -> None:
    """Its messages and its queue go with it; a create's key stays, so that a late repeat does not make it again."""
    with session.transaction("write"):
        chat = _chat(session, chat_id, _LOCK_CHAT)
        session.execute("DELETE FROM chats WHERE id = :chat_id", {"chat_id": chat_id})
        session.execute(
            "DELETE FROM idempotency WHERE for_create = :for_create AND scope = :chat_id",
            {"for_create": False, "chat_id": chat_id},
        )
        # The version is newer than all that was ever heard of the chat.
        session.keep_deletion(chat_id, chat.snapshot_version + 1, context.fresher.now_seconds())


def _write(session: Session, transition: Transition) -> None:
    chat = transition.chat
    session.count_change()
    session.execute(_UPDATE_CHAT, to_row(chat))
    if chat.queue_version == chat.snapshot_version:
        session.execute(_EMPTY_QUEUE, {"chat_id": chat.id})
        for position, entry in enumerate(transition.queue):
            session.execute(_INSERT_ENTRY, to_row(entry, chat_id=chat.id, position=position))
    if transition.deleted_from is not None:
        session.execute(_DELETE_FROM, {"chat_id": chat.id, "message_id": transition.deleted_from})
    _write_messages(session, transition)


def _write_messages(session: Session, transition: Transition) -> None:
    for message in transition.inserted:
        session.execute(_INSERT_MESSAGE, to_row(message, chat_id=transition.chat.id))


def _kept_answer(
    session: Session, context: Context, for_create: bool, key: IdempotencyKey | None
) -> tuple[str, Answer] | None:
    """The chat and the answer that this key got before. Keys past their time go first."""
    if key is None:
        return None
    now_seconds = context.fresher.now_seconds()
    session.execute(_PURGE_KEYS, {"now_seconds": now_seconds})
    row = session.execute(
        _KEPT_ANSWER, {"for_create": for_create, "scope": key.scope, "key": key.key, "now_seconds": now_seconds}
    ).fetchone()
    if row is None:
        return None
    request_hash, chat_id, answer = row
    if request_hash != key.request_hash:
        raise IdempotencyConflict("this idempotency key was used before, with another content")
    return chat_id, to_answer(answer)


def _keep_answer(
    session: Session, context: Context, for_create: bool, key: IdempotencyKey | None, transition: Transition
) -> None:
    """Raises `Again` if the key was used meanwhile: then that answer is to be given."""
    if key is None:
        return
    now_seconds = context.fresher.now_seconds()
    row = attrs.asdict(key) | {
        "for_create": for_create,
        "chat_id": transition.chat.id,
        "answer": to_json(transition.answer),
        "now_seconds": now_seconds,
        "until_seconds": now_seconds + hours(context.settings.idempotency_hours),
    }
    if session.execute(_KEEP_ANSWER, row).rowcount == 0:
        raise Again


# ------------------------------------------------------------------------------------------------ reads


def read_view(session: Session, context: Context, chat_id: str, base: MessageRef) -> View:
    with session.transaction("read"):
        start = start_of_page(
            base, _known(session, chat_id, base.id), lambda below: _last_live_below(session, chat_id, below)
        )
        chat = _chat(session, chat_id)
        messages, more = _page(session, context, chat_id, start.anchor.id, context.settings.page_messages)
        return View(
            chat=chat,
            queue=_queue(session, chat_id),
            base=base,
            base_live=start.base_live,
            anchor=start.anchor,
            messages=messages,
            more=more,
        )


def ping(session: Session) -> None:
    with session.transaction("one"):
        session.execute("SELECT 1 FROM chats WHERE id = ''").fetchall()


def read_chat(session: Session, chat_id: str) -> Chat:
    with session.transaction("one"):
        return _chat(session, chat_id)


def read_queue(session: Session, chat_id: str) -> tuple[QueueEntry, ...]:
    with session.transaction("read"):
        _chat(session, chat_id)
        return _queue(session, chat_id)


def list_chats(session: Session, before: str | None, limit: int) -> list[Chat]:
    with session.transaction("read"):
        if before is not None:
            _chat(session, before)
        statement = _NEWEST if before is None else _NEWEST_BEFORE
        return [from_row(Chat, row) for row in session.execute(statement, {"chat_id": before, "limit": limit})]


def list_messages(session: Session, context: Context, chat_id: str, after_id: int, limit: int) -> tuple[Message, ...]:
    with session.transaction("read"):
        _chat(session, chat_id)
        return _page(session, context, chat_id, after_id, limit)[0]


def fingerprints(session: Session, chat_ids: list[str]) -> Mapping[str, Fingerprint]:
    with session.transaction("one"):
        found = session.execute(_FINGERPRINTS, {"ids": session.listed(chat_ids)})
        return {chat_id: Fingerprint(version, stamp or "", run_id) for chat_id, version, run_id, stamp in found}


def _chat(session: Session, chat_id: str, statement: str = _READ_CHAT) -> Chat:
    row = session.execute(statement, {"chat_id": chat_id}).fetchone()
    if row is None:
        raise ChatNotFound(f"there is no chat {chat_id}")
    return from_row(Chat, row)


def _queue(session: Session, chat_id: str) -> tuple[QueueEntry, ...]:
    return tuple(from_row(QueueEntry, row) for row in session.execute(_READ_QUEUE, {"chat_id": chat_id}))


def _message(session: Session, chat_id: str, message_id: int) -> Message | None:
    row = session.execute(_READ_MESSAGE, {"chat_id": chat_id, "message_id": message_id}).fetchone()
    return None if row is None else from_row(Message, row)


def _known(session: Session, chat_id: str, message_id: int) -> Known | None:
    row = session.execute(_KNOWN, {"chat_id": chat_id, "message_id": message_id}).fetchone()
    return None if row is None else Known(row[0], bool(row[1]))


def _last_live_below(session: Session, chat_id: str, message_id: int) -> MessageRef | None:
    row = session.execute(_LAST_LIVE_BELOW, {"chat_id": chat_id, "message_id": message_id}).fetchone()
    return None if row is None else MessageRef(*row)


def _page(
    session: Session, context: Context, chat_id: str, after_id: int, most_messages: int
) -> tuple[tuple[Message, ...], bool]:
    most_bytes = context.settings.page_bytes
    parameters = {
        "chat_id": chat_id,
        "after_id": after_id,
        "most_messages": most_messages,
        "most_bytes": most_bytes,
    }
    with closing(session.execute(session.page, parameters)) as found:
        live = ((from_row(Message, row), size) for size, *row in found)
        return take_page(live, most_messages=most_messages, most_bytes=most_bytes)
