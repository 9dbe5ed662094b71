"""No key without a test that shows what it does in a running system."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from spoolmta import config

TESTS = Path(__file__).parents[1]

LIMITS = "integration/test_limits_hold.py::"
REFUSALS = "integration/test_refusals_are_tried_again.py::"
SOURCES = "integration/test_sources_and_accounting_follow_their_keys.py::"
WAY = "integration/test_mail_finds_its_way.py::"
ROLLUP = "integration/test_domains_of_one_provider_share_a_site.py::"
SLEEP = "integration/test_vmtas_sleep_until_needed.py::"
SELECT = "integration/test_rules_choose_vmta_and_priority.py::"
POOLS = "integration/test_pools_share_mail.py::"
WARMING = "integration/test_addresses_warm_up.py::"
COMMANDS = "integration/test_commands_answer.py::"

SCENARIOS = {
    "host-name": WAY + "test_the_receiver_sees_the_vmtas_own_address_and_name",
    "user": SOURCES + "test_started_as_root_it_becomes_the_user",
    "sleep-after": SLEEP + "test_a_process_leaves_when_idle_and_comes_back_with_new_mail",
    "event-loop": SLEEP + "test_both_event_loops_do_the_work",
    "include": COMMANDS + "test_check_reads_included_files_and_policies_and_says_ok",
    "spool.directory": COMMANDS + "test_an_unused_spool_is_one_sentence",
    "spool.min-free-space": SOURCES + "test_nothing_is_taken_in_where_too_little_is_free",
    "spool.min-free-inodes": SOURCES + "test_nothing_is_taken_in_where_too_little_is_free",
    "pickup.copy": SOURCES + "test_files_are_taken_or_copied_as_pickup_copy_says",
    "dns.nameservers": WAY + "test_mail_goes_to_the_mx_host_at_the_default_smtp_port",
    "source.default-virtual-mta": SOURCES + "test_mail_that_names_no_vmta_goes_to_the_default_of_its_source",
    "source.process-x-virtual-mta": SOURCES + "test_a_source_has_its_own_folder_and_may_ignore_what_its_mail_asks_for",
    "source.process-x-job": SOURCES + "test_a_source_has_its_own_folder_and_may_ignore_what_its_mail_asks_for",
    "source.allowed-virtual-mta": SOURCES + "test_mail_may_choose_a_vmta_that_its_source_allows",
    "source.pickup": SOURCES + "test_a_source_has_its_own_folder_and_may_ignore_what_its_mail_asks_for",
    "source.max-message-size": SOURCES + "test_a_message_above_max_message_size_is_refused",
    "source.recipient-priority": SELECT + "test_a_message_of_a_higher_priority_overtakes_and_the_others_still_move",
    "select.mail-from": SELECT + "test_the_first_rule_that_matches_chooses_the_vmta",
    "select.rcpt-to": SELECT + "test_the_first_rule_that_matches_chooses_the_vmta",
    "select.header": SELECT + "test_the_first_rule_that_matches_chooses_the_vmta",
    "select.match": SELECT + "test_the_first_rule_that_matches_chooses_the_vmta",
    "select.virtual-mta": SELECT + "test_the_first_rule_that_matches_chooses_the_vmta",
    "select.recipient-priority": SELECT + "test_a_message_of_a_higher_priority_overtakes_and_the_others_still_move",
    "vmta.smtp-source-host": WAY + "test_the_receiver_sees_the_vmtas_own_address_and_name",
    "vmta.host-name": WAY + "test_the_receiver_sees_the_vmtas_own_address_and_name",
    "vmta.max-smtp-out": LIMITS + "test_there_are_never_more_connections_of_a_vmta_than_its_max_smtp_out",
    "vmta.policy": COMMANDS + "test_check_reads_included_files_and_policies_and_says_ok",
    "vmta.cold-virtual-mta": WARMING + "test_the_first_messages_of_a_day_go_to_the_cold_vmtas_in_turn",
    "vmta.warm-up": WARMING + "test_what_is_over_the_plan_of_a_vmta_goes_to_its_overflow_also_after_a_kill",
    "domain.max-cold-virtual-mta-msg": WARMING + "test_the_first_messages_of_a_day_go_to_the_cold_vmtas_in_turn",
    "domain.warm-up": WARMING + "test_the_domains_of_a_provider_share_its_plan",
    "pool.virtual-mta": POOLS + "test_every_member_gets_its_weight_of_the_pools_mail",
    "domain.smtp-hosts": WAY + "test_when_the_first_level_of_smtp_hosts_is_down_the_second_is_used",
    "domain.default-smtp-port": WAY + "test_mail_goes_to_the_mx_host_at_the_default_smtp_port",
    "domain.disable-mx-rollup": ROLLUP + "test_a_domain_that_is_taken_out_has_a_queue_of_its_own",
    "provider.mx": ROLLUP + "test_the_domains_of_a_provider_share_its_limits_and_its_queue",
    "domain.max-smtp-out": LIMITS + "test_there_are_never_more_connections_to_a_domain_than_max_smtp_out",
    "domain.max-msg-per-connection": LIMITS + "test_a_connection_carries_at_most_max_msg_per_connection",
    "domain.max-rcpt-per-transaction": LIMITS
    + "test_a_message_to_many_goes_out_in_transactions_of_max_rcpt_per_transaction",
    "domain.max-msg-rate": LIMITS + "test_no_window_of_a_rate_holds_more_than_the_rate",
    "domain.retry-after": REFUSALS + "test_the_last_pause_of_a_list_repeats",
    "domain.retry-recipients-after": REFUSALS + "test_the_last_pause_of_a_list_repeats",
    "domain.bounce-after": REFUSALS + "test_a_recipient_deferred_for_longer_than_bounce_after_bounces_as_expired",
    "domain.connection-idle-timeout": LIMITS
    + "test_a_connection_is_used_for_many_messages_and_closed_after_its_idle_timeout",
    "domain.connect-timeout": REFUSALS + "test_a_connection_that_is_not_made_is_given_up_after_connect_timeout",
    "domain.smtp-greeting-timeout": REFUSALS + "test_a_server_without_a_greeting_is_left_after_smtp_greeting_timeout",
    "domain.data-send-timeout": REFUSALS + "test_a_dot_without_an_answer_is_left_after_both_data_timeouts",
    "domain.smtp-data-termination-timeout": REFUSALS + "test_a_dot_without_an_answer_is_left_after_both_data_timeouts",
    "acct-file.path": SOURCES + "test_an_accounting_file_holds_the_records_it_asks_for",
    "acct-file.records": SOURCES + "test_an_accounting_file_holds_the_records_it_asks_for",
    "acct-file.move-interval": SOURCES + "test_an_accounting_file_is_moved_when_it_is_old_or_large",
    "acct-file.max-size": SOURCES + "test_an_accounting_file_is_moved_when_it_is_old_or_large",
}


def test_every_key_has_an_entry_and_every_entry_a_key() -> None:
    assert set(SCENARIOS) == set(config.known_keys())


@pytest.mark.parametrize("scenario", sorted(set(SCENARIOS.values())))
def test_every_entry_names_a_test_that_exists(scenario: str) -> None:
    file, _, name = scenario.partition("::")
    tree = ast.parse((TESTS / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_test_of_a_key_writes_the_key() -> None:
    for key, scenario in SCENARIOS.items():
        file = (TESTS / scenario.partition("::")[0]).read_text() + (TESTS / "support" / "mta.py").read_text()
        assert key.rpartition(".")[2] in file, f"{key}: {scenario}"
