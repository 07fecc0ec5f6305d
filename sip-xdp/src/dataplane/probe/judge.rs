//! Consequences of a platform's features: obstacles and limitations.

use anyhow::{Result, bail};

use super::{BTF, Caller, Helper, Platform};

/// The oldest releases that were tested, as a hint. No decision depends on them.
const WORKS: &str =
    "use a kernel that has it: Debian 12 (6.1), Ubuntu 24.04 (6.8) and newer ones do";

/// A finding about this platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Name of the check in `doctor`.
    pub check: &'static str,
    /// The observation, and its consequence.
    pub detail: String,
    /// The remedy.
    pub remedy: String,
}

impl Finding {
    fn new(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, detail: detail.into(), remedy: remedy.into() }
    }
}

impl Platform {
    /// Findings each of which keeps the filter from running.
    pub fn obstacles(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut add = |finding: Finding| found.push(finding);
        match &self.capabilities {
            Ok(missing) if missing.is_empty() => {}
            Ok(missing) => add(Finding::new(
                "capabilities",
                format!("missing {} to load programs into the kernel", missing.join(", ")),
                "run it as root, or give the process these capabilities (of a service \
                 AmbientCapabilities=, of a container \
                 --cap-add)",
            )),
            Err(error) => {
                add(Finding::new("capabilities", error, "mount /proc, where capabilities are read"))
            }
        }
        if let Err(error) = &self.xdp {
            let refused = self.capabilities.as_ref().is_ok_and(Vec::is_empty);
            let remedy = if refused {
                "it has the capabilities, so a container, lockdown or a seccomp profile stands in \
                 the way, or the kernel was \
                 built without BPF (CONFIG_BPF_SYSCALL): run it on the host itself"
            } else {
                "give this process the capabilities first"
            };
            add(Finding::new("bpf", format!("bpf(2) is refused to this process: {error}"), remedy));
            // The following checks would fail for the same cause.
            return found;
        }
        if !self.missing_helpers.is_empty() {
            add(Finding::new("kernel", missing_helpers(&self.missing_helpers), WORKS));
        }
        if !self.ring_buffer {
            add(Finding::new(
                "kernel",
                "the kernel has no ring buffer, on which events come to the daemon",
                WORKS,
            ));
        }
        if !self.mapped_arrays {
            let detail = "the kernel does not let user space map an array (BPF_F_MMAPABLE), as the \
                          tables are written";
            add(Finding::new("kernel", detail, WORKS));
        }
        if self.xdp_links == Some(false) {
            let detail = "the kernel has no XDP links, with which the filter outlives its daemon";
            add(Finding::new("kernel", detail, WORKS));
        }
        if let Err(error) = &self.grace {
            let remedy = "allow bpf(2) to make a map of maps, or membarrier(2), in the seccomp \
                          profile or the container";
            add(Finding::new(
                "grace_period",
                format!("{error}: lists could not be changed without gaps"),
                remedy,
            ));
        }
        found
    }

    /// Findings that limit the filter.
    pub fn limitations(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        if !self.frags && self.xdp.is_ok() {
            found.push(Finding::new(
                "kernel",
                "the kernel takes no programs for packets of several buffers \
                 (BPF_F_XDP_HAS_FRAGS): an interface with \
                 jumbo frames cannot run the filter in its driver",
                "keep the MTU at 1500 where the filter is to run in the driver, or use a kernel of \
                 5.18 or newer",
            ));
        }
        if self.destroys_sockets == Some(false) {
            found.push(Finding::new(
                "kernel",
                "the kernel destroys no sockets on request: TCP connections of a banned source \
                 stay open, silent, until the SIP server ends them",
                "use a kernel with CONFIG_INET_DIAG_DESTROY, as distributions build it, and load \
                 the module tcp_diag; or set timeouts for idle connections in the SIP server",
            ));
        }
        if !self.btf {
            found.push(Finding::new(
                "btf",
                format!("no {BTF}: the filter works without it, but bpftool shows less of it"),
                "use a kernel with CONFIG_DEBUG_INFO_BTF, as distributions build it; nothing needs \
                 to be done",
            ));
        }
        found
    }

    /// The egress attachment available here.
    pub fn responses(&self) -> &'static str {
        match self.tcx {
            Some(true) => "responses are read through tcx",
            Some(false) => {
                "responses are read by a filter on the clsact qdisc (the kernel has no tcx)"
            }
            None => "responses are read through tcx, or by a filter on the clsact qdisc",
        }
    }

    /// The missing feature, for a refusal without a reason: the first obstacle, or limitation of
    /// loading.
    pub fn first_missing(&self) -> Option<String> {
        let obstacle = self.obstacles().into_iter().next();
        obstacle.map(|finding| format!("{}; {}", finding.detail, finding.remedy))
    }

    /// Fails with all obstacles, in the words of `doctor`.
    ///
    /// # Errors
    ///
    /// If there are any.
    pub fn check(&self) -> Result<()> {
        let obstacles = self.obstacles();
        if obstacles.is_empty() {
            return Ok(());
        }
        let all: Vec<_> =
            obstacles.iter().map(|one| format!("{}; {}", one.detail, one.remedy)).collect();
        bail!(all.join(". Also: "))
    }
}

