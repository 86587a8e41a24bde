"""Puts load on a server: ``m3rt bench --server``. See docs/bench.md.

Requests arrive by chance at a rate, whether or not those before them were answered, as users do;
a client that waits for answers would ask less of a server just when it is slow. The latency of a
request begins when it arrives, even if the client comes to it later.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files

import numpy as np

from m3rt import doctor, expectation, mixes
from m3rt.arrivals import event_loop
from m3rt.bench import facts
from m3rt.connection import ExchangeError, Pool, Target
from m3rt.errors import UnavailableError
from m3rt.load_generator import Load, Say
from m3rt.loads import LoadResult, LoadSettings
from m3rt.payloads import ROUTE, Estimate, Group, body, distinct, make
from m3rt.tokenizer import Tokenizer

LONGEST = 8192  # tokens of a text, where no model tells


async def estimate(pool: Pool, headers: Mapping[str, str]) -> Estimate:
    """Ask the server how many tokens the built-in sentences have.

    Raises:
        UnavailableError: it does not answer.
    """
    lines = files("m3rt").joinpath("export/sentences.txt").read_text("utf-8").splitlines()
    asked = ["", *lines]
    try:
        found = await pool.ask(pool.target.request(ROUTE, body(asked, ["dense"], "json"), headers))
        if found.status != 200:
            raise UnavailableError(
                f"the server answers {found.status} to a plain request: "
                f"{found.body[:200].decode('utf-8', 'replace')}"
            )
        counts = [int(one["n_tokens"]) for one in expectation.read(found.body, "json")]
    except ExchangeError as error:
        raise UnavailableError(f"no server answers there: {error}") from error
    except (ValueError, KeyError) as error:
        raise UnavailableError(f"the server does not answer as m3rt serve does: {error}") from error
    return Estimate(lines, np.array(counts[1:], np.int32), counts[0])


async def described(pool: Pool, headers: Mapping[str, str]) -> dict[str, object] | None:
    """Return what the server says of itself at /info."""
    with contextlib.suppress(ExchangeError, ValueError):
        found = await pool.ask(pool.target.request("/info", headers=headers))
        about = json.loads(found.body) if found.status == 200 else None
        return about if isinstance(about, dict) else None
    return None


async def measure(
    url: str,
    settings: LoadSettings,
    names: Sequence[str],
    lengths: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
    longest: int = LONGEST,
    keys: Sequence[str] = (),
    say: Say = lambda step: None,
) -> LoadResult:
    """Measure a server; see run."""
    created = datetime.now(UTC)
    target = Target.parse(url)
    pool = Pool(target, settings.connections, settings.timeout)
    with contextlib.closing(pool):
        headers = {"authorization": f"Bearer {keys[0]}"} if keys else {}
        own = lengths is None and not set(names) & set(mixes.LENGTHS)
        counter: Tokenizer | Estimate | None = tokenizer
        if counter is None and not own:
            say("the server's tokens")
            counter = await estimate(pool, headers)
        read = texts_of(names, lengths, counter, longest)
        groups = [Group("", 1.0, settings.texts)]
        if settings.bulk:
            groups = [
                Group("interactive", 1 - settings.bulk, settings.texts),
                Group("bulk", settings.bulk, settings.bulk_texts),
            ]
        texts = [text for mix in read for text in mix.texts]
        marks = ("", "b")  # what waits for another lane is not the same
        kinds = [
            distinct(texts, settings.distinct, counter, mark)
            for mark, _ in zip(marks, groups, strict=False)
        ]

        def load_with(deadline_ms: float | None) -> Load:
            made = [
                make(target, kind, group, settings.heads, settings.form, keys, deadline_ms)
                for kind, group in zip(kinds, groups, strict=True)
            ]
            return Load(pool, made, [group.share for group in groups], settings)

        # what is waited for as long as it takes, and the load itself
        patient, load = load_with(None), load_with(settings.deadline_ms)
        about = await described(pool, headers)
        say("each request alone")
        alone = await patient.alone()
        load.learn(patient)
        rates: list[tuple[float, float | None]] = [(rate, None) for rate in settings.rates]
        capacity = None
        if settings.loads:
            capacity = await patient.capacity(say)
            rates += ((share * capacity.rate, share) for share in settings.loads if capacity.rate)
        runs = []
        for rate, share in rates:
            say(f"{rate:.4g} requests a second")
            runs.append(await load.at(rate, share))
    counted = [
        facts(mix, np.minimum(counter.lengths(mix.texts), longest)) for mix in read if counter
    ]
    return LoadResult(
        created=created.isoformat(timespec="seconds"),
        server=url,
        about=about,
        settings=settings,
        machine=doctor.examine(),
        mixes=tuple(counted),
        estimated=tokenizer is None,
        alone=alone,
        capacity=capacity,
        runs=tuple(runs),
    )


def texts_of(
    names: Sequence[str],
    lengths: Sequence[int] | None,
    counter: Tokenizer | Estimate | None,
    longest: int,
) -> list[mixes.Mix]:
    """Return the texts to send: of mixes, or one of each length."""
    if lengths is None:
        return [mixes.read(name, counter, longest) for name in dict.fromkeys(names)]
    assert counter is not None
    wanted = [min(length, longest) for length in lengths]
    name = ",".join(map(str, lengths))
    return [mixes.Mix(name, tuple(mixes.of_lengths(counter, wanted)))]


def run(
    url: str,
    settings: LoadSettings,
    names: Sequence[str] = ("mixed",),
    lengths: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
    longest: int = LONGEST,
    keys: Sequence[str] = (),
    say: Say = lambda step: None,
) -> LoadResult:
    """Measure a server.

    Args:
        url: of the server, as http://127.0.0.1:8080.
        settings: how.
        names: of mixes, or files of texts; see mixes.py.
        lengths: tokens of texts that are sent in place of mixes.
        tokenizer: the model's; without it lengths are about those declared.
        longest: tokens of a text that the model takes.
        keys: API keys, which take turns.
        say: is told each step before it begins.

    Raises:
        InputError: the URL is none, or a mix cannot be read.
        UnavailableError: a server is needed to make the texts, and none answers.
    """
    with asyncio.Runner(loop_factory=event_loop) as runner:
        return runner.run(measure(url, settings, names, lengths, tokenizer, longest, keys, say))
