//! Passwords a day that the best strategy gets answered, by attacker: the table of
//! docs/how-it-decides.md, measured. Attackers react to what is dropped; two days of capture time
//! go through the kernel's own programs, the detector and the bans. Needs root.
//!
//! Strategies that came closest to their limits by default; all of them with `SIP_XDP_LONG=1`.

use anyhow::Result;
use sip_xdp_tests::attackers::budgets::{self, Effort, Row};

/// Runs a row's strategies, prints what each came to, and the row of the table.
fn holds(row: impl Fn(Effort) -> Row) -> Result<()> {
    sip_xdp_tests::require_root()?;
    let row = row(Effort::of_environment());
    let (name, limits) = (row.name, row.limits);
    let [first, later] = row.measure(&mut |line| println!("{line}"))?;
    println!(
        "| {name} | {} of {} ({}) | {} of {} ({}) |",
        first.guesses, limits[0], first.by, later.guesses, limits[1], later.by
    );
    assert!(first.guesses > 0, "nobody guessed anything");
    for (best, limit) in [first, later].iter().zip(limits) {
        let (guesses, by) = (best.guesses, &best.by);
        assert!(guesses <= limit, "{name}: {guesses} guesses, not at most {limit}, by {by}");
    }
    Ok(())
}

#[test]
fn one_address_with_its_own_nonces() -> Result<()> {
    holds(budgets::own_nonces)
}

#[test]
fn one_address_with_borrowed_nonces() -> Result<()> {
    holds(budgets::borrowed_nonces)
}

#[test]
fn one_address_that_hides_what_it_sends() -> Result<()> {
    holds(budgets::hidden)
}

#[test]
fn many_slow_users_of_one_address() -> Result<()> {
    holds(budgets::slow_users)
}

#[test]
fn many_slow_users_of_one_ipv6_network() -> Result<()> {
    holds(budgets::slow_users_by_ipv6)
}

#[test]
fn many_slow_users_beside_an_account() -> Result<()> {
    holds(budgets::slow_users_with_account)
}

#[test]
fn a_relay() -> Result<()> {
    holds(budgets::relay)
}

#[test]
fn ten_addresses_on_several_users() -> Result<()> {
    holds(budgets::ten_on_several_users)
}

#[test]
fn ten_addresses_on_one_user() -> Result<()> {
    holds(budgets::ten_on_one_user)
}

#[test]
fn a_thousand_addresses_on_one_user() -> Result<()> {
    holds(budgets::thousand_on_one_user)
}

#[test]
fn a_thousand_addresses_on_one_user_with_borrowed_nonces() -> Result<()> {
    holds(budgets::thousand_on_one_user_unproven)
}

#[test]
fn an_ipv6_network_on_one_user() -> Result<()> {
    holds(budgets::ipv6_hopper)
}

#[test]
fn somebody_with_an_account() -> Result<()> {
    holds(budgets::own_account)
}

#[test]
fn one_address_by_tcp() -> Result<()> {
    holds(budgets::tcp)
}

#[test]
fn somebody_with_an_account_by_tcp() -> Result<()> {
    holds(budgets::own_account_by_tcp)
}

#[test]
fn a_peer() -> Result<()> {
    holds(budgets::peer)
}
