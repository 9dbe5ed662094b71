from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from spoolmta.model import Answer, DomainPolicy, Failure, FailureKind, Outcome, Reply, Stage
from spoolmta.verdict import judge

results = st.builds(Reply, st.integers(200, 599)) | st.builds(Failure, st.sampled_from(FailureKind), st.just("x"))
answers = st.builds(Answer, st.sampled_from(Stage), results)
flags = {
    name: st.booleans() for name, value in msgspec.structs.asdict(DomainPolicy()).items() if value in (True, False)
}
policies = st.builds(DomainPolicy, **flags)


@given(answers, policies)
def test_every_answer_has_a_meaning_and_delivered_is_a_2xx_at_the_end_of_data_or_assumed(
    answer: Answer, policy: DomainPolicy
) -> None:
    result = answer.result
    accepted = isinstance(result, Reply) and answer.stage is Stage.EOD and 200 <= result.code < 300
    silent = isinstance(result, Failure) and answer.stage is Stage.EOD and result.kind is FailureKind.TIMEOUT
    assumed = silent and policy.assume_delivery_upon_data_termination_timeout
    assert (judge(answer, policy).outcome is Outcome.DELIVERED) == (accepted or assumed)


@given(answers, policies)
def test_a_failure_at_the_end_of_data_may_have_been_a_delivery_and_nothing_else_may(
    answer: Answer, policy: DomainPolicy
) -> None:
    at_end = answer.stage is Stage.EOD and isinstance(answer.result, Failure)
    judged = judge(answer, policy)
    assert judged.possible_duplicate == (at_end and judged.outcome is not Outcome.DELIVERED)


@given(st.sampled_from(Stage), st.integers(200, 499))
def test_nothing_below_500_bounces(stage: Stage, code: int) -> None:
    assert judge(Answer(stage, Reply(code))).outcome in (None, Outcome.DELIVERED)
