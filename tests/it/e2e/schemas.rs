//! Every JSON output conforms to its schema in `sip-xdp/schemas`: without a filter, with an idle
//! one, with a busy one, and without its daemon. Another test checks that each command has a
//! schema; here each schema must be used. Needs root and Linux 6.6 or later.
//!
//! More than 400 lines: one filter is brought into every state that an output has fields for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jsonschema::{Registry, Validator};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sip_xdp_tests::http::{self, METRICS};
use sip_xdp_tests::mix::Mix;
use sip_xdp_tests::pcap::{Cover, pcap};
use sip_xdp_tests::process::Process;
use sip_xdp_tests::topology::{ATTACKER, LAN, PBX_WAN, PHONE, WAN};
use sip_xdp_tests::{
    Filter, FilterOptions, Guess, Guesser, Lab, Phone, Registrar, stream, wait_until,
};

const SOON: Duration = Duration::from_secs(30);

/// A busy filter: host names, feeds, messages, an unreachable CrowdSec.
const CONFIGURATION: &str = r#"
[trust]
networks = ["192.0.2.16/28"]
hosts = ["sip.carrier.example"]
[admit]
hosts = ["phones.example.net"]
[notify]
command = ["sh", "-c", "cat >> NOTES"]
events = ["ban", "feed"]
[crowdsec]
publish = true
url = "http://127.0.0.1:9"
login = "gw1"
password_file = "PASSWORD"
[[feeds]]
name = "public"
url = "file://LIST"
[[feeds]]
name = "decisions"
format = "crowdsec"
url = "http://127.0.0.1:9"
key_file = "PASSWORD"
"#;

/// The schemas, and which of them were used.
struct Schemas {
    validators: BTreeMap<String, Validator>,
    used: BTreeSet<String>,
}

impl Schemas {
    fn read() -> Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sip-xdp/schemas");
        let mut schemas = BTreeMap::new();
        for entry in
            fs::read_dir(&folder).with_context(|| format!("no folder {}", folder.display()))?
        {
            let path = entry?.path();
            let name =
                path.file_stem().context("a file without a name")?.to_string_lossy().into_owned();
            let schema: Value =
                serde_json::from_slice(&fs::read(&path)?).with_context(|| name.clone())?;
            jsonschema::meta::validate(&schema)
                .map_err(|error| anyhow::anyhow!("{name} is no schema: {error}"))?;
            schemas.insert(name, schema);
        }
        // They refer to each other by file.
        let place = |name: &String| format!("json-schema:///{name}.json");
        let registry = Registry::new()
            .extend(schemas.iter().map(|(name, schema)| (place(name), schema)))?
            .prepare()?;
        let outputs = schemas.keys().filter(|name| !["common", "types"].contains(&name.as_str()));
        let validator = |name: &String| -> Result<(String, Validator)> {
            let options =
                jsonschema::options().with_registry(&registry).should_validate_formats(true);
            let built = options.build(&json!({ "$ref": place(name) }));
            Ok((name.clone(), built.map_err(|error| anyhow::anyhow!("{name}: {error}"))?))
        };
        Ok(Self {
            validators: outputs.map(validator).collect::<Result<_>>()?,
            used: BTreeSet::new(),
        })
    }

    /// Validates an output.
    fn check(&mut self, name: &str, output: &Value) -> Result<()> {
        let validator =
            self.validators.get(name).with_context(|| format!("there is no schema {name}"))?;
        let errors: Vec<_> = validator
            .iter_errors(output)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        ensure!(errors.is_empty(), "{name}: {errors:#?} in {output:#}");
        self.used.insert(name.to_owned());
        Ok(())
    }

    /// Runs a command, whose output must match the schema of its name, whatever its status.
    fn command(&mut self, filter: &Filter<'_>, line: &str) -> Result<Value> {
        let words: Vec<&str> = line.split(' ').collect();
        let name = [2, 1].into_iter().filter_map(|length| Some(words.get(..length)?.join("-")));
        let name = name.into_iter().find(|name| self.validators.contains_key(name));
        let name = name.with_context(|| format!("`{line}` has no schema"))?;
        let output = filter.cli(&[&words[..], &["--json"]].concat())?;
        let told =
            || format!("`{line}` printed no JSON: {}", String::from_utf8_lossy(&output.stderr));
        let value = serde_json::from_slice(&output.stdout).with_context(told)?;
        self.check(&name, &value).with_context(|| format!("`{line}`"))?;
        Ok(value)
    }

    /// Several commands.
    fn commands(&mut self, filter: &Filter<'_>, lines: &[&str]) -> Result<()> {
        lines.iter().try_for_each(|line| self.command(filter, line).map(drop))
    }

    /// The web page's data.
    fn page(&mut self, lab: &Lab) -> Result<()> {
        wait_until("the page answers", SOON, || Ok(http::get(&lab.pbx, METRICS, "/").is_ok()))?;
        for name in ["overview", "history"] {
            self.check(
                &format!("web-{name}"),
                &http::json(&lab.pbx, METRICS, &format!("/api/{name}"))?,
            )?;
        }
        self.check("report", &http::json(&lab.pbx, METRICS, "/api/report?since=1d")?)
    }

    /// The events that a watcher has printed so far: their names, and kinds of interface events.
    fn events(&mut self, watcher: &Process) -> Result<BTreeSet<String>> {
        let mut seen = BTreeSet::new();
        for line in watcher.lines().into_iter().filter(|line| !line.error) {
            let event: Value = serde_json::from_str(&line.text)?;
            self.check("watch", &event)?;
            let name = event["event"].as_str().context("an event without a name")?;
            let kind = event["kind"].as_str().filter(|_| name == "interface");
            seen.insert(kind.map_or_else(|| name.to_owned(), |kind| format!("{name}: {kind}")));
        }
        Ok(seen)
    }
}

