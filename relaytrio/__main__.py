"""The entry of the command: `relaytrio ...` and `python -m relaytrio ...`.

It decides only what happens where the extra `demo` is not installed; all else is `cli/_app.py`.
"""

from __future__ import annotations

import sys

EXTRAS = ("cyclopts", "hypercorn", "rich", "starlette")
"""What the extra `demo` brings."""


def main() -> int:
    """Run the command line of this process, and give its exit status."""
    try:
        from .cli._app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        print("relaytrio: the command line needs: pip install 'relaytrio[demo]'", file=sys.stderr)
        return 2
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
