"""`python -m fastgat`."""

from fastgat.cli import main

if __name__ == "__main__":
    main()
