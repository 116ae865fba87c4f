"""`python -m minifer` is the `minifer` command."""

import sys

from minifer.cli import main

sys.exit(main())