/// Commands that work without a daemon.
const READS: [&str; 10] = [
    "status",
    "report",
    "stats",
    "top",
    "block list",
    "block export",
    "trust list",
    "state export",
    "doctor",
    "explain 198.51.100.66",
];

#[test]
fn every_output_is_what_its_schema_says() -> Result<()> {
    let mut schemas = Schemas::read()?;
    without_a_filter(&mut schemas)?;
    with_nothing_to_tell(&mut schemas)?;
    with_much_to_tell(&mut schemas)?;
    what_is_rare(&mut schemas)?;
    replays(&mut schemas)?;
    let unused: Vec<_> =
        schemas.validators.keys().filter(|name| !schemas.used.contains(*name)).collect();
    assert!(unused.is_empty(), "no output was held against {unused:?}");
    Ok(())
}

fn without_a_filter(schemas: &mut Schemas) -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::prepare(&lab.pbx, lab.directory(), FilterOptions::default())?;
    let pages = format!("man {}", lab.directory().join("man").display());
    let lines = [
        "status",
        "report",
        "top",
        "state export",
        "doctor",
        "trust suggest",
        "config check",
        "config show",
        "unload",
    ];
    schemas.commands(&filter, &lines)?;
    schemas.commands(&filter, &[&pages])
}

fn with_nothing_to_tell(schemas: &mut Schemas) -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    let empty = lab.directory().join("empty");
    fs::write(&empty, "# nothing\n")?;
    let empty = empty.display();
    schemas.commands(&filter, &READS)?;
    schemas.commands(&filter, &["feed list", "feed sync", "trust suggest", "reload"])?;
    schemas
        .commands(&filter, &[&format!("block import {empty}"), &format!("trust import {empty}")])?;
    let export = lab.directory().join("export.json");
    fs::write(&export, filter.succeed(&["state", "export"])?)?;
    schemas.command(&filter, &format!("state import {}", export.display()))?;
    schemas.page(&lab)?;
    filter.kill9()?;
    schemas.commands(&filter, &READS)?;
    schemas.command(&filter, "unload").map(drop)
}

/// The files of the configuration.
struct Files {
    list: PathBuf,
    notes: PathBuf,
    networks: PathBuf,
    pbx: PathBuf,
    options: FilterOptions,
}

