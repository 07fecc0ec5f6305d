//! External owners: programs that block on their own account, such as the jails of fail2ban. Each
//! can remove only its own entries, never those of operators or the detector.
//!
//! A network has one entry for all of them, whose reason lists their names. It lasts as long as the
//! longest of them demands.

use anyhow::{Result, bail};
use log::Level;
use sip_xdp_common::abi::layout::{List, Owner, REASON};

use super::Daemon;
use crate::api::answers::{Listed, Removed, RemovedEntry};
use crate::bans::event::Event;
use crate::dataplane::tables::ledger::Entry;
use crate::net::network::Network;

/// Separator of names.
const BETWEEN: &str = ", ";

/// Maximum length of a name, in bytes.
const LONGEST_NAME: usize = 64;

impl Daemon {
    /// Blocks a network for a tool, until `expires` on the filter's clock.
    pub(super) fn block_for(
        &mut self,
        tool: &str,
        network: Network,
        expires: u64,
        force: bool,
        operator: Option<Network>,
    ) -> Result<Listed> {
        check_name(tool)?;
        let known = self.of_tools(&network);
        let names = with(known.map_or("", |entry| &entry.reason), tool);
        if names.len() > REASON {
            bail!(
                "{network} is blocked by too many tools to note {tool} too; it stays blocked as \
                 long as they want"
            );
        }
        let expires = known.map_or(expires, |entry| entry.expires.max(expires));
        let entry = Entry { owner: Owner::Tool, ..Entry::manual(network, expires, &names) };
        self.block(entry, force, operator)
    }

    /// Removes a tool's block of a network. Succeeds if there is none.
    pub(super) fn unblock_for(&mut self, tool: &str, network: &Network) -> Result<Removed> {
        check_name(tool)?;
        let Some(known) =
            self.of_tools(network).filter(|entry| names(&entry.reason).any(|name| name == tool))
        else {
            return Ok(Removed::default());
        };
        let rest = without(&known.reason, tool);
        if !rest.is_empty() {
            let entry = Entry { reason: rest, ..known.clone() };
            self.lists.put(List::Block, entry)?;
            return Ok(Removed::default());
        }
        let removed = self.lists.remove(List::Block, network, Owner::Tool)?;
        if let Some(entry) = &removed {
            self.announce(
                Event::of("unban", entry).kind("command"),
                Level::Info,
                format_args!("unban {network} owner=tool dry_run=false reason=\"by {tool}\""),
            );
        }
        let removed = removed.iter().map(RemovedEntry::from).collect();
        Ok(Removed { removed, ..Removed::default() })
    }

    fn of_tools(&self, network: &Network) -> Option<&Entry> {
        self.lists.owners(List::Block, network).into_iter().find(|entry| entry.owner == Owner::Tool)
    }
}

fn check_name(tool: &str) -> Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte);
    if tool.is_empty() || tool.len() > LONGEST_NAME || !tool.bytes().all(is_plain) {
        bail!(
            "\"{tool}\" is no name for a tool; use up to {LONGEST_NAME} of a-z, 0-9 and \"-_.:@\""
        );
    }
    Ok(())
}

fn names(reason: &str) -> impl Iterator<Item = &str> {
    reason.split(BETWEEN).filter(|name| !name.is_empty())
}

fn with(reason: &str, tool: &str) -> String {
    let mut all: Vec<_> = names(reason).collect();
    if !all.contains(&tool) {
        all.push(tool);
    }
    all.join(BETWEEN)
}

fn without(reason: &str, tool: &str) -> String {
    names(reason).filter(|name| *name != tool).collect::<Vec<_>>().join(BETWEEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tool_is_named_once() {
        let both = with(&with(&with("", "fail2ban:sip"), "fail2ban:ssh"), "fail2ban:sip");
        assert_eq!(both, "fail2ban:sip, fail2ban:ssh");
        assert_eq!(without(&both, "fail2ban:sip"), "fail2ban:ssh");
        assert_eq!(without(&without(&both, "fail2ban:sip"), "fail2ban:ssh"), "");
        assert_eq!(without(&both, "fail2ban"), both, "a part of a name is another name");
    }

    #[test]
    fn a_name_cannot_be_two() {
        assert!(check_name("fail2ban:asterisk-iptables").is_ok());
        for name in ["", "a, b", "a\nb", "a\"", &"a".repeat(LONGEST_NAME + 1)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
