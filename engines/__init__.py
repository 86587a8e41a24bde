"""Engines by name. Each lives in a module with ``load``, ``probe``, ``precision`` and ``build``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import ModuleType

from m3rt import nvidia, processor
from m3rt.artifact import Artifact, Build
from m3rt.engines.catalog import BACKENDS as BACKENDS
from m3rt.engines.catalog import NEAR_LOSSLESS as NEAR_LOSSLESS
from m3rt.engines.catalog import PRECISIONS as PRECISIONS
from m3rt.engines.catalog import UNMEASURED, Backend
from m3rt.engines.catalog import Choice as Choice
from m3rt.engines.catalog import Probe as Probe
from m3rt.engines.devices import FIRST, Devices, listed
from m3rt.engines.devices import Asked as Asked
from m3rt.engines.fallback import Fallback
from m3rt.engines.order import Order as Order
from m3rt.engines.replicas import Replicas
from m3rt.engines.trt.fit import fits, unsupported
from m3rt.engines.trt.plan import Plan
from m3rt.engines.trt.shaping import Shaping, expect_profiles
from m3rt.errors import EngineError, InputError, UnavailableError, missing
from m3rt.nvidia import Gpu
from m3rt.types import Engine


def load(
    artifact: Artifact,
    spec: str = "auto",
    streams: int = 1,
    fallback: str | None = None,
    devices: Asked = None,
) -> Engine:
    """Open an engine on a model directory; see start."""
    return start(artifact, spec, streams, fallback, devices)[0]


def start(
    artifact: Artifact,
    spec: str = "auto",
    streams: int = 1,
    fallback: str | None = None,
    devices: Asked = None,
) -> tuple[Engine, Choice]:
    """Open an engine on a model directory, and say which it is, and why.

    Args:
        artifact: the model directory.
        spec: ``auto``, an engine, or an engine and its precision: ``cpu:int8``. Where auto's
            choice for a GPU does not open, it goes on to a CPU's.
        streams: how many batches run at once, each on its share of the cores; on each device.
        fallback: an engine that computes a text again for which the first one gave NaN or Inf.
        devices: see m3rt.load.

    Raises:
        InputError: there is no such engine or precision, or it takes no devices.
        UnavailableError: its package, provider or device is not there.
        ArtifactError: the model has not been built for it.
    """
    if streams < 1:
        raise InputError(f"streams is {streams}, expected at least 1")
    asked = Devices.read(devices)
    choice = choose(spec, artifact, asked)
    second = None if fallback is None else choose(fallback, artifact)
    if second is not None and not (found := probe(second.engine)).ready:
        raise UnavailableError(f"the fallback {second} cannot run here: {found.detail}")
    try:
        engine = _open(artifact, choice, streams, asked)
    except (UnavailableError, EngineError) as error:
        if spec != "auto" or asked.named or not BACKENDS[choice.engine].gpu:
            raise
        choice = on_cpu([f"{choice} does not open: {error}"])
        engine = _open(artifact, choice, streams)
    if isinstance(engine, Replicas):
        choice = replace(choice, why=f"{choice.why}; on {listed(engine.devices)}")
    if second is None or str(second) == str(choice):  # which would give the same again
        return engine, choice
    again = partial(_open, artifact, second, 1, asked.first)
    return Fallback(engine, str(second), again), choice


def _open(artifact: Artifact, choice: Choice, streams: int, devices: Devices = FIRST) -> Engine:
    load = partial(_module(choice.engine).load, artifact, choice, streams)
    if BACKENDS[choice.engine].gpu:
        return devices.open(str(choice), lambda number: load(device=number))
    if choice.precision == "int8" and not (cpu := processor.read()).exact_int8:
        raise UnavailableError(
            f"int8 needs a processor with one of {', '.join(sorted(processor.INT8))}; {cpu.model} "
            "adds in 16 bits, which overflow: choose fp32"
        )
    engine: Engine = load()
    return engine


def build(order: Order) -> Mapping[str, object]:
    """Let an engine write what it wants to find when it loads; see its module.

    Returns:
        What was done, for the manifest; empty if there is nothing to prepare.
    """
    done: Mapping[str, object] = _module(order.choice.engine).build(order)
    return done


def expect(choice: Choice, shaping: Shaping, max_length: int) -> None:
    """Refuse what a TensorRT engine cannot be shaped to, before anything is spent on it.

    Raises:
        InputError: the profiles or the targets cannot be, or the engine has none.
    """
    expect_profiles(choice.engine, "shaping")
    _module(choice.engine).expect(choice, shaping, max_length)


def buildable(name: str, precision: str = "") -> Probe:
    """Say whether an engine's files can be made here; for some, without the device to run them."""
    found = getattr(_module(name), "buildable", None)
    made: Probe = found(name, precision) if found else probe(name)
    return made


