//! Egress on kernels without tcx: a filter on the clsact qdisc. It outlives the daemon, is never
//! attached twice, and is removed with the product; foreign filters stay. Needs root.
//!
//! The test kernel has tcx, so the daemon runs inside the test and is told not to try it.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use sip_xdp::daemon::{self, Overrides};
use sip_xdp::dataplane::attach::tcx::EgressWay;
use sip_xdp::sys::paths::Paths;
use sip_xdp_tests::foreign::ForeignProgram;
use sip_xdp_tests::process::succeed;
use sip_xdp_tests::topology::{LAN, WAN};
use sip_xdp_tests::{Filter, FilterOptions, Lab, Phone, Registrar, wait_until};
use tokio::sync::oneshot;

const READY: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(5);

/// Runs a daemon without tcx during `action`.
fn without_tcx<T>(lab: &Lab, filter: &Filter<'_>, action: impl FnOnce() -> Result<T>) -> Result<T> {
    let overrides =
        Overrides { egress_ways: Some(vec![EgressWay::Clsact]), ..Overrides::default() };
    with_daemon(lab, filter, overrides, action)
}

/// Runs a daemon inside the test during `action`. Then it ends as if killed, unless it has ended
/// before.
pub(crate) fn with_daemon<T>(
    lab: &Lab,
    filter: &Filter<'_>,
    overrides: Overrides,
    action: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let paths = paths(filter)?;
    let (ready, is_ready) = mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::select! {
                ended = daemon::run(paths, overrides, |_| _ = ready.send(())) => ended,
                _ = stopped => Ok(()),
            }
        })
    };
    thread::scope(|scope| {
        let daemon = scope.spawn(|| lab.pbx.enter(run));
        // If it never gets ready, its own error is the result.
        let outcome = is_ready.recv_timeout(READY).map(|()| action());
        drop(stop);
        daemon.join().map_err(|_| anyhow!("the daemon panicked"))??;
        outcome.context("the daemon was not ready")?
    })
}

fn paths(filter: &Filter<'_>) -> Result<Paths> {
    let directory = filter.state_directory().parent().context("no directory")?.to_owned();
    Ok(Paths {
        config: directory.join("config.toml"),
        run_dir: directory.join("run"),
        state_dir: directory.join("state"),
        pin_dir: filter.pins().to_owned(),
    })
}

fn prepare<'a>(lab: &'a Lab, interfaces: &[&str]) -> Result<Filter<'a>> {
    let filter = Filter::prepare(&lab.pbx, lab.directory(), FilterOptions::default())?;
    filter.configure(&format!("interfaces = {interfaces:?}\n"))?;
    Ok(filter)
}

fn tc(lab: &Lab, arguments: &str) -> Result<String> {
    succeed(
        std::process::Command::new("tc").args(["-n", lab.pbx.name()]).args(arguments.split(' ')),
    )
}

/// Number of our egress filters on an interface.
fn filters(lab: &Lab, interface: &str) -> Result<usize> {
    Ok(tc(lab, &format!("filter show dev {interface} egress"))?
        .matches("handle 0x5060 sip_xdp_egress direct-action")
        .count())
}

fn is_there(lab: &Lab) -> Result<()> {
    assert_eq!(filters(lab, WAN)?, 1);
    Ok(())
}

fn has_clsact(lab: &Lab, interface: &str) -> Result<bool> {
    Ok(tc(lab, &format!("qdisc show dev {interface}"))?.contains("clsact"))
}

/// Egress attachment by interface, from `status`.
fn ways(filter: &Filter<'_>) -> Result<Vec<Value>> {
    let status = filter.json(&["status"])?;
    let interfaces = status["interfaces"].as_array().context("`status` has no interfaces")?;
    Ok(interfaces.iter().map(|interface| interface["egress"].clone()).collect())
}

fn warnings(filter: &Filter<'_>) -> Result<String> {
    Ok(filter.json(&["status"])?["warnings"].to_string())
}

/// Registers a phone, and returns the number of 2xx responses seen.
fn accepted(lab: &Lab, filter: &Filter<'_>) -> Result<u64> {
    let count = || -> Result<u64> {
        let stats = filter.json(&["stats"])?;
        stats["responses"]["accepted"].as_u64().context("`stats` does not count responses")
    };
    for _ in 0..10 {
        let before = count()?;
        let registration = Phone::new(&lab.phone, lab.directory()).register()?;
        assert_eq!(registration.status, 200);
        wait_until("the response is seen", SOON, || Ok(count()? > before))
            .with_context(|| format!("{before} before"))?;
        // A phone that retransmitted was answered again.
        if registration.sent == 2 {
            return Ok(count()? - before);
        }
    }
    bail!("the registrar is always too slow for the phone")
}

