//! Health of a filter, and warnings: the same for `status`, the terminal view, the web page and the
//! metrics.

use crate::api::answers::DaemonStatus;
use crate::dataplane::counters::{FilteredInterface, Occupancy};
use crate::lists::NEARLY_FULL;

/// The inputs.
#[derive(Debug, Clone, Copy)]
pub struct Health<'a> {
    /// Filtered interfaces.
    pub interfaces: &'a [FilteredInterface],
    /// Fill level of the block list; `None` if nothing is loaded.
    pub blocklist: Option<&'a Occupancy>,
    /// Storm state.
    pub is_storm: bool,
    /// The daemon's status, if it responded.
    pub daemon: Option<&'a DaemonStatus>,
    /// Why it did not, if it exists.
    pub trouble: Option<&'a str>,
}

impl Health<'_> {
    /// Whether packets are dropped on all configured interfaces.
    pub fn is_enforcing(&self) -> bool {
        // A configured interface that was never filtered has no record.
        let is_complete = self.daemon.is_none_or(|daemon| daemon.missing.is_empty())
            && !self.interfaces.is_empty()
            && !self.is_blind();
        is_complete && self.interfaces.iter().all(FilteredInterface::drops)
    }

    /// Whether a program sees no packets, without a remedy.
    fn is_blind(&self) -> bool {
        self.daemon.is_some_and(|daemon| daemon.blind.iter().any(|one| one.action.is_none()))
    }

    /// Warnings for the operator, the daemon's own last.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self.trouble.map(str::to_owned).into_iter().collect();
        match self.blocklist {
            Some(list) => self.warn_of_filter(list, &mut warnings),
            None => warnings.push("nothing is loaded; start `sip-xdp run`".to_owned()),
        }
        warnings.extend(self.daemon.iter().flat_map(|daemon| daemon.warnings.iter().cloned()));
        warnings
    }

    fn warn_of_filter(&self, list: &Occupancy, warnings: &mut Vec<String>) {
        if self.daemon.is_none() && self.trouble.is_none() {
            let is_enforced = self.interfaces.iter().any(FilteredInterface::drops);
            let enforced = if is_enforced { "limits and bans are enforced, but " } else { "" };
            warnings
                .push(format!("no daemon: {enforced}nobody new is banned; start `sip-xdp run`"));
            let trial = self.interfaces.iter().find_map(|one| one.trial_until);
            warnings.extend(trial.map(|until| {
                format!(
                    "the trial of `--confirm` goes on without its daemon, and cannot be confirmed: \
                     from {} on nothing is dropped",
                    until.strftime("%F %T UTC")
                )
            }));
        }
        // After an unconfirmed trial the daemon reports it once for all interfaces.
        let is_detached = self
            .daemon
            .and_then(|daemon| daemon.confirm.as_ref())
            .is_some_and(|confirm| confirm.detached);
        let explained = |one: &&FilteredInterface| is_detached && !one.attached;
        let others = self.interfaces.iter().filter(|one| !explained(one));
        warnings.extend(others.filter_map(FilteredInterface::trouble));
        if self.is_storm {
            warnings.push(
                "a storm: more new sources than can be real; strangers share one budget until it \
                 is over"
                    .into(),
            );
        }
        if self.interfaces.is_empty() {
            warnings.push("no interface is filtered; start `sip-xdp run`".into());
        }
        let (used, capacity) = (list.ipv4 + list.ipv6, list.capacity as usize);
        // A daemon reports all of its tables.
        if self.daemon.is_none() && used * 100 >= capacity * NEARLY_FULL {
            warnings.push(format!(
                "the block list is nearly full: {used} networks of {capacity}; raise \
                 capacity.networks and restart the \
                 daemon"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::answers::{BlindInterface, ConfirmStatus};
    use crate::dataplane::counters;

    fn interface(attached: bool, dry_run: bool) -> FilteredInterface {
        FilteredInterface {
            interface: "eth0".to_owned(),
            index: 2,
            current_name: Some("eth0".to_owned()),
            mode: None,
            since: counters::now(),
            dry_run,
            attached,
            trial_over: false,
            trial_until: None,
            egress: None,
        }
    }

    #[test]
    fn it_enforces_where_it_is_meant_to() {
        let complete = DaemonStatus::default();
        let incomplete = DaemonStatus { missing: vec!["ppp0".to_owned()], ..complete.clone() };
        let healthy = [interface(true, false)];
        let blocklist = Occupancy { ipv4: 79, ipv6: 0, capacity: 100 };
        let health = Health {
            interfaces: &healthy,
            blocklist: Some(&blocklist),
            is_storm: false,
            daemon: Some(&complete),
            trouble: None,
        };
        assert!(health.is_enforcing() && health.warnings().is_empty(), "{:?}", health.warnings());
        assert!(Health { daemon: None, ..health }.is_enforcing(), "the kernel goes on");
        assert!(!Health { daemon: Some(&incomplete), ..health }.is_enforcing(), "one is missing");
        let blind = |action: Option<&str>| DaemonStatus {
            blind: vec![BlindInterface {
                interface: "eth0".to_owned(),
                since: counters::now(),
                packets: 40,
                action: action.map(str::to_owned),
            }],
            ..DaemonStatus::default()
        };
        assert!(!Health { daemon: Some(&blind(None)), ..health }.is_enforcing(), "one is blind");
        assert!(
            Health { daemon: Some(&blind(Some("generic"))), ..health }.is_enforcing(),
            "generic took over"
        );
        let lapsed = FilteredInterface { trial_over: true, ..interface(true, false) };
        for interfaces in [&[][..], &[interface(false, false)], &[interface(true, true)], &[lapsed]]
        {
            let health = Health { interfaces, ..health };
            assert!(!health.is_enforcing() && health.warnings().len() == 1, "{health:?}");
        }
    }

    #[test]
    fn an_unconfirmed_trial_is_reported_once() {
        let warning = "it was detached at noon, since nobody confirmed";
        let daemon = DaemonStatus {
            warnings: vec![warning.to_owned()],
            confirm: Some(ConfirmStatus { pending: false, detached: true, until: None }),
            ..DaemonStatus::default()
        };
        let blocklist = Occupancy { ipv4: 0, ipv6: 0, capacity: 100 };
        let health = Health {
            interfaces: &[interface(false, false)],
            blocklist: Some(&blocklist),
            is_storm: false,
            daemon: Some(&daemon),
            trouble: None,
        };
        assert!(!health.is_enforcing());
        assert_eq!(health.warnings(), [warning]);
    }

    #[test]
    fn problems_are_reported_once() {
        let full = Occupancy { ipv4: 70, ipv6: 10, capacity: 100 };
        let said =
            DaemonStatus { warnings: vec!["a feed fails".to_owned()], ..DaemonStatus::default() };
        let healthy = [interface(true, false)];
        let health = Health {
            interfaces: &healthy,
            blocklist: Some(&full),
            is_storm: true,
            daemon: None,
            trouble: None,
        };
        let starts = |health: Health<'_>, starts: &[&str]| {
            let warnings = health.warnings();
            assert_eq!(warnings.len(), starts.len(), "{warnings:?}");
            assert!(
                warnings.iter().zip(starts).all(|(one, start)| one.starts_with(start)),
                "{warnings:?}"
            );
        };
        starts(
            health,
            &["no daemon:", "a storm:", "the block list is nearly full: 80 networks of 100"],
        );
        starts(
            Health { trouble: Some("it is not ours"), is_storm: false, ..health },
            &["it is not ours", "the block"],
        );
        starts(
            Health { blocklist: None, daemon: Some(&said), ..health },
            &["nothing is loaded", "a feed fails"],
        );
    }
}
