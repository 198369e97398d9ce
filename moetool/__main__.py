"""`python -m moetool` is the `moetool` command."""

from moetool.cli.main import main

if __name__ == "__main__":
    main()