#[test]
fn a_filter_stays_and_is_replaced_in_place() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let mut filter = prepare(&lab, &[WAN, LAN])?;
    without_tcx(&lab, &filter, || {
        assert_eq!(ways(&filter)?, [json!("clsact"), json!("clsact")]);
        assert!(
            !warnings(&filter)?.contains("responses are not counted"),
            "{}",
            warnings(&filter)?
        );
        assert_eq!(accepted(&lab, &filter)?, 1, "every response is counted once");
        wait_until("the phone is known good", SOON, || Ok(filter.sources("good")? == 1)).map(drop)
    })?;
    for restart in 0..3 {
        assert_eq!(
            (filters(&lab, WAN)?, filters(&lab, LAN)?),
            (1, 1),
            "without a daemon, restart {restart}"
        );
        assert_eq!(
            ways(&filter)?,
            [json!("clsact"), json!("clsact")],
            "without a daemon, restart {restart}"
        );
        assert_eq!(accepted(&lab, &filter)?, 1, "without a daemon, restart {restart}");
        without_tcx(&lab, &filter, || {
            assert_eq!((filters(&lab, WAN)?, filters(&lab, LAN)?), (1, 1), "restart {restart}");
            assert_eq!(accepted(&lab, &filter)?, 1, "restart {restart}");
            filter.succeed(&["reload"])?;
            assert_eq!((filters(&lab, WAN)?, filters(&lab, LAN)?), (1, 1), "reload {restart}");
            Ok(())
        })?;
    }
    println!("{}", tc(&lab, &format!("filter show dev {LAN} egress"))?);
    // A kernel with tcx: the link takes over, and nothing is counted twice.
    filter.launch()?;
    assert_eq!(ways(&filter)?, [json!("tcx"), json!("tcx")]);
    assert_eq!(
        (filters(&lab, WAN)?, has_clsact(&lab, WAN)?, has_clsact(&lab, LAN)?),
        (0, false, false)
    );
    assert_eq!(accepted(&lab, &filter)?, 1);
    filter.stop()?;
    // And back, which happens only in this test.
    without_tcx(&lab, &filter, || {
        assert_eq!(ways(&filter)?, [json!("clsact"), json!("clsact")]);
        assert_eq!(accepted(&lab, &filter)?, 1);
        Ok(())
    })?;
    filter.unload()?;
    assert_eq!((has_clsact(&lab, WAN)?, has_clsact(&lab, LAN)?), (false, false));
    Ok(())
}

#[test]
fn foreign_filters_and_qdiscs_stay() -> Result<()> {
    const MATCH_ALL: &str = "protocol all prio 7 u32 match u32 0 0 classid 1:1";
    let lab = Lab::new()?;
    let mut filter = prepare(&lab, &[WAN, LAN])?;
    tc(&lab, &format!("qdisc add dev {WAN} clsact"))?;
    for direction in ["ingress", "egress"] {
        tc(&lab, &format!("filter add dev {WAN} {direction} {MATCH_ALL}"))?;
    }
    let theirs = |interface: &str, direction: &str| -> Result<usize> {
        Ok(tc(&lab, &format!("filter show dev {interface} {direction}"))?
            .matches("match 00000000/00000000")
            .count())
    };
    // The kernel shows filters of one direction in the other one as well.
    let before = (theirs(WAN, "ingress")?, theirs(WAN, "egress")?);
    assert!(before.0 > 0 && before.1 > 0, "{before:?}");
    let intact =
        || -> Result<bool> { Ok((theirs(WAN, "ingress")?, theirs(WAN, "egress")?) == before) };
    without_tcx(&lab, &filter, || {
        assert_eq!((filters(&lab, WAN)?, intact()?), (1, true));
        // Foreign filters are added to our qdisc later.
        tc(&lab, &format!("filter add dev {LAN} ingress {MATCH_ALL}")).map(drop)
    })?;
    filter.unload()?;
    assert_eq!((filters(&lab, WAN)?, filters(&lab, LAN)?), (0, 0));
    assert!(
        intact()?,
        "filters of others are gone:\n{}",
        tc(&lab, &format!("filter show dev {WAN} egress"))?
    );
    assert_eq!(
        (has_clsact(&lab, LAN)?, theirs(LAN, "ingress")?),
        (true, 1),
        "their filter on our qdisc"
    );
    assert!(!filter.pins().exists());

    // A foreign empty qdisc stays as well.
    tc(&lab, &format!("qdisc del dev {WAN} clsact"))?;
    tc(&lab, &format!("qdisc add dev {WAN} clsact"))?;
    without_tcx(&lab, &filter, || filter.succeed(&["unload"]).map(drop))?;
    assert_eq!((filters(&lab, WAN)?, has_clsact(&lab, WAN)?), (0, true));

    // An ingress qdisc takes the place of clsact: that is reported, and incoming packets are not
    // read as outgoing.
    tc(&lab, &format!("qdisc del dev {WAN} clsact"))?;
    tc(&lab, &format!("qdisc add dev {WAN} ingress"))?;
    without_tcx(&lab, &filter, || {
        assert_eq!(ways(&filter)?, [Value::Null, json!("clsact")]);
        let said = warnings(&filter)?;
        println!("{said}");
        assert!(
            said.contains(&format!("{WAN}: our responses are not counted: no clsact qdisc")),
            "{said}"
        );
        assert_eq!(tc(&lab, &format!("filter show dev {WAN} ingress"))?, "");
        Ok(())
    })?;
    filter.unload()?;
    assert!(tc(&lab, &format!("qdisc show dev {WAN}"))?.contains("ingress"));
    Ok(())
}

