//! Hosts with missing kernel features or restrictions of containers and service managers: the
//! reactions of `run` and `doctor`, which must agree. Features that no host here can lack are
//! tested in `sip_xdp::dataplane::probe`. Needs root.

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp_tests::topology::WAN;
use sip_xdp_tests::{Filter, FilterOptions, Lab, ListServer, Reply};

/// The check of this name.
fn check<'a>(diagnosis: &'a Value, name: &str) -> Result<&'a Value> {
    let checks = diagnosis["checks"].as_array().context("no checks")?;
    checks
        .iter()
        .find(|check| check["check"] == name)
        .with_context(|| format!("no {name} in {diagnosis:#}"))
}

/// What `doctor` finds, well or not.
fn doctor(filter: &Filter<'_>) -> Result<Value> {
    let output = filter.cli(&["doctor", "--json", "--iface", WAN])?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
}

#[test]
fn a_profile_that_refuses_membarrier_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let lists = ListServer::start_in(
        &lab.pbx,
        "127.0.0.1:8001".parse()?,
        Reply::list("192.0.2.0/24\n2001:db8::/48\n"),
    )?;
    for error in [libc::EPERM, libc::ENOSYS, libc::EINVAL] {
        let configuration =
            format!("[[feeds]]\nname = \"public\"\nurl = \"{}\"\n", lists.url("list.txt"));
        let refused_calls = vec![(libc::SYS_membarrier, error)];
        let options = FilterOptions { configuration, refused_calls, ..FilterOptions::default() };
        let mut filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
        // Prefix lengths change and entries leave: both wait for a grace period.
        filter.succeed(&["feed", "sync", "public"])?;
        assert_eq!(filter.entries("192.0.2.0/24")?.len(), 1, "error {error}");
        filter.succeed(&["block", "add", "198.18.7.0/27"])?;
        filter.succeed(&["block", "del", "198.18.7.0/27"])?;
        let found = doctor(&filter)?;
        let grace = check(&found, "grace_period")?;
        assert_eq!(grace["status"], "ok", "{grace}");
        assert_eq!(
            grace["detail"],
            "the daemon waits for running programs by updates of a map of maps"
        );
        filter.unload()?;
    }
    Ok(())
}

#[test]
fn a_profile_that_refuses_bpf_is_named_by_both() -> Result<()> {
    let lab = Lab::new()?;
    let refused_calls = vec![(libc::SYS_bpf, libc::EPERM)];
    let options = FilterOptions {
        interfaces: vec![WAN.to_owned()],
        refused_calls,
        ..FilterOptions::default()
    };
    let mut filter = Filter::prepare(&lab.pbx, lab.directory(), options)?;
    let (status, errors) = filter.launch_in_vain()?;
    let errors = errors.join("\n");
    assert!(!status.success(), "{errors}");
    let found = doctor(&filter)?;
    let bpf = check(&found, "bpf")?;
    assert_eq!(bpf["status"], "fail", "{bpf}");
    for part in [&bpf["detail"], &bpf["remedy"]] {
        let part = part.as_str().context("no text")?;
        assert!(errors.contains(part), "doctor: {part}\nrun: {errors}");
    }
    assert!(
        errors.contains("bpf(2) is refused to this process: Operation not permitted"),
        "{errors}"
    );
    assert!(errors.contains("a seccomp profile stands in the way"), "{errors}");
    assert!(found["programs"].is_null(), "{found}");
    Ok(())
}

#[test]
fn without_btf_it_runs_and_says_what_is_missing() -> Result<()> {
    const HIDDEN: [&str; 5] = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"",
    ];
    let lab = Lab::new()?;
    let filter = Filter::prepare(&lab.pbx, lab.directory(), FilterOptions::default())?;
    let output = filter.cli_inside(&HIDDEN, &["doctor", "--json", "--iface", WAN])?;
    let found: Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    let btf = check(&found, "btf")?;
    assert_eq!(btf["status"], "warn", "{btf}");
    assert_eq!(
        btf["detail"],
        "no /sys/kernel/btf/vmlinux: the filter works without it, but bpftool shows less of it"
    );
    // And that is true.
    let programs = check(&found, "programs")?;
    assert_eq!(programs["status"], "ok", "{programs}");
    Ok(())
}

#[test]
fn doctor_loads_the_programs_as_run_would() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::prepare(&lab.pbx, lab.directory(), FilterOptions::default())?;
    let found = doctor(&filter)?;
    let programs = check(&found, "programs")?;
    assert_eq!(programs["status"], "ok", "{programs}");
    for program in ["ingress", "egress"] {
        let figures = &found["programs"][program];
        let instructions = figures["instructions"].as_u64().with_context(|| figures.to_string())?;
        assert!((1..500_000).contains(&instructions), "{figures}");
        assert!(figures["load_ms"].is_u64(), "{figures}");
        assert!(programs["detail"].to_string().contains(&instructions.to_string()), "{programs}");
    }
    assert!(!filter.pins().exists(), "nothing is pinned");
    Ok(())
}
