"""What the driver says, by a stand-in for its library that is called as the real one is."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from m3rt import nvidia
from m3rt.nvidia import Driver, Gpu

H200 = Gpu(0, "NVIDIA H200", (9, 0), 150_000_000_000)
A10 = Gpu(1, "NVIDIA A10", (8, 6), 24_000_000_000)

# Signatures as in cuda.h; which devices there are, and what cuInit gives, is compiled in. Like the
# real one, it knows no device before cuInit, and CUDA_VISIBLE_DEVICES empty hides all.
SOURCE = r"""
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
static int started;
static const char *names[] = {"NVIDIA H200", "NVIDIA A10"};
static int capability[][2] = {{9, 0}, {8, 6}};
static size_t memory[] = {150000000000u, 24000000000u};
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuInit(unsigned flags) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (flags) return 1;
    if (INIT) return INIT;
    if (visible && !*visible) return 100;
    started = 1;
    return 0;
}
int cuGetErrorName(int status, const char **name) {
    if (status != 100) { *name = NULL; return 1; }
    *name = "CUDA_ERROR_NO_DEVICE";
    return 0;
}
int cuDeviceGetCount(int *count) { if (!started) return 3; *count = COUNT; return 0; }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return index >= COUNT; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, names[device - 40], length);
    return 0;
}
#ifndef OLD
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = memory[device - 40]; return 0; }
#endif
int cuDeviceGetAttribute(int *value, int key, int device) {
    if (key != 75 && key != 76) return 1;
    *value = capability[device - 40][key - 75];
    return 0;
}
"""

Make = Callable[..., nvidia.Loader]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Compile a driver."""
    if not (compiler := shutil.which("gcc") or shutil.which("cc")):
        pytest.skip("no C compiler here: a driver's stand-in is a C library")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "cuda.c").write_text(SOURCE)

    def make(count: int = 2, init: int = 0, *options: str) -> nvidia.Loader:
        library = folder / f"libcuda-{count}-{init}-{'-'.join(options)}.so"
        defined = (f"-DCOUNT={count}", f"-DINIT={init}", *options)
        command = [compiler, "-shared", "-fPIC", *defined, "-o", str(library)]
        subprocess.run([*command, str(folder / "cuda.c")], check=True)
        return lambda: ctypes.CDLL(str(library))

    return make


@pytest.fixture(autouse=True)
def all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(nvidia.VISIBLE, raising=False)


def absent() -> ctypes.CDLL:
    raise OSError("libcuda.so.1: cannot open shared object file")


def test_every_device_is_described(driver: Make) -> None:
    assert nvidia.read(driver()) == Driver("12.8", (H200, A10))
    assert nvidia.missing(driver()) is None
    assert [gpu.sm for gpu in (H200, A10)] == ["sm90", "sm86"]
    assert str(A10) == "NVIDIA A10 (sm86)"


def test_no_driver() -> None:
    why = "no NVIDIA driver: libcuda.so.1: cannot open shared object file"
    assert nvidia.read(absent) == Driver(None, (), why)
    assert nvidia.missing(absent) == why


def test_a_driver_that_does_not_start_says_why(driver: Make) -> None:
    assert nvidia.read(driver(2, 100)) == Driver(
        "12.8", (), "the NVIDIA driver fails: cuInit gave CUDA_ERROR_NO_DEVICE"
    )
    # an error that the driver has no name for
    assert nvidia.read(driver(2, 999)).why == "the NVIDIA driver fails: cuInit gave error 999"


def test_a_driver_without_devices(driver: Make) -> None:
    assert nvidia.read(driver(0)) == Driver("12.8", (), "the NVIDIA driver has no device")


def test_hidden_devices_are_not_there(driver: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nvidia.VISIBLE, "")
    # the C library's getenv sees what os.environ sets
    assert nvidia.read(driver()) == Driver(
        "12.8",
        (),
        "the NVIDIA driver fails: cuInit gave CUDA_ERROR_NO_DEVICE (CUDA_VISIBLE_DEVICES is '')",
    )


def test_a_library_that_lacks_a_function(driver: Make) -> None:
    found = nvidia.read(driver(1, 0, "-DOLD"))
    assert found == Driver("12.8", (), "the NVIDIA driver fails: it has no cuDeviceTotalMem_v2")


def test_a_library_that_is_no_driver() -> None:
    found = nvidia.read(lambda: ctypes.CDLL(None))
    assert found == Driver(None, (), "the NVIDIA driver fails: it has no cuDriverGetVersion")


def test_asking_whether_there_is_one_does_not_start_it(driver: Make) -> None:
    load = driver(1)
    assert nvidia.missing(load) is None
    count = ctypes.c_int()
    assert load().cuDeviceGetCount(ctypes.byref(count)) == 3  # CUDA_ERROR_NOT_INITIALIZED
    nvidia.read(load)
    assert load().cuDeviceGetCount(ctypes.byref(count)) == 0


def test_this_machine_is_read_without_an_exception() -> None:
    code = "import json; from m3rt import nvidia; print(json.dumps(nvidia.read().why))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), str)
