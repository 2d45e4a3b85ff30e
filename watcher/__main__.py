"""Where the process begins: `watcher`, and `python -m watcher`.

Signals and streams come first, before any import of weight: at any moment a process may be asked to end, or
find its streams closed by its parent.
"""

import sys

from watcher import signals


def main() -> None:
    """Run one command and end the process with its exit code."""
    signals.install(is_worker=sys.argv[1:2] == ["run"], lasts="--once" not in sys.argv)
    try:
        from watcher import streams

        streams.fix()
        from watcher.cli import main as run_command
    except KeyboardInterrupt:
        sys.exit(signals.exit_code())
    finally:
        if signals.has_ended():  # whatever an import made of that
            sys.exit(signals.exit_code())
    run_command()


if __name__ == "__main__":
    main()
