"""The judge of a partly failing receiver finds what it is there to find."""

from collections.abc import Sequence
from typing import Any

from tests.faults.partly_failing import ANSWER_S, HANG_S, Found, Row, judge
from tests.faults.recording_receiver import Answered, Arrival, RecordingReceiver, Said

SINCE, UNTIL = 1000.0, 1100.0
GOOD = Said(200, ANSWER_S)


def an_answer(
    event: int, *, made_at: float, at: float, said: Said = GOOD, account: str = "account-1"
) -> Answered:
    data: dict[str, Any] = {"account": {"name": account}, "sequence": int(1000 * made_at)}
    arrival = Arrival(at, f"evt_{event}", b"", {"data": data}, None, "w")
    return Answered(arrival, said, at + said.after_s)


def judged(row: Row, answers: Sequence[Answered]) -> Found:
    receiver = RecordingReceiver()
    receiver.answered = sorted(answers, key=lambda one: one.at)
    receiver.arrivals = sorted((one.arrival for one in answers), key=lambda arrival: arrival.at)
    return judge(row, receiver, since=SINCE, until=UNTIL, workers=1, kept=())


def at_once(count: int = 100, account: str = "account-1") -> list[Answered]:
    """One event a second, and each is taken as soon as it is made."""
    times = [SINCE + number for number in range(count)]
    return [an_answer(number, made_at=at, at=at + 0.01, account=account) for number, at in enumerate(times)]


def a_row(**promises: Any) -> Row:
    return Row("", lambda _: lambda _: GOOD, accounts=1, each_per_second=1, **promises)


def test_a_run_without_faults_keeps_every_promise() -> None:
    found = judged(a_row(share=1, p99_s=1, others_p99_s=1), at_once())
    assert (found.problems, found.delivered, found.offered) == ([], 100, 100)


def test_a_delivery_after_the_fault_does_not_count_and_has_waited_until_its_end() -> None:
    late = [an_answer(number, made_at=SINCE + number, at=UNTIL + 5) for number in range(50)]
    found = judged(a_row(share=0.6, others_p99_s=60), [*late, *at_once()[50:]])
    assert found.problems == ["50.0% delivered, of 60%", "p99 of the others 100.00 s, of 60 s"]


def test_a_late_delivery_is_noticed() -> None:
    late = [an_answer(number, made_at=SINCE + number, at=SINCE + number + 9) for number in range(5)]
    assert judged(a_row(p99_s=8), [*late, *at_once()[5:]]).problems == ["p99 9.00 s, of 8 s"]


def test_a_failed_attempt_delivers_nothing() -> None:
    failed = [one._replace(said=Said(503)) for one in at_once()]
    assert judged(a_row(share=0.1), failed).delivered == 0


def test_a_hung_queue_waits_for_itself_and_every_other_one_is_judged() -> None:
    hung = an_answer(1000, made_at=SINCE, at=SINCE, said=Said(200, 2 * HANG_S))
    behind = [an_answer(1001, made_at=SINCE + 1, at=SINCE + 22)]
    assert judged(a_row(others_p99_s=1), [hung, *behind, *at_once(account="account-2")]).problems == []
    held_up = [
        an_answer(number, made_at=SINCE + 1, at=SINCE + 22, account="account-3") for number in (2001, 2002)
    ]
    found = judged(a_row(others_p99_s=1), [hung, *behind, *held_up, *at_once(account="account-2")])
    assert found.problems == ["p99 of the others 21.00 s, of 1 s"]


def test_a_request_within_a_retry_after_is_noticed() -> None:
    rest = an_answer(1000, made_at=SINCE, at=SINCE, said=Said(503, retry_after_s=10))
    other = at_once(account="account-2")
    assert judged(a_row(), [rest, *other]).problems == []
    again = an_answer(1000, made_at=SINCE, at=SINCE + 9)
    assert judged(a_row(), [rest, again, *other]).problems == [
        "1 requests came within the Retry-After of a 503"
    ]


def test_a_429_holds_all_queues_of_its_receiver() -> None:
    rest = an_answer(1000, made_at=SINCE, at=SINCE, said=Said(429, retry_after_s=3))
    found = judged(a_row(), [rest, *at_once(account="account-2")])
    assert found.problems == ["2 requests came within the Retry-After of a 429"]


def test_a_limited_receiver_is_judged_by_what_it_takes_and_what_it_refuses() -> None:
    refused = [an_answer(number, made_at=SINCE, at=SINCE + number, said=Said(429)) for number in range(20)]
    found = judged(a_row(share=0.85, takes_per_second=1), [*at_once()[20:], *refused])
    assert found.problems == ["80.0% delivered, of 85%", "20.0% answered 429"]
