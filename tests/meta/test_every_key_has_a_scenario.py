"""No key without a test that shows what it does in a running system."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from spoolmta import config

TESTS = Path(__file__).parents[1]

LIMITS = "integration/test_limits_hold.py::"
REFUSALS = "integration/test_refusals_are_tried_again.py::"
FILES = "integration/test_accounting_files_show_what_they_are_asked_for.py::"
SOURCES = "integration/test_sources_and_accounting_follow_their_keys.py::"
WIRE = "integration/test_the_wire_follows_its_keys.py::"
WAY = "integration/test_mail_finds_its_way.py::"
VOLUMES = "integration/test_limits_of_connections_and_volumes.py::"
REPLIES = "integration/test_what_receivers_say_changes_how_we_send.py::"
ELSEWHERE = "integration/test_mail_is_queued_and_routed_elsewhere.py::"
ROLLUP = "integration/test_domains_of_one_provider_share_a_site.py::"
SLEEP = "integration/test_vmtas_sleep_until_needed.py::"
SELECT = "integration/test_rules_choose_vmta_and_priority.py::"
POOLS = "integration/test_pools_share_mail.py::"
WARMING = "integration/test_addresses_warm_up.py::"
TLS = "integration/test_tls_is_as_demanded.py::"
DANE = "integration/test_dane_and_mta_sts_protect_domains.py::"
TOLD = "integration/test_senders_are_told.py::"
SHARED = "integration/test_limits_hold_over_processes.py::"
REROUTED = "integration/test_mail_goes_to_another_vmta_instead.py::"
ALERTS = "integration/test_operators_get_mail_about_queues.py::"
CATEGORIES = "integration/test_bounces_have_categories.py::"
SIGNED = "integration/test_mail_is_signed.py::"
PROGRAMS = "integration/test_rows_go_to_programs.py::"
COMMANDS = "integration/test_commands_answer.py::"

SCENARIOS = {
    "host-name": WAY + "test_the_receiver_sees_the_vmtas_own_address_and_name",
    "user": SOURCES + "test_started_as_root_it_becomes_the_user",
    "custom-dsn-from-header": TOLD + "test_a_report_may_be_plain_text_from_an_author_of_ones_own",
    "sleep-after": SLEEP + "test_a_process_leaves_when_idle_and_comes_back_with_new_mail",
    "event-loop": SLEEP + "test_both_event_loops_do_the_work",
    "total-max-smtp-out": SHARED
    + "test_the_machine_has_no_more_connections_than_total_max_smtp_out_and_every_vmta_gets_its_part",
    "mx-connection-limit": SHARED + "test_hosts_get_no_more_connections_from_an_address_than_mx_connection_limit",
    "ip-connection-limit": SHARED + "test_a_network_gets_no_more_connections_from_an_address_than_ip_connection_limit",
    "pool.max-smtp-out": SHARED + "test_the_members_of_a_pool_have_no_more_connections_together_than_its_max_smtp_out",
    "pool.max-smtp-msg-rate": SHARED
    + "test_the_members_of_a_pool_send_no_more_in_any_window_than_its_max_smtp_msg_rate",
    "pool.max-smtp-data-volume-rate": SHARED
    + "test_the_members_of_a_pool_send_no_more_bytes_than_its_max_smtp_data_volume_rate",
    "include": COMMANDS + "test_check_reads_included_files_and_policies_and_says_ok",
    "spool.directory": COMMANDS + "test_an_unused_spool_is_one_sentence",
    "spool.min-free-space": SOURCES + "test_nothing_is_taken_in_where_too_little_is_free",
    "spool.min-free-inodes": SOURCES + "test_nothing_is_taken_in_where_too_little_is_free",
    "pickup.copy": SOURCES + "test_files_are_taken_or_copied_as_pickup_copy_says",
    "dns.nameservers": WAY + "test_mail_goes_to_the_mx_host_at_the_default_smtp_port",
    "dns.allow-loopback-mx": WIRE + "test_mail_whose_mx_leads_back_to_this_machine_bounces_without_allow_loopback_mx",
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
    "source.suppress-local-dsn": TOLD + "test_a_source_may_want_no_reports",
    "source.dsn-return-default": TOLD + "test_the_whole_message_goes_back_where_it_is_asked_for_and_not_too_large",
    "vmta.smtp-source-host": WAY + "test_the_receiver_sees_the_vmtas_own_address_and_name",
    "vmta.host-name": WAY + "test_the_receiver_sees_the_vmtas_own_address_and_name",
    "vmta.max-smtp-out": LIMITS + "test_there_are_never_more_connections_of_a_vmta_than_its_max_smtp_out",
    "vmta.policy": COMMANDS + "test_check_reads_included_files_and_policies_and_says_ok",
    "vmta.cold-virtual-mta": WARMING + "test_the_first_messages_of_a_day_go_to_the_cold_vmtas_in_turn",
    "vmta.warm-up": WARMING + "test_what_is_over_the_plan_of_a_vmta_goes_to_its_overflow_also_after_a_kill",
    "domain.max-cold-virtual-mta-msg": WARMING + "test_the_first_messages_of_a_day_go_to_the_cold_vmtas_in_turn",
    "domain.warm-up": WARMING + "test_the_domains_of_a_provider_share_its_plan",
    "pool.virtual-mta": POOLS + "test_every_member_gets_its_weight_of_the_pools_mail",
    "domain.queue-to": ELSEWHERE
    + "test_domains_with_queue_to_share_the_queue_its_limits_its_connections_and_its_route",
    "domain.smtp-hosts": WAY + "test_when_the_first_level_of_smtp_hosts_is_down_the_second_is_used",
    "domain.default-smtp-port": WAY + "test_mail_goes_to_the_mx_host_at_the_default_smtp_port",
    "domain.disable-mx-rollup": ROLLUP + "test_a_domain_that_is_taken_out_has_a_queue_of_its_own",
    "domain.reroute-to-virtual-mta": REROUTED + "test_mail_for_a_domain_is_sent_by_the_vmta_it_is_rerouted_to",
    "domain.backoff-reroute-to-virtual-mta": REROUTED
    + "test_in_back_off_what_waits_and_what_comes_is_sent_by_the_other_vmta",
    "provider.mx": ROLLUP + "test_the_domains_of_a_provider_share_its_limits_and_its_queue",
    "vmta.max-smtp-msg-rate": VOLUMES + "test_an_address_and_a_vmta_have_rates_of_their_own",
    "vmta.max-smtp-data-volume-rate": VOLUMES + "test_no_more_bytes_go_out_than_the_volume_allows",
    "domain.queue-priority": VOLUMES + "test_a_queue_of_higher_priority_gets_the_place_of_a_lower_one",
    "domain.allow-priority-interruption": VOLUMES + "test_a_queue_that_may_not_be_interrupted_keeps_its_place",
    "domain.source-ip-max-smtp-out": VOLUMES + "test_an_address_has_no_more_connections_than_it_may",
    "domain.max-connect-rate": VOLUMES + "test_connections_are_begun_no_faster_than_max_connect_rate",
    "domain.source-ip-max-connect-rate": VOLUMES
    + "test_an_address_begins_no_more_connections_than_its_own_rate_and_the_other_takes_over",
    "domain.smtp-out-rampup-interval": VOLUMES + "test_a_ramp_up_interval_lies_between_two_connections",
    "domain.source-ip-max-msg-rate": VOLUMES + "test_an_address_and_a_vmta_have_rates_of_their_own",
    "domain.max-data-volume-rate": VOLUMES + "test_no_more_bytes_go_out_than_the_volume_allows",
    "domain.source-ip-max-data-volume-rate": VOLUMES + "test_no_more_bytes_go_out_than_the_volume_allows",
    "domain.backoff-max-smtp-out": REPLIES + "test_in_back_off_there_are_no_more_connections_than_it_allows",
    "domain.backoff-max-connect-rate": REPLIES + "test_a_rate_of_back_off_or_of_a_rule_holds",
    "domain.backoff-max-msg-rate": REPLIES + "test_a_rate_of_back_off_or_of_a_rule_holds",
    "domain.backoff-max-data-volume-rate": REPLIES + "test_a_volume_of_back_off_holds",
    "domain.backoff-retry-after": REPLIES + "test_a_queue_in_back_off_retries_by_its_own_schedule",
    "domain.backoff-to-normal-after": REPLIES + "test_back_off_ends_with_its_time_or_with_a_delivery",
    "domain.backoff-to-normal-after-delivery": REPLIES + "test_back_off_ends_with_its_time_or_with_a_delivery",
    "domain.backoff-recovery-interval": REPLIES + "test_a_recovery_climbs_to_the_normal_limits",
    "domain.backoff-notify": ALERTS + "test_a_queue_that_enters_and_leaves_back_off_is_told_of",
    "domain.disabled-source-ip-notify": ALERTS + "test_a_source_address_that_is_disabled_and_enabled_is_told_of",
    "domain.backoff-upon-all-sources-disabled": REPLIES
    + "test_without_any_address_the_queue_waits_in_back_off_until_one_is_enabled",
    "domain.reenable-source-ip-after": REPLIES
    + "test_without_any_address_the_queue_waits_in_back_off_until_one_is_enabled",
    "domain.retry-upon-new-mail": REFUSALS + "test_new_mail_wakes_a_queue_that_waits_where_it_may",
    "response.name": REPLIES + "test_a_rule_for_another_stage_does_not_fire",
    "response.reply": REPLIES + "test_a_rate_of_back_off_or_of_a_rule_holds",
    "response.stage": REPLIES + "test_a_rule_for_another_stage_does_not_fire",
    "response.action": REPLIES + "test_a_paused_or_deferred_queue_waits_and_goes_on",
    "response.for": REPLIES + "test_a_paused_or_deferred_queue_waits_and_goes_on",
    "response.trigger": REPLIES + "test_a_rule_that_counts_fires_at_its_count",
    "response.set": REPLIES + "test_a_rate_of_back_off_or_of_a_rule_holds",
    "domain.max-smtp-out": LIMITS + "test_there_are_never_more_connections_to_a_domain_than_max_smtp_out",
    "domain.max-msg-per-connection": LIMITS + "test_a_connection_carries_at_most_max_msg_per_connection",
    "domain.max-rcpt-per-transaction": LIMITS
    + "test_a_message_to_many_goes_out_in_transactions_of_max_rcpt_per_transaction",
    "domain.max-msg-rate": LIMITS + "test_no_window_of_a_rate_holds_more_than_the_rate",
    "domain.retry-after": REFUSALS + "test_the_last_pause_of_a_list_repeats",
    "domain.retry-recipients-after": REFUSALS + "test_the_last_pause_of_a_list_repeats",
    "domain.bounce-after": REFUSALS + "test_a_recipient_deferred_for_longer_than_bounce_after_bounces_as_expired",
    "domain.notify-of-delay-every": TOLD + "test_a_sender_who_asks_is_told_of_a_delay_every_notify_of_delay_every",
    "domain.dsn-format": TOLD + "test_a_report_may_be_plain_text_from_an_author_of_ones_own",
    "domain.connection-idle-timeout": LIMITS
    + "test_a_connection_is_used_for_many_messages_and_closed_after_its_idle_timeout",
    "domain.connect-timeout": REFUSALS + "test_a_connection_that_is_not_made_is_given_up_after_connect_timeout",
    "domain.smtp-greeting-timeout": REFUSALS + "test_a_server_without_a_greeting_is_left_after_smtp_greeting_timeout",
    "domain.data-send-timeout": REFUSALS + "test_a_dot_without_an_answer_is_left_after_both_data_timeouts",
    "domain.smtp-data-termination-timeout": REFUSALS + "test_a_dot_without_an_answer_is_left_after_both_data_timeouts",
    "domain.max-errors-per-connection": WIRE
    + "test_a_connection_ends_after_max_errors_per_connection_and_the_rest_goes_at_once",
    "domain.mx-connection-attempts": WIRE + "test_no_more_than_mx_connection_attempts_are_made_for_a_session",
    "domain.smtp-multiple-line-response-timeout": WIRE
    + "test_a_reply_without_an_end_is_left_after_smtp_multiple_line_response_timeout",
    "domain.assume-delivery-upon-data-termination-timeout": WIRE
    + "test_silence_after_the_dot_is_a_delivery_only_where_it_is_assumed_to_be_one",
    "domain.retry-after-dns-error": WIRE + "test_a_failed_look_up_is_made_again_after_retry_after_dns_error",
    "domain.bounce-upon-no-mx": WIRE + "test_a_domain_without_mx_bounces_only_where_bounce_upon_no_mx_says_so",
    "domain.bounce-upon-5xx-greeting": WIRE
    + "test_a_5xx_greeting_bounces_the_queue_only_where_bounce_upon_5xx_greeting_says_so",
    "domain.bounce-upon-transfer-failure": WIRE
    + "test_a_connection_lost_in_the_content_bounces_only_where_bounce_upon_transfer_failure_says_so",
    "domain.smtp-553-means-invalid-mailbox": WIRE
    + "test_a_553_without_a_status_means_what_smtp_553_means_invalid_mailbox_says",
    "domain.smtp-421-means-mx-unavailable": WIRE
    + "test_after_a_421_the_next_host_is_used_where_smtp_421_means_mx_unavailable",
    "domain.replace-smtp-421-service-response": WIRE
    + "test_the_words_of_a_421_are_replaced_by_replace_smtp_421_service_response",
    "domain.ignore-8bitmime": WIRE + "test_8_bit_content_is_made_7_bit_where_8bitmime_is_ignored_by_ignore_8bitmime",
    "domain.ignore-chunking": WIRE + "test_content_goes_as_a_chunk_unless_ignore_chunking_says_otherwise",
    "domain.ignore-pipelining": WIRE + "test_commands_are_one_write_unless_ignore_pipelining_says_otherwise",
    "domain.ignore-dsn": WIRE + "test_what_a_recipient_asks_of_dsns_is_passed_on_unless_ignore_dsn_says_otherwise",
    "domain.auth-username": WIRE + "test_a_smarthost_takes_mail_after_a_login_with_auth_username_and_auth_password",
    "domain.auth-password": WIRE + "test_a_smarthost_takes_mail_after_a_login_with_auth_username_and_auth_password",
    "domain.use-unencrypted-plain-auth": WIRE
    + "test_the_password_is_shown_without_tls_only_with_use_unencrypted_plain_auth",
    "domain.use-starttls": TLS + "test_use_starttls_decides_whether_tls_is_used_where_it_is_offered",
    "domain.require-starttls": TLS + "test_mail_that_require_starttls_protects_waits_rather_than_going_in_the_clear",
    "domain.smtp-tls-verify": TLS + "test_smtp_tls_verify_sends_only_to_hosts_with_a_certificate_of_smtp_tls_ca_file",
    "domain.smtp-tls-ca-file": TLS + "test_smtp_tls_verify_sends_only_to_hosts_with_a_certificate_of_smtp_tls_ca_file",
    "domain.smtp-tls-min-version": TLS + "test_a_version_below_smtp_tls_min_version_counts_as_no_tls",
    "domain.smtp-tls-ciphers": TLS + "test_only_smtp_tls_ciphers_are_offered",
    "domain.smtp-client-certificate": TLS + "test_a_receiver_that_asks_for_a_certificate_sees_smtp_client_certificate",
    "domain.reuse-ssl-session": TLS + "test_reuse_ssl_session_decides_whether_sessions_are_resumed",
    "domain.use-dane": DANE + "test_use_dane_sends_only_to_the_host_whose_certificate_its_tlsa_records_name",
    "domain.use-mta-sts": DANE + "test_use_mta_sts_sends_only_to_the_hosts_that_an_enforced_policy_names",
    "dns.dnssec-trusted": DANE + "test_a_name_server_elsewhere_is_believed_only_with_dnssec_trusted",
    "dns.mta-sts-port": DANE + "test_use_mta_sts_sends_only_to_the_hosts_that_an_enforced_policy_names",
    "bounce.category": CATEGORIES + "test_rows_have_the_category_of_the_first_rule_that_holds",
    "bounce.status": CATEGORIES + "test_rows_have_the_category_of_the_first_rule_that_holds",
    "bounce.words": CATEGORIES + "test_rows_have_the_category_of_the_first_rule_that_holds",
    "bounce.names": CATEGORIES + "test_rows_have_the_category_of_the_first_rule_that_holds",
    "bounce.pattern": CATEGORIES + "test_rows_have_the_category_of_the_first_rule_that_holds",
    "bounce.sample": CATEGORIES + "test_lint_tells_of_rules_that_can_decide_nothing_with_their_lines",
    "domain-key": SIGNED + "test_a_key_of_all_signs_where_the_vmta_has_none_for_the_domain",
    "vmta.domain-key": SIGNED + "test_the_vmtas_own_keys_sign_one_signature_for_each_kind",
    "domain.dkim-sign": SIGNED + "test_dkim_sign_can_be_off_for_a_domain_and_no_key_is_no_signature",
    "domain.dkim-identity": SIGNED + "test_the_identity_is_the_senders_the_authors_or_a_given_one",
    "domain.dkim-headers": SIGNED + "test_fields_that_were_asked_for_are_signed_and_none_that_matters_can_be_added",
    "domain.dkim-disallow-adding-headers": SIGNED
    + "test_fields_that_were_asked_for_are_signed_and_none_that_matters_can_be_added",
    "domain.dkim-headers-canon": SIGNED + "test_signatures_are_relaxed_or_simple_as_asked",
    "domain.dkim-body-canon": SIGNED + "test_signatures_are_relaxed_or_simple_as_asked",
    "domain.dkim-add-timestamp": SIGNED + "test_a_signature_has_its_time_and_its_end_as_asked",
    "domain.dk-sign": SIGNED + "test_domainkeys_signatures_stand_beside_where_they_are_asked_for",
    "domain.dk-canon": SIGNED + "test_domainkeys_signatures_stand_beside_where_they_are_asked_for",
    "source.process-x-dkim-options": SIGNED + "test_a_message_chooses_its_key_where_its_source_allows_it",
    "domain.dkim-expire-after": SIGNED + "test_a_signature_has_its_time_and_its_end_as_asked",
    "acct-file.map-header-to-field": FILES + "test_a_file_has_the_columns_and_header_fields_it_asks_for",
    "acct-file.user-string": FILES + "test_a_file_has_the_columns_and_header_fields_it_asks_for",
    "acct-file.iso-times": FILES + "test_times_are_numbers_and_others_may_read_a_file_where_that_is_wanted",
    "acct-file.world-readable": FILES + "test_times_are_numbers_and_others_may_read_a_file_where_that_is_wanted",
    "acct-file.sync": FILES + "test_times_are_numbers_and_others_may_read_a_file_where_that_is_wanted",
    "acct-file.queue-filter": FILES + "test_a_file_takes_only_the_queues_of_its_filter",
    "acct-file.privacy-policy": FILES + "test_addresses_are_hidden_behind_a_key_and_still_tell_one_person_from_another",
    "acct-file.move-to": FILES + "test_a_rotated_file_goes_to_the_folder_for_it",
    "acct-file.delete-after": FILES + "test_rotated_files_are_deleted_when_they_are_old_enough",
    "acct-file.record-fields": TLS + "test_record_fields_add_the_columns_of_tls_and_the_others_stay_where_they_are",
    "acct-file.path": SOURCES + "test_an_accounting_file_holds_the_records_it_asks_for",
    "acct-file.records": SOURCES + "test_an_accounting_file_holds_the_records_it_asks_for",
    "acct-file.move-interval": SOURCES + "test_an_accounting_file_is_moved_when_it_is_old_or_large",
    "acct-file.max-size": SOURCES + "test_an_accounting_file_is_moved_when_it_is_old_or_large",
    "acct-file.count-moved-records": FILES + "test_a_rotated_file_goes_to_the_folder_for_it",
    "acct-file.write-timeout": PROGRAMS + "test_a_program_that_reads_nothing_is_ended_and_delays_no_mail",
    "acct-file.retry-interval": PROGRAMS + "test_a_program_that_ends_is_started_again_and_misses_no_row",
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
