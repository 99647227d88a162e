"""The engine's choices, from a request's griffin object and the server's defaults, and what is refused by name."""

from typing import Any

import pytest

from griffin import Verification
from griffin.request import DEFAULT_METHOD, METHOD_NAMES, MODES
from server.protocol.options import GriffinOptions
from tests.server.client import post, stream
from tests.server.scripted import THRESHOLDS, ScriptedEngine, served

CHAT = "/v1/chat/completions"
SCORED = {"echo": True, "logprobs": 0}
NGRAM = {"mode": "lossless", "draft": "ngram"}


@pytest.mark.parametrize(
    ("griffin", "expected"),
    [
        ({}, Verification()),
        ({"mode": "fast"}, Verification()),
        ({"mode": None, "draft": None, "draft_tokens": None, "acceptance": None, "refresh": None}, Verification()),
        ({"mode": "lossless"}, Verification("lossless")),
        ({"mode": "guarded", "acceptance": 1, "refresh": False}, Verification("guarded", acceptance=1, refresh=False)),
        ({"mode": "lossless", "draft": "both", "draft_tokens": 64}, Verification("lossless", "both", 64)),
    ],
)
def test_choices_reach_the_engine(griffin: dict[str, Any], expected: Verification) -> None:
    """Each field is passed on; an absent or null field means the library's default."""
    with served(engine := ScriptedEngine()) as url:
        answer = post(url, max_tokens=2, sparsity=0.5, griffin=griffin)

    ((pruning, verification),) = engine.asked
    assert (pruning.sparsity, pruning.method, verification) == (0.5, DEFAULT_METHOD, expected)
    assert answer.json()["griffin"]["mode"] == expected.mode


