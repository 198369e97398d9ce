"""`python -m moetool` is the `moetool` command."""

from moetool.cli.interrupts import catch_interrupts, end_interrupts


def main() -> None:
    """Run the command line and exit with its code, or with 130 wherever a Ctrl-C comes."""
    catch_interrupts()
    # Only now: what it imports takes a tenth of a second.
    from moetool.cli.main import main as run

    try:
        run()
    finally:
        end_interrupts()


if __name__ == "__main__":
    main()
