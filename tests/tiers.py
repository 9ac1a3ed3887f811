"""Which cases of a test stay in the default suite."""
import pytest


def mostly_slow(cases, quick=None):
    """The cases as parameters, marked slow but for those of which `quick` holds; unless given, for the first. A case of
    several parameters is a tuple."""
    kept = [case for case in cases if quick(case)] if quick else list(cases)[:1]
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)),
                         marks=[] if case in kept else pytest.mark.slow) for case in cases]
