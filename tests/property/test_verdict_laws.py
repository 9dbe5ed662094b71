from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spoolmta.model import Answer, Failure, FailureKind, Outcome, Reply, Stage
from spoolmta.verdict import judge

results = st.builds(Reply, st.integers(200, 599)) | st.builds(Failure, st.sampled_from(FailureKind), st.just("x"))
answers = st.builds(Answer, st.sampled_from(Stage), results)


@given(answers)
def test_every_answer_has_a_meaning_and_delivered_is_only_a_2xx_at_the_end_of_data(answer: Answer) -> None:
    accepted = isinstance(answer.result, Reply) and answer.stage is Stage.EOD and 200 <= answer.result.code < 300
    assert (judge(answer).outcome is Outcome.DELIVERED) == accepted


@given(answers)
def test_a_failure_at_the_end_of_data_may_have_been_a_delivery_and_nothing_else_may(answer: Answer) -> None:
    at_end = answer.stage is Stage.EOD and isinstance(answer.result, Failure)
    assert judge(answer).possible_duplicate == at_end


@given(st.sampled_from(Stage), st.integers(200, 499))
def test_nothing_below_500_bounces(stage: Stage, code: int) -> None:
    assert judge(Answer(stage, Reply(code))).outcome in (None, Outcome.DELIVERED)
