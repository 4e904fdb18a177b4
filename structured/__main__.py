"""``python -m structured`` is ``structured``."""

from structured.cli import main

if __name__ == "__main__":
    main()