fn missing_helpers(missing: &[Helper]) -> String {
    let each: Vec<String> = missing
        .iter()
        .map(|helper| {
            let program = match helper.called_by {
                Caller::Ingress => "ingress",
                Caller::Egress => "egress",
                Caller::Both => "ingress and egress",
            };
            format!("{} ({program}; in Linux since {})", helper.name, helper.since)
        })
        .collect();
    let (noun, verb) = if missing.len() == 1 { ("a helper", "calls") } else { ("helpers", "call") };
    let who = if missing.len() == 1 { "that the filter" } else { "that its programs" };
    format!("the kernel does not have {noun} {who} {verb}: {}", each.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::HELPERS;
    use super::*;
    use crate::dataplane::rcu::GraceWait;

    fn complete() -> Platform {
        Platform {
            release: "6.1.0-56-amd64".to_owned(),
            capabilities: Ok(Vec::new()),
            xdp: Ok(()),
            frags: true,
            missing_helpers: Vec::new(),
            ring_buffer: true,
            mapped_arrays: true,
            xdp_links: Some(true),
            tcx: Some(true),
            destroys_sockets: Some(true),
            grace: Ok(GraceWait::MapOfMaps),
            btf: true,
        }
    }

    /// The operator's view of one missing feature, the same by `run` and `doctor`.
    fn refusal(platform: &Platform) -> String {
        let text = platform.check().unwrap_err().to_string();
        for finding in platform.obstacles() {
            assert!(text.contains(&finding.detail) && text.contains(&finding.remedy), "{text}");
        }
        assert_eq!(text.lines().count(), 1);
        text
    }

    #[test]
    fn a_complete_platform_has_nothing_to_say() {
        let platform = complete();
        assert!(platform.check().is_ok() && platform.limitations().is_empty());
        assert_eq!(platform.first_missing(), None);
    }

    #[test]
    fn a_kernel_without_tcx_runs_with_a_filter() {
        let platform = Platform { tcx: Some(false), ..complete() };
        assert!(platform.check().is_ok() && platform.limitations().is_empty());
        assert_eq!(
            platform.responses(),
            "responses are read by a filter on the clsact qdisc (the kernel has no tcx)"
        );
    }

    #[test]
    fn a_kernel_that_destroys_no_sockets_runs() {
        let platform = Platform { destroys_sockets: Some(false), ..complete() };
        assert!(platform.check().is_ok());
        let [finding] = &platform.limitations()[..] else { panic!("one") };
        assert!(finding.remedy.contains("CONFIG_INET_DIAG_DESTROY"), "{finding:?}");
        let unknown = Platform { destroys_sockets: None, ..complete() };
        assert!(unknown.limitations().is_empty());
    }

    #[test]
    fn a_kernel_without_btf_runs() {
        let platform = Platform { btf: false, ..complete() };
        assert!(platform.check().is_ok());
        let [finding] = &platform.limitations()[..] else { panic!("one") };
        assert_eq!(
            (finding.check, finding.detail.as_str()),
            (
                "btf",
                "no /sys/kernel/btf/vmlinux: the filter works without it, but bpftool shows less \
                 of it"
            )
        );
    }

    #[test]
    fn a_kernel_without_frags_says_what_it_goes_without() {
        let platform = Platform { frags: false, ..complete() };
        assert!(platform.check().is_ok());
        let [finding] = &platform.limitations()[..] else { panic!("one") };
        assert_eq!(
            (finding.check, finding.detail.as_str(), finding.remedy.as_str()),
            (
                "kernel",
                "the kernel takes no programs for packets of several buffers \
                 (BPF_F_XDP_HAS_FRAGS): an interface with jumbo frames cannot run the filter in \
                 its driver",
                "keep the MTU at 1500 where the filter is to run in the driver, or use a kernel \
                 of 5.18 or newer",
            )
        );
    }

    #[test]
    fn missing_helpers_are_named_with_who_calls_them() {
        let one = HELPERS.iter().copied().filter(|helper| helper.name == "bpf_loop").collect();
        let text = refusal(&Platform { missing_helpers: one, ..complete() });
        assert!(
            text.starts_with(
                "the kernel does not have a helper that the filter calls: bpf_loop (ingress and \
                 egress; in Linux since 5.17); \
                 use a kernel that has it"
            ),
            "{text}"
        );
        let several = HELPERS.iter().copied().filter(|helper| helper.since == "5.18").collect();
        let text = refusal(&Platform { missing_helpers: several, ..complete() });
        assert!(
            text.contains(
                "bpf_xdp_get_buff_len (ingress; in Linux since 5.18), bpf_xdp_load_bytes"
            ),
            "{text}"
        );
    }

    #[test]
    fn other_obstacles_are_named() {
        for (platform, part) in [
            (Platform { ring_buffer: false, ..complete() }, "no ring buffer"),
            (Platform { mapped_arrays: false, ..complete() }, "BPF_F_MMAPABLE"),
            (Platform { xdp_links: Some(false), ..complete() }, "no XDP links"),
            (
                Platform { grace: Err("refused".to_owned()), ..complete() },
                "refused: lists could not be changed",
            ),
            (
                Platform { capabilities: Ok(vec!["CAP_BPF".to_owned()]), ..complete() },
                "missing CAP_BPF",
            ),
            (Platform { xdp: Err("Operation not permitted".to_owned()), ..complete() }, "lockdown"),
        ] {
            let text = refusal(&platform);
            assert!(text.contains(part), "{text}");
            assert_eq!(platform.obstacles().len(), 1, "{text}");
        }
        // Links could not be probed; attaching will tell.
        assert!(Platform { xdp_links: None, tcx: None, ..complete() }.check().is_ok());
    }
}