impl Files {
    fn write(directory: &Path) -> Result<Self> {
        let file = |name: &str, content: &str| -> Result<PathBuf> {
            let path = directory.join(name);
            fs::write(&path, content)
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        let pbx = directory.join("pbx");
        fs::create_dir(&pbx)?;
        let identify = "[carrier]\ntype=identify\nmatch=203.0.113.128/25\n\
                        [lost]\ntype=identify\nmatch=0.0.0.0/0\n";
        fs::write(pbx.join("pjsip.conf"), identify)?;
        let list =
            file("list", "192.0.2.100\nthis is none\n10.0.0.1\n192.0.2.101\n192.0.2.128/25\n")?;
        let (password, notes) = (file("password", "secret\n")?, directory.join("notes"));
        let mut configuration = CONFIGURATION.to_owned();
        for (word, path) in [("LIST", &list), ("PASSWORD", &password), ("NOTES", &notes)] {
            configuration = configuration.replace(word, &path.display().to_string());
        }
        let arguments = vec!["--confirm".to_owned(), "1h".to_owned()];
        let options = FilterOptions { configuration, arguments, ..FilterOptions::default() };
        Ok(Self {
            list,
            notes,
            networks: file("networks", "192.0.2.64/28\n2001:db8:99::/48\n")?,
            pbx,
            options,
        })
    }
}

fn with_much_to_tell(schemas: &mut Schemas) -> Result<()> {
    let lab = Lab::new()?;
    let files = Files::write(lab.directory())?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let mut filter = Filter::start_with(&lab.pbx, lab.directory(), files.options.clone())?;
    let mut watcher = filter.start_command(&["watch", "--json", "--packets"])?;
    schemas.commands(&filter, &["config check", "config show", "status", "feed list"])?;
    changes(schemas, &filter, &files, &watcher)?;
    let phone = format!("explain {PHONE}");
    attacks(schemas, &lab, &filter, &watcher)?;
    schemas.commands(&filter, &READS)?;
    schemas
        .commands(&filter, &[&phone, "explain 2001:db8:99::1", "feed sync", "confirm", "reload"])?;
    schemas.page(&lab)?;
    messages(schemas, &files)?;
    takes_its_state_up_again(schemas, &lab, &filter)?;
    watcher.stop(Signal::SIGINT)?;

    filter.kill9()?;
    schemas.commands(&filter, &READS)?;
    schemas
        .commands(&filter, &[&phone, "explain 192.0.2.100", &format!("unload --iface {LAN}")])?;
    let mut daemon = filter.start_command(&["run", "--iface", WAN, "--json"])?;
    let ready = daemon.wait_line(SOON, |line| !line.error && line.text.contains("\"ready\""))?;
    schemas.check("run", &serde_json::from_str(&ready.text)?)?;
    schemas.command(&filter, "unload")?;
    daemon.wait(SOON).map(drop)
}

/// Rare states: a late confirmation, an interface that goes and returns, and a watcher that does
/// not read.
fn what_is_rare(schemas: &mut Schemas) -> Result<()> {
    let lab = Lab::new()?;
    let arguments = vec!["--confirm".to_owned(), "1s".to_owned()];
    let options = FilterOptions { arguments, ..FilterOptions::default() };
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    wait_until("nobody has confirmed in time", SOON, || {
        Ok(schemas.command(&filter, "status")?["daemon"]["confirm"]["pending"] == false)
    })?;
    let confirmed = schemas.command(&filter, "confirm")?;
    ensure!(confirmed["late"] == true, "{confirmed:#}");

    let mut watcher = filter.start_command(&["watch", "--json"])?;
    wait_until("it watches", SOON, || {
        filter.succeed(&["trust", "add", "192.0.2.5"])?;
        Ok(!watcher.lines().is_empty())
    })?;
    // Deleting one end of a veth pair deletes the other one, too.
    lab.pbx.ip(["link", "del", WAN])?;
    wait_until("it is seen to be gone", SOON, || {
        Ok(schemas.events(&watcher)?.contains("interface: gone"))
    })?;
    schemas.command(&filter, "status")?;
    lab.pbx.ip(["link", "add", WAN, "type", "veth", "peer", "name", "beyond"])?;
    lab.pbx.ip(["link", "set", WAN, "up"])?;
    wait_until("it is seen to be back", SOON, || {
        Ok(schemas.events(&watcher)?.contains("interface: attached"))
    })?;

    // More entries expire in one second than the watcher's backlog and its socket hold.
    watcher.signal(Signal::SIGSTOP)?;
    let networks: Vec<String> =
        (0..6_000).map(|n| format!("10.0.{}.{}\n", n / 250, n % 250)).collect();
    let file = lab.directory().join("many");
    fs::write(&file, networks.concat())?;
    schemas.command(&filter, &format!("block import {} --ttl 1s", file.display()))?;
    wait_until("they have ended", SOON, || {
        Ok(filter.json(&["block", "list"])?.as_array().is_some_and(|rows| rows.is_empty()))
    })?;
    watcher.signal(Signal::SIGCONT)?;
    wait_until("it is told that it has lost some", SOON, || {
        Ok(schemas.events(&watcher)?.contains("lost"))
    })?;
    watcher.stop(Signal::SIGINT).map(drop)
}

/// Changes by operators and tools, as a watcher sees them.
fn changes(
    schemas: &mut Schemas,
    filter: &Filter<'_>,
    files: &Files,
    watcher: &Process,
) -> Result<()> {
    let networks = files.networks.display();
    let lines = [
        "block add 192.0.2.1",
        "block add 192.0.2.2 --ttl 1h --reason because",
        "block add 192.0.2.3 --by jail",
        "block del 192.0.2.3 --by jail",
        "block del 192.0.2.1",
        "unban 192.0.2.2",
        "block add 192.0.2.4 --ttl 1s",
        "trust add 192.0.2.5 --ttl 1h",
        "trust add trunk.example.org",
        "trust list",
        "trust del 192.0.2.5",
        "trust del trunk.example.org",
        "trust add 192.0.2.6",
        &format!("block import {networks}"),
        &format!("trust import {networks}"),
        &format!("trust suggest --pbx-dir {}", files.pbx.display()),
    ];
    schemas.commands(filter, &lines)?;
    // With a list that has skipped entries and changes.
    let rows = schemas.command(filter, "feed sync public")?;
    ensure!(rows[0]["skipped"]["malformed"] == 1 && rows[0]["first_malformed"] == 2, "{rows:#}");
    fs::write(&files.list, "192.0.2.100\n192.0.2.102\n")?;
    schemas.command(filter, "feed sync public --accept")?;
    wait_until("changes are seen", SOON, || {
        let seen = schemas.events(watcher)?;
        Ok(["block", "unban", "trust", "untrust", "feed"].iter().all(|event| seen.contains(*event)))
    })
    .map(drop)
}

/// A registering phone, a guesser, and a flood.
fn attacks(schemas: &mut Schemas, lab: &Lab, filter: &Filter<'_>, watcher: &Process) -> Result<()> {
    ensure!(
        Phone::new(&lab.phone, lab.directory()).register()?.status == 200,
        "the phone does not register"
    );
    let guesser = lab.further_attacker(1)?;
    let (from, to) = (SocketAddr::from((guesser, 5060)), SocketAddr::from((PBX_WAN, 5060)));
    let mut guess = Guess::new(from, to, "101");
    guess.every = Duration::from_millis(300);
    let guessing = Guesser::start(&lab.attacker, guess)?;
    let asked = format!("explain {guesser}");
    wait_until("evidence is told", SOON, || {
        let report = schemas.command(filter, &asked)?;
        Ok(report["evidence"].as_array().is_some_and(|evidence| !evidence.is_empty())
            && !report["last"].is_null())
    })?;
    filter.wait_for_ban(&guesser.to_string(), SOON)?;
    let flood = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 500)?;
    filter.wait_for_ban(&ATTACKER.to_string(), SOON)?;
    wait_until("all of it is seen", SOON, || {
        let seen = schemas.events(watcher)?;
        Ok(["good", "limit", "ban", "packet"].iter().all(|event| seen.contains(*event)))
    })?;
    flood.stop()?;
    drop(guessing);
    wait_until("the ban is in the history", SOON, || {
        let report = schemas.command(filter, "explain 198.51.100.66")?;
        Ok(report["history"].as_array().is_some_and(|history| !history.is_empty()))
    })
    .map(drop)
}

