import jax
import psutil
import pytest

from mnist_flax.runtime import memory


class Device:
    """A fake device that reports its memory, as GPUs and TPUs do."""

    def memory_stats(self):
        return {"bytes_limit": 100, "bytes_in_use": 30}


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])


def test_of_a_device_that_counts_its_own(device):
    assert memory.free() == 70
    memory.check(100)
    with pytest.raises(MemoryError):
        memory.check(101)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a device with memory of its own")
class TestOfACpu:
    def test_it_is_the_machines(self):
        total = psutil.virtual_memory().total
        assert 0 < memory.free() <= total
        with pytest.raises(MemoryError):
            memory.check(total + 1)

    @pytest.mark.parametrize("limit", ["max", "no number", None])
    def test_no_limit_of_a_container(self, tmp_path, monkeypatch, limit):
        path = tmp_path / "memory.max"
        if limit is not None:
            path.write_text(f"{limit}\n")
        monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
        memory.check(psutil.virtual_memory().total)

    def test_a_limit_of_a_container(self, tmp_path, monkeypatch):
        path = tmp_path / "memory.max"
        path.write_text("1000\n")
        monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
        assert memory.free() <= 1000
        memory.check(1000)
        with pytest.raises(MemoryError, match="are needed"):
            memory.check(1001)
        (tmp_path / "memory.current").write_text("400\n")
        assert memory.free() == 600 // jax.local_device_count()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "(Out of memory)"),
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
def test_what_is_said(error, reason):
    explained = memory.exhausted(error)
    assert (explained is None) == (reason is None)
    if explained is not None:
        assert reason in str(explained)
        assert "batch_size" in str(explained) and "channels" in str(explained)
        assert "\n" not in str(explained)