#[test]
fn exactly_ours_leaves() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = prepare(&lab, &[WAN, LAN])?;
    without_tcx(&lab, &filter, || {
        filter.succeed(&["unload", "--iface", WAN])?;
        assert_eq!(
            (filters(&lab, WAN)?, has_clsact(&lab, WAN)?, filters(&lab, LAN)?),
            (0, false, 1)
        );
        Ok(())
    })?;
    // The same without a daemon.
    without_tcx(&lab, &filter, || is_there(&lab))?;
    filter.succeed(&["unload", "--iface", LAN])?;
    assert_eq!((filters(&lab, WAN)?, filters(&lab, LAN)?, has_clsact(&lab, LAN)?), (1, 0, false));
    // Interfaces that are no longer configured are detached.
    without_tcx(&lab, &filter, || {
        assert_eq!((filters(&lab, WAN)?, filters(&lab, LAN)?), (1, 1));
        filter.configure(&format!("interfaces = [{LAN:?}]\n"))?;
        filter.succeed(&["reload"])?;
        assert_eq!(
            (filters(&lab, WAN)?, has_clsact(&lab, WAN)?, filters(&lab, LAN)?),
            (0, false, 1)
        );
        Ok(())
    })?;
    filter.unload()?;
    assert!(!has_clsact(&lab, LAN)?);

    // A start that fails at the second interface detaches the first one again.
    filter.configure(&format!("interfaces = {:?}\n", [WAN, LAN]))?;
    let foreign = ForeignProgram::attach(&lab.pbx, LAN)?;
    let failed = without_tcx(&lab, &filter, || Ok(())).err().context("it was to fail")?;
    println!("{failed:#}");
    assert_eq!(
        (filters(&lab, WAN)?, has_clsact(&lab, WAN)?, has_clsact(&lab, LAN)?),
        (0, false, false)
    );
    assert!(!filter.pins().exists(), "the attempt left pins");
    drop(foreign);
    Ok(())
}

/// Removal of everything from the interface by somebody else, and another interface with a re-used
/// index.
#[test]
fn removed_filters_are_attached_again() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = prepare(&lab, &[WAN])?;
    without_tcx(&lab, &filter, || {
        tc(&lab, &format!("qdisc del dev {WAN} clsact"))?;
        assert_eq!(ways(&filter)?, [Value::Null]);
        filter.succeed(&["reload"])?;
        assert_eq!((ways(&filter)?, filters(&lab, WAN)?), (vec![json!("clsact")], 1));
        Ok(())
    })?;
    // A new qdisc of somebody else is not ours.
    tc(&lab, &format!("qdisc del dev {WAN} clsact"))?;
    tc(&lab, &format!("qdisc add dev {WAN} clsact"))?;
    without_tcx(&lab, &filter, || is_there(&lab))?;
    filter.unload()?;
    assert_eq!((filters(&lab, WAN)?, has_clsact(&lab, WAN)?), (0, true));
    Ok(())
}
