from collections.abc import Callable

from loadtest.workers.steady import PythonSteady

class Steady(PythonSteady): ...

class Reading:
    def __init__(
        self,
        number: int,
        take: Callable[[bytes, int], bool],
        clock: Callable[[], int],
        wake: Callable[[object], None],
    ) -> None: ...
    def __call__(self) -> None: ...
