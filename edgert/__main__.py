"""`python -m edgert`: the same as the `edgert` command."""

from .cli import main

if __name__ == "__main__":
    main()
