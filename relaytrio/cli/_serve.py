"""`relaytrio serve`: one replica over HTTP, with a responder that needs no model, until a signal ends it.

It decides what the options make of a replica, and how it ends: the first signal drains it (`transport/_serve.py` has
the order), a second one ends the process at once. What the options mean is `_options.py`.
"""

from __future__ import annotations

import importlib
import logging
import os
from functools import partial
from pathlib import Path
from typing import Annotated, Final, cast

import attrs
import trio
from cyclopts import Parameter

from .._engine import open_engine
from .._settings import Settings
from .._turn import Responder
from ..responders.pydoc import make_pydoc_responder
from ..transport._serve import serve as serve_app
from ._options import (
    SECRET_VARIABLE,
    STORE_VARIABLE,
    Listen,
    Secret,
    check_reach,
    checked_url,
    read_secret,
    read_settings,
)
from ._output import Output, fault
from ._page import page_app
from ._signals import first_signal, status_after
from ._status import HELD, UsageFault

STDIN: Final = 0


@attrs.frozen(kw_only=True)
class Plan:
    """What the options say."""

    store: str = attrs.field(repr=False)
    """May hold a password."""
    listen: Listen
    address: str | None
    secret: Secret | None
    responder: Responder | None
    settings: Settings
    page: bool
    exit_with_stdin: bool


async def serve(
    *,
    store: Annotated[
        str,
        Parameter(
            env_var=STORE_VARIABLE,
            help="URL of the database, such as sqlite:///chat.db or postgresql://user:password@host/name.",
        ),
    ],
    listen: Annotated[str, Parameter(help="HOST:PORT; port 0: a free one.")] = "127.0.0.1:8001",
    advertise: Annotated[str | None, Parameter(help="URL at which other replicas reach this one.")] = None,
    secret_file: Annotated[Path | None, Parameter(help=f"The cluster's secret; else {SECRET_VARIABLE}.")] = None,
    worker: Annotated[bool, Parameter(help="Generate answers, or only serve viewers.")] = True,
    pace: Annotated[float, Parameter(help="Tokens a second of an answer; 0: as fast as possible.")] = 40.0,
    seed: Annotated[int, Parameter(help="Varies how answers are cut into tokens.")] = 0,
    page: Annotated[bool, Parameter(help="Serve the demo's page at /.")] = False,
    settings: Annotated[
        str, Parameter(help='Settings of the engine by name, as JSON: {"grace_seconds": 60, "replica_locks": false}.')
    ] = "{}",
    responder: Annotated[str | None, Parameter(show=False)] = None,
    stamp_times: Annotated[bool, Parameter(show=False)] = False,
    exit_with_stdin: Annotated[bool, Parameter(show=False)] = False,
) -> int:
    """Run one replica until SIGTERM or Ctrl-C, which let answers end first; a second one ends it at once.

    Without a secret it serves this machine only, and shows no live text that another replica generates.
    """
    listening = Listen.parse(listen)
    secret = read_secret(secret_file, os.environ)
    given = None if advertise is None else checked_url(advertise, option="--advertise")
    check_reach(listening, given, secret)
    plan = Plan(
        store=store,
        listen=listening,
        address=given or _own_address(listening, secret),
        secret=secret,
        responder=_responder(responder, pace, seed, stamp_times) if worker else None,
        settings=read_settings(settings),
        page=page,
        exit_with_stdin=exit_with_stdin,
    )
    _warn(plan)
    return await _run(plan, Output())


def _own_address(listen: Listen, secret: Secret | None) -> str | None:
    if listen.everywhere:
        return None
    if listen.port:
        return listen.url(listen.port)
    if secret is not None:
        raise UsageFault("--listen with port 0 names no address that others can dial: give --advertise, or a port")
    return None


def _responder(named: str | None, pace: float, seed: int, stamp_times: bool) -> Responder:
    """`named` is `MODULE:NAME`, of our own tests and measurements; else the one that needs no model."""
    try:
        if named is not None:
            module, _, name = named.partition(":")
            return cast("Responder", getattr(importlib.import_module(module), name))
        return make_pydoc_responder(pace=pace, seed=seed, stamp_times=stamp_times)
    except ValueError as error:
        raise UsageFault(f"--pace: {error}") from None


def _warn(plan: Plan) -> None:
    """Say what a person might not expect."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if plan.secret is None:
        fault(f"no secret: only for this machine, and no live text from other replicas ({SECRET_VARIABLE} gives one)")
    elif plan.secret.warning is not None:
        fault(plan.secret.warning)
    if not plan.listen.loopback:
        fault("nobody is asked who they are: whoever reaches this address can read and write every chat")


async def _run(plan: Plan, output: Output) -> int:
    ending = _Ending()
    async with trio.open_nursery() as nursery:
        await nursery.start(first_signal, ending.on_signal)
        if plan.exit_with_stdin:
            nursery.start_soon(ending.on_closed_stdin)
        with ending.scope:
            await _serve_replica(plan, output, ending.shutdown)
        nursery.cancel_scope.cancel()
    return ending.status


async def _serve_replica(plan: Plan, output: Output, shutdown: trio.Event) -> None:
    secret = None if plan.secret is None else plan.secret.value
    async with open_engine(
        plan.store, responder=plan.responder, address=plan.address, secret=secret, settings=plan.settings
    ) as engine:
        async with trio.open_nursery() as nursery:
            app = page_app(engine) if plan.page else engine.asgi_app()
            host, port = plan.listen.host, plan.listen.port
            url = await nursery.start(partial(serve_app, engine, app, host=host, port=port, shutdown=shutdown))
            output.line(f"serving at {url}")


class _Ending:
    """Who ends this replica, and how."""

    def __init__(self) -> None:
        self.shutdown = trio.Event()
        self.scope = trio.CancelScope()
        self.status = HELD

    def on_signal(self, number: int) -> None:
        """A signal ends it in order."""
        self.status = status_after(number)
        self.shutdown.set()

    async def on_closed_stdin(self) -> None:
        """The end of stdin says that the process that started this one is gone: nobody waits for an orderly end."""
        while True:
            await trio.lowlevel.wait_readable(STDIN)
            if not os.read(STDIN, 1024):
                return self.scope.cancel()
