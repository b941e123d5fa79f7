"""The SQLite store's transactions on chats: each function is a whole one, on a connection that nobody else uses.

Must not know: threads, cancellation, files. Who calls: `SqliteStore`, in its thread.
"""

from __future__ import annotations

import sqlite3
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
from ._sqlite_file import transaction
from ._sqlite_rows import columns, from_row, names, places, to_answer, to_json, to_row
from ._sqlite_schema import LAST_CHANGE

DELETIONS_KEPT_HOURS = 24.0
"""No notifier that is alive is so far behind."""

_READ_CHAT = f"SELECT {columns(Chat)} FROM chats WHERE id = ?"
_READ_QUEUE = f"SELECT {columns(QueueEntry)} FROM queue WHERE chat_id = ? ORDER BY position"
_READ_MESSAGE = f"SELECT {columns(Message)} FROM messages WHERE chat_id = ? AND id = ?"
_READ_LIVE = f"""
    SELECT length(CAST(content AS BLOB)), {columns(Message)} FROM messages
    WHERE chat_id = ? AND id > ? AND deleted = 0 ORDER BY id
"""
_INSERT_CHAT = f"INSERT INTO chats (changed, {columns(Chat)}) VALUES (:changed, {places(Chat)})"
_CHANGING = ("changed", *(name for name in names(Chat) if name != "id"))
"""The id stays out: SQLite would look for messages and queue entries of the former one, each time."""
_UPDATE_CHAT = f"UPDATE chats SET {', '.join(f'{name} = :{name}' for name in _CHANGING)} WHERE id = :id"
_INSERT_MESSAGE = f"INSERT INTO messages (chat_id, {columns(Message)}) VALUES (:chat_id, {places(Message)})"
_INSERT_ENTRY = (
    f"INSERT INTO queue (chat_id, position, {columns(QueueEntry)}) VALUES (:chat_id, :position, {places(QueueEntry)})"
)
_FINGERPRINTS = """
    SELECT id, snapshot_version, run_id, (
        SELECT stamp FROM messages WHERE chat_id = chats.id AND deleted = 0 ORDER BY messages.id DESC LIMIT 1
    ) FROM chats WHERE id IN (SELECT value FROM json_each(?))
"""


@attrs.frozen
class Context:
    """What the transactions need beside their arguments."""

    settings: Settings
    fresher: Fresher


# ------------------------------------------------------------------------------------------ transitions


def create_chat(
    connection: sqlite3.Connection, context: Context, chat_id: str, command: Create, key: IdempotencyKey | None
) -> Outcome:
    with transaction(connection, "IMMEDIATE"):
        kept = _kept_answer(connection, context, True, key)
        if kept is not None:
            first_chat_id, answer = kept
            return Outcome(answer=answer, chat=_chat(connection, first_chat_id), changed=False)
        if connection.execute(_READ_CHAT, (chat_id,)).fetchone() is not None:
            raise InvalidTransition(f"there is a chat {chat_id} already")
        transition = create(chat_id, command, context.fresher.fresh(command))
        row = to_row(transition.chat, changed=_next_change(connection))
        connection.execute(_INSERT_CHAT, row)
        _write_messages(connection, transition)
        _keep_answer(connection, context, True, key, transition)
        return Outcome(answer=transition.answer, chat=transition.chat, changed=True)


def apply(
    connection: sqlite3.Connection, context: Context, chat_id: str, command: Command, key: IdempotencyKey | None
) -> Outcome:
    with transaction(connection, "IMMEDIATE"):
        chat = _chat(connection, chat_id)
        kept = _kept_answer(connection, context, False, key)
        if kept is not None:
            return Outcome(answer=kept[1], chat=chat, changed=False)
        transition = decide(
            ChatState(chat, _queue(connection, chat_id)),
            command,
            context.fresher.fresh(command),
            target=_message(connection, chat_id, command.message_id) if isinstance(command, EditMessage) else None,
            queue_limit=context.settings.queue_entries,
        )
        if transition.changed:
            _write(connection, transition)
        _keep_answer(connection, context, False, key, transition)
        return Outcome(answer=transition.answer, chat=transition.chat, changed=transition.changed)


