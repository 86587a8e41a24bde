"""The rate at which this machine multiplies matrices, in each precision: what 100% is.

    python -m m3rt.peak LIBRARY THREADS SECONDS

measures one library in a process of its own, so that no thread pool disturbs another's, and
prints JSON. Libraries that are not installed are left out; the best one counts.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from m3rt.result import Rate

# BGE-M3's linear layers at 512 tokens, in the order of their share of the arithmetic.
SHAPES = ((512, 1024, 4096), (512, 4096, 1024), (512, 1024, 1024))
SECONDS = 0.4  # for each product
PATIENCE = 120.0  # seconds for a library
Product = tuple[str, Callable[[], object]]  # precision, and the call that is timed


def measure(threads: int, seconds: float = SECONDS) -> tuple[Rate, ...]:
    """Measure every library that is installed, one after another."""
    found: list[Rate] = []
    for library in LIBRARIES:
        if find_spec(library) is None:
            continue
        command = [sys.executable, "-P", "-m", "m3rt.peak", library, str(threads), str(seconds)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            # the last line: a library may greet on stdout
            found += [rate(entry) for entry in json.loads(done.stdout.splitlines()[-1])]
        except (subprocess.TimeoutExpired, ValueError, IndexError):
            continue  # it hung or broke; others remain
    return tuple(found)


def rate(entry: Mapping[str, Any]) -> Rate:
    """Read what a process printed."""
    m, k, n = entry["shape"]
    return Rate(entry["precision"], entry["by"], (m, k, n), entry["flops"])


def best(rates: Sequence[Rate], precision: str) -> Rate | None:
    """Return the fastest of a precision."""
    return max((r for r in rates if r.precision == precision), key=lambda r: r.flops, default=None)


def fastest(call: Callable[[], object], seconds: float) -> float:
    """Return the seconds of the fastest of at least three calls, after one that does not count."""
    call()
    least, n, end = float("inf"), 0, time.perf_counter() + seconds
    while n < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        least, n = min(least, time.perf_counter() - began), n + 1
    return least


def with_numpy(shape: tuple[int, int, int], threads: int) -> Iterator[Product]:
    """Give numpy's product; its BLAS takes the threads it likes."""
    m, k, n = shape
    a, b, out = (np.ones(size, np.float32) for size in ((m, k), (k, n), (m, n)))
    yield "fp32", partial(np.matmul, a, b, out)


def with_onnxruntime(shape: tuple[int, int, int], threads: int) -> Iterator[Product]:
    """Give ONNX Runtime's products, the right side a constant, as weights are."""
    ort = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    m, k, n = shape
    for precision, operator, left, right in (
        ("fp32", "MatMul", np.float32, np.float32),
        ("int8", "MatMulInteger", np.uint8, np.int8),
    ):
        graph = product_graph(operator, np.ones((m, k), left), np.ones((k, n), right))
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        inputs = {"a": np.ones((m, k), left)}
        yield precision, partial(session.run, None, inputs)


def with_openvino(shape: tuple[int, int, int], threads: int) -> Iterator[Product]:
    """Give OpenVINO's products, bf16 only where the processor has it."""
    ov, ops = import_module("openvino"), import_module("openvino.opset13")
    core = ov.Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    m, k, n = shape
    left = ops.parameter([m, k], np.float32)
    right = ops.constant(np.ones((k, n), np.float32))
    model = ov.Model([ops.matmul(left, right, False, False)], [left])
    for precision, hint in (("fp32", "f32"), ("bf16", "bf16")):
        if precision == "bf16" and "BF16" not in able:
            continue
        options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        request = core.compile_model(model, "CPU", options).create_infer_request()
        request.set_input_tensor(ov.Tensor(np.ones((m, k), np.float32)))
        yield precision, request.infer


def with_torch(shape: tuple[int, int, int], threads: int) -> Iterator[Product]:
    """Give torch's products."""
    torch = import_module("torch")
    torch.set_num_threads(threads)
    m, k, n = shape
    for precision, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.ones(m, k, dtype=kind), torch.ones(n, k, dtype=kind)
        yield precision, partial(torch.nn.functional.linear, a, b)
    left, right = (torch.ones(size, dtype=torch.int8) for size in ((m, k), (k, n)))
    yield "int8", partial(torch._int_mm, left, right)


LIBRARIES: Mapping[str, Callable[[tuple[int, int, int], int], Iterator[Product]]] = {
    "numpy": with_numpy,
    "onnxruntime": with_onnxruntime,
    "openvino": with_openvino,
    "torch": with_torch,
}


def product_graph(operator: str, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bytes:
    """Return an ONNX model of one product a x b, a its input and b constant.

    Written by hand, because the onnx package is not among the runtime's. The numbers are those of
    the fields and types in onnx.proto.
    """
    kinds = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6}

    def message(*fields: tuple[int, int | bytes]) -> bytes:
        out = b""
        for number, value in fields:
            if isinstance(value, int):
                out += varint(number << 3) + varint(value)
            else:
                out += varint(number << 3 | 2) + varint(len(value)) + value
        return out

    def value_info(name: bytes, kind: int, shape: Sequence[int]) -> bytes:
        dims = message(*((1, message((1, size))) for size in shape))
        return message((1, name), (2, message((1, message((1, kind), (2, dims))))))

    result = kinds["float32" if a.dtype == np.float32 else "int32"]
    left, right = kinds[a.dtype.name], kinds[b.dtype.name]
    dims = ((1, size) for size in b.shape)
    graph = message(
        (1, message((1, b"a"), (1, b"b"), (2, b"y"), (4, operator.encode()))),
        (2, b"product"),
        (5, message(*dims, (2, right), (8, b"b"), (9, b.tobytes()))),
        (11, value_info(b"a", left, a.shape)),
        (12, value_info(b"y", result, (len(a), b.shape[1]))),
    )
    return message((1, 8), (7, graph), (8, message((1, b""), (2, 13))))


def varint(value: int) -> bytes:
    """Return seven bits a byte, the lowest first, with the top bit set on all but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def main() -> None:
    """Measure one library, and print its rates."""
    library, threads, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    rates = []
    for shape in SHAPES:
        m, k, n = shape
        # a library may lack a product on this processor; what it gave before counts
        with contextlib.suppress(Exception):
            for precision, call in LIBRARIES[library](shape, threads):
                flops = 2 * m * k * n / fastest(call, seconds)
                rates.append(asdict(Rate(precision, library, shape, flops)))
    sys.stdout.write("\n" + json.dumps(rates) + "\n")


if __name__ == "__main__":
    main()