/// The messages of notification, one object after the other.
fn messages(schemas: &mut Schemas, files: &Files) -> Result<()> {
    wait_until("somebody is told", SOON, || {
        let told = fs::read_to_string(&files.notes).unwrap_or_default();
        let mut seen = BTreeSet::new();
        for message in serde_json::Deserializer::from_str(&told).into_iter() {
            // The last one may be incomplete.
            let Ok(message) = message else { break };
            schemas.check("notify", &message)?;
            seen.extend(message["event"].as_str().map(str::to_owned));
        }
        Ok(seen.contains("ban") && seen.contains("feed"))
    })
    .map(drop)
}

/// Imports an export of which some entries are missing by now.
fn takes_its_state_up_again(schemas: &mut Schemas, lab: &Lab, filter: &Filter<'_>) -> Result<()> {
    let mut exported = schemas.command(filter, "state export")?;
    for part in ["block", "trust", "accepted", "history"] {
        ensure!(
            exported[part].as_array().is_some_and(|rows| !rows.is_empty()),
            "no {part}: {exported:#}"
        );
    }
    let block = exported["block"].as_array_mut().context("no list")?;
    let own = json!({
        "network": PBX_WAN, "owner": "auto", "reason": "", "tier": "proven",
        "added": exported_time(), "expires": null, "port": null,
    });
    block.push(own);
    let file = lab.directory().join("export.json");
    fs::write(&file, exported.to_string())?;
    schemas.command(filter, &format!("unban {ATTACKER}"))?;
    let taken = schemas.command(filter, &format!("state import {}", file.display()))?;
    ensure!(
        taken["block"]["added"].as_u64() > Some(0) && taken["trust"]["kept"].as_u64() > Some(0),
        "{taken:#}"
    );
    Ok(())
}

