"""Run the `moetool` command by `python -m moetool`."""

from moetool.cli.interrupts import catch_interrupts, end_interrupts


def main() -> None:
    """Run the command line and exit with its code, or with 130 after Ctrl-C."""
    catch_interrupts()
    # Imported after the handler is set, because it takes a tenth of a second.
    from moetool.cli.main import main as run

    try:
        run()
    finally:
        end_interrupts()


if __name__ == "__main__":
    main()