def observe(artifact: Artifact, choice: Choice) -> None:
    """Warn where what was built runs here, but more slowly than it should."""
    if found := getattr(_module(choice.engine), "observe", None):
        found(artifact, choice)


def to_build(spec: str) -> Choice:
    """Return what a spec stands for when an engine is to be built.

    ``auto`` is TensorRT where its library and a GPU are here, or ONNX Runtime without padding where
    its CUDA provider is, which it can only become once it is built; else what auto would run.

    Raises:
        InputError: there is no such engine or precision.
        UnavailableError: it cannot be built here.
    """
    gpus = () if spec != "auto" or nvidia.missing() else nvidia.read().gpus
    for name, precision in NEAR_LOSSLESS if gpus else ():
        able = name == "tensorrt" or not unsupported(gpus[0])
        if able and buildable(name).ready:
            return Choice(name, precision, f"this GPU is {gpus[0]}; {UNMEASURED}")
    choice = choose(spec)
    if spec == "auto" and choice.engine == "cuda":
        choice = Choice("cuda", "fp16", choice.why)
    if not (found := buildable(choice.engine, choice.precision)).ready:
        raise UnavailableError(found.detail)
    return choice


def form(choice: Choice) -> str:
    """Return the form of graph that an engine runs.

    packed, grouped and portable are exported; typed and unpadded are made for a build.
    """
    forms: Mapping[str, str] = _module(choice.engine).FORMS
    return forms.get(str(choice), forms[choice.engine])


def choose(spec: str, artifact: Artifact | None = None, devices: Devices = FIRST) -> Choice:
    """Return the engine and the precision that a spec stands for on this machine.

    Args:
        spec: as load takes it.
        artifact: what is to run; without it, auto cannot tell which TensorRT engines there are.
        devices: where it is to run.

    Raises:
        InputError: there is no such engine or precision, or it does not run on devices.
        UnavailableError: it cannot run here; for ``auto``, none can.
    """
    if spec == "auto":
        return automatic(artifact, devices)
    name, _, precision = spec.partition(":")
    known = _backend(name).precisions
    if devices != FIRST and not BACKENDS[name].gpu:
        able = ", ".join(one for one, backend in BACKENDS.items() if backend.gpu)
        raise InputError(f"devices are GPUs, and {name} runs on the processor: choose {able}")
    if precision and precision not in known:
        raise InputError(f"{name} has no precision {precision!r}; there are {', '.join(known)}")
    if precision:
        return Choice(name, precision, "asked for")
    default: str = _module(name).precision(name)
    return Choice(name, default, "asked for, in the best near-lossless precision it has here")


def automatic(artifact: Artifact | None = None, devices: Devices = FIRST) -> Choice:
    """Return what ``auto`` stands for on this machine: the fastest near-lossless choice.

    On a GPU a TensorRT engine of the model, if one fits, or ONNX Runtime, without padding if it was
    built for that. Else OpenVINO's bf16
    where the processor multiplies bf16 (twice the speed of float32 in
    benchmarks/results/race.json), else float32 on ONNX Runtime, where a text's result does not
    depend on its batch in any bit. int8 and fp8 are faster still, but change results: only when
    asked for. ``Choice.why`` also says why what is faster was passed over.

    Args:
        artifact: what is to run.
        devices: the GPUs to run on; where they were named, no processor is.

    Raises:
        UnavailableError: no engine can run.
    """
    passed: list[str] = []
    if found := on_gpu(artifact, passed, devices):
        return found
    if devices.named:
        where = listed(devices.numbers)
        raise UnavailableError(f"no engine can run on {where}: {'; '.join(passed)}")
    return on_cpu(passed)


