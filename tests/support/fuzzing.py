"""The inputs of the fuzz tests, and how many: garbage, any JSON, valid inputs with damage.

`@fuzz(...)` is hypothesis' `@given(...)` with 50 examples, or 20,000 in the long form (`-m long tests/fuzz`),
and a limit for each of them in time of the processor: what takes longer can be made to take for ever. Most of
what is fed is made from one drawn seed, which is ten times as fast as drawing each part, and does not shrink.
Refuses to know what is fed to whom.
"""

import copy
import functools
import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import given, is_hypothesis_test, note, settings
from hypothesis import strategies as st

MOST_S = 0.5
"""Of the processor's time, for one example: a hundred times what the slowest takes."""

T = TypeVar("T")
Test = Callable[..., None]

_TEXTS = (
    *("", " ", "0", "-0", "-1", "1e3", "1_0", "01", "+1", "٣", "NaN", "Infinity", "null", "true", "12.5"),
    *(
        "\x00",
        "\x1b[2J",
        "\u202e",
        "\ud800",
        "\ufeff",
        "é",
        "a\r\nb",
        "${",
        "$${",
        "'",
        '"',
        "{",
        "}",
        "[",
        "\\",
    ),
)
_ALPHABETS = (
    "0123456789",
    "0123456789abcdefx.-",
    "aZ09 _-.:/?#@[]%*{}$\"'=\\\n",
    "".join(map(chr, range(256))),
)
_NUMBERS = (0, 1, -1, 2**31, 2**53, 2**63, 2**64, 10**14, 10**300, 0.1, -0.0, 1e300, math.inf, math.nan)
_DEEPEST = 3
_HERE = Path(__file__).parents[1] / "fuzz"
_LONG_S = 1800
_MANY = 3000
_AT_LENGTH = pytest.mark.filterwarnings("ignore:Generating overly large repr")
"""Else hypothesis reports that an example is long in the place of what it has found."""


def fuzz(*strategies: Any, **named: Any) -> Callable[[Test], Test]:
    """Run a property on what these strategies make, as often as the form of the run says."""

    def decorate(test: Test) -> Test:
        @given(*strategies, **named)
        @functools.wraps(test)
        def bounded(*arguments: Any, **keywords: Any) -> None:
            gc.disable()  # what all examples together have left behind is none of this one's time
            started = time.thread_time()
            try:
                test(*arguments, **keywords)
                took_s = time.thread_time() - started
                assert took_s < MOST_S, f"one example took {took_s:.2f} s"
            except Exception:
                note(f"fed {[*arguments, *keywords.values()]!r:.2000}")
                raise
            finally:
                gc.enable()

        return bounded  # type: ignore[no-any-return]

    return decorate


def tried(times: int) -> settings:
    """Try a property so often where others are tried a hundred times, and more often where those are."""
    return settings(max_examples=times * settings().max_examples // 100)


def give_form(items: Iterable[pytest.Item], *, is_long: bool) -> None:
    """Say to all properties of this folder how often they are tried."""
    here = [item for item in items if item.path.parent == _HERE and isinstance(item, pytest.Function)]
    fuzzers = [item for item in here if is_hypothesis_test(item.obj)]
    form = settings(max_examples=20_000 if is_long else 50, database=None, derandomize=not is_long)
    for function in {item.obj for item in fuzzers}:
        form(function)
    for item in fuzzers:
        item.add_marker(_AT_LENGTH)
    for item in fuzzers if is_long else ():
        item.add_marker(pytest.mark.long)
        item.add_marker(pytest.mark.timeout(_LONG_S))


def can_be_shown(error: Exception) -> None:
    """Claim that an error can be shown as it is."""
    assert str(error).isprintable()


def made(make: Callable[[Random], T]) -> st.SearchStrategy[T]:
    """What a function makes of chance."""
    return st.integers(0, 2**64 - 1).map(lambda seed: make(Random(seed)))


def json_values(*names: str) -> st.SearchStrategy[Any]:
    """Anything that JSON can say, and some that only Python takes for it; half of its keys are of these."""
    return made(lambda random: _value(random, names))


def json_objects(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of up to six of these, and what else JSON can say."""
    return made(
        lambda random: {_name(random, names): _value(random, names) for _ in range(random.randrange(7))}
    )


def text_objects(*names: str) -> st.SearchStrategy[dict[str, str]]:
    """The same with nothing but texts in them."""
    return made(lambda random: {_name(random, names): _text(random) for _ in range(random.randrange(7))})


def damaged(good: Any, *names: str) -> st.SearchStrategy[Any]:
    """A JSON document like `good`, with one to three of its parts replaced, taken out or given twice."""
    return made(lambda random: _damaged(random, good, names))


def damaged_text(good: str) -> st.SearchStrategy[str]:
    """Text like `good`: cut, overwritten, with something put in, or with a piece of it many times."""
    return made(lambda random: _spoiled(random, good, _text(random)))


def damaged_bytes(good: bytes) -> st.SearchStrategy[bytes]:
    """Bytes like `good`, damaged in the same ways."""
    return made(lambda random: _spoiled(random, good, random.randbytes(random.randrange(9))))


def garbage(random: Random) -> bytes:
    """Bytes that are nothing in particular, most of them readable."""
    return _text(random).encode(errors="surrogatepass") if random.random() < 0.8 else random.randbytes(9)


def _text(random: Random) -> str:
    kind = random.random()
    if kind < 0.4:
        return random.choice(_TEXTS)
    if kind < 0.45:
        return random.choice(_TEXTS) * _MANY
    if kind < 0.5:
        return "".join(chr(random.randrange(0x110000)) for _ in range(random.randrange(1, 5)))
    return "".join(random.choices(random.choice(_ALPHABETS), k=random.randrange(16)))


def _value(random: Random, names: Sequence[str], depth: int = 0) -> Any:
    kind = random.random()
    if depth < _DEEPEST and kind < 0.2:
        return [_value(random, names, depth + 1) for _ in range(random.randrange(4))]
    if depth < _DEEPEST and kind < 0.45:
        return {_name(random, names): _value(random, names, depth + 1) for _ in range(random.randrange(5))}
    if kind < 0.7:
        return _text(random)
    if kind < 0.85:
        return random.choice(_NUMBERS)
    return random.choice((None, True, False, random.randrange(-(2**70), 2**70), random.random()))


def _name(random: Random, names: Sequence[str]) -> str:
    return random.choice(names) if names and random.random() < 0.8 else _text(random)


def _damaged(random: Random, good: Any, names: Sequence[str]) -> Any:
    value = copy.deepcopy(good)
    for _ in range(random.randrange(1, 4)):
        places = list(_places(value))
        if not places:
            break
        holder, key = random.choice(places)
        kind = random.random()
        if kind < 0.15:
            del holder[key]
        elif kind < 0.3 and isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[key] = _value(random, names)
    return value


def _spoiled(random: Random, good: Any, between: Any) -> Any:
    start = random.randrange(len(good) + 1)
    end = min(len(good), start + random.randrange(40)) if random.random() < 0.7 else start
    kind = random.random()
    if kind < 0.25:
        between = good[start:end] * random.choice((2, 2000))
    return good[:start] + between + (good[end:] if random.random() < 0.8 else good[:0])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where the parts of a JSON document lie: what holds one, and under which key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


texts = made(_text)
scalars = made(lambda random: _value(random, (), _DEEPEST))
