"""What is kept of the values that were used last."""

from __future__ import annotations

from dipole_trainer.compute.lru_cache import Recent


def test_the_least_recently_used_goes_first() -> None:
    """A value is made once while it is kept, and to be used is to stay."""
    made: list[int] = []

    def double(key: int) -> int:
        made.append(key)
        return 2 * key

    recent: Recent[int, int] = Recent(2)
    assert [recent.get(key, double) for key in (1, 2, 1, 3, 1, 2)] == [2, 4, 2, 6, 2, 4]
    assert made == [1, 2, 3, 2]
    recent.clear()
    assert (recent.get(1, double), made[-1]) == (2, 1)
