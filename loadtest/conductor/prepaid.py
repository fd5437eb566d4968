"""What Locust does slowly in the middle of a load, done before it: meanwhile no token would be read."""

from __future__ import annotations

import gc
import inspect
from functools import cache

from locust import argument_parser


def prepay() -> None:
    """Called in each load process before its users come; again is free.

    A runner looks at its own call stack when it stops, and Python reads every module's path the first time:
    150 ms. A worker makes Locust's whole command line anew for each option in each spawn message, to know
    it by name: 70 times 13 ms, once a second while users are started. A look of the garbage collector at all
    that was imported takes 75 ms: what is alive now stays alive, and is not looked at again.
    """
    inspect.stack()
    if not hasattr(argument_parser.default_args_dict, "cache_info"):
        argument_parser.default_args_dict = cache(argument_parser.default_args_dict)
        argument_parser.default_args_dict()
    gc.collect()
    gc.freeze()
