import jax
import pytest

from mnist_flax.runtime import memory


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "(out of memory)"),
        (MemoryError("9 GB are needed"), "(9 GB are needed)"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nx"),
            "(Out of memory allocating 9 bytes)",
        ),
        (jax.errors.JaxRuntimeError("INTERNAL: a bug"), None),
        (ValueError("RESOURCE_EXHAUSTED"), None),
        (None, None),
    ],
)
def test_lack_of_memory_is_one_line(error, reason):
    explained = memory.exhausted(error)
    assert (explained is None) == (reason is None)
    if reason:
        assert all(word in str(explained) for word in (reason, "batch_size", "channels"))
        assert "\n" not in str(explained)