def on_gpu(artifact: Artifact | None, passed: list[str], devices: Devices = FIRST) -> Choice | None:
    """Return what auto stands for on this machine's GPUs; None: nothing.

    The driver is started only where something could use it, see m3rt.nvidia.

    Args:
        artifact: what is to run.
        passed: gets the reasons why engines cannot run.
        devices: where: by default, on the first GPU.

    Raises:
        UnavailableError: a device that was named is not there.
    """
    if why := nvidia.missing():
        passed.append(f"no GPU: {why}")
        return None
    builds = artifact.manifest.builds if artifact else {}
    built = [choice for choice in (Choice(*one) for one in NEAR_LOSSLESS) if str(choice) in builds]
    if artifact is None:
        passed.append("a TensorRT engine that fits would come first: m3rt inspect MODEL tells")
    elif not built:
        passed.append(f"{artifact.path} has no TensorRT engine in fp16 or bf16")
    elif not (driver := nvidia.read()).gpus:
        passed.append(f"no GPU: {driver.why}")
        return None
    else:
        gpus = devices.among(driver.gpus)
        for choice in built:
            reasons = {gpu: unfit(choice, builds[str(choice)], gpu) for gpu in gpus}
            able = [gpu for gpu, why in reasons.items() if why is None]
            if able and (devices.all or len(able) == len(gpus)):
                fit = f"built for this GPU, {able[0]}; {UNMEASURED}"
                return Choice(choice.engine, choice.precision, "; ".join([fit, *passed]))
            passed.append(f"no {choice}: {next(why for why in reasons.values() if why)}")
    found = probe("cuda")
    if found.ready:
        precision = "fp16" if "cuda:fp16" in builds else "fp32"
        if precision == "fp32" and artifact is not None:
            passed.append("no cuda:fp16, which is without padding: it was not built")
        return Choice("cuda", precision, "; ".join([found.detail, UNMEASURED, *passed]))
    passed.append(f"no cuda: {found.detail}")
    return None


def unfit(choice: Choice, build: Build, gpu: Gpu) -> str | None:
    """Say why a TensorRT engine that the model has does not run here; None: it does."""
    try:
        plan = Plan.read(build.recipe)
    except (KeyError, TypeError, ValueError) as error:
        return f"the manifest does not say what it was built for ({error!r}); build it again"
    if not (found := probe(choice.engine, gpu.index)).ready:
        return found.detail
    library = import_module(BACKENDS[choice.engine].package)
    return fits(plan, library.__name__, library.__version__, gpu)


def runs_here(artifact: Artifact, choice: Choice) -> bool:
    """Whether an engine runs here; a TensorRT engine may have been built for another GPU."""
    if not probe(choice.engine).ready:
        return False
    build = artifact.manifest.builds.get(str(choice))
    if build is None or "plan" not in build.recipe:
        return True
    gpus = nvidia.read().gpus
    return bool(gpus) and unfit(choice, build, gpus[0]) is None


def on_cpu(passed: Sequence[str]) -> Choice:
    """Return what auto stands for without a GPU.

    Args:
        passed: why there is nothing faster.

    Raises:
        UnavailableError: no engine can run.
    """
    names = [name for name, backend in BACKENDS.items() if backend.automatic and not backend.gpu]
    probes = {name: probe(name) for name in names}
    ready = [name for name in names if probes[name].ready]
    for name in ready:
        if _module(name).precision(name) == "bf16":
            why = ["this processor multiplies bf16", probes[name].detail, *passed]
            return Choice(name, "bf16", "; ".join(why))
    for name in ("cpu", "openvino"):
        if name in ready:
            why = ["no engine has fast bf16 here", probes[name].detail, *passed]
            return Choice(name, "fp32", "; ".join(why))
    reasons = [*(f"{found.engine}: {found.detail}" for found in probes.values()), *passed]
    raise UnavailableError(f"no engine can run here: {'; '.join(reasons)}")


def probe(name: str, device: int = 0) -> Probe:
    """Say whether an engine can run here, without opening a model.

    A library that breaks when it is imported is an answer, too.

    Args:
        name: of the engine.
        device: the number of the GPU that counts.
    """
    try:
        probe = _module(name).probe
        found: Probe = probe(name, device) if device else probe(name)
    except UnavailableError as error:
        return Probe(name, False, str(error))
    except (ImportError, OSError) as error:
        return Probe(name, False, f"cannot be imported: {error}")
    return found


def _backend(name: str) -> Backend:
    if name not in BACKENDS:
        raise InputError(
            f"no engine {name!r}; there are auto, {', '.join(BACKENDS)}, each with a precision "
            "if you like, as in cpu:int8"
        )
    return BACKENDS[name]


def _module(name: str) -> ModuleType:
    backend = _backend(name)
    try:
        return import_module(backend.module)
    except ModuleNotFoundError as error:
        if error.name != backend.package:
            raise
        raise missing(backend.package, backend.extra, f"the {name} engine") from error
