"""What all tests share."""

import os

os.environ.setdefault("MINIFER_PLAN_CACHE", "0")  # tests look at plans as they are made; those of the cache turn it on
