"""`python -m nas` is the console script `nas`."""

from nas.cli import main

if __name__ == "__main__":
    main()
