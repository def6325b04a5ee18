"""`python -m utils.report`: the older name of `python -m report`."""

from report.__main__ import main

if __name__ == "__main__":
    main()