def test_the_servers_defaults() -> None:
    """A selection implies method griffin, and scoring implies mode fast."""
    with served(engine := ScriptedEngine(), mode="guarded", sparsity=0.5) as url:
        reports = [
            post(url, **body).json()["griffin"]
            for body in (
                {"griffin": {"acceptance": 0.5}},
                {"griffin": {"mode": "fast", "method": "griffin"}},
                {"griffin": {"selection": "sample"}},
                SCORED,
            )
        ]

    assert [(report["method"], report["mode"]) for report in reports] == [
        ("griffin+", "guarded"), ("griffin", "fast"), ("griffin", "guarded"), ("griffin+", "fast"),
    ]  # fmt: skip
    assert [report["selection"] for report in reports] == [None, "top_k", "sample", None]
    assert [report["statistic"] for report in reports] == [None, "flocking", "flocking", None]
    assert [v and v.acceptance for _, v in engine.asked] == [0.5, 0.1, 0.1, 0.1]
    assert engine.asked[2][0].selection == "sample"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"griffin": {"mode": "slow"}}, "griffin.mode"),
        ({"griffin": {"method": "griffin++"}}, "griffin.method"),
        ({"griffin": {"draft": "pruned"}}, "griffin.draft"),
        ({"griffin": {"mode": "fast", "draft": "both"}}, "griffin.draft"),
        ({"griffin": {"mode": "lossless", "draft": "none"}}, "griffin.draft"),
        ({"griffin": {"draft": "none", "draft_tokens": 4}}, "griffin.draft_tokens"),
        ({"griffin": {"mode": "lossless", "draft_tokens": 0}}, "griffin.draft_tokens"),
        ({"griffin": {"mode": "lossless", "draft_tokens": 65}}, "griffin.draft_tokens"),
        ({"griffin": {"refresh": False}}, "griffin.refresh"),
        ({"griffin": {"acceptance": 0.5}}, "griffin.acceptance"),
        ({"griffin": {"mode": "lossless", "acceptance": 0.5}}, "griffin.acceptance"),
        ({"griffin": {"mode": "guarded", "acceptance": 0}}, "griffin.acceptance"),
        ({"griffin": {"mode": "guarded", "acceptance": 1.5}}, "griffin.acceptance"),
        ({"griffin": {"mode": "guarded", "draft": "ngram", "acceptance": 0.5}}, "griffin.acceptance"),
        ({"griffin": {"mode": "lossless", "selection": "sample", "refresh": True}}, "griffin.refresh"),
        ({"griffin": {"method": "griffin+", "selection": "top_k"}}, "griffin.selection"),
        ({"griffin": {"method": "griffin+", "statistic": "flocking"}}, "griffin.statistic"),
        ({"griffin": {"expert_set": ""}}, "griffin.expert_set"),
        ({"griffin": {"expert_set": "cafe", "selection": "top_k"}}, "griffin.selection"),
        ({"griffin": {"expert_set": "cafe", "statistic": "magnitude"}}, "griffin.statistic"),
        ({"griffin": {"expert_set": "cafe", "method": "griffin"}}, "griffin.method"),
        ({"griffin": NGRAM, "sparsity": 0.5}, "sparsity"),
        ({"griffin": NGRAM, "model": "scripted@sparsity=0.5"}, "sparsity"),
        ({"griffin": {**NGRAM, "method": "griffin"}}, "griffin.method"),
        ({"griffin": {**NGRAM, "refresh": True}}, "griffin.refresh"),
        ({"griffin": {"mode": "lossless"}, **SCORED}, "griffin.mode"),
        ({"griffin": {"compare": True}, **SCORED}, "griffin.compare"),
    ],
)
def test_conflicting_choices_are_refused_by_name(body: dict[str, Any], param: str) -> None:
    """The refusal comes before anything is queued."""
    with served(engine := ScriptedEngine()) as url:
        answer = post(url, **body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert answer.json()["error"]["message"].startswith(f"{param}: ")
    assert engine.reads == []


def test_drafts_of_the_full_model_alone_need_no_neurons() -> None:
    """The server's sparsity does not apply, and the report says why; a sparsity of 0 is allowed."""
    with served(engine := ScriptedEngine(), sparsity=0.5) as url:
        reports = [post(url, griffin=NGRAM, **body).json()["griffin"] for body in ({}, {"sparsity": 0})]

    assert [(report["sparsity"], report["reason"]) for report in reports] == [(0, "ngram_drafts")] * 2
    assert [pruning.sparsity for pruning, _ in engine.asked] == [0, 0]


def test_neurons_of_an_earlier_answer() -> None:
    """They are used for each prompt, in completions and chats, and the request chooses no others."""
    messages = [{"role": "user", "content": "hi"}]
    with served(engine := ScriptedEngine(), sparsity=0.25) as url:
        first = post(url, sparsity=0.5, griffin={"method": "griffin+"}).json()["griffin"]
        reuse = {"expert_set": first["expert_set"]}
        again = post(url, prompt=["a", "b"], griffin=reuse).json()["griffin"]
        named = post(url, CHAT, messages=messages, max_tokens=2, sparsity=0.5, griffin=reuse).json()["griffin"]
        scored = post(url, prompt="abcd", griffin=reuse, **SCORED).json()["griffin"]

    assert (first["reason"], again["reason"], named["reason"], scored["reason"]) == ("requested", *["expert_set"] * 3)
    assert (again["sparsity"], again["requested_sparsity"], again["method"]) == (0.5, None, "griffin+")
    assert (named["sparsity"], named["requested_sparsity"]) == (0.5, 0.5)
    for pruning, _ in engine.asked[1:]:
        assert pruning.reuse
        assert pruning.reuse.chosen is THRESHOLDS
    assert len(engine.asked) == 5


def test_neurons_that_are_unknown_or_of_another_sparsity() -> None:
    """An unknown set is a 404; a sparsity that means another number of neurons is refused."""
    with served(ScriptedEngine()) as url:
        unknown = post(url, griffin={"expert_set": "cafe"})
        name = post(url, sparsity=0.5).json()["griffin"]["expert_set"]
        mismatches = [post(url, sparsity=sparsity, griffin={"expert_set": name}) for sparsity in (0, 0.25)]
        equal = post(url, sparsity=0.501, griffin={"expert_set": name})

    assert unknown.status_code == 404
    assert (unknown.json()["error"]["code"], unknown.json()["error"]["param"]) == (
        "expert_set_not_found", "griffin.expert_set",
    )  # fmt: skip
    for mismatch in mismatches:
        assert (mismatch.status_code, mismatch.json()["error"]["param"]) == (400, "sparsity")
        assert "was chosen at 0.5" in mismatch.json()["error"]["message"]
    assert equal.json()["griffin"]["sparsity"] == 0.501


def test_every_choice_is_documented() -> None:
    """Each field has a description, and the document lists all values that the library knows."""
    properties = GriffinOptions.model_json_schema()["properties"]

    assert all(len(each["description"]) > 20 for each in properties.values())
    assert properties["method"]["anyOf"][0]["enum"] == list(METHOD_NAMES)
    assert properties["mode"]["anyOf"][0]["enum"] == list(MODES)


def test_the_usage_chunk_has_the_report() -> None:
    """A stream's usage chunk has the report, with the verification."""
    with served(ScriptedEngine()) as url:
        *_, usage = stream(
            url, max_tokens=5, sparsity=0.5, griffin={"mode": "lossless"}, stream_options={"include_usage": True}
        )

    assert usage["griffin"]["verification"]["drafted_tokens"] == 4
