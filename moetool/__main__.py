"""`python -m moetool` is the `moetool` command."""

from moetool.cli.interrupts import catch_interrupts, end_interrupts


def main() -> None:
    """Run the command line and exit with its code, or with 130 after a Ctrl-C at any moment."""
    catch_interrupts()
    # Imported only now, because its own imports take a tenth of a second.
    from moetool.cli.main import main as run

    try:
        run()
    finally:
        end_interrupts()


if __name__ == "__main__":
    main()
