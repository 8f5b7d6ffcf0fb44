"""`python -m vqjax`: the same as the console script `vqjax`."""

from vqjax.programs import main

if __name__ == "__main__":
    main()
