//! `kill -9` at any moment: during a command, a feed's synchronisation, a ban, a start; sometimes
//! with a loss of all kernel state, as in a power cut. Acknowledged changes survive, and kernel
//! tables, ledger and store agree. Needs root and Linux 6.6 or later.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use sip_xdp::dataplane::pins::Pins;
use sip_xdp::dataplane::tables::header;
use sip_xdp::dataplane::tables::ledger::{Entry, Ledger};
use sip_xdp::dataplane::tables::networks::Table;
use sip_xdp::net::network::Network;
use sip_xdp::store::Store;
use sip_xdp::sys::clock;
use sip_xdp_common::abi::layout::{List, NEVER, Owner};
use sip_xdp_common::abi::names;
use sip_xdp_common::lookup::networks::Kind;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN, PHONE, WAN};
use sip_xdp_tests::{
    Draw, Filter, FilterOptions, Lab, ListServer, Registrar, Reply, short_or_long, stream,
    wait_until,
};

const SOON: Duration = Duration::from_secs(20);
const SECOND: u64 = 1_000_000_000;

/// Number of hosts per list that commands use: few, so that they collide often.
const HOSTS: u64 = 40;
/// Number of networks per import.
const IMPORTED: u64 = 300;
/// Networks in every version of the feed, and in one version only.
const KEPT: u32 = 2_000;
const CHANGING: u32 = 200;

/// The possible state of an entry: absent, or with an end between these times of the filter's
/// clock.
type Claim = Option<(u64, u64)>;

type Id = (List, Network);

/// The effects of commands, as far as their responses tell. A command without a response leaves two
/// possibilities.
struct Model {
    claims: BTreeMap<Id, Vec<Claim>>,
    /// The last acknowledged version of the feed, and the server's current one.
    synced: u32,
    served: u32,
}

/// The outcome of a request.
enum Answer {
    Done(Value),
    Refused,
    /// The daemon died before its response.
    Lost,
}

fn ask(filter: &Filter<'_>, request: &Value) -> Answer {
    match filter.call(request) {
        Ok(value) => Answer::Done(value),
        Err(error) if error.to_string().starts_with("the daemon refused") => Answer::Refused,
        Err(_) => Answer::Lost,
    }
}

fn host(list: List, number: u64) -> Network {
    let third = if list == List::Block { 9 } else { 8 };
    Network::host(IpAddr::V4(Ipv4Addr::new(198, 18, third, number as u8)))
}

/// The networks of a version of the feed. All versions share the first part.
fn version(number: u32) -> BTreeSet<Network> {
    let network = |n: u32| Network::host(IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + 5 * n)));
    let changing = KEPT + number * CHANGING..KEPT + (number + 1) * CHANGING;
    (0..KEPT).chain(changing).map(network).collect()
}

fn reply(number: u32) -> Reply {
    Reply::list(version(number).iter().map(|network| format!("{network}\n")).collect::<String>())
}

impl Model {
    fn new() -> Self {
        Self { claims: BTreeMap::new(), synced: 0, served: 0 }
    }

    /// Records a response about an entry with this wanted state.
    fn note(&mut self, id: Id, answer: &Answer, wanted: Claim) {
        let possible = self.claims.entry(id).or_insert_with(|| vec![None]);
        match answer {
            Answer::Done(_) => *possible = vec![wanted],
            // Removal of a missing entry.
            Answer::Refused if wanted.is_none() => *possible = vec![None],
            Answer::Refused => {}
            Answer::Lost => possible.push(wanted),
        }
    }

    /// One random command. Returns false if the daemon died before its response.
    fn command(
        &mut self,
        filter: &Filter<'_>,
        server: &ListServer,
        draw: &mut Draw,
    ) -> Result<bool> {
        let number = draw.below(HOSTS);
        let ttl = [None, Some(1 + draw.below(4)), Some(3_600)][draw.below(3) as usize];
        let begun = clock::now();
        let end = |at: u64| ttl.map_or(NEVER, |ttl| at + ttl * SECOND);
        let (list, name) =
            if draw.below(5) == 0 { (List::Trust, "trust") } else { (List::Block, "block") };
        let answer = match draw.below(20) {
            0..10 => {
                let network = host(list, number);
                let request = json!({
                    "command": "add", "list": name, "network": network, "ttl": ttl,
                    "reason": "laboratory", "force": false, "operator": null });
                let answer = ask(filter, &request);
                self.note((list, network), &answer, Some((end(begun), end(clock::now()))));
                answer
            }
            10..17 => {
                let network = host(list, number);
                let answer =
                    ask(filter, &json!({ "command": "delete", "list": name, "network": network }));
                self.note((list, network), &answer, None);
                answer
            }
            17..19 => {
                let first = 0xc613_0000 + (draw.below(4) * IMPORTED) as u32;
                let networks = (0..IMPORTED as u32)
                    .map(|n| Network::host(IpAddr::V4(Ipv4Addr::from(first + n))));
                let networks: Vec<Network> = networks.collect();
                let request = json!({
                    "command": "import", "list": "block", "networks": networks, "ttl": ttl,
                    "reason": "laboratory", "force": false, "operator": null });
                let answer = ask(filter, &request);
                let wanted = Some((end(begun), end(clock::now())));
                networks
                    .iter()
                    .for_each(|network| self.note((List::Block, *network), &answer, wanted));
                answer
            }
            _ => return self.sync(filter, server),
        };
        Ok(!matches!(answer, Answer::Lost))
    }

