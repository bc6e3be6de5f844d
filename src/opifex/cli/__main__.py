"""``python -m opifex.cli`` is the command ``opifex-multilevel``."""

from opifex.cli import main

if __name__ == "__main__":
    main()
