"""The remarks, and when they appear."""

from typing import Any

from loadtest.remarks import remarks
from loadtest.reported import applied
from loadtest.sample import UNFINISHED, Sample
from loadtest.summary import summarise
from tests.loadtest.samples import sample


def said(samples: list[Sample], lag_p99: float = 0.1, cpu_share: float = 0.1, **options: Any) -> str:
    rows = {
        f"{s:g}": {
            **summarise([one for one in samples if one.sparsity == s], 10),
            "griffin": applied([one for one in samples if one.sparsity == s]),
        }
        for s in sorted({one.sparsity or 0.0 for one in samples})
    }
    client = {"schedule_lag_ms": {"p99": lag_p99}, "cpu_share": cpu_share}
    flags = {"prompts_approximate": False, "shared_prefix": False, "open_loop": True} | options
    return "\n".join(remarks(rows, samples, client, **flags))


def smooth(**changes: Any) -> Sample:
    """A sample with one token in each chunk."""
    return sample(tokens=3, last_s=1.5, **changes)


def test_no_remark_when_all_is_well() -> None:
    """A run without fault has no remark."""
    assert said([smooth()]) == ""


def test_a_late_or_busy_client() -> None:
    """Being late matters above a tenth of what is measured."""
    assert "the client was late" in said([smooth()], lag_p99=21)
    assert said([smooth()], lag_p99=19) == ""
    assert "95 % of one core" in said([smooth()], cpu_share=0.95)


def test_failed_and_unfinished_requests() -> None:
    """Requests that failed or were stopped are named."""
    text = said([smooth(), smooth(error="timeout"), smooth(error=UNFINISHED)])

    assert "1 of 3 requests failed" in text
    assert "unfinished when the run was stopped: 1 of 3" in text


def test_a_queue_that_grows() -> None:
    """Eleven requests are due within a second, and the last is answered long after. Only an open loop shows this."""
    late = [smooth(due_s=i / 10, sent_s=i / 10, end_s=i / 10 + 0.1 + i) for i in range(11)]

    assert "faster than they were answered" in said(late)
    assert said(late, open_loop=False) == ""


def test_sparsity_that_was_not_applied() -> None:
    """A server that does not report sparsity gets another remark."""
    block = {"sparsity": 0.0, "reason": "rounded_to_dense"}

    assert "sparsity 0.5 was requested, but 0 applied (rounded_to_dense)" in said([smooth(griffin=block)])
    assert "does not report sparsity" in said([smooth(griffin={})])


def test_answers_of_unequal_length() -> None:
    """Their end-to-end latencies cannot be compared."""
    dense = smooth(sparsity=0.0, griffin={"sparsity": 0.0})
    longer = sample(tokens=4, text_s=(1.1, 1.2, 1.3, 1.4), last_s=1.4)

    assert "differ in length" in said([dense, longer])


def test_chunks_in_bunches() -> None:
    """Most gaps are far shorter than the time of a token."""
    assert "in bunches" in said([sample(text_s=(1.2, 1.201, 1.202, 1.5), tokens=4, last_s=1.5)])


def test_cached_prompts() -> None:
    """No remark if prompts were meant to be shared."""
    assert "50 % of the prompt tokens" in said([smooth(cached_tokens=50)])
    assert said([smooth(cached_tokens=50)], shared_prefix=True) == ""


def test_answers_that_the_server_shortened() -> None:
    """Only if each answer should have a fixed length."""
    assert "at most 3 tokens instead of the requested 4" in said([smooth()], fixed_length=4)
    assert said([smooth()], fixed_length=3) == ""
    assert said([smooth()], fixed_length=None) == ""
