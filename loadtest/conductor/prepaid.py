"""What Locust does slowly in the middle of a load, made short before it: meanwhile no token would be read."""

from __future__ import annotations

import gc
import inspect
from functools import cache, partial
from types import ModuleType

from locust import argument_parser, runners


def prepay() -> None:
    """Called in each load process before its users come; again is free.

    A runner that stops asks `inspect` who called it, to log a file and a line, and gets lines of source as
    well: for these Python looks up the path of every module, 150 ms. It is given stacks without source. A
    worker makes Locust's whole command line anew for each option in each spawn message, to know it by name:
    70 times 13 ms, once a second while users are started. A look of the garbage collector at all that was
    imported takes 75 ms: what is alive now stays alive, and is not looked at again.
    """
    vars(runners)["inspect"] = _without_source()
    if not hasattr(argument_parser.default_args_dict, "cache_info"):
        argument_parser.default_args_dict = cache(argument_parser.default_args_dict)
        argument_parser.default_args_dict()
    gc.collect()
    gc.freeze()


@cache
def _without_source() -> ModuleType:
    """The module `inspect`, but its stacks have no lines of source."""
    shallow = ModuleType(inspect.__name__, inspect.__doc__)
    vars(shallow).update(vars(inspect))
    vars(shallow)["stack"] = partial(inspect.stack, 0)
    vars(shallow)["getframeinfo"] = partial(inspect.getframeinfo, context=0)
    return shallow
