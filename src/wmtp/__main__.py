"""`python -m wmtp`."""

from wmtp.cli import main

if __name__ == "__main__":
    main()