    /// A new version of the feed. Returns false if the daemon died before its acknowledgement.
    fn sync(&mut self, filter: &Filter<'_>, server: &ListServer) -> Result<bool> {
        self.served += 1;
        server.reply(reply(self.served));
        let request = json!({ "command": "feed_sync", "name": "lab", "accept": false });
        let Answer::Done(answer) = ask(filter, &request) else {
            return Ok(false);
        };
        let round = answer["rounds"]["lab"].as_u64().context("no round")?;
        loop {
            let Answer::Done(rows) = ask(filter, &json!({ "command": "feed_list" })) else {
                return Ok(false);
            };
            let row = &rows[0];
            if row["round"].as_u64().context("no round")? >= round {
                ensure!(row["error"].is_null(), "the feed fails: {row}");
                self.synced = self.served;
                return Ok(true);
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Compares the listed entries with the possible ones, and adopts them.
    fn check(&mut self, listed: &BTreeMap<Id, Entry>) -> Result<()> {
        let now = clock::now();
        for (id, possible) in &mut self.claims {
            let found = listed.get(id).map(|entry| entry.expires);
            // The store keeps milliseconds of a clock that is read at another instant.
            let fits = |claim: &Claim| match (claim, found) {
                (None, None) => true,
                (Some((from, _)), None) => *from <= now,
                (Some((from, to)), Some(end)) => {
                    end.saturating_add(SECOND) >= *from && end.saturating_sub(SECOND) <= *to
                }
                (None, Some(_)) => false,
            };
            if !possible.iter().any(fits) {
                bail!(
                    "{id:?} is listed until {found:?}, but may only be until one of {possible:?}; \
                     it is {now}"
                );
            }
            *possible = vec![found.map(|end| (end, end))];
        }
        let unknown = listed.keys().find(|id| !self.claims.contains_key(id));
        unknown.map_or(Ok(()), |id| bail!("{id:?} is listed, and nobody ever wanted that"))
    }
}

/// All live entries of the ledger.
fn ledger(pins: &Pins) -> Result<Vec<(List, Entry)>> {
    let now = clock::now();
    let entries = Ledger::new(pins.open(names::LEDGER)?)?.entries()?;
    Ok(entries.into_iter().filter(|(_, entry)| !entry.is_over(now)).collect())
}

/// The operators' entries.
fn manual(entries: &[(List, Entry)]) -> BTreeMap<Id, Entry> {
    let manual = entries.iter().filter(|(_, entry)| entry.owner == Owner::Manual);
    manual.map(|(list, entry)| ((*list, entry.network), entry.clone())).collect()
}

/// The kernel's table: networks with claims, and those of feeds.
fn tabled(pins: &Pins) -> Result<(BTreeSet<Id>, BTreeSet<Network>)> {
    let guide = header::read(pins.open(names::TABLE_HEADER)?)?;
    let table = Table::open(|name| pins.open(name), &guide)?;
    let whole = table.map_all()?;
    let now = clock::now();
    let (mut claimed, mut fed) = (BTreeSet::new(), BTreeSet::new());
    for entry in whole.entries().filter(|entry| entry.slot_state.expires > now) {
        let list = List::ALL.into_iter().find(|list| Kind::of(*list) == entry.kind);
        claimed.extend(list.filter(|_| entry.slot_state.claimed).map(|list| (list, entry.network)));
        if entry.slot_state.feed {
            fed.insert(entry.network);
        }
    }
    Ok((claimed, fed))
}

/// In a second: earlier ends are left out, since the clock goes on.
fn soon() -> u64 {
    clock::now() + SECOND
}

/// Entries that last longer than this.
fn lasting(
    entries: Vec<(List, Entry)>,
    soon: u64,
) -> BTreeSet<(List, Network, Option<u16>, Owner)> {
    let lasting = entries.into_iter().filter(|(_, entry)| entry.expires > soon);
    lasting.map(|(list, entry)| (list, entry.network, entry.port, entry.owner)).collect()
}

/// Ledger, table and store agree.
fn all_agree(pins: &Pins, filter: &Filter<'_>) -> Result<()> {
    let listed: BTreeSet<Id> = lasting(ledger(pins)?, soon())
        .into_iter()
        .filter(|row| row.2.is_none())
        .map(|row| (row.0, row.1))
        .collect();
    let (claimed, _) = tabled(pins)?;
    let missing: Vec<_> = listed.difference(&claimed).collect();
    // A recent ban is in the table first.
    ensure!(missing.is_empty(), "the kernel does not ask for {missing:?}");
    wait_until("the store has what the kernel has", SOON, || {
        let stored = Store::read_only(&filter.state_directory().join("state.db"))?.state()?.entries;
        let soon = soon();
        Ok(lasting(stored, soon) == lasting(ledger(pins)?, soon))
    })?;
    wait_until("the kernel lists nothing else", SOON, || {
        let ledger: BTreeSet<Id> =
            ledger(pins)?.into_iter().map(|(list, entry)| (list, entry.network)).collect();
        Ok(tabled(pins)?.0.iter().all(|id| ledger.contains(id)))
    })
    .map(drop)
}

/// The feed is one of its possible versions, and the shared part was never absent.
fn feed_is_whole(model: &mut Model, pins: &Pins) -> Result<()> {
    let mut found = None;
    wait_until("the feed is as it was, or as it was to be", SOON, || {
        let (_, fed) = tabled(pins)?;
        found = (model.synced..=model.served).find(|number| version(*number) == fed);
        Ok(found.is_some())
    })
    .with_context(|| {
        format!("version {} was acknowledged, {} served", model.synced, model.served)
    })?;
    model.synced = found.context("it was just there")?;
    Ok(())
}

fn kept_are_listed(pins: &Pins) -> Result<()> {
    let (_, fed) = tabled(pins)?;
    let kept: BTreeSet<Network> = version(0).intersection(&version(1)).copied().collect();
    let lost = kept.difference(&fed).count();
    ensure!(lost == 0, "{lost} networks that every version lists are out of the kernel");
    Ok(())
}

#[test]
fn whatever_was_acknowledged_survives() -> Result<()> {
    let rounds = short_or_long(Duration::from_secs(12), Duration::from_secs(200)).as_secs();
    let mut draw = Draw::seeded("power cuts");
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let place = SocketAddr::from((PHONE, 8_000));
    let server = ListServer::start_in(&lab.phone, place, reply(0))?;
    let configuration = format!(
        "[bans]\nfirst = \"3s\"\nunproven = \"3s\"\n\n[[feeds]]\nname = \"lab\"\nurl \
         = \"http://{place}/list\"\nevery = \"1h\"\n"
    );
    let options = FilterOptions {
        interfaces: vec![WAN.to_owned()],
        configuration,
        ..FilterOptions::default()
    };
    let mut filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    let pins = Pins::new(filter.pins());
    let mut model = Model::new();
    wait_until("the first version is in force", SOON, || Ok(tabled(&pins)?.1 == version(0)))?;
    model.sync(&filter, &server)?;
    let attack = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 300)?;

    let (mut commands, mut lost, mut reboots, mut starts) = (0, 0, 0, 0);
    for round in 0..rounds {
        let pid = filter.pid().context("the daemon is not running")?;
        let moment = Duration::from_millis(draw.below(900));
        let answered = thread::scope(|scope| {
            scope.spawn(move || {
                sleep(moment);
                // It is our child and has not been waited for: the id is still its own.
                kill(pid, Signal::SIGKILL)
            });
            let mut answered = 0;
            while model.command(&filter, &server, &mut draw)? {
                answered += 1;
            }
            anyhow::Ok(answered)
        })?;
        filter.kill9()?;
        (commands, lost) = (commands + answered, lost + 1);

        // The filter continues alone, with all acknowledged changes.
        kept_are_listed(&pins).with_context(|| format!("round {round}, with nobody running"))?;
        let before = ledger(&pins)?;
        let reboots_now = draw.below(3) == 0;
        if reboots_now {
            filter.unload()?;
            reboots += 1;
        }
        if draw.below(3) == 0 {
            filter.launch_and_kill(Duration::from_millis(draw.below(1_200)))?;
            starts += 1;
        }
        filter.launch()?;
        let what = format!(
            "round {round}, after {answered} commands and {moment:?}, everything lost: \
             {reboots_now}"
        );
        kept_are_listed(&pins).context(what.clone())?;
        let after = ledger(&pins)?;
        model.check(&manual(&after)).context(what.clone())?;
        if !reboots_now {
            let soon = soon();
            let gone: Vec<_> =
                lasting(before, soon).difference(&lasting(after, soon)).cloned().collect();
            ensure!(gone.is_empty(), "{what}: {gone:?} are gone");
        }
        feed_is_whole(&mut model, &pins).context(what.clone())?;
        all_agree(&pins, &filter).context(what)?;
    }
    let sent = attack.stop()?;
    let bans = filter.log().iter().filter(|line| line.text.contains(" ban ")).count();
    println!(
        "{rounds} power cuts: {commands} commands acknowledged, {lost} cut off, {reboots} times \
         the kernel lost everything, \
         {starts} starts cut off; {bans} bans by the detector, {sent} packets of the attacker, \
         feed at version {}",
        model.synced
    );
    Ok(())
}
