"""Which cases of a test stay in the default suite."""
import pytest


def mostly_slow(cases, quick=lambda case: False):
    """The cases as parameters, marked slow but for the first and those of which `quick` holds. A case of several
    parameters is a tuple."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)),
                         marks=[] if i == 0 or quick(case) else pytest.mark.slow) for i, case in enumerate(cases)]
