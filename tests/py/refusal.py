"""What a refused call says."""

import pytest
from gemloupe.errors import Refusal


def refused(code, run):
    with pytest.raises(Refusal) as caught:
        run()
    assert caught.value.code == code, caught.value
    return str(caught.value)