def delete_chat(connection: sqlite3.Connection, context: Context, chat_id: str) -> None:
    """Its messages and its queue go with it; a create's key stays, so that a late repeat does not make it again."""
    with transaction(connection, "IMMEDIATE"):
        chat = _chat(connection, chat_id)
        now_seconds = context.fresher.now_seconds()
        connection.execute("DELETE FROM chats WHERE id = ?", (chat_id,))
        connection.execute("DELETE FROM idempotency WHERE for_create = 0 AND scope = ?", (chat_id,))
        connection.execute("DELETE FROM deletions WHERE until_seconds <= ?", (now_seconds,))
        connection.execute(
            "INSERT INTO deletions (changed, chat_id, snapshot_version, until_seconds) VALUES (?, ?, ?, ?)",
            (
                _next_change(connection),
                chat_id,
                chat.snapshot_version + 1,  # newer than all that was ever heard of it
                now_seconds + hours(DELETIONS_KEPT_HOURS),
            ),
        )


def _write(connection: sqlite3.Connection, transition: Transition) -> None:
    chat = transition.chat
    connection.execute(_UPDATE_CHAT, to_row(chat, changed=_next_change(connection)))
    if chat.queue_version == chat.snapshot_version:
        connection.execute("DELETE FROM queue WHERE chat_id = ?", (chat.id,))
        entries = [to_row(entry, chat_id=chat.id, position=n) for n, entry in enumerate(transition.queue)]
        connection.executemany(_INSERT_ENTRY, entries)
    if transition.deleted_from is not None:
        connection.execute(
            "UPDATE messages SET deleted = 1 WHERE chat_id = ? AND id >= ? AND deleted = 0",
            (chat.id, transition.deleted_from),
        )
    _write_messages(connection, transition)


def _write_messages(connection: sqlite3.Connection, transition: Transition) -> None:
    rows = [to_row(message, chat_id=transition.chat.id) for message in transition.inserted]
    connection.executemany(_INSERT_MESSAGE, rows)


def _next_change(connection: sqlite3.Connection) -> int:
    connection.execute("UPDATE changes SET last = last + 1")
    (number,) = connection.execute(LAST_CHANGE).fetchone()
    return int(number)


def _kept_answer(
    connection: sqlite3.Connection, context: Context, for_create: bool, key: IdempotencyKey | None
) -> tuple[str, Answer] | None:
    """The chat and the answer that this key got before. Keys past their time go first."""
    if key is None:
        return None
    connection.execute("DELETE FROM idempotency WHERE until_seconds <= ?", (context.fresher.now_seconds(),))
    row = connection.execute(
        "SELECT request_hash, chat_id, answer FROM idempotency WHERE for_create = ? AND scope = ? AND key = ?",
        (for_create, key.scope, key.key),
    ).fetchone()
    if row is None:
        return None
    request_hash, chat_id, answer = row
    if request_hash != key.request_hash:
        raise IdempotencyConflict("this idempotency key was used before, with another content")
    return chat_id, to_answer(answer)


def _keep_answer(
    connection: sqlite3.Connection,
    context: Context,
    for_create: bool,
    key: IdempotencyKey | None,
    transition: Transition,
) -> None:
    if key is None:
        return
    until_seconds = context.fresher.now_seconds() + hours(context.settings.idempotency_hours)
    connection.execute(
        "INSERT INTO idempotency (for_create, scope, key, request_hash, chat_id, answer, until_seconds)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            for_create,
            key.scope,
            key.key,
            key.request_hash,
            transition.chat.id,
            to_json(transition.answer),
            until_seconds,
        ),
    )


# ------------------------------------------------------------------------------------------------ reads


