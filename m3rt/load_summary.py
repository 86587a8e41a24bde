"""Samples to what a result says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from m3rt.loads import STAGES, LaneRun, Latencies, LoadSettings, Run, Sample, Split

REFUSALS = ("429", "503", "504")
EXAMPLES = 5  # of wrong answers, in words


@dataclass(frozen=True, slots=True)
class Window:
    """When samples count, on the event loop's clock."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.start

    def ended(self, samples: Iterable[Sample]) -> list[Sample]:
        """Return those that ended in it."""
        return [one for one in samples if self.start <= one.ended < self.end]

    def due(self, samples: Iterable[Sample]) -> list[Sample]:
        """Return those that arrived in it."""
        return [one for one in samples if self.start <= one.due < self.end]


@dataclass(frozen=True, slots=True)
class Client:
    """What the client itself did meanwhile."""

    waited: int
    opened: int
    again: int
    cpu: float  # processors kept busy


def summarise(
    samples: Sequence[Sample],
    window: Window,
    rate: float,
    load: float | None,
    settings: LoadSettings,
    client: Client,
    checked: set[int] | None,
) -> Run:
    """Summarise one rate.

    Args:
        samples: of all its requests, those of the warm-up, too.
        window: without the warm-up.
        rate: arrivals a second that were asked for.
        load: the share of the capacity that this is, if so.
        settings: of the benchmark.
        client: what the client did.
        checked: questions whose answer is known; None: answers are not compared.
    """
    came, ended = window.due(samples), window.ended(samples)
    served = [one for one in ended if one.outcome == "200"]
    in_time = settings.slo_ms / 1e3
    faults = [one.fault for one in came if one.fault]
    known = all(one.tokens for one in served)
    lanes = sorted({one.lane for one in came})
    return Run(
        load=load,
        rate=rate,
        arrivals=len(came) / window.seconds,
        seconds=window.seconds,
        requests=len(came),
        throughput=len(served) / window.seconds,
        texts_per_second=sum(one.texts for one in served) / window.seconds,
        tokens_per_second=(sum(one.tokens for one in served) / window.seconds if known else None),
        goodput=len(good(ended, in_time)) / window.seconds,
        good_share=len(good(came, in_time)) / max(1, len(came)),
        shed_share=sum(one.outcome == "429" for one in came) / max(1, len(came)),
        latency=Latencies.of([one.latency for one in came if one.ok]),
        refusals=Latencies.of([one.latency for one in came if one.outcome in REFUSALS]),
        outcomes=outcomes(came),
        wrong=None if checked is None else len(faults),
        wrong_examples=tuple(dict.fromkeys(faults))[:EXAMPLES],
        unchecked=(
            None if checked is None else sum(one.question not in checked for one in came if one.ok)
        ),
        split=split(came),
        lanes=tuple(lane(name, came, ended, window, in_time) for name in lanes if len(lanes) > 1),
        received_bytes=sum(one.received for one in came),
        sent_bytes=sum(one.sent for one in came),
        late=Latencies.of([one.begun - one.due for one in came]),
        waited=client.waited,
        opened=client.opened,
        again=client.again,
        client_cpu=client.cpu,
    )


def good(samples: Iterable[Sample], seconds: float) -> list[Sample]:
    """Return those that were answered, rightly, within the objective."""
    return [one for one in samples if one.ok and one.latency <= seconds]


def outcomes(samples: Iterable[Sample]) -> dict[str, int]:
    """Count requests by how they ended, the most frequent first."""
    return dict(Counter(one.outcome for one in samples).most_common())


def lane(
    name: str, came: Iterable[Sample], ended: Iterable[Sample], window: Window, seconds: float
) -> LaneRun:
    """Summarise one lane."""
    mine = [one for one in came if one.lane == name]
    return LaneRun(
        lane=name or "default",
        requests=len(mine),
        texts=max((one.texts for one in mine), default=0),
        latency=Latencies.of([one.latency for one in mine if one.ok]),
        goodput=len(good([one for one in ended if one.lane == name], seconds)) / window.seconds,
        outcomes=outcomes(mine),
    )


def split(samples: Iterable[Sample]) -> Split | None:
    """Return where the time of answers went; None where no server told."""
    told = [one for one in samples if one.ok and one.split]
    if not told:
        return None
    parts: dict[str, list[float]] = {"wait": [one.begun - one.due for one in told]}
    for stage in STAGES:
        if all(stage in one.split for one in told):
            parts[stage] = [one.split[stage] for one in told]
    if "total" in parts:
        parts["rest"] = [one.ended - one.begun - one.split["total"] for one in told]
    ms = {name: 1e3 * np.asarray(values) for name, values in parts.items()}
    p50, p99 = (
        {name: float(np.quantile(values, q, method="inverted_cdf")) for name, values in ms.items()}
        for q in (0.5, 0.99)
    )
    return Split(p50, p99, len(told))
