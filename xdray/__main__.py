"""`python -m xdray VERB ...`, the same as the console command."""

from xdray.cli import main

raise SystemExit(main())