def read_view(connection: sqlite3.Connection, context: Context, chat_id: str, base: MessageRef) -> View:
    with transaction(connection, "DEFERRED"):
        start = start_of_page(
            base, _known(connection, chat_id, base.id), lambda below: _last_live_below(connection, chat_id, below)
        )
        chat = _chat(connection, chat_id)
        messages, more = _page(connection, context, chat_id, start.anchor.id, context.settings.page_messages)
        return View(
            chat=chat,
            queue=_queue(connection, chat_id),
            base=base,
            base_live=start.base_live,
            anchor=start.anchor,
            messages=messages,
            more=more,
        )


def ping(connection: sqlite3.Connection) -> None:
    connection.execute(LAST_CHANGE).fetchall()


def read_chat(connection: sqlite3.Connection, chat_id: str) -> Chat:
    return _chat(connection, chat_id)


def read_queue(connection: sqlite3.Connection, chat_id: str) -> tuple[QueueEntry, ...]:
    with transaction(connection, "DEFERRED"):
        _chat(connection, chat_id)
        return _queue(connection, chat_id)


def list_chats(connection: sqlite3.Connection, before: str | None, limit: int) -> list[Chat]:
    with transaction(connection, "DEFERRED"):
        if before is None:
            found = connection.execute(f"SELECT {columns(Chat)} FROM chats ORDER BY seq DESC LIMIT ?", (limit,))
        else:
            _chat(connection, before)
            found = connection.execute(
                f"SELECT {columns(Chat)} FROM chats"
                " WHERE seq < (SELECT seq FROM chats WHERE id = ?) ORDER BY seq DESC LIMIT ?",
                (before, limit),
            )
        return [from_row(Chat, row) for row in found]


def list_messages(
    connection: sqlite3.Connection, context: Context, chat_id: str, after_id: int, limit: int
) -> tuple[Message, ...]:
    with transaction(connection, "DEFERRED"):
        _chat(connection, chat_id)
        return _page(connection, context, chat_id, after_id, limit)[0]


def fingerprints(connection: sqlite3.Connection, chat_ids: list[str]) -> Mapping[str, Fingerprint]:
    found = connection.execute(_FINGERPRINTS, (to_json(chat_ids),))
    return {chat_id: Fingerprint(version, stamp or "", run_id) for chat_id, version, run_id, stamp in found}


def _chat(connection: sqlite3.Connection, chat_id: str) -> Chat:
    row = connection.execute(_READ_CHAT, (chat_id,)).fetchone()
    if row is None:
        raise ChatNotFound(f"there is no chat {chat_id}")
    return from_row(Chat, row)


def _queue(connection: sqlite3.Connection, chat_id: str) -> tuple[QueueEntry, ...]:
    return tuple(from_row(QueueEntry, row) for row in connection.execute(_READ_QUEUE, (chat_id,)))


def _message(connection: sqlite3.Connection, chat_id: str, message_id: int) -> Message | None:
    row = connection.execute(_READ_MESSAGE, (chat_id, message_id)).fetchone()
    return None if row is None else from_row(Message, row)


def _known(connection: sqlite3.Connection, chat_id: str, message_id: int) -> Known | None:
    row = connection.execute(
        "SELECT stamp, deleted FROM messages WHERE chat_id = ? AND id = ?", (chat_id, message_id)
    ).fetchone()
    return None if row is None else Known(row[0], bool(row[1]))


def _last_live_below(connection: sqlite3.Connection, chat_id: str, message_id: int) -> MessageRef | None:
    row = connection.execute(
        "SELECT id, stamp FROM messages WHERE chat_id = ? AND id < ? AND deleted = 0 ORDER BY id DESC LIMIT 1",
        (chat_id, message_id),
    ).fetchone()
    return None if row is None else MessageRef(*row)


def _page(
    connection: sqlite3.Connection, context: Context, chat_id: str, after_id: int, most_messages: int
) -> tuple[tuple[Message, ...], bool]:
    """Read row by row: what is past the page is never taken into memory."""
    with closing(connection.execute(_READ_LIVE, (chat_id, after_id))) as found:
        live = ((from_row(Message, row), size) for size, *row in found)
        return take_page(live, most_messages=most_messages, most_bytes=context.settings.page_bytes)
