"""``python -m appliance`` is the same as the command ``culvert``."""

from .multicall import main

raise SystemExit(main())
