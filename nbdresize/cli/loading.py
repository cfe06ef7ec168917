"""Loading modules quickly, since that is most of what a short command does."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """For imports, and what else makes objects that stay: no garbage is looked for meanwhile, nor later among these.

    Modules leave next to none, and Python would look through all that is loaded again and again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