fn exported_time() -> String {
    jiff::Timestamp::now().to_string()
}

fn replays(schemas: &mut Schemas) -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::prepare(&lab.pbx, lab.directory(), FilterOptions::default())?;
    let file = |name: &str, content: &[u8]| -> Result<String> {
        let path = lab.directory().join(name);
        fs::write(&path, content)?;
        Ok(path.display().to_string())
    };
    let mix = Mix {
        length: Duration::from_secs(3_600),
        phones: 10,
        registers: Duration::from_secs(600),
        keepalives: Duration::from_secs(600),
        calls: Duration::from_secs(1_800),
        media: 3,
        attackers: true,
    };
    let mixed = file("mix.pcap", &pcap(Cover::Ethernet, &mix.packets()))?;
    let empty = file("empty.pcap", &pcap(Cover::Ethernet, &[]))?;
    let strict = "[limits.unknown]\nrequests = { count = 1, per = \"60s\" \
                  }\n[detect.slow]\nenabled = false\n";
    let strict = file("strict.toml", strict.as_bytes())?;
    let report = schemas.command(&filter, &format!("replay {mixed}"))?;
    ensure!(
        report["events"].as_array().is_some_and(|events| !events.is_empty()),
        "nothing happened: {report:#}"
    );
    let report = schemas.command(&filter, &format!("replay {mixed} --compare {strict}"))?;
    ensure!(
        report["differences"].as_array().is_some_and(|all| !all.is_empty()),
        "no difference: {report:#}"
    );
    schemas.command(&filter, &format!("replay {empty}"))?;
    for capture in [&mixed, &empty] {
        schemas.check("report", &filter.json(&["replay", capture, "--report"])?)?;
    }
    Ok(())
}

/// A schema that accepts everything would never fail.
#[test]
fn properties_missing_from_a_schema_are_refused() -> Result<()> {
    let mut schemas = Schemas::read()?;
    let event = json!({
        "time": "2026-01-02T03:04:05Z", "event": "ban", "kind": "rejected",
        "address": "192.0.2.7", "port": null, "reason": "10 passwords", "tier": "proven",
        "dry_run": false, "owner": "auto", "expires": null,
    });
    schemas.check("watch", &event)?;
    schemas
        .check("watch", &json!({ "time": "2026-01-02T03:04:05Z", "event": "lost", "count": 7 }))?;
    let mut interface = event.clone();
    for (field, value) in [
        ("event", "interface".into()),
        ("kind", "gone".into()),
        ("address", Value::Null),
        ("interface", "ppp0".into()),
    ] {
        interface[field] = value;
    }
    schemas.check("watch", &interface)?;
    for (field, value) in [
        ("time", "yesterday".into()),
        ("event", "bang".into()),
        ("kind", "weather".into()),
        ("address", "nobody".into()),
        ("port", 65_536.into()),
        ("tier", "surely".into()),
        ("dry_run", "no".into()),
        ("more", 1.into()),
    ] {
        let mut changed = event.clone();
        changed[field] = value;
        assert!(schemas.check("watch", &changed).is_err(), "{changed}");
    }
    let fields: Vec<String> = event.as_object().context("an object")?.keys().cloned().collect();
    for field in fields {
        let mut changed = event.clone();
        changed.as_object_mut().context("an object")?.remove(&field);
        assert!(schemas.check("watch", &changed).is_err(), "without {field}");
    }
    Ok(())
}
